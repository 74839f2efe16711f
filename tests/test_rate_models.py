"""The three parametric models and the online least squares of Eq. (6)."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rqlvc.errors import RqlvcError
from rqlvc.rate.estimation import ALPHA_MAX, ALPHA_MIN, PointSums, estimate
from rqlvc.rate.models import (
    FITS,
    LAMBDA_MAX,
    LAMBDA_MIN,
    ExponentialModel,
    LinearModel,
    LogarithmicModel,
    RateQualityModel,
    lagrangian,
    r_squared,
)
from rqlvc.rate.protocol import RatePoint

RATES = (2_000.0, 5_000.0, 11_000.0, 40_000.0)
FALLBACK = LogarithmicModel(13.0, -90.0)

any_points = st.lists(
    st.builds(RatePoint, st.floats(0, 63), st.one_of(st.just(0.0), st.just(5000.0), st.floats(0, 1e9))), max_size=12
)
codec_slopes = st.floats(ALPHA_MIN + 1, 60)


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("linear", LinearModel(1.1e-3, 7.0)),
        ("exponential", ExponentialModel(9.0, 3.5e-5)),
        ("logarithmic", LogarithmicModel(14.0, -95.0)),
    ],
)
def test_a_fit_finds_the_law_behind_its_points_and_both_directions_agree(name: str, law: RateQualityModel) -> None:
    points = [RatePoint(law.quality(rate), rate) for rate in RATES]
    model = FITS[name](points)
    assert r_squared(model, points) == pytest.approx(1.0, abs=1e-9)
    for point in points:
        assert model.quality(point.bits) == pytest.approx(point.quality, rel=1e-6)
        assert model.bits(point.quality) == pytest.approx(point.bits, rel=1e-5)


def test_the_logarithm_wins_on_rates_that_grow_exponentially_with_quality() -> None:
    points = [RatePoint(quality, 900 * math.exp(0.07 * quality)) for quality in (10, 27, 43, 60)]
    scores = {name: r_squared(fit(points), points) for name, fit in FITS.items()}
    assert scores["logarithmic"] > scores["linear"] > scores["exponential"]


@given(st.floats(-2, 2), st.lists(st.floats(0, 63), min_size=4, max_size=4))
def test_the_exponential_fit_is_never_worse_than_a_constant(shift: float, qualities: list[float]) -> None:
    points = [RatePoint(quality, rate * math.exp(shift)) for quality, rate in zip(qualities, RATES, strict=True)]
    if len(set(qualities)) > 1 and min(qualities) > 1:
        assert r_squared(FITS["exponential"](points), points) > -1e-6


@pytest.mark.parametrize("fit", FITS.values())
@pytest.mark.parametrize("points", [[], [RatePoint(3, 10)], [RatePoint(3, 500), RatePoint(9, 500)]])
def test_points_that_fix_no_model_are_refused(fit, points) -> None:
    with pytest.raises(RqlvcError, match="point"):
        fit(points)


def test_what_cannot_be_answered_is_said() -> None:
    with pytest.raises(RqlvcError, match="flat"):
        LinearModel(0.0, 5.0).bits(10)
    with pytest.raises(RqlvcError, match="never reaches"):
        ExponentialModel(4.0, 1e-4).bits(0)
    with pytest.raises(RqlvcError, match="different qualities"):
        r_squared(FALLBACK, [RatePoint(5, 100), RatePoint(5, 200)])


def test_lambda_runs_log_linearly_over_the_levels() -> None:
    assert lagrangian(0) == pytest.approx(LAMBDA_MIN)
    assert lagrangian(63) == pytest.approx(LAMBDA_MAX)
    assert lagrangian(31.5) == pytest.approx(math.sqrt(LAMBDA_MIN * LAMBDA_MAX))


@given(codec_slopes, st.floats(-150, 40), st.lists(st.floats(5, 14), min_size=2, max_size=8))
def test_estimate_is_least_squares_where_the_points_fix_a_line(alpha: float, beta: float, x: list[float]) -> None:
    if np.std(x) < 0.1:
        return
    wobble = [0.3 * (-1) ** index for index in range(len(x))]
    q = [alpha * value + beta + error for value, error in zip(x, wobble, strict=True)]
    slope, intercept = np.polyfit(x, q, 1)
    model = estimate(PointSums.of(RatePoint(b, math.exp(a)) for a, b in zip(x, q, strict=True)), FALLBACK)
    if ALPHA_MIN < slope < ALPHA_MAX:
        assert model.alpha == pytest.approx(slope, rel=1e-6)
        assert model.beta == pytest.approx(intercept, rel=1e-6, abs=1e-5)


@given(any_points, any_points)
@example([RatePoint(2.0, 0.0)], [RatePoint(8.0, 0.0), RatePoint(5.0, 5000.0)])  # a slope of exactly nothing
def test_no_points_break_the_estimate(network: list[RatePoint], coded: list[RatePoint]) -> None:
    model = estimate(PointSums.of(network) + PointSums.of(coded), FALLBACK)
    assert ALPHA_MIN <= model.alpha <= ALPHA_MAX
    assert math.isfinite(model.beta)
    together = estimate(PointSums.of(network + coded), FALLBACK)
    assert together.quality(4000) == pytest.approx(model.quality(4000), rel=1e-3, abs=1e-2)


@given(st.floats(0, 63), st.floats(0, 1e8), st.integers(1, 20))
def test_equal_points_keep_the_slope_and_move_the_line_through_them(quality: float, bits: float, count: int) -> None:
    model = estimate(PointSums.of([RatePoint(quality, bits)] * count), FALLBACK)
    assert model.alpha == FALLBACK.alpha
    assert model.quality(bits) == pytest.approx(quality, abs=1e-6)


def test_a_falling_line_is_not_believed() -> None:
    model = estimate(PointSums.of([RatePoint(20, 9000), RatePoint(30, 4000)]), FALLBACK)
    assert model.alpha == FALLBACK.alpha
    assert model.quality(6000) == pytest.approx(25)
