"""``adaptive``: Bayesian regression of ln R on Q that fuses predicted points with what coded frames really cost.

The state, in ln bits (q is the quality level less 31.5, q' that of the reference):

    inter           ln R = level + slope * q + dependence * (q - q')
    intra           ln R = level + intra offset + intra slope * q
    predicted       ln R = the same + bias, one for inter and one for intra frames

From frame to frame the state walks at random; a Kalman filter follows it. Before a frame its predicted points are read
at the level they lead to, as a measurement of its rate and slope; after it, its real bits are another. So a predictor
that sees content change is believed at once, its lasting errors end up in ``bias``, and without a predictor the same
filter follows the coded frames alone. A measurement that the state cannot explain (a scene cut, a flash) sets the
level free to find its new place; a coded frame like that is itself trusted little, for the first frame of a new scene
is no example of the next.
"""

import math
from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rqlvc.rate.allocation import BitBudget
from rqlvc.rate.estimation import ALPHA_MAX, ALPHA_MIN
from rqlvc.rate.initial import initial_model
from rqlvc.rate.models import FloatArray, LogarithmicModel, log_bits
from rqlvc.rate.protocol import QUALITY_MAX, Decision, FrameInfo, FrameResult, QualityRange, RatePoint

CENTRE = QUALITY_MAX / 2

# Standard deviations in ln bits (slopes: per quality level) of the state before the first frame, and of its steps from
# frame to frame; chosen, one after the other, on what twelve real sequences cost at four constant levels and on what
# RQNet expected of them (encodes of ``rqlvc evaluate paper``), played back as in tests/simulated_codec.py.
LEVEL_PRIOR, LEVEL_WALK = 2.5, 0.16
SLOPE_PRIOR, SLOPE_WALK = 0.02, 0.0007
BIAS_PRIOR, BIAS_WALK = 0.27, 0.04
DEPENDENCE_MEAN, DEPENDENCE_PRIOR, DEPENDENCE_WALK = 0.022, 0.003, 0.0002
"""A frame that must be better than its reference pays for what the reference lacks."""
INTRA_PRIOR, INTRA_WALK = 0.38, 0.005
"""Of the offset of intra frames."""
CODED_NOISE = 0.09
"""Of a coded frame about the line."""
PREDICTED_NOISE, PREDICTED_SLOPE_NOISE = 0.18, 0.012
"""Of a predictor's points about the line, beyond their bias; the first only until the predictor has shown its own."""
PREDICTED_NOISE_FLOOR = 0.02
"""However well it did, it is not believed beyond this."""
TRUST_RATE = 0.02
"""Part of the newest frame in the running mean of the predictor's squared error."""
SURPRISE = 4.8
"""Standard deviations beyond which a measurement is a new scene or an outlier."""
LEVEL_RESET, INTRA_RESET = 0.28, 0.4
"""Added to the deviations of level and intra offset after a surprise."""
SLOPE_SPAN = 6.0
"""Levels on either side over which the slope of a predicted curve is taken."""
READINGS = 2
"""Times the predicted curve is read, each time at the level that the last reading led to: it is not quite straight."""

CURVE_STEPS = 64
"""Predicted points closer than this part of a level are one: between them there is no slope."""

_LEVEL, _SLOPE, _BIAS, _DEPENDENCE, _INTRA_OFFSET, _STATES = 0, 1, 3, 5, 6, 7
"""Where the state holds what; slope and bias are two each, inter first."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the law of a frame depends on, known before it is coded."""

    intra: bool
    reference_quality: float

    def row(self, quality: float) -> FloatArray:
        """ln R = row @ state."""
        row = np.zeros(_STATES)
        row[_LEVEL] = 1.0
        row[_SLOPE + self.intra] = quality - CENTRE
        if self.intra:
            row[_INTRA_OFFSET] = 1.0
        else:
            row[_DEPENDENCE] = quality - self.reference_quality
        return row

    def slope_row(self) -> FloatArray:
        """d ln R / dQ = row @ state."""
        row = np.zeros(_STATES)
        row[_SLOPE + self.intra] = 1.0
        row[_DEPENDENCE] = not self.intra
        return row


class RateFilter:
    """The Kalman filter."""

    def __init__(self, inter: LogarithmicModel, intra: LogarithmicModel) -> None:
        level, intra_level = ((CENTRE - model.beta) / model.alpha for model in (inter, intra))
        slopes = 1 / inter.alpha, 1 / intra.alpha
        self.mean = np.array([level, *slopes, 0.0, 0.0, DEPENDENCE_MEAN, intra_level - level])
        self.covariance = _diagonal(LEVEL_PRIOR, SLOPE_PRIOR, BIAS_PRIOR, DEPENDENCE_PRIOR, INTRA_PRIOR)
        self._prior = np.diag(self.covariance)
        self._walk = _diagonal(LEVEL_WALK, SLOPE_WALK, BIAS_WALK, DEPENDENCE_WALK, INTRA_WALK)
        self._predicted_variance = PREDICTED_NOISE**2
        self._reset = _diagonal(LEVEL_RESET, 0.0, 0.0, 0.0, INTRA_RESET)

    def slope(self, context: Context) -> float:
        """d ln R / dQ of a frame alone."""
        return possible_slope(float(context.slope_row() @ self.mean))

    def expect_new_content(self) -> None:
        """What was learnt of the level is of little use."""
        self.covariance = self.covariance + self._reset

    def step(self) -> None:
        """A frame goes by. However long nothing is seen of it, no state gets less certain than it began."""
        walked = self.covariance + self._walk
        scale = np.sqrt(np.minimum(self._prior / np.diag(walked), 1.0))
        self.covariance = walked * np.outer(scale, scale)

    def observe_coded(self, context: Context, quality: float, log_rate: float) -> None:
        """Correct the state by what a frame cost."""
        row = context.row(quality)
        innovation, variance = self._innovation(row, log_rate, CODED_NOISE)
        if innovation**2 <= SURPRISE**2 * variance:
            self._correct(row, innovation, variance)
        else:
            self._correct(row, innovation, innovation**2 / SURPRISE**2)
            self.expect_new_content()

    def observe_predicted(self, context: Context, quality: float, log_rate: float, slope: float) -> None:
        """Correct the state by a predicted rate at ``quality`` and the slope of the prediction there."""
        row = context.slope_row()
        self._correct(row, *self._innovation(row, slope, PREDICTED_SLOPE_NOISE))
        row = context.row(quality)
        row[_BIAS + context.intra] = 1.0
        noise = math.sqrt(self._predicted_variance)
        innovation, variance = self._innovation(row, log_rate, noise)
        if innovation**2 > SURPRISE**2 * variance:
            self.expect_new_content()
            innovation, variance = self._innovation(row, log_rate, noise)
        self._correct(row, innovation, variance)

    def judge_predicted(self, context: Context, error: float) -> None:
        """Learn how far the predictor is to be trusted from a frame's ln R less what was predicted at its quality."""
        unexpected = (error + float(self.mean[_BIAS + context.intra])) ** 2
        bounded = min(unexpected, SURPRISE**2 * self._predicted_variance)
        learnt = self._predicted_variance + TRUST_RATE * (bounded - self._predicted_variance)
        self._predicted_variance = max(learnt, PREDICTED_NOISE_FLOOR**2)

    def model(self, context: Context) -> LogarithmicModel:
        """The line of a frame as Q = alpha * ln R + beta, with a slope that a codec can have."""
        alpha = 1 / self.slope(context)
        return LogarithmicModel(alpha, CENTRE - alpha * float(context.row(CENTRE) @ self.mean))

    def _innovation(self, row: FloatArray, value: float, noise: float) -> tuple[float, float]:
        """How far the measurement is from what was expected, and the variance expected of that."""
        return value - float(row @ self.mean), float(row @ self.covariance @ row) + noise * noise

    def _correct(self, row: FloatArray, innovation: float, variance: float) -> None:
        spread = self.covariance @ row
        self.mean = self.mean + spread * (innovation / variance)
        self.covariance = self.covariance - np.outer(spread, spread) / variance


def possible_slope(slope: float) -> float:
    """``slope`` (ln bits per level) moved into the range of those that codecs have."""
    return min(max(slope, 1 / ALPHA_MAX), 1 / ALPHA_MIN)


def _diagonal(level: float, slope: float, bias: float, dependence: float, intra: float) -> FloatArray:
    """The covariance of independent states with these standard deviations."""
    return np.diag(np.array([level, slope, slope, bias, bias, dependence, intra]) ** 2)


@dataclass(frozen=True, slots=True)
class PredictedCurve:
    """ln R over Q through predicted points: straight between them, and on beyond the outer ones."""

    qualities: tuple[float, ...]
    log_rates: tuple[float, ...]

    @classmethod
    def through(cls, points: Iterable[RatePoint]) -> "PredictedCurve | None":
        """The curve through ``points``, those left out that are not finite; None with fewer than two qualities."""
        finite = [point for point in points if math.isfinite(point.quality) and math.isfinite(point.bits)]
        by_quality = {round(point.quality * CURVE_STEPS) / CURVE_STEPS: log_bits(point.bits) for point in finite}
        qualities = tuple(sorted(by_quality))
        return cls(qualities, tuple(by_quality[quality] for quality in qualities)) if len(qualities) > 1 else None

    def __call__(self, quality: float) -> float:
        segment = min(max(bisect(self.qualities, quality), 1), len(self.qualities) - 1)
        left, right = self.qualities[segment - 1 : segment + 1]
        low, high = self.log_rates[segment - 1 : segment + 1]
        return low + (high - low) * (quality - left) / (right - left)

    def slope(self, quality: float) -> float:
        """Over ``SLOPE_SPAN`` levels on either side, within what a codec can have."""
        return possible_slope((self(quality + SLOPE_SPAN) - self(quality - SLOPE_SPAN)) / (2 * SLOPE_SPAN))


class Adaptive:
    """The default controller. Works with predicted points and, less sharply, without."""

    def __init__(self, budget: BitBudget, pixels: int, limits: QualityRange) -> None:
        self.budget = budget
        self.limits = limits
        self._filter = RateFilter(initial_model(False, pixels), initial_model(True, pixels))
        self._last_quality = CENTRE

    def decide(self, info: FrameInfo) -> Decision:
        self.budget.replan()
        target = self.budget.target(info)
        context = Context(info.intra, self._last_quality)
        state = self._filter
        if info.cut:
            state.expect_new_content()
        state.step()
        quality = self.limits.clip(state.model(context).quality(target))
        curve = PredictedCurve.through(info.points)
        if curve:
            unread = state.mean, state.covariance
            for _ in range(READINGS):
                state.mean, state.covariance = unread
                state.observe_predicted(context, quality, curve(quality), curve.slope(quality))
                quality = self.limits.clip(state.model(context).quality(target))
        model = state.model(context)
        return Decision(quality, target, model.alpha, model.beta)

    def update(self, result: FrameResult) -> None:
        self.budget.spend(result)
        context = Context(result.info.intra, self._last_quality)
        log_rate = log_bits(result.bits)
        curve = PredictedCurve.through(result.info.points)
        if curve:
            self._filter.judge_predicted(context, log_rate - curve(result.quality))
        self._filter.observe_coded(context, result.quality, log_rate)
        self._last_quality = result.quality

    def set_rates(self, bitrate: float, framerate: float) -> None:
        self.budget.set_rates(bitrate, framerate)
