"""The parametric rate-quality models of the RQ-LVC paper (arXiv 2505.02720, Eqs. 2 to 4), their fits and inverses.

A model gives the quality level Q in [0, 63] (63 is best) that spends R bits on a frame. Models are values; fits are
pure functions over points. For the tolerant fit used while coding, see :mod:`rqlvc.rate.estimation`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rqlvc.errors import RqlvcError
from rqlvc.rate.protocol import QUALITY_MAX, RatePoint

LAMBDA_MIN = 28.0
LAMBDA_MAX = 16_000.0
"""Range of the Lagrangian multiplier of the built-in codec: R_bpp + lambda * MSE on samples in [0, 1]."""
LOG_LAMBDA_SPAN = math.log(LAMBDA_MAX / LAMBDA_MIN)

MINIMUM_BITS = 8.0
"""No packet is shorter than a byte: keeps ln R finite."""
MAXIMUM_LOG_BITS = 50.0
"""Keeps exp() of an absurd extrapolation finite: no frame has e^50 bits."""

_GAUSS_NEWTON_STEPS = 50
_CONVERGED = 1e-12

FloatArray = npt.NDArray[np.float64]


def lagrangian(quality: float) -> float:
    """lambda of a quality level in [0, 63] (Eq. 1): log-linear from ``LAMBDA_MIN`` to ``LAMBDA_MAX``."""
    return LAMBDA_MIN * math.exp(quality / QUALITY_MAX * LOG_LAMBDA_SPAN)


def log_bits(bits: float) -> float:
    """ln R, with R floored at ``MINIMUM_BITS``."""
    return math.log(max(bits, MINIMUM_BITS))


class RateQualityModel(Protocol):
    """Both directions of a rate-quality curve; ``quality`` is not clipped to [0, 63]."""

    def quality(self, bits: float) -> float: ...

    def bits(self, quality: float) -> float: ...


@dataclass(frozen=True, slots=True)
class LinearModel:
    """Q = alpha * R + beta (Eq. 2)."""

    alpha: float
    beta: float

    def quality(self, bits: float) -> float:
        return self.alpha * bits + self.beta

    def bits(self, quality: float) -> float:
        return (quality - self.beta) / _nonzero(self.alpha)


@dataclass(frozen=True, slots=True)
class ExponentialModel:
    """Q = alpha * exp(beta * R) (Eq. 3)."""

    alpha: float
    beta: float

    def quality(self, bits: float) -> float:
        return self.alpha * math.exp(min(self.beta * bits, MAXIMUM_LOG_BITS))

    def bits(self, quality: float) -> float:
        """Raises :class:`RqlvcError` where the curve never takes the sign of ``quality``."""
        ratio = quality / _nonzero(self.alpha)
        if ratio <= 0:
            raise RqlvcError(f"an exponential R-Q model never reaches quality {quality:g}: ask for a level above 0.")
        return math.log(ratio) / _nonzero(self.beta)


@dataclass(frozen=True, slots=True)
class LogarithmicModel:
    """Q = alpha * ln R + beta (Eq. 4), the paper's choice: ln R is a straight line over Q."""

    alpha: float
    beta: float

    def quality(self, bits: float) -> float:
        return self.alpha * log_bits(bits) + self.beta

    def bits(self, quality: float) -> float:
        return math.exp(min((quality - self.beta) / _nonzero(self.alpha), MAXIMUM_LOG_BITS))

    def through(self, point: RatePoint) -> "LogarithmicModel":
        """The same slope, moved to pass through ``point``."""
        return LogarithmicModel(self.alpha, point.quality - self.alpha * log_bits(point.bits))

    def in_bits(self, pixels: int) -> "LogarithmicModel":
        """A model of bits per pixel as the same model of bits, for frames of ``pixels`` luma pixels."""
        return LogarithmicModel(self.alpha, self.beta - self.alpha * math.log(pixels))


def fit_linear(points: Sequence[RatePoint]) -> LinearModel:
    """Least squares in Q. Raises :class:`RqlvcError` when the points do not hold two different rates."""
    rates, qualities = _columns(points)
    return LinearModel(*_line(rates, qualities))


def fit_logarithmic(points: Sequence[RatePoint]) -> LogarithmicModel:
    """Least squares in Q. Raises :class:`RqlvcError` when the points do not hold two different rates."""
    rates, qualities = _columns(points)
    return LogarithmicModel(*_line(np.log(rates), qualities))


def fit_exponential(points: Sequence[RatePoint]) -> ExponentialModel:
    """Least squares in Q, by damped Gauss-Newton from the linear fit of ln Q; the error in Q never grows.

    Raises :class:`RqlvcError` when the points do not hold two different rates.
    """
    rates, qualities = _columns(points)
    scale = float(rates.max())
    x = rates / scale
    slope, intercept = _line(x, np.log(np.maximum(qualities, 1.0)))
    parameters = np.array([math.exp(intercept), slope])

    def error(candidate: FloatArray) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.sum((candidate[0] * np.exp(candidate[1] * x) - qualities) ** 2))

    for _ in range(_GAUSS_NEWTON_STEPS):
        growth = np.exp(parameters[1] * x)
        jacobian = np.stack([growth, parameters[0] * x * growth], axis=1)
        step = np.linalg.lstsq(jacobian, qualities - parameters[0] * growth, rcond=None)[0]
        before = error(parameters)
        while not error(parameters + step) <= before and np.abs(step).max() > _CONVERGED:
            step = step / 2
        if np.abs(step).max() <= _CONVERGED:
            break
        parameters = parameters + step
    return ExponentialModel(float(parameters[0]), float(parameters[1]) / scale)


FITS: dict[str, Callable[[Sequence[RatePoint]], RateQualityModel]] = {
    "linear": fit_linear,
    "exponential": fit_exponential,
    "logarithmic": fit_logarithmic,
}
"""The three candidates of the paper's Table 2."""


def r_squared(model: RateQualityModel, points: Sequence[RatePoint]) -> float:
    """Coefficient of determination of ``model`` over the qualities of ``points``: 1 is a perfect fit (Table 2).

    Raises :class:`RqlvcError` for fewer than two points or points of one quality, where it is undefined.
    """
    rates, qualities = _columns(points)
    total = float(np.sum((qualities - qualities.mean()) ** 2))
    if total == 0:
        raise RqlvcError("R² needs points of at least two different qualities: encode the frame at more levels.")
    fitted = np.array([model.quality(float(rate)) for rate in rates])
    return 1.0 - float(np.sum((qualities - fitted) ** 2)) / total


def _columns(points: Sequence[RatePoint]) -> tuple[FloatArray, FloatArray]:
    if len(points) < 2:
        raise RqlvcError(
            f"an R-Q model has two parameters and cannot be fitted to {len(points)} point(s): give at least two."
        )
    rates = np.array([max(point.bits, MINIMUM_BITS) for point in points], dtype=np.float64)
    return rates, np.array([point.quality for point in points], dtype=np.float64)


def _line(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    deviation = x - x.mean()
    variance = float(deviation @ deviation)
    if not variance > _CONVERGED * float(x @ x):
        raise RqlvcError("all points have the same rate, which fixes no R-Q model: give points of different rates.")
    slope = float(deviation @ y) / variance
    return slope, float(y.mean()) - slope * float(x.mean())


def _nonzero(parameter: float) -> float:
    if parameter == 0:
        raise RqlvcError("this R-Q model is flat and cannot be inverted: fit it to points of different rates.")
    return parameter
