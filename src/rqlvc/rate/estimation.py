"""Points to curves: online least squares of the logarithmic model (RQ-LVC, Eq. 6), safe on points that fix no line, and
the curve through predicted points."""

import math
from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass

from rqlvc.rate.models import LogarithmicModel, log_bits
from rqlvc.rate.protocol import RatePoint

# Slopes that a codec can have, in quality levels per e-fold of bits. With lambda over a factor of 250 in 63 levels and
# R ~ lambda^g, alpha = 11.4 / g: these limits are g = 2.85 and g = 0.057, beyond anything seen on real content.
ALPHA_MIN = 4.0
ALPHA_MAX = 200.0

LEAST_SLOPE = 1e-6
"""A flatter line than this is flat, whichever way its sums were rounded."""
MINIMUM_VARIANCE = 0.02**2
"""Of ln R: points within about 2 % of each other say where the curve is but not how steep."""
SLOPE_SPAN = 6.0
"""Levels on either side over which the slope of a predicted curve is taken."""
CURVE_STEPS = 64
"""Predicted points closer than this part of a level are one: between them there is no slope."""


@dataclass(frozen=True, slots=True)
class PointSums:
    """All that least squares keeps of a set of points; the two sums of Eq. (6) add up. x = ln R."""

    count: int = 0
    x: float = 0.0
    q: float = 0.0
    xx: float = 0.0
    xq: float = 0.0

    @classmethod
    def of(cls, points: Iterable[RatePoint]) -> "PointSums":
        return sum((cls._one(log_bits(point.bits), point.quality) for point in points), cls())

    @classmethod
    def _one(cls, x: float, q: float) -> "PointSums":
        return cls(1, x, q, x * x, x * q)

    def __add__(self, other: "PointSums") -> "PointSums":
        return PointSums(
            self.count + other.count,
            self.x + other.x,
            self.q + other.q,
            self.xx + other.xx,
            self.xq + other.xq,
        )


def estimate(sums: PointSums, fallback: LogarithmicModel) -> LogarithmicModel:
    """The least-squares line Q = alpha * ln R + beta, R in bits, with a slope that a codec can have.

    Without points it is ``fallback``. Points that fix no slope (one point, equal rates) or one of the wrong sign keep
    the slope of ``fallback``; a slope outside [``ALPHA_MIN``, ``ALPHA_MAX``] is clipped. The line always passes through
    the mean of the points.
    """
    if sums.count == 0:
        return fallback
    x, q = sums.x / sums.count, sums.q / sums.count
    variance = sums.xx / sums.count - x * x
    slope = (sums.xq / sums.count - x * q) / variance if variance > MINIMUM_VARIANCE else 0.0
    alpha = min(max(slope, ALPHA_MIN), ALPHA_MAX) if slope > LEAST_SLOPE else fallback.alpha
    return LogarithmicModel(alpha, q - alpha * x)


def possible_slope(slope: float) -> float:
    """``slope`` (ln bits per level) moved into the range of those that codecs have."""
    return min(max(slope, 1 / ALPHA_MAX), 1 / ALPHA_MIN)


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
