"""What a first pass tells of a video before it is coded: the bits of every frame at one base level, or at two.

The pattern of levels is that of the second pass, for a frame costs what the levels of those before it make it cost: one
that stands out from its reference carries what they left out.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from rqlvc.rate.estimation import ALPHA_MAX, ALPHA_MIN
from rqlvc.rate.hierarchy import LIFT
from rqlvc.rate.initial import INTER, INTRA
from rqlvc.rate.models import MAXIMUM_LOG_BITS, FloatArray, log_bits
from rqlvc.rate.protocol import QualityRange

BISECTIONS = 14
"""Halvings of the range of the base, to less than a step of 1/64."""
BEYOND = 20.0
"""Levels that the base may be above the highest, where only the offsets of the pattern still pull levels down."""


class Term(NamedTuple):
    """Frames whose ln bits, together, are ``log_rate + slope * level``, at the base level plus ``offset``."""

    log_rate: float
    slope: float
    offset: float

    def at(self, level: float) -> float:
        """ln bits."""
        return self.log_rate + self.slope * level


def base_level(terms: Sequence[Term], bits: float, limits: QualityRange) -> float:
    """The base level at which frames cost ``bits`` together, none of them at a level out of ``limits``."""
    low, high = limits.minimum - LIFT, limits.maximum + BEYOND
    for _ in range(BISECTIONS):
        base = (low + high) / 2
        if sum(math.exp(min(term.at(limits.clip(base + term.offset)), MAXIMUM_LOG_BITS)) for term in terms) < bits:
            low = base
        else:
            high = base
    return (low + high) / 2


@dataclass(frozen=True, slots=True)
class Outlook:
    """``bits[k]`` are those of all frames at the base level ``bases[k]``: of one pass or, at another base, a second.

    ``intra`` says which frames were; they had the base level, and inter frames ``offsets`` from it, one after the
    other, within [0, 63].
    """

    bases: tuple[float, ...]
    offsets: tuple[float, ...]
    bits: tuple[tuple[int, ...], ...]
    intra: tuple[bool, ...]

    def __len__(self) -> int:
        """Frames."""
        return len(self.intra)

    def columns(self) -> tuple[int, ...]:
        """Of each frame: 0 if it is intra, or 1 + its slot in the miniGOP."""
        positions = accumulate(self.intra, lambda position, intra: 0 if intra else position + 1, initial=-1)
        return tuple(1 + (position - 1) % len(self.offsets) if position else 0 for position in list(positions)[1:])

    def term(self, bits: Sequence[float] | FloatArray, column: int) -> Term:
        """Of frames of a column that took ``bits`` in each pass: the line through both, or with the usual slope."""
        offset = self.offsets[column - 1] if column else 0.0
        levels = [QualityRange().clip(base + offset) for base in self.bases]
        slope = 1 / (INTER if column else INTRA).alpha
        if levels[0] != levels[-1]:
            rise = (log_bits(bits[-1]) - log_bits(bits[0])) / (levels[-1] - levels[0])
            slope = min(max(rise, 1 / ALPHA_MAX), 1 / ALPHA_MIN)
        return Term(log_bits(bits[-1]) - slope * levels[-1], slope, offset)

    def terms(self, bits: FloatArray) -> Iterable[tuple[int, Term]]:
        """By column, of frames that took ``bits``, shape (passes, columns); columns without frames are left out."""
        return ((column, self.term(spent, column)) for column, spent in enumerate(bits.T) if spent.all())

    def base(self, total_bits: float, limits: QualityRange) -> float:
        """The base level at which all frames together would cost ``total_bits``."""
        return base_level([term for _, term in self.terms(self.left()[:, 0])], total_bits, limits)

    def left(self) -> FloatArray:
        """Bits from each frame on, by column. Shape (passes, frames + 1, columns), the last row of each pass 0."""
        spread = np.zeros((len(self.bits), len(self) + 1, 1 + len(self.offsets)))
        for index, column in enumerate(self.columns()):
            spread[:, index, column] = [bits[index] for bits in self.bits]
        left: FloatArray = np.cumsum(spread[:, ::-1], axis=1)[:, ::-1]
        return left
