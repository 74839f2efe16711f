"""Metrics against their definitions."""

import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rqlvc.errors import RqlvcError
from rqlvc.evaluation.metrics import (
    PSNR_CAP,
    bd_rate,
    ms_ssim,
    mse,
    mse_y,
    psnr,
    psnr_rgb,
    psnr_y,
    psnr_yuv,
    vmaf,
    vmaf_is_here,
)
from rqlvc.media.frame import Frame, Plane

NO_DEADLINE = settings(deadline=None)  # the machine may be busy
SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24))


@st.composite
def plane_pairs(draw: st.DrawFn) -> tuple[Plane, Plane]:
    shape = draw(SHAPES)
    planes = hnp.arrays(np.uint8, shape)
    return draw(planes), draw(planes)


def exact_mse(a: Plane, b: Plane) -> Fraction:
    pairs = zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), strict=True)
    return Fraction(sum((x - y) ** 2 for x, y in pairs), a.size * 255**2)


def noisy_frame(seed: int, width: int = 32, height: int = 18) -> Frame:
    draw = np.random.default_rng(seed)
    chroma = ((height + 1) // 2, (width + 1) // 2)
    y, u, v = (draw.integers(0, 256, shape, dtype=np.uint8) for shape in ((height, width), chroma, chroma))
    return Frame(y, u, v)


@NO_DEADLINE
@given(plane_pairs())
def test_mse_is_exact_and_symmetric(pair: tuple[Plane, Plane]) -> None:
    a, b = pair
    assert mse(a, b) == float(exact_mse(a, b)) == mse(b, a)
    assert mse(a, a) == 0


@NO_DEADLINE
@given(plane_pairs())
def test_mse_reads_views_as_it_reads_copies(pair: tuple[Plane, Plane]) -> None:
    a, b = pair
    assert mse(a[::2, ::-1], b[::2, ::-1]) == mse(a[::2, ::-1].copy(), b[::2, ::-1].copy())


def test_mse_of_black_against_white_is_one_at_a_size_that_overflows_32_bits() -> None:
    black = np.zeros((1080, 1920), np.uint8)
    assert mse(black, ~black) == 1.0


@NO_DEADLINE
@given(st.floats(1e-9, 1.0))
def test_psnr_is_its_formula(value: float) -> None:
    assert psnr(value) == pytest.approx(10 * math.log10(1 / value))


def test_identical_frames_score_the_cap() -> None:
    frame = noisy_frame(1)
    assert psnr_y(frame, frame) == psnr_yuv(frame, frame) == PSNR_CAP


def test_frame_metrics_weigh_the_planes_six_to_one_to_one() -> None:
    a, b = noisy_frame(1), noisy_frame(2)
    luma, u, v = (10 * math.log10(1 / exact_mse(getattr(a, plane), getattr(b, plane))) for plane in "yuv")
    assert mse_y(a, b) == float(exact_mse(a.y, b.y))
    assert psnr_y(a, b) == pytest.approx(luma)
    assert psnr_yuv(a, b) == pytest.approx((6 * luma + u + v) / 8)


def test_one_wrong_sample_of_chroma_counts_in_yuv_alone() -> None:
    a = noisy_frame(3)
    u = a.u.copy()
    u[0, 0] ^= 0x40
    b = Frame(a.y, u, a.v)
    assert psnr_y(a, b) == PSNR_CAP
    assert psnr_yuv(a, b) < PSNR_CAP


@pytest.mark.parametrize("shape", [(4, 5), (0, 4)])
def test_planes_that_cannot_be_compared_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(RqlvcError, match="shapes"):
        mse(np.zeros((0, 4), np.uint8), np.zeros(shape, np.uint8))


@st.composite
def rate_curves(draw: st.DrawFn) -> list[tuple[float, float]]:
    count = draw(st.integers(4, 9))
    ratios = draw(st.lists(st.floats(1.1, 4.0), min_size=count, max_size=count))
    gains = draw(st.lists(st.floats(0.5, 4.0), min_size=count, max_size=count))
    return list(zip(np.cumprod(ratios) * 1e4, 25 + np.cumsum(gains), strict=True))


@settings(max_examples=25, deadline=None)  # the first call imports matplotlib
@given(rate_curves(), st.floats(0.3, 3.0), st.randoms(use_true_random=False))
def test_bd_rate_finds_a_constant_rate_ratio(curve: list[tuple[float, float]], ratio: float, random: Random) -> None:
    scaled = [(rate * ratio, value) for rate, value in curve]
    random.shuffle(scaled)
    assert bd_rate(curve, scaled) == pytest.approx(100 * (ratio - 1), abs=1e-6)


def test_bd_rate_of_a_curve_against_itself_and_at_half_the_rate() -> None:
    curve = [(100.0, 28.0), (210.0, 31.1), (430.0, 34.0), (900.0, 37.2), (2000.0, 40.1)]
    assert bd_rate(curve, curve) == pytest.approx(0)
    assert bd_rate(curve, [(rate / 2, value) for rate, value in curve]) == pytest.approx(-50)
    assert bd_rate(curve, [(rate / 2, value) for rate, value in curve[:-1]]) == pytest.approx(-50, abs=2)


CURVE = [(100.0, 28.0), (200.0, 31.0), (400.0, 34.0), (800.0, 37.0)]


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ([(rate, value + 20) for rate, value in CURVE], "overlap"),
        ([(rate, value + 7) for rate, value in CURVE], "overlap"),
        (CURVE[:3], "4 points"),
        ([*CURVE[:3], (800.0, 33.0)], "grows"),
        ([*CURVE[:3], CURVE[2]], "grows"),
        ([(0.0, 20.0), *CURVE], "above 0"),
        ([*CURVE[:3], (800.0, math.nan)], "finite"),
    ],
)
def test_curves_without_a_meaningful_bd_rate_are_refused(test: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(RqlvcError, match=message):
        bd_rate(CURVE, test)
    with pytest.raises(RqlvcError, match=message):
        bd_rate(test, CURVE)


def flat(y: int, u: int, v: int, width: int = 20, height: int = 11) -> Frame:
    chroma = ((height + 1) // 2, (width + 1) // 2)
    return Frame(np.full((height, width), y, np.uint8), np.full(chroma, u, np.uint8), np.full(chroma, v, np.uint8))


# The colour bars of BT.709 in 8 bits.
BLACK, WHITE, RED, GREEN, BLUE = (16, 128, 128), (235, 128, 128), (63, 102, 240), (173, 42, 26), (32, 240, 118)


@pytest.mark.parametrize(("colour", "channels"), [(WHITE, 3), (RED, 1), (GREEN, 1), (BLUE, 1)])
def test_rgb_of_bt_709_colours_against_black(colour: tuple[int, int, int], channels: int) -> None:
    assert psnr_rgb(flat(*colour), flat(*BLACK)) == pytest.approx(-10 * math.log10(channels / 3), abs=0.05)


def test_an_error_of_luma_is_one_of_all_three_colours() -> None:
    assert psnr_rgb(flat(100, 128, 128), flat(103, 128, 128)) == pytest.approx(20 * math.log10(219 / 3), abs=1e-3)
    assert psnr_rgb(flat(100, 128, 128), flat(103, 128, 128), True) == pytest.approx(20 * math.log10(85), abs=1e-3)
    assert psnr_rgb(flat(100, 90, 128), flat(100, 90, 128)) == PSNR_CAP
    assert psnr_rgb(flat(240, 128, 128), flat(250, 128, 128)) == PSNR_CAP  # both whiter than white


def test_structural_similarity_falls_with_noise_and_is_none_for_small_pictures() -> None:
    ramp = np.add.outer(np.arange(170), np.arange(180)).astype(np.uint8) // 2 + 30
    draw = np.random.default_rng(3)

    def noisy(deviation: float) -> Frame:
        luma = np.clip(ramp + draw.normal(0, deviation, ramp.shape), 0, 255).astype(np.uint8)
        return Frame(luma, luma[::2, ::2], luma[::2, ::2])

    clean = noisy(0)
    scores = [ms_ssim(clean, noisy(deviation)) for deviation in (0, 3, 12)]
    assert scores[0] == pytest.approx(1) and None not in scores
    assert scores == sorted(scores, reverse=True) and scores[2] < 0.99
    assert ms_ssim(noisy_frame(1), noisy_frame(1)) is None


@pytest.mark.skipif(not vmaf_is_here(), reason="the extra eval is not installed")
def test_vmaf_falls_with_noise() -> None:
    def clip(deviation: float) -> list[Frame]:
        draw = np.random.default_rng(4)
        lumas = [noisy_frame(seed, 96, 64).y // 4 + 90 for seed in range(3)]
        noisy = [np.clip(luma + draw.normal(0, deviation, luma.shape), 0, 255).astype(np.uint8) for luma in lumas]
        return [Frame(luma, luma[::2, ::2], luma[::2, ::2]) for luma in noisy]

    same, worse = vmaf(clip(0), clip(0)), vmaf(clip(0), clip(25))
    assert len(same) == len(worse) == 3
    assert min(same) > 90 and all(bad < good - 5 for bad, good in zip(worse, same, strict=True))
