"""Every controller on the simulated codec."""

import itertools
import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqlvc.encoder import Encoder
from rqlvc.errors import RqlvcError
from rqlvc.rate.adaptive import KIND, YOUNG, remaining
from rqlvc.rate.allocation import Pattern
from rqlvc.rate.constant import Constant, Hierarchical
from rqlvc.rate.hierarchy import GOP_WEIGHTS, cut_short, level_offset, level_offsets
from rqlvc.rate.protocol import QUALITY_MAX, QUALITY_MIN, FrameInfo, FrameResult, RatePoint
from rqlvc.rate.registry import CONTROLLERS, DEFAULT_CONTROLLER, make_controller
from rqlvc.summary import FrameStats
from simulated_codec import SEQUENCES, Law, SimulatedCodec, Simulation, controller_for, run

NAMES = [name for name, entry in CONTROLLERS.items() if entry.factory is not None]
POINTS = {"none": "none", "optional": "predicted", "predicted": "predicted", "encoded": "encoded"}

laws = st.builds(
    Law,
    bits_per_pixel=st.floats(0.03, 0.4),
    slope=st.floats(0.045, 0.11),
    bend=st.floats(-0.2, 0.4),
    intra_ratio=st.floats(2, 15),
)

usual_laws = st.builds(Law, bits_per_pixel=st.floats(0.03, 0.1), slope=st.floats(0.055, 0.09))


def simulated(examples: int) -> settings:
    """The same examples on every machine: these properties are statistical, and a failure must be repeatable."""
    return settings(deadline=None, derandomize=True, max_examples=examples)


def points_of(name: str) -> str:
    return POINTS[CONTROLLERS[name].points]


def constant_total(simulation: Simulation, quality: float) -> float:
    return float(run(Constant(quality), simulation, points="none").bits.sum())


@pytest.mark.parametrize("name", NAMES)
@simulated(6)
@given(law=usual_laws, quality=st.floats(18, 45), seed=st.integers(0, 1000))
def test_every_controller_lands_on_a_reachable_total(name: str, law: Law, quality: float, seed: int) -> None:
    simulation = Simulation(scenes=(law,), seed=seed)
    total = constant_total(simulation, quality)
    log = run(controller_for(name, simulation, total), simulation, points=points_of(name))
    # The small steps of tip14-bpp need longer than these 96 frames, and the feedback of pi nearly as long.
    assert log.error(total) < {"tip14-bpp": 0.2, "pi": 0.12}.get(name, 0.05)


@simulated(30)
@given(law=laws, quality=st.floats(18, 45), seed=st.integers(0, 1000), predicted=st.booleans())
def test_adaptive_lands_within_one_percent(law: Law, quality: float, seed: int, predicted: bool) -> None:
    simulation = Simulation(scenes=(law,), seed=seed)
    total = constant_total(simulation, quality)
    points = "predicted" if predicted else "none"
    assert run(controller_for("adaptive", simulation, total), simulation, points=points).error(total) < 0.01


@simulated(40)
@given(log_factor=st.floats(-1.2, 1.2), slope=st.floats(0.045, 0.1), quality=st.floats(15, 50))
def test_what_an_inter_frame_costs_in_a_trial_is_believed(log_factor: float, slope: float, quality: float) -> None:
    def bits(level: float) -> int:
        return round(6000 * math.exp(slope * (level - quality)))

    def info(index: int, factor: float) -> FrameInfo:
        points = tuple(RatePoint(level, factor * bits(level)) for level in (10.0, 27.0, 43.0, 60.0))
        return FrameInfo(index, index == 0, index, 100_000, frames_left=96 - index, frames_to_intra=32, points=points)

    rate = 30 * bits(quality) * 1.3
    controller = make_controller("adaptive", bitrate=rate, framerate=30, pixels=100_000, total_frames=96)
    first = controller.decide(info(0, 8.0))
    assert not first.tentative
    controller.update(FrameResult(info(0, 8.0), first.quality, 8 * bits(first.quality), 1e-3))
    tentative = controller.decide(info(1, math.exp(log_factor)))
    assert tentative.tentative
    tried = RatePoint(tentative.quality, bits(tentative.quality))
    decision = controller.decide(replace(info(1, math.exp(log_factor)), tried=tried))
    assert not decision.tentative
    # The prediction is out by up to a factor of three; what is left is the slope from the trial's level to the new one.
    assert decision.target_bits == pytest.approx(bits(decision.quality), rel=0.3)


@simulated(25)
@given(law=laws, quality=st.floats(18, 45), seed=st.integers(0, 1000))
def test_what_the_first_frames_cost_in_a_rehearsal_is_believed(law: Law, quality: float, seed: int) -> None:
    """However far from usual content; there is no predictor."""
    simulation = Simulation(scenes=(law,), seed=seed)
    total = constant_total(simulation, quality)
    codec = SimulatedCodec(simulation)
    frames = codec.frames([Fraction(index, 30) for index in range(9)])
    encoder = Encoder(codec, controller_for("adaptive", simulation, total, total_frames=simulation.frames))
    errors = []
    for index, frame in enumerate(frames):
        _, stats = encoder.encode(frame, frames_left=simulation.frames - index, ahead=[] if index else frames[1:])
        assert stats.target_bits
        if QUALITY_MIN < stats.quality < QUALITY_MAX:
            errors.append(abs(math.log(stats.bits / stats.target_bits)))
    assert not errors or float(np.mean(errors)) < 0.15


def coded(name: str, simulation: Simulation, total: float) -> list[FrameStats]:
    """All frames of ``simulation`` through an encoder, the whole of it in view."""
    codec = SimulatedCodec(simulation)
    frames = codec.frames([Fraction(index, 30) for index in range(simulation.frames)])
    encoder = Encoder(codec, controller_for(name, simulation, total, total_frames=simulation.frames))
    return [
        encoder.encode(frame, frames_left=simulation.frames - index, ahead=frames[index + 1 :])[1]
        for index, frame in enumerate(frames)
    ]


@pytest.mark.parametrize("quality", [20, 40])
def test_recode_keeps_every_frame_to_its_bits(quality: float) -> None:
    simulation = SEQUENCES["erratic"]  # nobody foretells what its frames cost
    total = constant_total(simulation, quality)
    misses, encodes = {}, {}
    for name in ("adaptive", "recode"):
        stats = coded(name, simulation, total)
        assert sum(each.bits for each in stats) == pytest.approx(total, rel=0.01)
        misses[name] = [abs(each.bits / each.target_bits - 1) for each in stats if each.target_bits]
        encodes[name] = [each.encodes for each in stats[1:]]  # the first frame is rehearsed
    assert max(misses["recode"]) <= 0.15 < max(misses["adaptive"])
    assert sum(encodes["recode"]) < 1.7 * len(encodes["recode"])


@pytest.mark.parametrize(("quality", "factor", "held_at"), [(63, 1.5, 63), (0, 0.7, 0)])
def test_recode_lets_frames_be_where_no_level_meets_the_target(quality: float, factor: float, held_at: float) -> None:
    simulation = SEQUENCES["erratic"]
    stats = coded("recode", simulation, factor * constant_total(simulation, quality))
    held = [each for each in stats[32:-2] if each.type == "P"]
    assert {each.encodes for each in held} == {1}
    assert float(np.mean([each.quality for each in held])) == pytest.approx(held_at, abs=0.5)


@simulated(12)
@given(scenes=st.tuples(laws, laws, laws), seed=st.integers(0, 1000), predicted=st.booleans(), end_known=st.booleans())
def test_adaptive_settles_again_after_every_cut(
    scenes: tuple[Law, ...], seed: int, predicted: bool, end_known: bool
) -> None:
    simulation = Simulation(scenes=scenes, frames=360, intra_period=60, seed=seed, drift=0.01)
    total = constant_total(simulation, 30)
    controller = controller_for("adaptive", simulation, total)
    log = run(controller, simulation, points="predicted" if predicted else "none", end_known=end_known)
    for last in (120, 240, 360):
        settled = slice(last - 40, last)
        free = (log.quality[settled] > 0) & (log.quality[settled] < 63) & ~log.intra[settled]
        error = np.abs(np.log(log.bits[settled] / log.target[settled]))[free]
        assert error.size == 0 or float(np.median(error)) < 0.25


@pytest.mark.parametrize("name", NAMES)
@simulated(12)
@given(
    costs=st.lists(st.one_of(st.just(0), st.integers(0, 10**9)), min_size=1, max_size=60),
    points=st.lists(
        st.lists(st.builds(RatePoint, st.floats(0, 63), st.floats(0, 1e9)), min_size=1, max_size=5),
        min_size=60,
        max_size=60,
    ),
    limits=st.tuples(st.floats(0, 63), st.floats(0, 63)),
    bitrate=st.floats(1, 1e9),
    horizon=st.booleans(),
)
def test_no_history_drives_the_quality_out_of_its_range(name, costs, points, limits, bitrate, horizon) -> None:
    low, high = sorted(limits)
    controller = make_controller(name, bitrate=bitrate, framerate=25, pixels=100_000, min_quality=low, max_quality=high)
    for index, bits in enumerate(costs):
        position = index % 20
        left = {"frames_left": len(costs) - index, "frames_to_intra": 20 - position} if horizon else {}
        info = FrameInfo(index, position == 0, position, 100_000, points=tuple(points[index]), **left)
        decision = controller.decide(info)
        assert low <= decision.quality <= high
        assert decision.target_bits is not None and decision.target_bits > 0 and math.isfinite(decision.target_bits)
        controller.update(FrameResult(info, decision.quality, bits, 0.001))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tip14-bpp"])
def test_new_rates_are_followed(name: str) -> None:
    simulation = Simulation(frames=320, drift=0.005)
    rate = constant_total(simulation, 25) * simulation.framerate / simulation.frames
    controller = make_controller(name, bitrate=rate, framerate=simulation.framerate, pixels=simulation.pixels)
    rates = {96: 2 * rate, 224: 0.7 * rate}
    log = run(controller, simulation, points=points_of(name), end_known=False, rates=rates)
    for span, factor in ((slice(32, 96), 1.0), (slice(160, 224), 2.0), (slice(256, 320), 0.7)):
        average = float(log.bits[span].mean()) * simulation.framerate
        assert average == pytest.approx(factor * rate, rel=0.15)


def test_adaptive_hits_its_frames_better_than_every_other_one_pass_controller() -> None:
    errors = {}
    for name in NAMES:
        logs = []
        for simulation in SEQUENCES.values():
            total = constant_total(simulation, 27)
            logs.append(
                run(controller_for(name, simulation, total, total_frames=96), simulation, points=points_of(name))
            )
        errors[name] = float(np.mean([log.frame_error() for log in logs]))
    several_encodes = "four-pass", "recode"
    rivals = {name: error for name, error in errors.items() if name not in (DEFAULT_CONTROLLER, *several_encodes)}
    assert errors[DEFAULT_CONTROLLER] < min(rivals.values())


def test_adaptive_profits_from_points_and_survives_bad_ones() -> None:
    simulation = replace(SEQUENCES["erratic"], predictor_noise=0.05)
    total = constant_total(simulation, 30)
    good = run(controller_for("adaptive", simulation, total), simulation)
    blind = run(controller_for("adaptive", simulation, total), simulation, points="none")
    assert good.frame_error() < blind.frame_error()
    wrong = replace(SEQUENCES["steady"], predictor_noise=0.8, predictor_bias=1.0)
    total = constant_total(wrong, 30)
    log = run(controller_for("adaptive", wrong, total), wrong)
    assert log.error(total) < 0.02
    assert log.frame_error() < 0.3


def test_adaptive_is_as_sure_after_an_hour_as_after_a_minute() -> None:
    simulation = Simulation(frames=6000, intra_period=250, drift=0.005)
    total = constant_total(simulation, 30)
    log = run(controller_for("adaptive", simulation, total), simulation, points="none", end_known=False)
    error = np.abs(log.bits / log.target - 1)
    assert float(error[-1000:].mean()) < 1.5 * float(error[500:1500].mean()) + 0.01
    assert log.error(total) < 0.02


def test_adaptive_holds_the_quality_where_others_hold_the_bits() -> None:
    """Content that gets four times as dear: the level falls slowly, and comes to where the bitrate wants it."""
    simulation = Simulation(frames=192, scenes=(Law(0.03), Law(0.12)), noise=0.05, seed=11)
    total = constant_total(simulation, 30)
    steady, equal = (run(controller_for(name, simulation, total), simulation) for name in ("adaptive", "rq-lvc"))
    places = np.arange(simulation.frames) % simulation.intra_period
    offsets = np.array(level_offsets(Pattern().inter, simulation.intra_period))[places]

    def unrest(quality: np.ndarray) -> float:
        return float(np.abs(np.diff(quality)).mean())

    assert unrest(steady.quality - offsets) < 0.5 * unrest(equal.quality)
    assert steady.error(total) < 0.01


def test_a_hierarchy_keeps_the_best_level_for_all_frames_and_the_asked_one_for_intra_frames() -> None:
    infos = [FrameInfo(place, not place, place, 1000, frames_to_intra=32 - place) for place in range(32)]
    assert {Hierarchical(63.0).decide(info).quality for info in infos} == {63.0}
    levels = [Hierarchical(40.0).decide(info).quality for info in infos]
    assert levels[0] == 40.0
    assert levels[8] == max(levels) and levels[-1] == min(levels)
    assert all(0 <= Hierarchical(quality).decide(info).quality <= 63 for quality in (0.0, 3.0, 60.0) for info in infos)


def test_frames_towards_the_end_of_a_group_are_lower() -> None:
    offsets = level_offsets(Pattern((1, 1)).inter, 32)
    assert offsets[0] == 0
    assert all(later < earlier for earlier, later in itertools.pairwise(offsets[1:]))


def test_a_group_that_is_cut_short_is_lower_as_a_whole() -> None:
    """But for the first one: a short video is coded at the level that was asked for."""

    def offset(index: int, position: int, left: int | None) -> float:
        info = FrameInfo(index, position == 0, position, 1000, frames_to_intra=32 - position, scene_left=left)
        return level_offset(info, GOP_WEIGHTS)

    assert offset(0, 0, 4) == offset(0, 0, 1) == offset(64, 0, None) == offset(64, 0, 32) == 0
    lower = [offset(64, 0, left) for left in (20, 8, 4)]
    assert 0 > lower[0] > lower[1] > lower[2] >= -6
    assert offset(64, 0, 1) == -6
    for position in (1, 3):  # all frames of it alike
        assert offset(64 + position, position, 4 - position) == offset(position, position, 4 - position) + lower[2]


@given(
    position=st.integers(0, 39),
    frames=st.integers(1, 150),
    group=st.integers(1, 40) | st.none(),
    weights=st.lists(st.floats(0.2, 5), min_size=1, max_size=5),
    ends=st.booleans(),
)
def test_what_remains_is_the_sum_of_its_frames(
    position: int, frames: int, group: int | None, weights: list[float], ends: bool
) -> None:
    """The last group of pictures of a video, if its end will be in view, is lower towards that."""
    pattern = Pattern(weights)
    position = position % group if group else position
    to_intra = None if group is None else group - position
    left = frames if ends and to_intra and frames > to_intra else None
    view = (0.1,) * 41 if left else ()
    info = FrameInfo(
        position, position == 0, position, 1000, frames_to_intra=to_intra, frames_left=left, novelties=view
    )
    found = remaining(info, frames, pattern.inter)
    sums = [(n, n * offset, n * rise) for n, offset, rise in found.inter]
    count, total, rises = (sum(each) for each in zip(*sums, (0, 0, 0), strict=True))
    if group is None:
        assert count == pytest.approx(frames - 1)
        round_trip = level_offsets(pattern.inter, None)[1:]
        assert total == pytest.approx((frames - 1) * np.mean(round_trip))
        assert rises == pytest.approx((frames - 1) * np.mean(np.diff(round_trip, prepend=round_trip[-1]).clip(0)))
        assert not found.intra
        return
    places = [place % group for place in range(position + 1, position + frames)]
    offsets = level_offsets(pattern.inter, group)
    inter = [offsets[place] for place in places if place]
    above = [max(offsets[place] - offsets[place - 1], 0.0) for place in places if place]
    intra = [0.0] * places.count(0)
    if left and places[-1] < group - 1:
        lower = cut_short(places[-1] + 1, group)
        last = level_offsets(pattern.inter, places[-1] + 1)
        end = [lower + offset for offset in last[1:]]
        intra[-1], inter[len(inter) - len(end) :] = lower, end
        above[len(above) - len(end) :] = np.diff(last).clip(0)
    shares = [YOUNG if place <= len(weights) else 1.0 for place in places if place]
    assert sorted(alike.offset for alike in found.intra for _ in range(int(alike.frames))) == sorted(intra)
    assert count == pytest.approx(sum(shares))
    assert total == pytest.approx(np.dot(shares, inter), abs=1e-9)
    assert rises == pytest.approx(np.dot(shares, above), abs=1e-9)
    assert all(min(abs(offset - alike.offset) for alike in found.inter) <= KIND for offset in inter)


def test_static_content_ends_in_one_piece() -> None:
    simulation = SEQUENCES["static"]
    for quality in (10, 27, 43):
        total = constant_total(simulation, quality)
        assert run(controller_for("adaptive", simulation, total), simulation).error(total) < 0.02


def test_a_total_out_of_reach_ends_at_the_limit() -> None:
    simulation = Simulation()
    for quality, factor in ((63, 3.0), (0, 0.2)):
        total = factor * constant_total(simulation, quality)
        for name in NAMES:
            log = run(controller_for(name, simulation, total), simulation, points=points_of(name))
            inter = log.quality[~log.intra][-20:]
            assert np.abs(inter - quality).max() <= (25 if name == "tip14-bpp" else 1), name


def test_controllers_that_need_points_say_so() -> None:
    for name in ("rq-lvc", "rqnet-only", "four-pass"):
        controller = make_controller(name, bitrate=1e6, framerate=25, pixels=100_000)
        with pytest.raises(RqlvcError, match="needs R-Q points"):
            controller.decide(FrameInfo(0, True, 0, 100_000))


def test_a_quality_is_held_and_the_hierarchy_is_around_it() -> None:
    simulation = Simulation(frames=40)
    assert set(run(Constant(30), simulation, points="none").quality) == {30}
    log = run(Hierarchical(30), simulation, points="none")
    assert set(log.quality[log.intra]) == {30}
    assert list(log.quality[1:32] - 30) == pytest.approx(level_offsets(GOP_WEIGHTS, 32)[1:], abs=1 / 64)
    assert set(run(Hierarchical(63), simulation, points="none").quality) == {63}
    assert max(run(Hierarchical(62), simulation, points="none").quality) <= 63


def test_bad_requests_are_refused() -> None:
    good = {"bitrate": 1e6, "framerate": 25.0, "pixels": 1000}
    for name, changes, message in (
        ("best", {}, "no controller 'best'"),
        ("constant", {}, "--quality"),
        ("adaptive", {"bitrate": 0}, "bitrate"),
        ("adaptive", {"framerate": -1}, "frame rate"),
        ("adaptive", {"pixels": 0}, "pixel"),
        ("adaptive", {"total_frames": 0}, "number of frames"),
        ("adaptive", {"min_quality": 40, "max_quality": 30}, "quality range"),
        ("adaptive", {"max_quality": 64}, "quality range"),
        ("adaptive", {"weights": (1, -1)}, "weights"),
    ):
        with pytest.raises(RqlvcError, match=message):
            make_controller(name, **{**good, **changes})
    for quality in (-1, 64, float("nan")):
        with pytest.raises(RqlvcError, match="outside"):
            Constant(quality)


def test_rate_control_needs_no_torch() -> None:
    code = "import sys, rqlvc.rate.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
