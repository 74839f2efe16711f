"""The motion codec: vectors of 8x8 blocks, predicted from the last frame's, coded at 1/16 as a Haar transform."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlvc.codec.integer import LATENT_UNIT
from rqlvc.codec.layers import QualityScale, ResidualBlock, conv, zero_conv
from rqlvc.codec.prior import LatentCodec
from rqlvc.codec.quality import QualityTable, anchor_qualities
from rqlvc.codec.transforms import haar_matrix

LATENTS = 16  # the 8 Haar coefficients of both components, and 8 that training may use
LOW = (0, 4)  # the mean of each component
WIDTH = 32
STEP_COARSE = 1.0  # initial quantiser step of Haar coefficients at q = 0, luma samples: 1/2 sample of a 16x16 block
STEP_FINE = 0.25  # at q = 63
VECTOR_UNIT = 8.0  # networks see vectors in units of 8 samples
PREDICTION_UNIT = 0.25
"""Luma samples that the prediction's correction counts in: at 8, a usual learning rate moved it by whole samples a
step, and it ran away."""


def _initial_step() -> Tensor:
    position = anchor_qualities()[:, None] / anchor_qualities()[-1]
    return torch.exp(math.log(STEP_COARSE) * (1 - position) + math.log(STEP_FINE) * position)


class MotionPrediction(nn.Module):
    """Motion extrapolated from the last two decoded fields; starts as the last field repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.head = conv(4, WIDTH)
        self.out = zero_conv(WIDTH, 2)

    def forward(self, last: Tensor, before: Tensor) -> Tensor:
        x = F.leaky_relu(self.head(torch.cat([last, before], dim=1) / VECTOR_UNIT), 0.1)
        return last + self.out(x).float() * PREDICTION_UNIT


class MotionCodec(nn.Module):
    """Motion fields (N, 2, H / 8, W / 8; x, y in luma samples) to integer latents (N, 16, H / 16, W / 16) and back."""

    haar: Tensor

    def __init__(self, temporal: bool) -> None:
        super().__init__()
        step = _initial_step().expand(-1, LATENTS)
        self.register_buffer("haar", haar_matrix(), persistent=False)
        self.gain = QualityTable(-torch.log(step))
        self.inverse_gain = QualityTable(torch.log(step))
        self.analysis_head = conv(20, WIDTH)
        self.analysis_scale = QualityScale(WIDTH)
        self.analysis_block = ResidualBlock(WIDTH)
        self.analysis_out = zero_conv(WIDTH, LATENTS)
        self.synthesis_head = conv(LATENTS + 8, WIDTH)
        self.synthesis_scale = QualityScale(WIDTH)
        self.synthesis_block = ResidualBlock(WIDTH)
        self.synthesis_out = zero_conv(WIDTH, 8)
        scale = torch.tensor([0.8, 0.4, 0.4, 0.3] * 2 + [0.05] * 8)
        self.latents = LatentCodec("motion", scale / step, LOW, WIDTH, linear=True, temporal=temporal)

    def analyse(self, motion: Tensor, predicted: Tensor, error: Tensor, quality: Tensor) -> Tensor:
        """Latents in quantiser steps. ``error``: mean absolute prediction error of each block (N, 1, H / 8, W / 8)."""
        difference = F.pixel_unshuffle(motion - predicted, 2)
        with torch.autocast(quality.device.type, enabled=False):
            linear = F.conv2d(difference, self.haar[:, :, None, None])
        seen = torch.cat([difference / VECTOR_UNIT, F.pixel_unshuffle(predicted, 2) / VECTOR_UNIT], dim=1)
        seen = torch.cat([seen, F.pixel_unshuffle(error, 2) * 16], dim=1)
        x = F.leaky_relu(self.analysis_scale(self.analysis_head(seen), quality), 0.1)
        correction = self.analysis_out(self.analysis_block(x)).float()
        return (F.pad(linear, (0, 0, 0, 0, 0, LATENTS - 8)) + correction) * torch.exp(self.gain(quality))

    def synthesise(self, coded: Tensor, predicted: Tensor, quality: Tensor) -> Tensor:
        latent = coded.float() / LATENT_UNIT * torch.exp(self.inverse_gain(quality))
        with torch.autocast(quality.device.type, enabled=False):
            # Float32: vectors rounded to bfloat16 would move the prediction, and the next frame's vectors with it.
            linear = F.conv2d(latent[:, :8], self.haar.T[:, :, None, None])
        seen = torch.cat([latent, F.pixel_unshuffle(predicted, 2)], dim=1) / VECTOR_UNIT
        x = F.leaky_relu(self.synthesis_scale(self.synthesis_head(seen), quality), 0.1)
        correction = self.synthesis_out(self.synthesis_block(x)).float()
        return predicted + F.pixel_shuffle(linear + correction, 2)
