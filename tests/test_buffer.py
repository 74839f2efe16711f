"""The decoder's buffer: never a frame that comes late, whatever the content, the buffer and the target."""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CommandLine, make_clip, read_frames, same_picture
from rqlvc.codec.protocol import EncodedFrame
from rqlvc.control import RateTarget
from rqlvc.decoder import Decoder
from rqlvc.encoder import Encoder, FrameStats
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.buffer_check import check_buffer
from rqlvc.evaluation.metrics import psnr_y
from rqlvc.media.frame import Frame
from rqlvc.rate.buffer import TRIES, Buffer, fit
from rqlvc.rate.protocol import QualityRange
from rqlvc.rate.registry import make_controller
from simulated_codec import SEQUENCES, Law, SimulatedCodec, Simulation
from test_cli import assert_sentence, lines_of
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
) -> list[FrameStats]:
    """What a session makes of a simulation, without predictions."""
    codec = SimulatedCodec(simulation)
    rate = Fraction(simulation.framerate)
    times = times or [index / rate for index in range(simulation.frames)]
    limits = QualityRange(target.min_quality, target.max_quality if target.quality is None else target.quality)
    known = None if target.quality is not None else simulation.frames
    made = make_controller(
        controller,
        bitrate=target.bits_per_second(simulation.framerate, simulation.frames),
        framerate=simulation.framerate,
        pixels=simulation.pixels,
        total_frames=known,
        min_quality=limits.minimum,
        max_quality=limits.maximum,
    )
    encoder = Encoder(
        codec,
        made,
        keyint=keyint,
        limits=limits,
        buffer=target.buffer,
        policy=target.policy,
        frame_rate=simulation.framerate,
    )
    frames = codec.frames(times)
    return [encoder.encode(frame, frames_left=len(frames) - frame_index)[1] for frame_index, frame in enumerate(frames)]


def late(stats: Sequence[FrameStats], times: Sequence[Fraction], buffer: Buffer) -> int:
    packets = [(time, each.bits) for time, each in zip(times, stats, strict=True)]
    return len(check_buffer(packets, buffer.maxrate, buffer.size, buffer.initial).violations)


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
) -> None:
    buffer = Buffer(rate * peak, rate * peak * seconds, initial)
    target = RateTarget(
        bitrate=rate if quality is None else None,
        quality=quality,
        buffer=buffer,
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
    assert late(stats, times, buffer) == 0
    assert all((each.bits == 0) == each.skipped for each in stats)
    assert all(each.buffer is not None and each.buffer >= 0 and each.encodes <= TRIES + 1 for each in stats)


@given(QUALITIES, st.floats(0.02, 0.2), st.floats(2, 9), st.floats(1, 1e6), st.floats(0, 1), st.booleans())
def test_what_fits_is_found(
    start: float, slope: float, level: float, room: float, share: float, in_steps: bool
) -> None:
    asked: list[float] = []

    def cost(quality: float) -> int:
        asked.append(quality)
        return 8 * round(math.exp(level + slope * (16 * (quality // 16) if in_steps else quality)) / 8)

    limits = QualityRange(0, 63)
    found = fit(cost, start, room=room, least=share * room, limits=limits)
    assert len(asked) <= TRIES + 1
    assert (found is None) == (cost(0) > room)
    if found is not None:
        assert 0 <= found <= 63 and cost(found) <= room


def test_a_frame_that_fits_is_coded_once() -> None:
    asked: list[float] = []
    fit(lambda quality: asked.append(quality) or 100, 30.0, room=100, limits=QualityRange())
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
    assert_sentence(rqlvc("info", clip, "--verify-buffer"), "--maxrate", code=2)
