"""What a first pass tells of a video before it is coded: the bits of every frame at one base level, or at two.

The pattern of levels is that of the second pass, for a frame costs what the levels of those before it make it cost: one
that stands out from its reference carries what they left out.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rqlvc.rate.estimation import ALPHA_MAX, ALPHA_MIN
from rqlvc.rate.hierarchy import LIFT, held_level
from rqlvc.rate.initial import INTER, INTRA
from rqlvc.rate.models import MAXIMUM_LOG_BITS, FloatArray, log_bits
from rqlvc.rate.protocol import QualityRange

NEAR, STEPS = 1 / 512, 20
"""Base levels are sought until a step is shorter than this, or for so many steps; usually it takes three."""
BEYOND = 20.0
"""Levels that the base may be above the highest, where only the offsets of the pattern still pull levels down: so far
are the lowest frames below it."""


class Term(NamedTuple):
    """Frames whose ln bits, together, are ``log_rate + slope * level``, at the base level plus ``offset``."""

    log_rate: float
    slope: float
    offset: float

    def at(self, level: float) -> float:
        """ln bits."""
        return self.log_rate + self.slope * level


def total_bits(terms: Iterable[Term], base: float, limits: QualityRange) -> float:
    """Bits of all frames at the level ``base``, none of them at a level out of ``limits``."""
    return _cost(terms, base, limits)[0]


def base_level(terms: Sequence[Term], bits: float, limits: QualityRange) -> float:
    """The base level at which frames cost ``bits`` together, none of them at a level out of ``limits``."""
    low, high = limits.minimum - LIFT, limits.maximum + BEYOND
    base = (low + high) / 2
    for _ in range(STEPS):
        total, rise = _cost(terms, base, limits)
        # Newton's step for ln(bits), which is nearly a line over the base.
        step = total / rise * math.log(bits / total) if rise and bits > 0 else math.inf
        if abs(step) < NEAR:
            return base + step
        low, high = (base, high) if total < bits else (low, base)
        base = base + step if low < base + step < high else (low + high) / 2
    return base


def _cost(terms: Iterable[Term], base: float, limits: QualityRange) -> tuple[float, float]:
    """Bits of all frames at the level ``base``, and by how many they rise with it. In plain numbers: there are a dozen
    terms at most, of which NumPy would make more work than there is."""
    low, high = limits.minimum, limits.maximum
    total = rise = 0.0
    for log_rate, slope, offset in terms:
        level = base + offset
        outside = low if level <= low else high if level >= high else None
        log_bits = log_rate + slope * (level if outside is None else outside)
        bits = math.exp(log_bits if log_bits < MAXIMUM_LOG_BITS else MAXIMUM_LOG_BITS)
        total += bits
        if outside is None:
            rise += slope * bits
    return total, rise


class Kind(NamedTuple):
    """Frames that are much the same to a plan: of one type, and at the same level but for less than one."""

    intra: bool
    offset: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """``bits[k]`` are those of all frames at the base level ``bases[k]``: of one pass or, at another base, a second.

    ``intra`` says which frames were, and ``offsets`` how far each is meant to be from the base. In these passes the
    base was held (:func:`rqlvc.rate.hierarchy.held_level`).
    """

    bases: tuple[float, ...]
    offsets: tuple[float, ...]
    bits: tuple[tuple[int, ...], ...]
    intra: tuple[bool, ...]

    def __len__(self) -> int:
        """Frames."""
        return len(self.intra)

    def frame(self, index: int) -> Term:
        """Of one frame."""
        return self._term([bits[index] for bits in self.bits], self.intra[index], self.offsets[index])

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
        return {kind: self._term(found, kind.intra, kind.offset) for kind, found in spent if found.all()}

    def base(self, total_bits: float, limits: QualityRange) -> float:
        """The base level at which all frames together would cost ``total_bits``."""
        kinds = self.kinds()
        return base_level([*self.together(kinds, self.left(kinds)[:, 0]).values()], total_bits, limits)

    def _kind(self, index: int) -> Kind:
        return Kind(self.intra[index], round(self.offsets[index]))

    def _term(self, bits: Sequence[float] | FloatArray, intra: bool, offset: float) -> Term:
        """Of frames at ``offset`` that took ``bits`` in each pass: the line through both, or with the usual slope."""
        levels = [held_level(base, offset) for base in self.bases]
        slope = 1 / (INTRA if intra else INTER).alpha
        if levels[0] != levels[-1]:
            rise = (log_bits(bits[-1]) - log_bits(bits[0])) / (levels[-1] - levels[0])
            slope = min(max(rise, 1 / ALPHA_MAX), 1 / ALPHA_MIN)
        return Term(log_bits(bits[-1]) - slope * levels[-1], slope, offset)
