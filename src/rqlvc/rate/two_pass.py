"""``adaptive`` after a first pass: a steady quality, planned over the whole video.

The first pass tells what every frame costs at one level; the Kalman filter of :mod:`rqlvc.rate.adaptive` learns by what
factor that errs, for inter and for intra frames, and how the cost changes with the level. So before every frame the
*base level* is known at which all frames to come, each with the offset of its place in the pattern, cost the bits that
are left. Equal bits for every frame would let quality follow the content up and down, which costs more than it gains.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rqlvc.rate.adaptive import CENTRE, READINGS, Context, PredictedCurve, RateFilter
from rqlvc.rate.allocation import FLOOR_SHARE, BitBudget
from rqlvc.rate.initial import INTER, initial_model, usual_slope
from rqlvc.rate.models import log_bits
from rqlvc.rate.outlook import Outlook
from rqlvc.rate.protocol import QUALITY_MIN, Decision, FrameInfo, FrameResult, QualityRange

BASE_RATE, INTRA_RATE, END_RATE = 0.3, 1.0, 4.0
"""Part of the way that the base goes to what the budget asks for: at an inter frame; at an intra frame, where quality
may change unseen; and, divided by the frames left, towards the end, so that the total lands on the target."""
SLOPE_NOISE = 0.03
"""Standard deviation per level of a frame's slope about the usual one, which is all that one quality tells."""
NEWTON_STEPS = 6
BEYOND = 20.0
"""Levels that the base may be above the highest, where only the offsets of the pattern still pull levels down."""


class Term(NamedTuple):
    """Frames to come whose ln bits, together, are ``log_rate + slope * base``."""

    log_rate: float
    slope: float


def base_level(terms: Sequence[Term], log_bits: float, start: float, highest: float) -> float:
    """The base level in [0, ``highest``] at which frames cost exp(``log_bits``) bits; Newton's method from ``start``.

    The sum of the terms is convex in the base on a logarithmic scale, so the method does not swing.
    """
    base = start
    for _ in range(NEWTON_STEPS):
        rates = [term.log_rate + term.slope * base for term in terms]
        top = max(rates)
        parts = [math.exp(rate - top) for rate in rates]
        total = sum(parts)
        slope = sum(part * term.slope for part, term in zip(parts, terms, strict=True)) / total
        base = min(max(base + (log_bits - top - math.log(total)) / slope, QUALITY_MIN), highest)
    return base


class TwoPass:
    """The second pass. Needs no predicted points: the first pass has better ones."""

    def __init__(self, budget: BitBudget, pixels: int, limits: QualityRange, outlook: Outlook) -> None:
        self.budget = budget
        self.limits = limits
        self.outlook = outlook
        weights = budget.pattern.inter
        self._offsets = [INTER.alpha * math.log(weight / max(weights)) for weight in weights]
        self._left = outlook.left(len(weights))
        self._filter = RateFilter(initial_model(False, pixels), initial_model(True, pixels), SLOPE_NOISE)
        self._base: float | None = None
        self._last_quality = CENTRE

    def decide(self, info: FrameInfo) -> Decision:
        context = Context(info.intra, self._last_quality)
        state = self._filter
        state.step()
        curve = self._curve(info)
        base = self._next_base(info, context)
        unread = state.mean, state.covariance
        for _ in range(READINGS):
            state.mean, state.covariance = unread
            quality = self._quality(base, info)
            state.observe_predicted(context, quality, curve(quality), curve.slope(quality))
            base = self._next_base(info, context)
        self._base = base
        quality = self._quality(base, info)
        model = state.model(context)
        return Decision(quality, model.bits(quality), model.alpha, model.beta)

    def update(self, result: FrameResult) -> None:
        self.budget.spend(result)
        context = Context(result.info.intra, self._last_quality)
        log_rate = log_bits(result.bits)
        self._filter.judge_predicted(context, log_rate - self._curve(result.info)(result.quality))
        self._filter.observe_coded(context, result.quality, log_rate)
        self._last_quality = result.quality

    def set_rates(self, bitrate: float, framerate: float) -> None:
        self.budget.set_rates(bitrate, framerate)

    def _curve(self, info: FrameInfo) -> PredictedCurve:
        curve = PredictedCurve.through(self.outlook.points(info))
        assert curve is not None  # a first pass tells two points of every frame
        return curve

    def _quality(self, base: float, info: FrameInfo) -> float:
        return self.limits.clip(base + self._offset(info))

    def _offset(self, info: FrameInfo) -> float:
        return self._offsets[self.budget.pattern.slot(info.position)] if info.position else 0.0

    def _next_base(self, info: FrameInfo, context: Context) -> float:
        frames = len(self.outlook.bits) - info.index
        average = frames * self.budget.frame_bits
        due = max(average - self.budget.debt, FLOOR_SHARE * average)
        start = CENTRE if self._base is None else self._base
        wanted = base_level(self._terms(info, context, start), math.log(due), start, self.limits.maximum + BEYOND)
        rate = max(INTRA_RATE if info.intra else BASE_RATE, END_RATE / frames)
        return wanted if self._base is None else self._base + min(rate, 1.0) * (wanted - self._base)

    def _terms(self, info: FrameInfo, context: Context, start: float) -> list[Term]:
        """The frame in hand, and of those after it the intra frames, then each slot of the miniGOP.

        ``start``: a base level near which costs are wanted.
        """
        state = self._filter
        terms = [Term(float(context.row(self._offset(info)) @ state.mean), state.slope(context))]
        intra, *slots = self._left[info.index + 1]
        if intra:
            slope = state.slope(Context(True, CENTRE))
            terms.append(Term(self._cost(intra, True, start, 0.0) - slope * start, slope))
        for slot, bits in enumerate(slots):
            if bits:
                cost = self._cost(
                    bits, False, start + self._offsets[slot], self._offsets[slot] - self._offsets[slot - 1]
                )
                terms.append(Term(cost - state.joint_slope * start, state.joint_slope))
        return terms

    def _cost(self, bits: float, intra: bool, quality: float, above_reference: float) -> float:
        """ln bits at ``quality`` of what took ``bits`` in the first pass, if that errs as it did so far."""
        usual = usual_slope(intra) * (quality - self.outlook.quality)
        return math.log(bits) + usual + self._filter.dependence * above_reference - self._filter.bias(intra)
