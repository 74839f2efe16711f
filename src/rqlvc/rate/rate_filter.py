"""Bayesian regression of ln R on Q that fuses predicted points with what coded frames really cost.

The state, in ln bits (q is the quality level less 31.5, q' that of the reference):

    inter           ln R = level + slope * q + dependence * max(q - q', 0)  (+ first offset after an intra frame)
    intra           ln R = intra level + intra slope * q
    predicted       ln R = the same + bias (intra), or + lean * max(q - q', 0) (inter)

What inter frames cost follows the motion and what intra frames cost does not: they have no state in common, though what
the first intra frame costs tells of both. From frame to frame the state walks at random; a Kalman filter follows it.
Before a frame its predicted points are read at the level they lead to, as a measurement of its rate and slope; after
it, its real bits are another. So a predictor that sees content change is believed at once, and without a predictor the
same filter follows the coded frames alone. A measurement that the state cannot explain (a scene cut, a flash) sets the
level free to find its new place; a coded frame like that is itself trusted little, for the first frame of a new scene
is no example of the next.
"""

import math
from dataclasses import dataclass

import numpy as np

from rqlvc.rate.estimation import possible_slope
from rqlvc.rate.models import FloatArray, LogarithmicModel
from rqlvc.rate.protocol import QUALITY_MAX, FrameInfo

CENTRE = QUALITY_MAX / 2

# Standard deviations in ln bits (slopes: per quality level) of the state before the first frame, and of its steps from
# frame to frame; chosen, one after the other, on what the frames of real sequences cost and on what RQNet expected of
# them in encodes of ``rqlvc evaluate paper``.
LEVEL_PRIOR, LEVEL_WALK = 2.5, 0.35
SLOPE_PRIOR, SLOPE_WALK = 0.03, 0.001
BIAS_PRIOR, BIAS_WALK = 0.1, 0.005
"""Of what a predictor misjudges intra frames by; of inter frames :mod:`rqlvc.rate.feedback` sees to it."""
DEPENDENCE_MEAN, DEPENDENCE_PRIOR, DEPENDENCE_WALK = 0.036, 0.01, 0.001
"""A frame that must be better than its reference pays for what the reference lacks; one that may be worse saves little,
for there was little to code."""
INTRA_PRIOR, INTRA_WALK = 2.5, 0.03
"""Of the level of intra frames."""
RATIO_PRIOR = 0.9
"""Of the difference of both levels before anything is known of either, for the ratio of intra to inter bits runs from 3
to 97 (:data:`rqlvc.rate.initial.INTRA_RATIO`): where the first intra frame costs twice as much as usual, inter frames
are likely to."""
LEAN_MEAN, LEAN_PRIOR, LEAN_WALK = -0.02, 0.03, 0.001
"""Of what a predictor misjudges for each level that a frame is above its reference."""
FIRST_MEAN, FIRST_PRIOR, FIRST_WALK = -0.35, 0.3, 0.01
"""Of the offset of the first inter frame of a group of pictures."""
CODED_NOISE = 0.14
"""Of a coded frame about the line."""
CHANGE_NOISE = 0.05
"""Of what the same frame costs at another level."""
PREDICTED_NOISE, INTRA_PREDICTED_NOISE, PREDICTED_SLOPE_NOISE = 0.2, 0.06, 0.038
"""Of a predictor's points about the line, beyond their bias; of inter and of intra frames, these two only until the
predictor has shown its own."""
PREDICTED_NOISE_FLOOR = 0.02
"""However well it did, it is not believed beyond this."""
TRUST_RATE, INTRA_TRUST_RATE = 0.012, 0.1
"""Part of the newest frame in the running mean of the predictor's squared error."""
SURPRISE = 4.8
"""Standard deviations beyond which a measurement is a new scene or an outlier."""
LEVEL_RESET, INTRA_RESET = 0.28, 0.4
"""Added to the deviations of the levels after a surprise."""

_LEVEL, _SLOPE, _BIAS, _DEPENDENCE, _INTRA_LEVEL, _FIRST_OFFSET, _LEAN, _STATES = 0, 1, 3, 4, 5, 6, 7, 8
"""Where the state holds what; slopes are two, inter first."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the law of a frame depends on, known before it is coded."""

    intra: bool
    first: bool
    """Whether the frame before is intra."""
    reference_quality: float

    @classmethod
    def of(cls, info: FrameInfo, reference_quality: float) -> "Context":
        return cls(info.intra, info.position == 1, reference_quality)

    def row(self, quality: float) -> FloatArray:
        """ln R = row @ state."""
        row = np.zeros(_STATES)
        row[_INTRA_LEVEL if self.intra else _LEVEL] = 1.0
        row[_SLOPE + self.intra] = quality - CENTRE
        if not self.intra:
            row[_DEPENDENCE] = max(quality - self.reference_quality, 0.0)
            row[_FIRST_OFFSET] = self.first
        return row

    def predicted_row(self, quality: float) -> FloatArray:
        """Predicted ln R = row @ state."""
        row = self.row(quality)
        row[_BIAS] = self.intra
        row[_LEAN] = row[_DEPENDENCE]
        return row

    def slope_row(self, quality: float) -> FloatArray:
        """d ln R / dQ = row @ state."""
        row = np.zeros(_STATES)
        row[_SLOPE + self.intra] = 1.0
        row[_DEPENDENCE] = not self.intra and quality > self.reference_quality
        return row


class RateFilter:
    """The Kalman filter."""

    def __init__(self, inter: LogarithmicModel, intra: LogarithmicModel) -> None:
        level, intra_level = ((CENTRE - model.beta) / model.alpha for model in (inter, intra))
        slopes = 1 / inter.alpha, 1 / intra.alpha
        self.mean = np.array([level, *slopes, 0.0, DEPENDENCE_MEAN, intra_level, FIRST_MEAN, LEAN_MEAN])
        self.covariance = _diagonal(
            LEVEL_PRIOR, SLOPE_PRIOR, BIAS_PRIOR, DEPENDENCE_PRIOR, INTRA_PRIOR, FIRST_PRIOR, LEAN_PRIOR
        )
        self._prior = np.diag(self.covariance)
        common = LEVEL_PRIOR**2 - RATIO_PRIOR**2 / 2
        self.covariance[_LEVEL, _INTRA_LEVEL] = self.covariance[_INTRA_LEVEL, _LEVEL] = common
        self._walk = _diagonal(LEVEL_WALK, SLOPE_WALK, BIAS_WALK, DEPENDENCE_WALK, INTRA_WALK, FIRST_WALK, LEAN_WALK)
        self._predicted_variance = [PREDICTED_NOISE**2, INTRA_PREDICTED_NOISE**2]  # of inter and intra frames
        self._seen = [CENTRE, CENTRE]  # levels of the last inter and intra frame
        self._reset = _diagonal(LEVEL_RESET, 0.0, 0.0, 0.0, INTRA_RESET, 0.0, 0.0)

    @property
    def dependence(self) -> float:
        """ln bits for each level that an inter frame is above its reference."""
        return float(self.mean[_DEPENDENCE])

    def steady_slope(self, intra: bool) -> float:
        """d ln R / dQ of a long run of frames, whose references change with them."""
        return possible_slope(float(self.mean[_SLOPE + intra]))

    def difference(self, context: Context, quality: float, level: float) -> float:
        """ln bits of a frame at ``quality`` above those it would have had in a run of frames at ``level``."""
        return float((context.row(quality) - Context(context.intra, False, level).row(level)) @ self.mean)

    def expect_new_content(self) -> None:
        """What was learnt of the level is of little use."""
        self.covariance = self.covariance + self._reset

    def step(self, change: float = 0.0) -> None:
        """A frame goes by, which ``change`` more ln bits are expected of than of the last. However long nothing is seen
        of it, no state gets less certain than it began."""
        self.mean = self.mean.copy()
        self.mean[_LEVEL] += change
        walked = self.covariance + self._walk
        scale = np.sqrt(np.minimum(self._prior / np.diag(walked), 1.0))
        self.covariance = walked * np.outer(scale, scale)

    def observe_coded(self, context: Context, quality: float, log_rate: float) -> bool:
        """Correct the state by what a frame cost. Whether that could be expected."""
        self._seen[context.intra] = quality
        row = context.row(quality)
        innovation, variance = self._innovation(row, log_rate, CODED_NOISE)
        if innovation**2 <= SURPRISE**2 * variance:
            self._correct(row, innovation, variance)
            return True
        self._correct(row, innovation, innovation**2 / SURPRISE**2)
        self.expect_new_content()
        return False

    def observe_change(self, before: Context, low: float, after: Context, high: float, change: float) -> None:
        """Correct the state by how much more ln bits one and the same frame cost ``after`` at level ``high`` than
        ``before`` at ``low``: nothing but the law is between these."""
        row = after.row(high) - before.row(low)
        innovation, variance = self._innovation(row, change, CHANGE_NOISE)
        self._correct(row, innovation, max(variance, (innovation / SURPRISE) ** 2))

    def observe_predicted(self, context: Context, quality: float, log_rate: float, slope: float) -> None:
        """Correct the state by a predicted rate at ``quality`` and the slope of the prediction there."""
        row = context.slope_row(quality)
        row[_LEAN] = row[_DEPENDENCE]
        self._correct(row, *self._innovation(row, slope, PREDICTED_SLOPE_NOISE))
        row = context.predicted_row(quality)
        noise = math.sqrt(self._predicted_variance[context.intra])
        innovation, variance = self._innovation(row, log_rate, noise)
        if innovation**2 > SURPRISE**2 * variance:
            self.expect_new_content()
            innovation, variance = self._innovation(row, log_rate, noise)
        self._correct(row, innovation, variance)

    def judge_predicted(self, context: Context, quality: float, error: float) -> None:
        """Learn how far the predictor is to be trusted from a frame's ln R less what was predicted at its quality."""
        expected = float((context.predicted_row(quality) - context.row(quality)) @ self.mean)
        unexpected = (error + expected) ** 2
        before, rate = self._predicted_variance[context.intra], INTRA_TRUST_RATE if context.intra else TRUST_RATE
        learnt = before + rate * (min(unexpected, SURPRISE**2 * before) - before)
        self._predicted_variance[context.intra] = max(learnt, PREDICTED_NOISE_FLOOR**2)

    def model(self, context: Context, quality: float) -> LogarithmicModel:
        """The line of a frame near ``quality`` as Q = alpha * ln R + beta, with a slope that a codec can have."""
        slope = float(context.slope_row(quality) @ self.mean)
        possible = possible_slope(slope)
        # A state with a slope that no codec has is good only near the levels that were seen.
        pivot = quality if possible == slope else self._seen[context.intra]
        alpha = 1 / possible
        return LogarithmicModel(alpha, pivot - alpha * float(context.row(pivot) @ self.mean))

    def _innovation(self, row: FloatArray, value: float, noise: float) -> tuple[float, float]:
        """How far the measurement is from what was expected, and the variance expected of that."""
        return value - float(row @ self.mean), float(row @ self.covariance @ row) + noise * noise

    def _correct(self, row: FloatArray, innovation: float, variance: float) -> None:
        spread = self.covariance @ row
        self.mean = self.mean + spread * (innovation / variance)
        self.covariance = self.covariance - np.outer(spread, spread) / variance


def _diagonal(
    level: float, slope: float, bias: float, dependence: float, intra: float, first: float, lean: float
) -> FloatArray:
    """The covariance of independent states with these standard deviations."""
    return np.diag(np.array([level, slope, slope, bias, dependence, intra, first, lean]) ** 2)
