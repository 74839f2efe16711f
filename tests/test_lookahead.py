"""A look-ahead: the longer an intra frame can be seen in the frames after it, the better it is coded."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import CommandLine, neural_codec_is_here
from rqlvc.cli import console
from rqlvc.codec.registry import load_codec
from rqlvc.control import RateTarget
from rqlvc.encoder import Encoder
from rqlvc.media.frame import Frame
from rqlvc.media.reader import open_reader
from rqlvc.media.y4m import FRAME_SIGNATURE
from rqlvc.rate.constant import Constant, Hierarchical
from rqlvc.rate.hierarchy import GOP_WEIGHTS, INTRA_OFFSETS, fading, level_offset
from rqlvc.rate.protocol import FrameInfo
from rqlvc.rate.registry import make_controller
from rqlvc.transcode import encode_file
from test_cli import assert_sentence
from toy_codec import ToyCodec

SIZE = 128


def picture(seed: int) -> Frame:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (SIZE // 8, SIZE // 8), np.uint8)
    chroma = np.full((SIZE // 2, SIZE // 2), 128, np.uint8)
    return Frame(np.repeat(np.repeat(coarse, 8, axis=0), 8, axis=1), chroma, chroma)


def write_y4m(path: Path, seeds: list[int]) -> Path:
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{SIZE} H{SIZE} F25:1 Ip C420\n".encode())
        for frame in map(picture, seeds):
            file.write(FRAME_SIGNATURE + b"\n")
            file.writelines(plane.tobytes() for plane in (frame.y, frame.u, frame.v))
    return path


STILL, RESTLESS = [1] * 12, list(range(12))


def intra(faded: float | None) -> FrameInfo:
    return FrameInfo(0, True, 0, 1000, frames_to_intra=32, fading=faded)


@given(st.floats(0.001, 3.0), st.floats(0.001, 3.0))
def test_the_less_an_intra_frame_fades_the_better_it_is(first: float, second: float) -> None:
    low, high = (level_offset(intra(faded), GOP_WEIGHTS) for faded in sorted((first, second), reverse=True))
    assert INTRA_OFFSETS[0] <= low <= high <= INTRA_OFFSETS[1]
    assert level_offset(intra(None), GOP_WEIGHTS) == 0


@given(st.floats(0.01, 2.0), st.integers(1, 30))
def test_the_same_novelty_so_many_frames_later_is_less_fading(novelty: float, frames: int) -> None:
    assert fading(novelty, frames + 1) < fading(novelty, frames)


@pytest.mark.parametrize(("seeds", "better"), [(STILL, True), (RESTLESS, False)])
def test_only_frames_ahead_move_an_intra_frame(seeds: list[int], better: bool) -> None:
    frames = [picture(seed) for seed in seeds]
    alone, seeing = (Encoder(ToyCodec(), Hierarchical(40.0), keyint=4) for _ in range(2))
    for index, frame in enumerate(frames):
        _, blind = alone.encode(frame)
        _, stats = seeing.encode(frame, ahead=frames[index + 1 : index + 9])
        if index % 4 or index == len(frames) - 1:
            assert stats.fading is None and stats.quality == blind.quality
        else:
            assert stats.fading is not None and blind.quality == 40
            assert (stats.quality > 40) == better


@pytest.mark.skipif(not neural_codec_is_here(), reason="the neural codec is not installed")
def test_the_first_frames_are_rehearsed_and_then_cost_what_is_expected(clip: Path) -> None:
    """Frames ahead of the first are coded once to see what they cost, which leaves no trace in the stream."""
    codec = load_codec("rqlvc", device="cpu", threads=1)
    with open_reader(str(clip)) as reader:
        frames = list(reader)
    pixels = frames[0].width * frames[0].height
    errors: dict[bool, list[float]] = {True: [], False: []}
    for seeing, misses in errors.items():
        adaptive = make_controller("adaptive", bitrate=36_000, framerate=30, pixels=pixels, total_frames=1000)
        encoder, again = Encoder(codec, adaptive), Encoder(codec, Constant(0.0))
        for index, frame in enumerate(frames[:9]):
            ahead = frames[1:9] if seeing and index == 0 else []
            packet, stats = encoder.encode(frame, frames_left=1000 - index, ahead=ahead)
            again.controller = Constant(stats.quality)
            assert again.encode(frame)[0].payload == packet.payload
            assert stats.target_bits
            misses.append(abs(math.log(stats.bits / stats.target_bits)))
            if index == 0:
                assert (stats.encodes > 1) == seeing
    assert errors[True][0] < 0.1 < errors[False][0]
    assert sum(errors[True]) < 0.7 * sum(errors[False])


def test_the_wait_for_what_is_rehearsed_can_be_watched(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frames that are coded only to see what they cost are counted, and are no part of the speed that is shown."""
    heard: list[tuple[int, int]] = []
    encode_file(
        str(clip),
        str(tmp_path / "out.mkv"),
        ToyCodec(),
        RateTarget(bitrate=300_000),
        on_rehearsed=lambda done, frames: heard.append((done, frames)),
    )
    assert heard and heard == [(done, 12) for done in range(1, 13)] * (len(heard) // 12)  # of a clip of twelve

    clock = iter((0.0, 100.0, 110.0))
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    progress = console.Progress("encode")
    progress.rehearsed(3, 9)
    progress.update(0.0, 1000, total=11)
    watched, coded = capsys.readouterr().err.splitlines()
    assert "coding 9 frames ahead to see what they cost, 3 done" in watched
    assert "0.1 fps" in coded and "100 s left" in coded


def levels(run: bytes) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in run.splitlines()]
    return [line for line in lines if line["type"] == "frame"]


def test_files_are_looked_at_ahead_and_pipes_only_when_asked_to(rqlvc: CommandLine, tmp_path: Path) -> None:
    clip, out = write_y4m(tmp_path / "still.y4m", STILL), tmp_path / "out.mkv"
    options = ["--quality", "40", "--codec", "toy", "--json", "-y", "-o", out]

    def first_level(source: Path | str, *more: str) -> float:
        piped = clip.read_bytes() if source == "-" else None
        done = rqlvc("encode", source, *options, *more, input=piped)
        assert done.returncode == 0, done.stderr.decode()
        assert len(levels(done.stdout)) == 12
        return levels(done.stdout)[0]["quality"]

    assert first_level(clip) == 40 + INTRA_OFFSETS[1]
    assert first_level(clip, "--lookahead", "0") == 40
    assert first_level("-") == 40
    assert first_level("-", "--lookahead", "3") == 40 + INTRA_OFFSETS[1]


def test_the_view_ends_with_the_scene(rqlvc: CommandLine, tmp_path: Path) -> None:
    clip = write_y4m(tmp_path / "scenes.y4m", [1] * 6 + [2] * 6)
    options = ["--quality", "40", "--codec", "toy", "--json", "-o", tmp_path / "out.mkv"]
    frames = levels(rqlvc("encode", clip, *options).stdout)
    faded = {frame["index"]: frame["fading"] for frame in frames if frame["fading"] is not None}
    assert list(faded) == [0, 6]  # both scenes are still, each by itself
    assert max(faded.values()) < 0.2


def test_a_look_ahead_that_makes_no_sense_is_wrong_usage(rqlvc: CommandLine, tmp_path: Path) -> None:
    clip = write_y4m(tmp_path / "still.y4m", STILL)
    encode = ["encode", clip, "-o", tmp_path / "out.mkv", "--codec", "toy", "--bitrate", "90k"]
    assert_sentence(rqlvc(*encode, "--lookahead", "-1"), code=2)
    assert_sentence(rqlvc(*encode, "--lookahead", "1000"), code=2)
    assert_sentence(rqlvc(*encode, "--low-latency", "--lookahead", "4"), "--low-latency needs", code=2)
