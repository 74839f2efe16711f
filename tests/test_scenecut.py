"""Scene cuts: where the intra frames come, and what is none."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import CommandLine, moving_picture
from rqlvc.encoder import Encoder, FrameStats
from rqlvc.media.frame import Frame, Plane
from rqlvc.rate.constant import Constant
from rqlvc.scenecut import MINIMUM_DISTANCE, Novelties, cuts, log_novelty, shrunk
from rqlvc.transcode import encode_file
from test_cli import lines_of
from test_groups import SharedToyCodec
from toy_codec import ToyCodec

WIDTH, HEIGHT = 96, 64


def planes(index: int, scene: int) -> Plane:
    """The moving picture, or in scene 1 another one: its negative, upside down and mirrored."""
    picture = moving_picture(WIDTH, HEIGHT, index)
    return np.ascontiguousarray(255 - picture[::-1, ::-1]) if scene else picture


def frame(index: int, scene: int = 0) -> Frame:
    picture = planes(index, scene)
    chroma = picture[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)
    return Frame(picture[:HEIGHT], chroma[0], chroma[1])


def y4m(scenes: list[int]) -> bytes:
    header = b"YUV4MPEG2 W%d H%d F25:1 Ip A1:1 C420jpeg\n" % (WIDTH, HEIGHT)
    return header + b"".join(b"FRAME\n" + planes(index, scene).tobytes() for index, scene in enumerate(scenes))


def types_of(scenes: list[int], keyint: int | None) -> str:
    encoder = Encoder(ToyCodec(), Constant(30.0), keyint=keyint)
    frames = (frame(index, scene) for index, scene in enumerate(scenes))
    return "".join(encoder.encode(picture, cut=cut)[1].type for picture, cut in cuts(frames))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 5))
def test_novelties_of_a_view_that_moves_are_those_of_each_pair(indices: list[int], view: int) -> None:
    frames = [frame(index) for index in indices]
    expected = [1.0, *(log_novelty(shrunk(after), shrunk(before)) for before, after in pairwise(frames))]
    novelties = Novelties()
    for index in range(len(frames)):
        end = index + 1 + view
        assert novelties.of(frames[index:end]) == tuple(expected[index:end])
        assert novelties.of(frames[index:end]) == tuple(expected[index:end])  # as when a frame is decided on twice


def test_a_new_scene_begins_a_group_of_pictures() -> None:
    assert types_of([0] * 6 + [1] * 12, keyint=8) == "IPPPPP" + "IPPPPPPP" + "IPPP"


def test_intra_frames_keep_their_distance() -> None:
    flash = [0] * 6 + [1] + [0] * 9
    assert types_of(flash, keyint=32) == "IPPPPP" + "I" + "P" * 9
    early = [0] * (MINIMUM_DISTANCE - 1) + [1] * 6
    assert types_of(early, keyint=32) == "I" + "P" * (len(early) - 1)


def test_groups_coded_at_once_begin_at_the_same_cuts(tmp_path: Path) -> None:
    clip = tmp_path / "clip.y4m"
    clip.write_bytes(y4m([0] * 3 + [1] * 9 + [0] * 7 + [1] * 13))
    files = []
    for codec in (ToyCodec(), SharedToyCodec()):
        coded = tmp_path / f"{len(files)}.mkv"
        stats: list[FrameStats] = []
        encode_file(str(clip), str(coded), codec, Constant(30.0), keyint=8, on_frame=stats.append)
        assert [each.index for each in stats if each.cut] == [3, 12, 19]
        assert [each.index for each in stats if each.type == "I"] == [0, 8, 12, 19, 27]
        files.append(coded.read_bytes())
    assert files[0] == files[1]


def test_low_latency_has_no_intra_frame_at_a_cut() -> None:
    assert types_of([0] * 6 + [1] * 6, keyint=None) == "I" + "P" * 11


@given(st.integers(0, 200), st.integers(-40, 40), st.floats(0, 6), st.integers(0, 9))
def test_motion_noise_and_brightness_are_no_cuts(index: int, brighter: int, noise: float, seed: int) -> None:
    before, after = frame(index), frame(index + 1)
    disturbed = after.y.astype(float) + brighter + noise * np.random.default_rng(seed).standard_normal(after.y.shape)
    disturbed_frame = Frame(np.clip(disturbed, 0, 255).astype(np.uint8), after.u, after.v)
    assert [cut for _, cut in cuts([before, disturbed_frame])] == [False, False]


@pytest.mark.parametrize(("options", "types"), [((), "IPPPPPIPPPPP"), (("--no-scenecut",), "IPPPPPPPPPPP")])
def test_the_command_finds_cuts_unless_told_not_to(
    rqlvc: CommandLine, tmp_path: Path, options: tuple[str, ...], types: str
) -> None:
    video = y4m([0] * 6 + [1] * 6)
    finished = rqlvc(
        "encode", "-", "-o", tmp_path / "out.mkv", "--codec", "toy", "--quality", "30", "--json", *options, input=video
    )
    frames = lines_of(finished)[:-1]
    assert "".join(line["frame_type"] for line in frames) == types
    assert [line["index"] for line in frames if line["cut"]] == ([6] if not options else [])
