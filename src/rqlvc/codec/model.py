"""The codec's networks: how an intra and an inter frame are coded. One description for training, encoding, decoding.

A method given ``frame`` analyses it; given None it decodes. What is analysed and what is decoded meet in the
:class:`~rqlvc.codec.entropy.Coder`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlvc.codec.binary import fresh_contexts
from rqlvc.codec.entropy import Coder, MotionContext
from rqlvc.codec.integer import LATENT_UNIT, IntegerConv, compand, companding_table
from rqlvc.codec.interpolation import MARGIN, PEL, compensate, follow, quarter_pel, towards_reference, upsample_blocks
from rqlvc.codec.layers import QualityScale, ResidualBlock, conv, zero_conv
from rqlvc.codec.motion import CONTEXTS, LATENTS, to_latents
from rqlvc.codec.planes import FOLD_4, Planes, fold
from rqlvc.codec.prior import Latents
from rqlvc.codec.quality import quantiser_step
from rqlvc.codec.search import block_search
from rqlvc.codec.texture import COARSE, FINE, PRIOR, Condition, InterCodec, IntraCodec


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Parts that can be switched off, so that their worth can be measured."""

    mask: bool = False
    coarse: bool = False  # networks at 1/8 in prediction and inter codec
    attention: bool = False  # in these, which it switches on
    motion_prediction: bool = True  # from decoded motion: of neighbours and of the last frame
    temporal_prior: bool = True


class State(NamedTuple):
    """The decoded-picture buffer: what both sides know after a frame."""

    reference: Planes
    quality: Tensor
    texture: Latents | None = None  # None after an intra frame, as all that follow
    motion: Tensor | None = None  # of the reference (N, 3, h, w): quarter samples, and which picture they reach to
    contexts: Tensor | None = None  # of motion's decisions
    past: Planes | None = None  # before the reference; where there is motion


VECTOR_UNIT = 32.0  # networks see vectors in units of 8 samples


class Prediction(nn.Module):
    """The prediction from the moved reference and the moved picture before it, its features, and the soft mask.

    Blocks whose vectors reach to the picture before are taken from it alone.

    Two pictures with noise of their own predict better than one. Only what was interpolated, or lies at an edge of
    motion, is refined: samples that a whole, even motion repeats are refined already.
    """

    def __init__(self, mask: bool, coarse: bool) -> None:
        super().__init__()
        self.head = conv(2 * FOLD_4 + 2, FINE)
        self.modulate = QualityScale(FINE)
        self.fine = ResidualBlock(FINE)
        self.coarse = CoarseFeatures() if coarse else None
        features = FINE + (FINE // 2 if coarse else 0)
        self.out = zero_conv(features, FOLD_4)
        self.blend = zero_conv(features, 1)
        self.mask = zero_conv(features, 1) if mask else None
        if self.mask is not None and self.mask.bias is not None:
            nn.init.constant_(self.mask.bias, 4.0)  # sigmoid(4) = 0.98: near pure residual coding

    def forward(self, moved: Planes, past: Planes, motion: Tensor, quality: Tensor) -> tuple[Tensor, Condition]:
        """Masked prediction, fold 4 (N, 24, H / 4, W / 4), and the condition of the inter codec."""
        before = fold(past, 4)
        samples = torch.where(upsample_blocks(motion[:, 2:], 2) > 0, before, fold(moved, 4))
        other = before - samples
        vectors = towards_reference(motion) / VECTOR_UNIT
        x = torch.cat([samples, upsample_blocks(vectors, 2), other], dim=1)
        fine = features = self.fine(F.leaky_relu(self.modulate(self.head(x), quality), 0.1))
        coarse = None
        if self.coarse is not None:
            coarse, back = self.coarse(fine)
            features = torch.cat([fine, back], dim=1)
        refined, blend = self._outputs(features)
        refined = refined + blend * other
        prediction = samples + refined * _interpolated(motion)
        if self.mask is not None:
            prediction = prediction * torch.sigmoid(self.mask(features).float())
        return prediction, Condition(fine, coarse)

    def _outputs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Correction and blend, by one convolution: one with a single channel alone would take as long as both."""
        weight = torch.cat([self.out.weight, self.blend.weight])
        bias = torch.cat([self.out.bias, self.blend.bias])  # type: ignore[list-item]
        both = F.conv2d(features, weight, bias, padding=1).float()
        return both[:, :-1], both[:, -1:]


class CoarseFeatures(nn.Module):
    """Features at 1/8 of those at 1/4, and these back at 1/4 (half as many)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = conv(FINE, COARSE, 3, 2)
        self.block = ResidualBlock(COARSE)
        self.up = conv(COARSE, 4 * FINE // 2, 1)

    def forward(self, fine: Tensor) -> tuple[Tensor, Tensor]:
        coarse = self.block(F.leaky_relu(self.down(fine), 0.1))
        return coarse, F.pixel_shuffle(self.up(coarse), 2)


def _interpolated(motion: Tensor) -> Tensor:
    """1 where vectors of ``motion`` (N, 3, h, w) are fractional or differ from a neighbour's, (N, 1, H / 4, W / 4)."""
    fractional = (torch.remainder(motion[:, :2], PEL) != 0).any(dim=1, keepdim=True)
    edge = (F.max_pool2d(motion, 3, 1, 1) != -F.max_pool2d(-motion, 3, 1, 1)).any(dim=1, keepdim=True)
    return upsample_blocks((fractional | edge).to(torch.float32), 2)


class VideoModel(nn.Module):
    """Intra codec, motion, prediction, inter codec."""

    companding: Tensor
    motion_contexts: Tensor

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        self.intra = IntraCodec()
        coarse = config.coarse or config.attention
        self.prediction = Prediction(config.mask, coarse)
        self.inter = InterCodec(coarse, config.attention, config.temporal_prior)
        self.motion_side = IntegerConv(LATENTS, PRIOR, 3)
        self.register_buffer("companding", companding_table(), persistent=False)
        self.register_buffer("motion_contexts", torch.from_numpy(fresh_contexts(CONTEXTS)))  # after an intra frame

    def intra_frame(
        self, coder: Coder, quality: Tensor, frame: Planes | None, size: tuple[int, int]
    ) -> tuple[Planes, State]:
        """Code an intra frame of padded ``size`` (H, W) at ``quality`` (N,)."""
        latent = None if frame is None else self.intra.analyse(frame, quality)
        coded = self.intra.latents(coder, latent, (size[0] // 8, size[1] // 8), quality)
        decoded = self.intra.synthesise(coded.latent, quality)
        return decoded, State(decoded, quality)

    def inter_frame(self, coder: Coder, quality: Tensor, frame: Planes | None, state: State) -> tuple[Planes, State]:
        """Code a frame at ``quality`` (N,) from ``state``."""
        reference = state.reference
        height, width = reference.luma.shape[-2:]
        past_quality = None if state.texture is None else state.quality

        contexts = state.contexts
        if contexts is None:
            contexts = self.motion_contexts.expand(len(quality), -1, -1)
        known = MotionContext(state.motion, contexts, self.config.motion_prediction)
        found = None
        if frame is not None:
            pictures = [reference] if state.past is None else [reference, state.past]
            fine = [quarter_pel(picture.luma, MARGIN) for picture in pictures]
            found = block_search(frame.luma, reference.luma, fine, known, quantiser_step(quality))
        motion, contexts = coder.motion(found, known, (height // 8, width // 8))
        motion = motion.to(quality)

        vectors = towards_reference(motion)
        moved = past = compensate(reference, vectors)
        if state.past is not None and state.motion is not None:
            through = follow(vectors, towards_reference(state.motion))
            past = compensate(state.past, torch.where(motion[:, 2:] > 0, motion[:, :2], through))
        prediction, condition = self.prediction(moved, past, motion, quality)

        latent = None
        if frame is not None:
            latent = self.inter.analyse(fold(frame, 4) - prediction, quality, condition)
        with torch.autocast(quality.device.type, enabled=False):
            latents = compand(to_latents(vectors) * LATENT_UNIT, self.companding)
            side = upsample_blocks(self.motion_side(latents.to(self.motion_side.weight.dtype)), 2)
        size = (height // 8, width // 8)
        texture = self.inter.latents(coder, latent, size, quality, side, state.texture, past_quality)
        decoded = self.inter.synthesise(texture.latent, prediction, quality, condition)
        return decoded, State(decoded, quality, texture.detach(), motion, contexts, reference)
