"""``two-pass``: a steady quality, planned over the whole video after a first pass.

The first pass tells what every frame costs near the level it will have; what is learnt on the way is by what factor it
errs, one for inter and one for intra frames. So before every frame the *base level* is known at which all frames to
come, each with the offset of its place in the pattern, cost the bits that are left. Equal bits for every frame would
let quality follow the content up and down, which costs more than it gains.
"""

import math
from dataclasses import dataclass

from rqlvc.errors import RqlvcError
from rqlvc.rate.allocation import FLOOR_SHARE, BitBudget, landing
from rqlvc.rate.models import log_bits
from rqlvc.rate.outlook import Outlook, Term, base_level
from rqlvc.rate.protocol import Decision, FrameInfo, FrameResult, QualityRange

BASE_RATE, INTRA_RATE, END_RATE = 0.3, 1.0, 4.0
"""Part of the way that the base goes to what the budget asks for: at an inter frame; at an intra frame, where quality
may change unseen; and, divided by the frames left, towards the end, so that the total lands on the target."""
DEPENDENCE = 0.024
"""Rise of ln R for each level that an inter frame is above where its reference would have it: the mean of twelve real
sequences (``benchmarks/surfaces.py``)."""
FACTOR_PRIOR, FACTOR_WALK, FRAME_NOISE = 0.2, 0.02, 0.1
"""Standard deviations in ln bits: of the factor before the first frame and of its steps from frame to frame; of a frame
about the first pass's curve times the factor."""


@dataclass(slots=True)
class Factor:
    """ln of what frames cost over what the first pass has them cost; a Kalman filter."""

    mean: float = 0.0
    variance: float = FACTOR_PRIOR**2

    def step(self) -> None:
        self.variance += FACTOR_WALK**2

    def observe(self, log_ratio: float) -> None:
        gain = self.variance / (self.variance + FRAME_NOISE**2)
        self.mean += gain * (log_ratio - self.mean)
        self.variance *= 1 - gain


class TwoPass:
    """The second pass. Needs no predicted points: the first pass has better ones."""

    def __init__(self, budget: BitBudget, limits: QualityRange, outlook: Outlook) -> None:
        self.budget = budget
        self.limits = limits
        self.outlook = outlook
        self._kinds = outlook.kinds()
        self._left = outlook.left(self._kinds)
        self._factors = {True: Factor(), False: Factor()}
        self._base: float | None = None
        self._last_quality: float | None = None
        self._waiting: int | None = None  # the last intra frame of the first pass that did not fit the buffer

    def decide(self, info: FrameInfo) -> Decision:
        for factor in self._factors.values():
            factor.step()
        frame = self._frame(info)
        self._base = self._next_base(info, frame)
        quality = self.limits.clip(self._base + frame.offset)
        bits, tolerance = math.exp(frame.at(quality)), landing(info)
        return Decision(quality, bits, 1 / frame.slope, -frame.log_rate / frame.slope, tolerance=tolerance)

    def update(self, result: FrameResult) -> None:
        self.budget.spend(result)
        factor = self._factors[result.info.intra]
        factor.observe(log_bits(result.bits) - self._frame(result.info).at(result.quality) + factor.mean)
        self._last_quality = result.quality

    def set_rates(self, bitrate: float, framerate: float) -> None:
        self.budget.set_rates(bitrate, framerate)

    def _frame(self, info: FrameInfo) -> Term:
        """The frame in hand, after the reference that it has."""
        index = self._seen(info)
        term = self._corrected(self.outlook.frame(index), info.intra)
        if info.intra or self._last_quality is None:
            return term
        usual = self._last_quality + term.offset - self.outlook.offsets[index - 1]
        return term._replace(log_rate=term.log_rate - DEPENDENCE * usual, slope=term.slope + DEPENDENCE)

    def _seen(self, info: FrameInfo) -> int:
        """The frame of the first pass that tells of this one: the same, unless an intra frame waits for the buffer.

        Raises :class:`RqlvcError` where the video is not that of the first pass.
        """
        index, intra = info.index, self.outlook.intra
        if index < len(intra) and info.intra == intra[index]:
            return index
        if index < len(intra) and not info.intra:
            self._waiting = index
            return index + 1 if index + 1 < len(intra) and not intra[index + 1] else index - 1
        if index < len(intra) and self._waiting is not None:
            return self._waiting
        raise RqlvcError(
            f"frame {index} is not what the first pass found there: make the first pass again, from the same video "
            "with the same options."
        )

    def _corrected(self, term: Term, intra: bool) -> Term:
        """As the first pass errs so far."""
        return term._replace(log_rate=term.log_rate + self._factors[intra].mean)

    def _next_base(self, info: FrameInfo, frame: Term) -> float:
        frames = len(self.outlook) - info.index
        average = frames * self.budget.frame_bits
        due = max(average - self.budget.debt, FLOOR_SHARE * average)
        later = self.outlook.together(self._kinds, self._left[:, info.index + 1])
        terms = [frame, *(self._corrected(term, kind.intra) for kind, term in later.items())]
        wanted = base_level(terms, due, self.limits)
        rate = max(INTRA_RATE if info.intra else BASE_RATE, END_RATE / frames)
        return wanted if self._base is None else self._base + min(rate, 1.0) * (wanted - self._base)
