"""Integer prior networks: from what both sides know to the mean and scale bin of every latent.

Everything in this file is integer-exact (see :mod:`rqlvc.codec.integer`): inputs are integer latents, already decoded
by both sides, and quality in 1/64 steps.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlvc.codec.entropy import BINS, LOG_STEP, SCALE_MIN, Coder
from rqlvc.codec.integer import (
    IntegerConv,
    compand,
    companding_table,
    linear_input,
    rectify,
    requantise,
)
from rqlvc.codec.quality import ANCHORS, IntegerQualityTable

MEAN_LIMIT = 16 * 1024
SHIFT = 8  # weights of 1/256: +-127 reaches +-0.5, five deviations of the widest layer at the start


class Parameters(NamedTuple):
    mean: Tensor  # integers, 1/16 quantiser steps
    bins: Tensor  # integers in [0, 63]


def scale_to_bin(scale: Tensor) -> Tensor:
    """The (real) bin of a Laplace scale in quantiser steps."""
    return (torch.log(scale / SCALE_MIN) / LOG_STEP).clamp(0, BINS - 1)


def split_parameters(accumulator: Tensor, offset: Tensor, shift: int = SHIFT) -> Parameters:
    """Means and bins from the last accumulator; ``offset`` is the bin that the quality level alone suggests."""
    output = requantise(accumulator, shift)
    mean, scale = output.chunk(2, dim=1)
    return Parameters(mean.clamp(-MEAN_LIMIT, MEAN_LIMIT), (scale + offset).clamp(0, BINS - 1))


def checkerboard(like: Tensor) -> Tensor:
    """1 at the first step's positions: alternating in space, shifted from channel to channel.

    So each position has half of its channels decoded in the first step, for the second to look at.
    """
    _, channels, height, width = like.shape
    c, i, j = torch.meshgrid(torch.arange(channels), torch.arange(height), torch.arange(width), indexing="ij")
    return ((c + i + j) % 2 == 0).to(like)[None]


class HyperPrior(nn.Module):
    """Prior of the hyper-latents: the last frame's hyper-latents and the quality level."""

    companding: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.past = IntegerConv(channels, 2 * channels, 3, gain=0.1)
        self.level = IntegerQualityTable(torch.zeros(ANCHORS, channels))
        self.offset = IntegerQualityTable(torch.full((ANCHORS, channels), 20.0))
        self.register_buffer("companding", companding_table(), persistent=False)

    def forward(self, past: Tensor, quality: Tensor) -> Parameters:
        mean, bins = split_parameters(self.past(compand(past, self.companding)), self.offset(quality))
        return Parameters(mean + self.level(quality), bins)


class HyperSynthesis(nn.Module):
    """Hyper-latents at 1/4 of the latents' resolution, up to it: an accumulator for the prior's sum."""

    companding: Tensor

    def __init__(self, hyper: int, width: int) -> None:
        super().__init__()
        self.inner = IntegerConv(hyper, width, 3)
        self.up = IntegerConv(width, 4 * width // 2, 3)
        self.out = IntegerConv(width // 2, 4 * width, 1)
        self.register_buffer("companding", companding_table(), persistent=False)

    def forward(self, hyper: Tensor, height: int, width: int) -> Tensor:
        x = rectify(self.inner(compand(hyper, self.companding)), SHIFT)
        x = F.pixel_shuffle(rectify(self.up(x), SHIFT), 2)
        return F.pixel_shuffle(self.out(x), 2)[:, :, :height, :width]


class LatentPrior(nn.Module):
    """Prior of a latent in two checkerboard steps.

    The first step knows the side information (hyper-latents, other latents of this frame), the last frame's latent of
    the same kind and the quality levels of both frames; the second also the half already decoded.
    """

    LINEAR = 12
    """The lowest-frequency channels also enter uncompressed, because their values are large and smooth."""

    companding: Tensor

    def __init__(self, channels: int, width: int, initial_bins: Tensor, linear: bool, temporal: bool) -> None:
        """``initial_bins``: (9, channels), the scale bin of each channel at each quality anchor."""
        super().__init__()
        self.linear = linear
        inputs = channels + (self.LINEAR if linear else 0)
        self.past = IntegerConv(inputs, width, 3) if temporal else None
        self.level = IntegerQualityTable(torch.randn(ANCHORS, width) * 4)
        self.past_level = IntegerQualityTable(torch.zeros(ANCHORS, width)) if temporal else None
        self.first = IntegerConv(width, width, 3)
        self.first_out = IntegerConv(width, 2 * channels, 1, gain=0.05)
        self.context = IntegerConv(inputs, width, 3)
        self.second = IntegerConv(width, width, 3)
        self.second_out = IntegerConv(width, 2 * channels, 1, gain=0.05)
        self.offset = IntegerQualityTable(initial_bins)
        self.register_buffer("companding", companding_table(), persistent=False)

    def _input(self, latent: Tensor) -> Tensor:
        latent = latent.detach()
        companded = compand(latent, self.companding)
        if not self.linear:
            return companded
        low = torch.cat([latent[:, :6], latent[:, 64:67], latent[:, 80:83]], dim=1)
        return torch.cat([companded, linear_input(low)], dim=1)

    def forward(
        self,
        coder: Coder,
        value: Tensor | None,
        side: Tensor,
        quality: Tensor,
        past: Tensor | None,
        past_quality: Tensor | None,
    ) -> Tensor:
        """Code ``value`` (None when decoding); returns the latent as integers in 1/16 steps.

        ``side``: accumulator (batch, width, height, width) of the side information, of shift 8.
        """
        known = side + self.level(quality) * 2.0**SHIFT
        if self.past is not None and self.past_level is not None and past is not None and past_quality is not None:
            known = known + self.past(self._input(past)) + self.past_level(past_quality) * 2.0**SHIFT
        hidden = rectify(known, SHIFT)
        offset = self.offset(quality)

        x = rectify(self.first(hidden), SHIFT)
        parameters = split_parameters(self.first_out(x), offset)
        first = checkerboard(parameters.mean)
        anchors = coder.latent(value, parameters.mean, parameters.bins, first)

        hidden = rectify(known + self.context(self._input(anchors)), SHIFT)
        x = rectify(self.second(hidden), SHIFT)
        parameters = split_parameters(self.second_out(x), offset)
        rest = coder.latent(value, parameters.mean, parameters.bins, 1 - first)
        return anchors + rest
