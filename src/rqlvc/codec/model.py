"""The codec's networks: how an intra and an inter frame are coded. One description for training, encoding, decoding.

A method given ``frame`` analyses it; given None it decodes. What is analysed and what is decoded meet in the
:class:`~rqlvc.codec.entropy.Coder`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlvc.codec.entropy import Coder
from rqlvc.codec.integer import IntegerConv, compand, companding_table
from rqlvc.codec.interpolation import compensate, quarter_pel, upsample_blocks
from rqlvc.codec.layers import QualityScale, ResidualBlock, conv, zero_conv
from rqlvc.codec.motion import LATENTS, VECTOR_UNIT, MotionCodec, MotionPrediction
from rqlvc.codec.planes import FOLD_4, Planes, fold, unfold
from rqlvc.codec.prior import Latents
from rqlvc.codec.quality import quantiser_step
from rqlvc.codec.search import block_search
from rqlvc.codec.texture import COARSE, FINE, PRIOR, Condition, TextureCodec


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Parts that can be switched off, so that their worth can be measured."""

    mask: bool = True
    attention: bool = False
    motion_prediction: bool = True
    temporal_prior: bool = True


class State(NamedTuple):
    """The decoded-picture buffer: what both sides know after a frame."""

    reference: Planes
    quality: Tensor
    texture: Latents | None  # None after an intra frame, as the next three
    motion_latents: Latents | None
    motion: Tensor | None
    motion_before: Tensor | None


class Prediction(nn.Module):
    """The prediction refined from the moved reference, its features, and the soft mask."""

    def __init__(self, mask: bool) -> None:
        super().__init__()
        self.head = conv(FOLD_4 + 2, FINE)
        self.modulate = QualityScale(FINE)
        self.fine = ResidualBlock(FINE)
        self.down = conv(FINE, COARSE, 3, 2)
        self.coarse = ResidualBlock(COARSE)
        self.up = conv(COARSE, 4 * FINE // 2, 1)
        self.out = zero_conv(FINE + FINE // 2, FOLD_4)
        self.mask = zero_conv(FINE + FINE // 2, 1) if mask else None
        if self.mask is not None and self.mask.bias is not None:
            nn.init.constant_(self.mask.bias, 4.0)  # sigmoid(4) = 0.98: near pure residual coding

    def forward(self, moved: Planes, motion: Tensor, quality: Tensor) -> tuple[Tensor, Condition]:
        """Masked prediction, fold 4 (N, 24, H / 4, W / 4), and the condition of the inter codec."""
        samples = fold(moved, 4)
        x = torch.cat([samples, upsample_blocks(motion, 2) / VECTOR_UNIT], dim=1)
        fine = self.fine(F.leaky_relu(self.modulate(self.head(x), quality), 0.1))
        coarse = self.coarse(F.leaky_relu(self.down(fine), 0.1))
        both = torch.cat([fine, F.pixel_shuffle(self.up(coarse), 2)], dim=1)
        prediction = samples + self.out(both).float()
        if self.mask is not None:
            prediction = prediction * torch.sigmoid(self.mask(both).float())
        return prediction, Condition(fine, coarse)


class VideoModel(nn.Module):
    """Intra codec, motion, prediction, inter codec."""

    companding: Tensor

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        self.intra = TextureCodec(conditional=False, attention=False, temporal=False)
        self.motion_prediction = MotionPrediction()
        self.motion = MotionCodec(config.temporal_prior)
        self.prediction = Prediction(config.mask)
        self.inter = TextureCodec(conditional=True, attention=config.attention, temporal=config.temporal_prior)
        self.motion_side = IntegerConv(LATENTS, PRIOR, 3)
        self.register_buffer("companding", companding_table(), persistent=False)

    def intra_frame(
        self, coder: Coder, quality: Tensor, frame: Planes | None, size: tuple[int, int]
    ) -> tuple[Planes, State]:
        """Code an intra frame of padded ``size`` (H, W) at ``quality`` (N,)."""
        latent = None if frame is None else self.intra.analyse(frame, quality, None)
        coded = self.intra.latents(coder, latent, (size[0] // 8, size[1] // 8), quality)
        decoded = self.intra.synthesise(coded.latent, None, quality, None)
        return decoded, State(decoded, quality, None, None, None, None)

    def inter_frame(self, coder: Coder, quality: Tensor, frame: Planes | None, state: State) -> tuple[Planes, State]:
        """Code a frame at ``quality`` (N,) from ``state``."""
        reference = state.reference
        height, width = reference.luma.shape[-2:]
        fine = quarter_pel(reference.luma)

        predicted = self._predict_motion(state)
        latent = None if frame is None else self._analyse_motion(frame, reference, fine, predicted, quality)
        past_quality = None if state.motion_latents is None else state.quality
        size = (height // 16, width // 16)
        motion_latents = self.motion.latents(coder, latent, size, quality, None, state.motion_latents, past_quality)
        motion = self.motion.synthesise(motion_latents.latent, predicted, quality)

        moved = compensate(reference, fine, motion)
        prediction, condition = self.prediction(moved, motion, quality)

        latent = None
        if frame is not None:
            residual = unfold(fold(frame, 4) - prediction, 4)
            latent = self.inter.analyse(residual, quality, condition)
        with torch.autocast(quality.device.type, enabled=False):
            known = compand(motion_latents.latent.detach(), self.companding)
            side = upsample_blocks(self.motion_side(known), 2)
        size = (height // 8, width // 8)
        texture = self.inter.latents(coder, latent, size, quality, side, state.texture, past_quality)
        decoded = self.inter.synthesise(texture.latent, prediction, quality, condition)
        return decoded, State(
            decoded, quality, texture.detach(), motion_latents.detach(), motion.detach(), state.motion
        )

    def _predict_motion(self, state: State) -> Tensor:
        n, _, height, width = state.reference.luma.shape
        if state.motion is None or not self.config.motion_prediction:
            return state.quality.new_zeros(n, 2, height // 8, width // 8)
        before = state.motion if state.motion_before is None else state.motion_before
        return self.motion_prediction(state.motion, before)

    def _analyse_motion(
        self, frame: Planes, reference: Planes, fine: Tensor, predicted: Tensor, quality: Tensor
    ) -> Tensor:
        step = quantiser_step(quality)
        motion, error = block_search(frame.luma, reference.luma, fine.detach(), predicted.detach(), step)
        return self.motion.analyse(motion, predicted, error, quality)
