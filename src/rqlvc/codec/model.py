"""The codec's networks: how an intra and an inter frame are coded. One description for training, encoding, decoding.

A method given ``frame`` analyses it; given None it decodes. What is analysed and what is decoded meet in the
:class:`~rqlvc.codec.entropy.Coder`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlvc.codec.entropy import Coder, MotionContext
from rqlvc.codec.integer import LATENT_UNIT, IntegerConv, compand, companding_table
from rqlvc.codec.interpolation import MARGIN, PEL, compensate, extend, quarter_pel, towards_reference, upsample_blocks
from rqlvc.codec.layers import QualityScale, ResidualBlock, conv, join_channels, zero_conv
from rqlvc.codec.mixing import Mixer
from rqlvc.codec.motion import LATENTS, rescaled, to_latents
from rqlvc.codec.motion_coding import new_motion_mixer
from rqlvc.codec.planes import FOLD_4, Planes, fold
from rqlvc.codec.prior import Latents
from rqlvc.codec.quality import quantiser_step
from rqlvc.codec.references import Kept, too_many
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
    distances: tuple[int, ...] = ()  # frames from the reference to the pictures that its motion reaches to
    mixers: tuple[Mixer, ...] | None = None  # of motion's decisions, for each of N
    kept: tuple[Kept, ...] = ()  # before the reference, latest first

    def without(self, index: int) -> "State":
        """Without that one of the pictures that are kept, if they are too many."""
        if not too_many(self.kept):
            return self
        return self._replace(kept=self.kept[:index] + self.kept[index + 1 :])


VECTOR_UNIT = 32.0  # networks see vectors in units of 8 samples


class Prediction(nn.Module):
    """The prediction from moved pictures, its features, and the soft mask.

    Two pictures with noise of their own predict better than one: beside the samples that vectors reach to come those of
    another picture. Only what was interpolated, or lies at an edge of motion, is refined: samples that a whole, even
    motion repeats are refined already.
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

    def forward(
        self, moved: Planes, other: Planes | None, motion: Tensor, vectors: Tensor, quality: Tensor
    ) -> tuple[Tensor, Condition]:
        """Masked prediction, fold 4 (N, 24, H / 4, W / 4), and the condition of the inter codec.

        ``moved``, ``other``: the samples that ``motion`` (N, 3, h, w) reaches to, and those of another picture, where
        there is one. ``vectors`` (N, 2, h, w): motion to the reference.
        """
        samples = fold(moved, 4)
        apart = torch.zeros_like(samples) if other is None else fold(other, 4) - samples
        x = join_channels(samples, upsample_blocks(vectors / VECTOR_UNIT, 2), apart)
        fine = features = self.fine(F.leaky_relu(self.modulate(self.head(x), quality), 0.1))
        coarse = None
        if self.coarse is not None:
            coarse, back = self.coarse(fine)
            features = torch.cat([fine, back], dim=1)
        refined, blend = self._outputs(features)
        refined = refined + blend * apart
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
    motion_weights: Tensor

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        self.intra = IntraCodec()
        coarse = config.coarse or config.attention
        self.prediction = Prediction(config.mask, coarse)
        self.inter = InterCodec(coarse, config.attention, config.temporal_prior)
        self.motion_side = IntegerConv(LATENTS, PRIOR, 3, signed=True)
        self.register_buffer("companding", companding_table(), persistent=False)
        mixer = new_motion_mixer()  # after an intra frame
        self.register_buffer("motion_contexts", torch.from_numpy(mixer.contexts))
        self.register_buffer("motion_weights", torch.from_numpy(mixer.weights))

    @property
    def motion_mixer(self) -> Mixer:
        """What motion is coded with after an intra frame."""
        return Mixer(self.motion_contexts.cpu().numpy(), self.motion_weights.cpu().numpy())

    @motion_mixer.setter
    def motion_mixer(self, mixer: Mixer) -> None:
        self.motion_contexts.copy_(torch.from_numpy(mixer.contexts))
        self.motion_weights.copy_(torch.from_numpy(mixer.weights))

    def intra_frame(
        self, coder: Coder, quality: Tensor, frame: Planes | None, size: tuple[int, int]
    ) -> tuple[Planes, State]:
        """Code an intra frame of padded ``size`` (H, W) at ``quality`` (N,)."""
        latent = None if frame is None else self.intra.analyse(frame, quality)
        coded = self.intra.latents(coder, latent, (size[0] // 8, size[1] // 8), quality)
        decoded = self.intra.synthesise(coded.latent, quality)
        return decoded, State(decoded, quality)

    def inter_frame(self, coder: Coder, quality: Tensor, frame: Planes | None, state: State) -> tuple[Planes, State]:
        """Code a frame at ``quality`` (N,) from ``state``. The state after it keeps all pictures and the reference: one
        more than vectors can reach to."""
        reference = state.reference
        height, width = reference.luma.shape[-2:]
        past_quality = None if state.texture is None else state.quality

        mixers = state.mixers or (self.motion_mixer,) * len(quality)
        distances = (1, *(kept.distance + 1 for kept in state.kept))
        last = None if state.motion is None else rescaled(state.motion, state.distances, distances)
        known = MotionContext(last, distances, mixers, self.config.motion_prediction)
        pictures = extend([reference, *(kept.picture for kept in state.kept)])
        found = fine = None
        if frame is not None:
            fine = quarter_pel(reference.luma, MARGIN)
            through = [kept.through for kept in state.kept]
            searched = [fine, *(kept.at_quarter_pel() for kept in state.kept)]
            found = block_search(frame.luma, reference.luma, searched, through, known, quantiser_step(quality))
        motion, mixers = coder.motion(found, known, (height // 8, width // 8))
        motion = motion.to(quality)

        vectors = towards_reference(motion, distances)
        kept = [past.after(motion, vectors, index) for index, past in enumerate(state.kept, start=1)]
        other = None
        if kept:
            beyond = motion[:, 2:] > 0
            elsewhere = torch.where(beyond, vectors, kept[0].through)
            other = compensate(pictures, torch.cat([elsewhere, (~beyond).to(motion)], dim=1), overlapped=False)
        moved = compensate(pictures, motion, overlapped=True)
        prediction, condition = self.prediction(moved, other, motion, vectors, quality)

        latent = None
        if frame is not None:
            latent = self.inter.analyse(fold(frame, 4) - prediction, quality, condition)
        with torch.autocast(quality.device.type, enabled=False):
            latents = compand(to_latents(vectors) * LATENT_UNIT, self.companding)
            side = upsample_blocks(self.motion_side(latents.to(self.motion_side.weight.dtype)), 2)
        size = (height // 8, width // 8)
        texture = self.inter.latents(coder, latent, size, quality, side, state.texture, past_quality)
        decoded = self.inter.synthesise(texture.latent, prediction, quality, condition)
        before = Kept(reference, state.quality, vectors, fine=fine)
        return decoded, State(decoded, quality, texture.detach(), motion, distances, mixers, (before, *kept))
