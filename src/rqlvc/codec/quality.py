"""Quality level: what q in [0, 63] means to the networks (63 is best)."""

import math

import torch
from torch import Tensor, nn

from rqlvc.codec.integer import round_half_up, straight_through
from rqlvc.codec.protocol import QUALITY_MAX, QUALITY_STEPS

LAMBDA_MIN = 28.0
LAMBDA_MAX = 16_000.0
"""Range of the Lagrangian for MSE on [0, 1] samples: quantiser steps from about 174 to 7 in 8-bit units."""

ANCHOR_SPACING = 8
"""Tables over quality have an entry every 8 levels; a power of two, so that integer interpolation is exact."""
ANCHORS = 9


def lagrangian(quality: Tensor) -> Tensor:
    """lambda(q), log-linear between its ends (Eq. 1 of RQ-LVC, the DCVC-FM form)."""
    return LAMBDA_MIN * torch.exp(quality / QUALITY_MAX * math.log(LAMBDA_MAX / LAMBDA_MIN))


def quantiser_step(quality: Tensor) -> Tensor:
    """The uniform quantiser's high-rate optimum for D = mean over all 4:2:0 samples of one frame.

    With R in bits per luma pixel there are 1.5 samples a pixel, hence
    dR/dD = -1.5 / (2 ln2 D) and D = step^2 / 12, so step^2 = 9 / (ln2 * lambda).
    """
    return torch.sqrt(9.0 / (math.log(2.0) * lagrangian(quality)))


def anchor_qualities() -> Tensor:
    """The quality of each table entry, shape (9,); the last lies just past 63 and only serves interpolation."""
    return torch.arange(ANCHORS, dtype=torch.float32) * ANCHOR_SPACING


class QualityTable(nn.Module):
    """Per-channel values that follow quality, linearly interpolated between anchors."""

    def __init__(self, initial: Tensor) -> None:
        """``initial`` has shape (9, channels)."""
        super().__init__()
        self.table = nn.Parameter(initial.clone())

    def forward(self, quality: Tensor) -> Tensor:
        """Values of shape (batch, channels, 1, 1) for ``quality`` of shape (batch,)."""
        position = quality.float() / ANCHOR_SPACING
        index = position.floor().clamp(0, ANCHORS - 2)
        fraction = (position - index)[:, None]
        low = index.long()
        values = self.table[low] * (1 - fraction) + self.table[low + 1] * fraction
        return values[:, :, None, None]


class IntegerQualityTable(nn.Module):
    """As :class:`QualityTable`, with integer values and exact integer interpolation at q in 1/64 steps."""

    UNIT = 32.0
    """Trained parameters are integers over 32, so that an optimiser's usual step moves them usefully."""
    LIMIT = 2**14
    """|entry| bound: times 512 steps of interpolation it stays below 2^24."""

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(initial / self.UNIT)

    def largest_entry(self) -> float:
        return float((self.table.detach() * self.UNIT).abs().max().clamp(max=self.LIMIT))

    def forward(self, quality: Tensor) -> Tensor:
        steps = torch.round(quality * QUALITY_STEPS).to(self.table.dtype)
        span = float(ANCHOR_SPACING * QUALITY_STEPS)
        index = torch.floor(steps / span).clamp(0, ANCHORS - 2)
        fraction = (steps - index * span)[:, None]
        low = index.long()
        entries = (self.table * self.UNIT).clamp(-self.LIMIT, self.LIMIT)
        entries = straight_through(entries, torch.round(entries))
        blend = entries[low] * (span - fraction) + entries[low + 1] * fraction
        return round_half_up(blend / span)[:, :, None, None]
