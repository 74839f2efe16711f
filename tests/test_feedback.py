"""What a predictor gets wrong time and again is put right by what frames cost."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rqlvc.rate.adaptive import Adaptive
from rqlvc.rate.allocation import BitBudget
from rqlvc.rate.feedback import LARGEST, LastingError
from rqlvc.rate.protocol import FrameInfo, FrameResult, QualityRange, RatePoint

LEVELS = (10.0, 27.0, 43.0, 60.0)


def frame(index: int, points: tuple[RatePoint, ...], bits: float, quality: float) -> FrameResult:
    info = FrameInfo(index, index % 32 == 0, index % 32, 100_000, points=points)
    return FrameResult(info, quality, round(bits), 1e-3)


def curve(index: int, quality: float) -> float:
    """What is predicted of a frame."""
    return 3000.0 * math.exp(0.05 * quality + 0.3 * math.sin(index))


@given(
    log_factor=st.floats(-2.0, 2.0),
    noise=st.lists(st.floats(-0.1, 0.1), min_size=40, max_size=40),
    qualities=st.lists(st.sampled_from(LEVELS), min_size=40, max_size=40),
)
def test_a_lasting_factor_is_learnt_and_its_noise_is_not(
    log_factor: float, noise: list[float], qualities: list[float]
) -> None:
    lasting = LastingError()
    for index, (error, quality) in enumerate(zip(noise, qualities, strict=True)):
        points = tuple(RatePoint(level, curve(index, level)) for level in LEVELS)
        lasting.observe(frame(index, points, curve(index, quality) * math.exp(log_factor + error), quality))
    assert abs(lasting.mean - log_factor) < 0.11
    after = frame(39, points, 0, quality).info
    for point, mended in zip(points, lasting.mended(after), strict=True):
        assert abs(math.log(mended.bits / point.bits) - log_factor) < 0.11


def test_an_exception_counts_for_little() -> None:
    lasting = LastingError()
    points = tuple(RatePoint(level, curve(0, level)) for level in LEVELS)
    for index in range(1, 20):
        lasting.observe(frame(index, points, curve(0, 43.0), 43.0))
    assert abs(lasting.mean) < 0.01
    lasting.observe(frame(20, points, 1000 * curve(0, 43.0), 43.0))
    assert lasting.mean < 0.3 * LARGEST


def test_frames_without_points_and_intra_frames_teach_nothing() -> None:
    lasting = LastingError()
    points = tuple(RatePoint(level, curve(0, level)) for level in LEVELS)
    lasting.observe(frame(5, (), 12345.0, 30.0))
    lasting.observe(frame(32, points, 1e6, 30.0))
    assert lasting.mended(frame(6, points, 0, 30.0).info) == points


def test_intra_frames_are_left_as_predicted() -> None:
    lasting = LastingError()
    points = tuple(RatePoint(level, curve(0, level)) for level in LEVELS)
    lasting.observe(frame(1, points, 2 * curve(0, 43.0), 43.0))
    assert lasting.mended(frame(2, points, 0, 30.0).info) != points
    assert lasting.mended(frame(32, points, 0, 30.0).info) == points


def test_another_scene_begins_anew() -> None:
    controller = Adaptive(BitBudget(1e6, 25.0), 100_000, QualityRange(0.0, 63.0))
    points = tuple(RatePoint(level, curve(0, level)) for level in LEVELS)
    for index in range(20):
        quality = controller.decide(frame(index, points, 0, 0.0).info).quality
        controller.update(frame(index, points, 2 * curve(0, quality), quality))
    assert abs(controller._lasting_error.mean - math.log(2)) < 0.1
    controller.decide(replace(frame(20, points, 0, 0.0).info, cut=True))
    assert controller._lasting_error.mean == 0
