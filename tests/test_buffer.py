"""The decoder's buffer: never a frame that comes late, whatever the content, the buffer and the target."""

import contextlib
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CommandLine, make_clip, read_frames, same_picture
from rqlvc.codec.protocol import EncodedFrame
from rqlvc.control import RateSchedule, RateTarget
from rqlvc.decoder import Decoder
from rqlvc.encoder import Encoder, FrameStats
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.buffer_check import check_buffer
from rqlvc.evaluation.metrics import psnr_y
from rqlvc.media.container import ContainerReader
from rqlvc.media.frame import Frame
from rqlvc.rate.buffer import TRIES, Bounds, Buffer, fit
from rqlvc.rate.protocol import QualityRange
from rqlvc.rate.registry import make_controller
from simulated_codec import SEQUENCES, Law, SimulatedCodec, Simulation
from test_cli import assert_sentence, lines_of, y4m_of
from test_sessions import noise
from toy_codec import ToyCodec

QUALITIES = st.integers(0, 63 * 64).map(lambda step: step / 64)


def encode_simulated(
    simulation: Simulation,
    target: RateTarget,
    *,
    keyint: int | None = 32,
    times: Sequence[Fraction] | None = None,
    controller: str = "adaptive",
    end_known: bool = True,
    cuts_seen: bool = False,
) -> list[FrameStats]:
    """What a session makes of a simulation, without predictions."""
    codec = SimulatedCodec(simulation)
    rate = Fraction(simulation.framerate)
    times = times or [index / rate for index in range(simulation.frames)]
    limits = QualityRange(target.min_quality, target.max_quality if target.quality is None else target.quality)
    known = simulation.frames if end_known and target.quality is None else None
    bitrate = target.bits_per_second(simulation.framerate, simulation.frames)
    made = make_controller(
        controller,
        bitrate=bitrate,
        framerate=simulation.framerate,
        pixels=simulation.pixels,
        total_frames=known,
        min_quality=limits.minimum,
        max_quality=limits.maximum,
        window=target.window(bitrate, simulation.framerate),
    )
    encoder = Encoder(
        codec,
        made,
        keyint=keyint,
        limits=limits,
        buffer=target.buffer,
        policy=target.policy,
        total_bits=None if target.size is None else 8 * target.size,
        max_drops=target.max_drops,
        frame_rate=simulation.framerate,
    )
    stats = []
    schedule = list(target.schedule)
    for index, frame in enumerate(codec.frames(times)):
        while schedule and schedule[0][0] <= frame.time:
            since, bitrate = schedule.pop(0)
            encoder.set_rates(bitrate, simulation.framerate, time=since)
        cut = cuts_seen and index > 0 and simulation.scene(index) != simulation.scene(index - 1)
        if not encoder.drops(frame.time):
            stats.append(encoder.encode(frame, frames_left=len(times) - index if end_known else None, cut=cut)[1])
    return stats


def late(stats: Sequence[FrameStats], times: Sequence[Fraction], buffer: Buffer, schedule: RateSchedule = ()) -> int:
    exact = {float(time): time for time in times}
    packets = [(exact[each.time], each.bits) for each in stats]
    return len(check_buffer(packets, buffer.maxrate, buffer.size, buffer.initial, schedule).violations)


laws = st.builds(
    Law,
    bits_per_pixel=st.floats(0.005, 0.6),
    slope=st.floats(0.03, 0.1),
    bend=st.floats(-0.4, 0.5),
    intra_ratio=st.floats(1, 40),
)
simulations = st.builds(
    Simulation,
    frames=st.integers(2, 60),
    pixels=st.just(20_000),
    scenes=st.lists(laws, min_size=1, max_size=3).map(tuple),
    noise=st.floats(0, 0.6),
    drift=st.floats(0, 0.2),
    seed=st.integers(0, 1000),
)


@settings(deadline=None, max_examples=150)
@given(
    simulation=simulations,
    rate=st.floats(2_000, 500_000),
    peak=st.floats(1, 4),
    seconds=st.floats(0.05, 3),
    initial=st.floats(0.1, 1),
    quality=st.none() | st.floats(0, 63),
    lowest=st.floats(0, 20),
    keyint=st.none() | st.integers(1, 40),
    gaps=st.lists(st.integers(1, 400), min_size=60, max_size=60) | st.none(),
    controller=st.sampled_from(["adaptive", "no-rqnet", "pi", "icassp24", "tip14"]),
    changes=st.lists(st.tuples(st.integers(0, 3000), st.floats(0.05, 5)), max_size=4, unique_by=lambda each: each[0]),
    max_drops=st.integers(0, 3),
)
def test_no_frame_ever_comes_late(
    simulation: Simulation,
    rate: float,
    peak: float,
    seconds: float,
    initial: float,
    quality: float | None,
    lowest: float,
    keyint: int | None,
    gaps: list[int] | None,
    controller: str,
    changes: list[tuple[int, float]],
    max_drops: int,
) -> None:
    schedule: RateSchedule = ()
    if quality is None and changes:  # a constant rate that changes
        peak, schedule = 1.0, tuple((Fraction(time, 1000), rate * factor) for time, factor in sorted(changes))
    buffer = Buffer(rate * peak, rate * peak * seconds, initial)
    target = RateTarget(
        bitrate=rate if quality is None else None,
        quality=quality,
        buffer=buffer,
        schedule=schedule,
        max_drops=max_drops,
        min_quality=min(lowest, quality if quality is not None else 63.0),
    )
    times = [index / Fraction(simulation.framerate) for index in range(simulation.frames)]
    if gaps is not None:
        times = [Fraction(sum(gaps[:index]), 1000) for index in range(simulation.frames)]
    first = SimulatedCodec(simulation).frames(times)[0]
    smallest = 8 * len(SimulatedCodec(simulation).encode(first, round(target.min_quality * 64) / 64, None).payload)
    if smallest > math.floor(Fraction(buffer.size) * Fraction(buffer.initial)):
        with pytest.raises(RqlvcError, match=r"the first frame takes \d+ bits"):
            encode_simulated(simulation, target, keyint=keyint, times=times, controller=controller)
        return
    stats = encode_simulated(simulation, target, keyint=keyint, times=times, controller=controller)
    assert late(stats, times, buffer, schedule) == 0
    coded = [times.index(next(time for time in times if float(time) == each.time)) for each in stats]
    assert all(after - before <= max_drops + 1 for before, after in pairwise(coded))
    assert all((each.bits == 0) == each.skipped for each in stats)
    most = 2 * (TRIES + 1)  # an intra frame that does not fit is tried as an inter frame as well
    assert all(each.buffer is not None and each.buffer >= 0 and each.encodes <= most for each in stats)


@given(QUALITIES, st.floats(0.02, 0.2), st.floats(2, 9), st.floats(1, 1e6), st.floats(0, 1), st.booleans())
def test_what_fits_is_found(
    start: float, slope: float, level: float, room: float, share: float, in_steps: bool
) -> None:
    asked: list[float] = []

    def cost(quality: float) -> int:
        asked.append(quality)
        return 8 * round(math.exp(level + slope * (16 * (quality // 16) if in_steps else quality)) / 8)

    limits = QualityRange(0, 63)
    found = fit(cost, start, Bounds(share * room, room), limits=limits)
    assert len(asked) <= TRIES + 1
    assert (found is None) == (cost(0) > room)
    if found is not None:
        assert 0 <= found <= 63 and cost(found) <= room


def test_a_frame_that_fits_is_coded_once() -> None:
    asked: list[float] = []
    fit(lambda quality: asked.append(quality) or 100, 30.0, Bounds(most=100), limits=QualityRange())
    assert asked == [30.0]


@pytest.mark.parametrize("name", ["steady", "talking", "erratic", "bent", "cuts"])
@pytest.mark.parametrize("seconds", [0.25, 0.5, 1])
def test_a_constant_rate_keeps_its_average(name: str, seconds: float) -> None:
    simulation = SEQUENCES[name]
    rate = 0.1 * simulation.pixels * simulation.framerate
    buffer = Buffer(rate, rate * seconds)
    times = [index / Fraction(simulation.framerate) for index in range(simulation.frames)]
    stats = encode_simulated(simulation, RateTarget(bitrate=rate, buffer=buffer))
    assert late(stats, times, buffer) == 0
    assert not any(each.skipped for each in stats)
    spent = sum(each.bits for each in stats) * simulation.framerate / simulation.frames
    assert spent == pytest.approx(rate, rel=0.02)


def test_a_quality_is_constant_until_the_cap_bites() -> None:
    easy, hard = Law(0.03), Law(0.5)
    simulation = Simulation(frames=360, scenes=(easy, hard, easy), noise=0.03, drift=0.0)
    buffer = Buffer(0.1 * simulation.pixels * simulation.framerate, 0.1 * simulation.pixels * simulation.framerate)
    times = [index / Fraction(simulation.framerate) for index in range(simulation.frames)]
    stats = encode_simulated(simulation, RateTarget(quality=35.0, buffer=buffer))
    assert late(stats, times, buffer) == 0 and not any(each.skipped for each in stats)
    qualities = np.array([each.quality for each in stats])
    assert set(qualities[:120]) == {35.0} and set(qualities[-80:]) == {35.0}
    assert qualities.max() == 35.0
    assert qualities[125:240].max() < 35.0  # the cap bites
    spent = sum(each.bits for each in stats[170:240]) / 70 * simulation.framerate
    assert 0.9 * buffer.maxrate < spent < 1.3 * buffer.maxrate  # and is made use of


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("name", ["steady", "talking", "bent"])
def test_a_live_stream_follows_its_bandwidth(name: str, factor: float) -> None:
    simulation = replace(SEQUENCES[name], frames=240)
    rate = 0.1 * simulation.pixels * simulation.framerate
    change = Fraction(3)
    target = RateTarget(bitrate=rate, buffer=Buffer(rate, rate / 4), schedule=((change, factor * rate),))
    stats = encode_simulated(simulation, target, keyint=None, end_known=False)
    times = [index / Fraction(simulation.framerate) for index in range(simulation.frames)]
    assert late(stats, times, Buffer(rate, rate / 4), target.schedule) == 0
    assert [each.type for each in stats].count("I") == 1 and not any(each.skipped for each in stats)
    bits = np.array([each.bits for each in stats])
    second = round(simulation.framerate)
    settled = range(3 * second + second // 2, simulation.frames - second)
    windows = np.array([bits[start : start + second].sum() for start in settled])
    assert windows == pytest.approx(factor * rate, rel=0.1)


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("intra_ratio", [7, 15])
@pytest.mark.parametrize("keyint", [None, 30])  # one intra frame in all, or one in each second
@pytest.mark.parametrize("end_known", [False, True])
def test_what_a_scene_cut_cost_does_not_keep_a_stream_from_a_new_rate(
    factor: float, intra_ratio: float, keyint: int | None, end_known: bool
) -> None:
    scenes = (Law(0.05, intra_ratio=intra_ratio), Law(0.1, intra_ratio=intra_ratio))
    simulation = Simulation(frames=210, scenes=scenes, seed=3)
    rate = 0.1 * simulation.pixels * simulation.framerate
    buffer, cut, change = Buffer(rate, rate), 105, Fraction(15, 4)
    target = RateTarget(bitrate=rate, buffer=buffer, schedule=((change, factor * rate),))
    stats = encode_simulated(simulation, target, keyint=keyint, end_known=end_known, cuts_seen=keyint is None)
    times = [index / Fraction(simulation.framerate) for index in range(simulation.frames)]
    assert late(stats, times, buffer, target.schedule) == 0
    assert not any(each.skipped for each in stats)
    second = round(simulation.framerate)
    assert stats[cut].bits > 3 * rate / second  # a quarter of a second before the change
    bits = np.array([each.bits for each in stats])
    settled = range(math.ceil((change + Fraction(1, 2)) * second), simulation.frames - second + 1)
    windows = np.array([bits[start : start + second].sum() for start in settled])
    # With intra frames, a quarter of a second of the new scene is not enough to know what they cost.
    assert windows == pytest.approx(factor * rate, rel=0.1 if keyint is None else 0.2)


@pytest.mark.parametrize("seed", range(6))
def test_with_low_latency_every_second_is_near_the_rate(seed: int) -> None:
    simulation = Simulation(frames=360, noise=0.3, drift=0.04, seed=seed)
    rate, half = 0.1 * simulation.pixels * simulation.framerate, Fraction(6)
    buffer = Buffer(rate, rate)
    target = RateTarget(bitrate=rate, buffer=buffer, schedule=((half, rate / 2),))
    stats = encode_simulated(simulation, target, keyint=None, end_known=False)
    times = [index / Fraction(simulation.framerate) for index in range(simulation.frames)]
    assert late(stats, times, buffer, target.schedule) == 0 and not any(each.skipped for each in stats)
    second = round(simulation.framerate)
    bits = np.array([each.bits for each in stats])
    seconds = np.convolve(bits, np.ones(second), "valid")
    filled = np.array([each.buffer is not None and each.buffer > 0.5 * buffer.size for each in stats])
    change = int(half * second)
    for first, last, due in ((0, change - second, rate), (change, len(bits) - second, rate / 2)):
        begun = range(first + second // 2, last + 1)
        assert max(seconds[start] for start in begun) < 1.1 * due
        for start in begun:  # a buffer that is low is filled first
            assert seconds[start] > 0.9 * due or not filled[start : start + second].all()
    assert sum(each.encodes for each in stats) < 1.5 * len(stats)


def test_with_low_latency_a_scene_that_nobody_announced_may_take_from_the_buffer() -> None:
    simulation = Simulation(frames=180, scenes=(Law(0.02), Law(0.4, intra_ratio=15)))
    rate = 0.1 * simulation.pixels * simulation.framerate
    stats = encode_simulated(simulation, RateTarget(bitrate=rate, buffer=Buffer(rate, rate)), keyint=None)
    before, cut = stats[89:91]
    assert cut.bits > 4 * rate / simulation.framerate
    assert before.quality - 40 < cut.quality < before.quality - 10


class Floods(ToyCodec):
    """Inter frames from the third on grow beyond any channel."""

    def encode(self, frame: Frame, quality: float, state: Frame | None) -> EncodedFrame:
        coded = super().encode(frame, quality, state)
        return replace(coded, payload=coded.payload + bytes(10_000)) if frame.time >= Fraction(2, 7) else coded


def test_a_frame_that_never_fits_repeats_the_one_before() -> None:
    frames = noise(4)
    buffer = Buffer(40_000, 20_000)
    controller = make_controller("adaptive", bitrate=40_000, framerate=7, pixels=33 * 17)
    encoder = Encoder(Floods(), controller, keyint=3, buffer=buffer, policy="constant", frame_rate=7)
    decoder = Decoder(ToyCodec())
    shown, stats = [], []
    for frame in frames:
        packet, each = encoder.encode(frame)
        shown.append(decoder.decode(packet))
        stats.append(each)
        assert encoder.reconstruction is not None and same_picture(shown[-1], encoder.reconstruction)
        assert each.psnr_y == psnr_y(frame, shown[-1])
    assert [each.skipped for each in stats] == [False, False, True, True]
    assert [each.type for each in stats] == ["I", "P", "P", "P"]  # the second intra frame is still due
    assert [picture.time for picture in shown] == [frame.time for frame in frames]
    assert same_picture(shown[2], shown[1]) and same_picture(shown[3], shown[1])


# A size


@settings(deadline=None, max_examples=100)
@given(simulations, st.floats(0.001, 1.0), st.sampled_from(["adaptive", "no-rqnet", "pi", "icassp24", "tip14"]))
def test_a_size_is_never_exceeded(simulation: Simulation, bits_per_pixel: float, controller: str) -> None:
    size = round(bits_per_pixel * simulation.pixels * simulation.frames / 8) + 1
    codec = SimulatedCodec(simulation)
    smallest = len(codec.encode(codec.frames([Fraction(0)])[0], 0.0, None).payload)
    if smallest > size:
        with pytest.raises(RqlvcError, match=r"more than the whole video may: ask for a larger --target-size"):
            encode_simulated(simulation, RateTarget(size=size), controller=controller)
    else:
        stats = encode_simulated(simulation, RateTarget(size=size), controller=controller)
        assert len(stats) == simulation.frames
        assert sum(each.bits for each in stats) <= 8 * size


@pytest.mark.parametrize("bits_per_pixel", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("name", ["steady", "talking", "erratic", "bent", "cuts"])
def test_a_size_is_used_to_98_percent(name: str, bits_per_pixel: float) -> None:
    simulation = replace(SEQUENCES[name], frames=300)
    size = round(bits_per_pixel * simulation.pixels * simulation.frames / 8)
    stats = encode_simulated(simulation, RateTarget(size=size))
    assert not any(each.skipped for each in stats)
    assert 0.98 * 8 * size <= sum(each.bits for each in stats) <= 8 * size


@pytest.mark.parametrize("seed", [5, 6, 8, 9, 17])
def test_the_last_frames_leave_each_other_something(seed: int) -> None:
    """Costly intra frames, and hard content at the end: the size is nearly used up when the last frames come."""
    simulation = Simulation(scenes=(Law(0.02, intra_ratio=40),), noise=0.2, drift=0.05, seed=seed)
    size = round(0.05 * simulation.pixels * simulation.frames / 8)
    stats = encode_simulated(simulation, RateTarget(size=size))
    assert not any(each.skipped for each in stats)
    assert sum(each.bits for each in stats) <= 8 * size


# Through the command


@pytest.fixture(scope="session")
def uneven_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 frames at uneven times, with a pause in the middle."""
    times = [40 * index + 11 * (index % 3) + (700 if index > 40 else 0) for index in range(72)]
    return make_clip(tmp_path_factory.mktemp("clips") / "uneven.mkv", frames=72, times=times)


@pytest.mark.parametrize(
    "options",
    [
        ("--bitrate", "300k", "--maxrate", "300k", "--bufsize", "75k"),
        ("--bitrate", "250k", "--maxrate", "350k", "--bufsize", "100k", "--bufinit", "0.6"),
        ("--quality", "45", "--maxrate", "300k", "--bufsize", "150k"),
        ("--target-size", "90k", "--maxrate", "300k", "--bufsize", "100k"),
        ("--bitrate", "200k", "--maxrate", "200k", "--bufsize", "60k"),  # below what this content can be coded at
    ],
)
def test_files_pass_the_independent_check(
    rqlvc: CommandLine, uneven_clip: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    coded, decoded = tmp_path / "coded.mkv", tmp_path / "decoded.y4m"
    encoding = rqlvc("encode", uneven_clip, "-o", coded, "--codec", "toy", "--json", *options)
    assert encoding.returncode == 0, encoding.stderr.decode()
    *frames, summary = (line for line in lines_of(encoding) if line["type"] != "warning")
    check = rqlvc("info", coded, "--json", "--verify-buffer", *options[2:])
    assert check.returncode == 0, check.stderr.decode()
    report = lines_of(check)[0]["buffer"]
    assert report["violations"] == []
    assert report["lowest"] == pytest.approx(summary["buffer_lowest"])
    assert summary["buffer_lowest"] == min(frame["buffer"] for frame in frames)
    assert summary["skipped_frames"] == sum(frame["skipped"] for frame in frames)
    assert summary["recoded_frames"] == sum(frame["encodes"] > 1 for frame in frames)
    assert (b"repeat the picture before" in encoding.stderr) == (summary["skipped_frames"] > 0)
    assert rqlvc("decode", coded, "-o", decoded).returncode == 0
    assert len(read_frames(decoded)) == 72


def test_a_schedule_is_followed_and_checked(rqlvc: CommandLine, uneven_clip: Path, tmp_path: Path) -> None:
    coded, again, schedule = tmp_path / "coded.mkv", tmp_path / "again.mkv", tmp_path / "rates.csv"
    schedule.write_text("# seconds, bits per second\n\n1.2, 300k\n2.51,600k  # recovered\n")
    channel = ("--maxrate", "600k", "--bufsize", "150k", "--rate-schedule", schedule)
    options = ("--codec", "toy", "--bitrate", "600k", "--max-drops", "2", *channel, "--json")
    encoding = rqlvc("encode", uneven_clip, "-o", coded, *options)
    assert encoding.returncode == 0, encoding.stderr.decode()
    summary = lines_of(encoding)[-1]
    duration = summary["duration"]
    assert summary["target_bitrate"] == pytest.approx(600_000 - 300_000 * (2.51 - 1.2) / duration)
    assert -20 < summary["error_percent"] < 2  # the pause is longer than the buffer, and the channel idled
    assert summary["frames"] + summary["dropped_frames"] == 72
    assert rqlvc("info", coded, "--verify-buffer", *channel).returncode == 0
    assert rqlvc("encode", uneven_clip, "-o", again, *options).returncode == 0
    assert again.read_bytes() == coded.read_bytes()


def test_a_pipe_gets_every_frame_before_the_next_is_there(rqlvc: CommandLine, clip: Path, tmp_path: Path) -> None:
    video = y4m_of(clip, tmp_path / "clip.y4m")
    header, *pictures = video.split(b"FRAME\n")
    live = rqlvc.start("encode", "-", "-o", "-", "--codec", "toy", "--bitrate", "900k", "--low-latency")
    assert live.stdin is not None and live.stdout is not None
    os.set_blocking(live.stdout.fileno(), False)
    stream, sizes = b"", []
    for index, picture in enumerate(pictures):
        live.stdin.write((header if index == 0 else b"") + b"FRAME\n" + picture)
        live.stdin.flush()
        deadline = time.monotonic() + 30
        while len(sizes) <= index and time.monotonic() < deadline:
            stream += live.stdout.read() or b""
            whole = tmp_path / "so_far.mkv"
            whole.write_bytes(stream)
            with contextlib.suppress(RqlvcError), ContainerReader(str(whole)) as container:
                sizes = [len(packet.payload) for packet in container]
            time.sleep(0.01)
        assert len(sizes) == index + 1  # nothing more was fed
    live.stdin.close()
    assert live.wait(30) == 0
    assert live.stderr is not None and b"12 frames" in live.stderr.read()


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ("", "empty"),
        ("1,fast", "line 1"),
        ("1,500k\n1,600k", "times must rise"),
        ("1;500k", "line 1"),
        ("-1,5k", "line 1"),
    ],
)
def test_a_schedule_without_sense_is_one_sentence(
    rqlvc: CommandLine, clip: Path, tmp_path: Path, lines: str, word: str
) -> None:
    schedule = tmp_path / "rates.csv"
    schedule.write_text(lines)
    options = ("--codec", "toy", "--bitrate", "500k", "--rate-schedule", schedule)
    assert_sentence(rqlvc("encode", clip, "-o", tmp_path / "out.mkv", *options), word, code=2)


def test_a_violation_is_found_and_named(rqlvc: CommandLine, coded: Path) -> None:
    finished = rqlvc("info", coded, "--verify-buffer", "--maxrate", "50k", "--bufsize", "20k")
    assert finished.returncode == 1
    assert b"VIOLATED" in finished.stdout and b"first by frame 0 at 0.000 s" in finished.stdout
    assert rqlvc("info", coded, "--verify-buffer", "--maxrate", "9M", "--bufsize", "9M").returncode == 0


def test_what_cannot_be_buffered_is_one_sentence(rqlvc: CommandLine, clip: Path, tmp_path: Path) -> None:
    encode = ("encode", clip, "-o", tmp_path / "out.mkv", "--codec", "toy")
    small = ("--bitrate", "100k", "--maxrate", "100k", "--bufsize", "5k")
    assert_sentence(rqlvc(*encode, *small), "the first frame takes", "--bufsize", "--bufinit")
    assert list(tmp_path.iterdir()) == []
    assert_sentence(rqlvc(*encode, "--bitrate", "100k", "--maxrate", "100k"), "--bufsize", code=2)
    assert_sentence(rqlvc(*encode, "--bitrate", "100k", "--bufinit", "0.5"), "--maxrate", code=2)
    below = ("--bitrate", "100k", "--maxrate", "90k", "--bufsize", "50k")
    assert_sentence(rqlvc(*encode, *below), "--maxrate 90000 is below", code=2)
    assert_sentence(rqlvc(*encode, *below[:4], "--bufsize", "0"), "no size", code=2)
    assert_sentence(rqlvc(*encode, *small, "--bufinit", "1.5"), "no part of a buffer", code=2)
    capped = ("--quality", "30", "--maxrate", "90k", "--bufsize", "50k")
    assert_sentence(rqlvc(*encode, *capped, "--max-quality", "40"), "--max-quality", code=2)
    live = ("--bitrate", "90k", "--low-latency", "--keyint", "20")
    assert_sentence(rqlvc(*encode, *live), "--low-latency needs", code=2)
    assert_sentence(rqlvc(*encode, "--bitrate", "90k", "--max-drops", "2"), "--max-drops needs a buffer", code=2)
    assert_sentence(rqlvc(*encode, "--bitrate", "90k", "--rate-schedule", "no.csv"), "no.csv cannot be read", code=2)
    assert_sentence(rqlvc("info", clip, "--verify-buffer"), "--maxrate", code=2)
