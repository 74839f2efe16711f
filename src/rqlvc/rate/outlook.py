"""What a first pass tells of a video before it is coded: the bits of every frame at one quality level."""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from rqlvc.errors import RqlvcError
from rqlvc.rate.initial import usual_slope
from rqlvc.rate.models import log_bits
from rqlvc.rate.protocol import FrameInfo, RatePoint

SPAN = 20.0
"""Levels on either side of the first pass's over which a frame's curve is drawn, with the usual slope."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """``bits`` of all frames at ``quality``, and which of them were ``intra``."""

    quality: float
    bits: tuple[int, ...]
    intra: tuple[bool, ...]

    def points(self, info: FrameInfo) -> tuple[RatePoint, ...]:
        """The curve of a frame. Raises :class:`RqlvcError` where the video is not that of the first pass."""
        if info.index >= len(self.bits) or info.intra != self.intra[info.index]:
            raise RqlvcError(
                f"frame {info.index} is not what the first pass found there: make the first pass again, "
                "from the same video with the same options."
            )
        middle = log_bits(self.bits[info.index])
        slope = usual_slope(info.intra)
        return tuple(
            RatePoint(self.quality + change, float(np.exp(middle + slope * change))) for change in (-SPAN, SPAN)
        )

    def left(self, slots: int) -> np.ndarray:
        """Bits at ``quality`` from each frame on: of intra frames, then of each slot of a miniGOP of ``slots`` frames.

        Shape (frames + 1, 1 + slots), its last row 0.
        """
        positions = list(accumulate(self.intra, lambda position, intra: 0 if intra else position + 1, initial=-1))[1:]
        spread = np.zeros((len(self.bits) + 1, 1 + slots))
        for index, (bits, position) in enumerate(zip(self.bits, positions, strict=True)):
            spread[index, 1 + (position - 1) % slots if position else 0] = bits
        return np.cumsum(spread[::-1], axis=0)[::-1]
