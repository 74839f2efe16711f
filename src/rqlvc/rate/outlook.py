"""What a first pass tells of a video before it is coded: the bits of every frame at one base level, or at two.

The pattern of levels is that of the second pass, for a frame costs what the levels of those before it make it cost: one
that stands out from its reference carries what they left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

import numpy as np

from rqlvc.rate.estimation import ALPHA_MAX, ALPHA_MIN
from rqlvc.rate.hierarchy import LIFT, held_level
from rqlvc.rate.initial import INTER, INTRA
from rqlvc.rate.models import MAXIMUM_LOG_BITS, FloatArray, log_bits
from rqlvc.rate.protocol import QualityRange

BISECTIONS = 14
"""Halvings of the range of the base, to less than a step of 1/64."""
COMPLEX, COMPLEX_MOST, COMPLEX_STEP = 6.0, 8.0, 2.0
"""Levels by which a group of pictures that costs e times more bits a frame than usual is lower, for bits buy little
there (x264's ``qcomp`` of 0.6 does as much); the most; and what they are a multiple of, so that there are few kinds."""
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


class Kind(NamedTuple):
    """Frames that are much the same to a plan: of one type, and at the same level but for less than one."""

    intra: bool
    coded: int
    """Levels from the base in the first pass."""
    wanted: int
    """Levels from the base in the second."""


@dataclass(frozen=True)
class Outlook:
    """``bits[k]`` are those of all frames at the base level ``bases[k]``: of one pass or, at another base, a second.

    ``intra`` says which frames were, and ``offsets`` how far each was from the base, which was held in these passes
    (:func:`rqlvc.rate.hierarchy.held_level`). In the one to come, groups of pictures that cost much are lower.
    """

    bases: tuple[float, ...]
    offsets: tuple[float, ...]
    bits: tuple[tuple[int, ...], ...]
    intra: tuple[bool, ...]

    def __len__(self) -> int:
        """Frames."""
        return len(self.intra)

    @cached_property
    def wanted(self) -> tuple[float, ...]:
        """Levels from the base to each frame of the pass to come."""
        starts = [index for index, intra in enumerate(self.intra) if intra]
        groups = [slice(start, end) for start, end in pairwise([*starts, len(self)])]
        longest = max(group.stop - group.start for group in groups)
        costs = [_usual_bits(self.bits[-1][group], longest) for group in groups]
        mean = fmean(log_bits(cost) for cost in costs if cost is not None)
        wanted: list[float] = []
        for cost, group in zip(costs, groups, strict=True):
            above = 0.0 if cost is None else log_bits(cost) - mean
            lower = round(COMPLEX * above / COMPLEX_STEP) * COMPLEX_STEP
            wanted += [offset - min(max(lower, -COMPLEX_MOST), COMPLEX_MOST) for offset in self.offsets[group]]
        return tuple(wanted)

    def frame(self, index: int) -> Term:
        """Of one frame."""
        bits = [bits[index] for bits in self.bits]
        return self._term(bits, self.intra[index], self.offsets[index], self.wanted[index])

    def kinds(self) -> tuple[Kind, ...]:
        """Each kind of frame that there is, once."""
        return tuple(dict.fromkeys(self._kind(index) for index in range(len(self))))

    def left(self, kinds: Sequence[Kind]) -> FloatArray:
        """Bits from each frame on, by kind. Shape (passes, frames + 1, kinds), the last row of each pass 0."""
        columns = {kind: column for column, kind in enumerate(kinds)}
        spread = np.zeros((len(self.bits), len(self) + 1, len(columns)))
        for index in range(len(self)):
            spread[:, index, columns[self._kind(index)]] = [bits[index] for bits in self.bits]
        left: FloatArray = np.cumsum(spread[:, ::-1], axis=1)[:, ::-1]
        return left

    def together(self, kinds: Sequence[Kind], bits: FloatArray) -> dict[Kind, Term]:
        """By kind, of frames that took ``bits``, shape (passes, kinds); kinds without frames are left out."""
        spent = zip(kinds, bits.T, strict=True)
        return {kind: self._term(found, *kind) for kind, found in spent if found.all()}

    def base(self, total_bits: float, limits: QualityRange) -> float:
        """The base level at which all frames together would cost ``total_bits``."""
        kinds = self.kinds()
        return base_level([*self.together(kinds, self.left(kinds)[:, 0]).values()], total_bits, limits)

    def _kind(self, index: int) -> Kind:
        return Kind(self.intra[index], round(self.offsets[index]), round(self.wanted[index]))

    def _term(self, bits: Sequence[float] | FloatArray, intra: bool, coded: float, wanted: float) -> Term:
        """Of frames that took ``bits`` in each pass, ``coded`` levels from the base, and are to be ``wanted`` levels
        from it: the line through both passes, or with the usual slope."""
        levels = [held_level(base, coded) for base in self.bases]
        slope = 1 / (INTRA if intra else INTER).alpha
        if levels[0] != levels[-1]:
            rise = (log_bits(bits[-1]) - log_bits(bits[0])) / (levels[-1] - levels[0])
            slope = min(max(rise, 1 / ALPHA_MAX), 1 / ALPHA_MIN)
        return Term(log_bits(bits[-1]) - slope * levels[-1], slope, wanted)


def _usual_bits(bits: Sequence[int], length: int) -> float | None:
    """Of a frame of a group of pictures that took ``bits``, the intra frame first, had it gone on to ``length``."""
    intra, inter = bits[0], bits[1:]
    if not inter:
        return None if length > 1 else intra
    return (intra + (length - 1) * fmean(inter)) / length
