"""Rate control through the real command, on a clip of 72 frames with a third party's codec."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conftest import CommandLine, make_clip, read_frames
from rqlvc.cli.app import app
from rqlvc.media.container import ContainerReader
from rqlvc.rate.allocation import FLOOR_BITS
from rqlvc.rate.registry import CONTROLLERS
from test_cli import Finished, assert_sentence, lines_of, on_terminal, y4m_of

FRAMES = 72
KEYINT = 32
DOCUMENT = Path(__file__).parent.parent / "docs" / "rate-control.md"


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "long.mkv", frames=FRAMES)


def encode(rqlvc: CommandLine, source: Path, output: Path, *options: str) -> tuple[list[dict[str, Any]], Finished]:
    """The lines of a run that ended well, and the run."""
    finished = rqlvc("encode", source, "-o", output, "--codec", "toy", "--json", *options)
    assert finished.returncode == 0, finished.stderr.decode()
    return lines_of(finished), finished


def frames_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["type"] == "frame"]


# On target


@pytest.mark.parametrize(("bitrate", "bits_per_second"), [("320k", 320_000), (".55M", 550_000)])
def test_lands_on_the_bitrate(
    rqlvc: CommandLine, long_clip: Path, tmp_path: Path, bitrate: str, bits_per_second: int
) -> None:
    coded = tmp_path / "coded.mkv"
    lines, finished = encode(rqlvc, long_clip, coded, "--bitrate", bitrate)
    summary = lines[-1]
    with ContainerReader(str(coded)) as container:
        bits = sum(8 * len(packet.payload) for packet in container)
    assert summary["target_bitrate"] == bits_per_second
    assert summary["bits"] == bits and summary["bitrate"] == pytest.approx(bits * 25 / FRAMES)
    assert summary["error_percent"] == pytest.approx(100 * (summary["bitrate"] / bits_per_second - 1))
    assert abs(summary["error_percent"]) < 2
    assert b"warning" not in finished.stderr


@pytest.mark.parametrize("controller", ["adaptive", "four-pass"])
def test_lands_on_the_size(rqlvc: CommandLine, long_clip: Path, tmp_path: Path, controller: str) -> None:
    coded = tmp_path / "coded.mkv"
    finished = rqlvc(
        "encode", long_clip, "-o", coded, "--codec", "toy", "--target-size", "130k", "--controller", controller
    )
    with ContainerReader(str(coded)) as container:
        size = sum(len(packet.payload) for packet in container)
    assert 0.98 * 130_000 <= size <= 130_000
    said = finished.stderr.decode()
    assert f"{size} of 130000 bytes" in said and "target 361.1 kbit/s" in said
    assert f"error {100 * (size / 130_000 - 1):+.2f} %" in said


def test_a_pipe_has_a_size_when_its_frames_are_counted(rqlvc: CommandLine, long_clip: Path, tmp_path: Path) -> None:
    video, coded = y4m_of(long_clip, tmp_path / "clip.y4m"), tmp_path / "coded.mkv"
    options = ("-o", coded, "--codec", "toy", "--target-size", "60k", "--json")
    assert_sentence(rqlvc("encode", "-", *options, input=video), "number of frames", "--frames", "--bitrate")
    assert not coded.exists()
    summary = lines_of(rqlvc("encode", "-", *options, "--frames", "36", input=video))[-1]
    assert summary["frames"] == 36
    assert 0.98 * 60_000 <= summary["bits"] / 8 <= 60_000


def test_quality_stays_between_its_limits(rqlvc: CommandLine, long_clip: Path, tmp_path: Path) -> None:
    limits = ("--min-quality", "20.3", "--max-quality", "30")
    for bitrate, limit in (("100k", 20.296875), ("5M", 30.0)):
        lines, finished = encode(rqlvc, long_clip, tmp_path / f"{bitrate}.mkv", "--bitrate", bitrate, *limits)
        qualities = [frame["quality"] for frame in frames_of(lines)]
        assert all(20.296875 <= quality <= 30 for quality in qualities)
        assert qualities.count(limit) > FRAMES / 2
        assert f"quality beyond {limit:g}" in finished.stderr.decode()


@pytest.mark.parametrize(("bitrate", "limit", "word"), [("20k", 0.0, "begins"), ("3M", 63.0, "ends")])
def test_out_of_reach_is_a_warning_with_the_reachable_rate(
    rqlvc: CommandLine, long_clip: Path, tmp_path: Path, bitrate: str, limit: float, word: str
) -> None:
    lines, finished = encode(rqlvc, long_clip, tmp_path / "coded.mkv", "--bitrate", bitrate)
    warning = next(line["message"] for line in lines if line["type"] == "warning")
    assert f"warning: {warning}" in finished.stderr.decode()
    match = re.search(rf"{word} at about ([0-9.]+) kbit/s", warning)
    assert match is not None
    held = [frame["bits"] for frame in frames_of(lines) if frame["quality"] == limit]
    assert f"{limit:g}, which {len(held)} of {FRAMES} frames got" in warning and len(held) > FRAMES / 2
    assert float(match[1]) == pytest.approx(sum(held) / len(held) * 25 / 1000, rel=0.02)


def test_weights_shape_the_group_of_pictures(rqlvc: CommandLine, long_clip: Path, tmp_path: Path) -> None:
    lines, _ = encode(
        rqlvc, long_clip, tmp_path / "coded.mkv", "--bitrate", "400k", "--gop-weights", "1,1.5", "--lookahead", "0"
    )
    inter = [frame for frame in frames_of(lines) if frame["frame_type"] == "P"]
    small, large = ([frame["bits"] for frame in inter if frame["index"] % KEYINT % 2 == odd] for odd in (1, 0))
    assert 1.15 < (sum(large) / len(large)) / (sum(small) / len(small)) < 1.75


def test_a_bitrate_holds_for_the_time_stamps_of_a_clip_that_skips_frames(rqlvc: CommandLine, tmp_path: Path) -> None:
    times = [40 * index for index in range(128) if index % 4 != 3]
    clip = make_clip(tmp_path / "skips.mkv", width=96, height=80, frames=len(times), times=times)
    lines, _ = encode(rqlvc, clip, tmp_path / "coded.mkv", "--bitrate", "400k")
    summary = lines[-1]
    assert summary["duration"] == pytest.approx(128 * 0.04, abs=0.09)
    assert abs(summary["error_percent"]) < 6


# Why a frame got its quality


def test_stats_explain_every_quality(rqlvc: CommandLine, long_clip: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.jsonl"
    lines, _ = encode(
        rqlvc, long_clip, tmp_path / "coded.mkv", "--bitrate=400k", "--controller=four-pass", "--stats", str(stats)
    )
    assert [json.loads(line) for line in stats.read_text().splitlines()] == lines
    for frame in frames_of(lines):
        assert [point["quality"] for point in frame["points"]] == [10, 27, 43, 60]
        bits = [point["bits"] for point in frame["points"]]
        assert bits == sorted(bits)
        assert frame["target_bits"] >= FLOOR_BITS
        decided = frame["alpha"] * math.log(frame["target_bits"]) + frame["beta"]
        assert frame["quality"] == pytest.approx(min(max(decided, 0), 63), abs=1 / 128)
        if 27 <= frame["quality"] <= 43:  # the law between two real encodes of the same frame
            assert 0.99 * bits[1] <= frame["bits"] <= 1.01 * bits[2]  # a step of level may save a few bits
    text = DOCUMENT.read_text()
    for field in frames_of(lines)[0].keys() - {"type", "parts"}:
        assert f"`{field}`" in text


def test_the_last_frame_is_told_that_the_end_is_near(rqlvc: CommandLine, long_clip: Path, tmp_path: Path) -> None:
    lines, _ = encode(rqlvc, long_clip, tmp_path / "coded.mkv", "--bitrate", "400k")
    frames = frames_of(lines)
    assert [frame["frames_left"] for frame in frames] == list(range(FRAMES, 0, -1))
    last = frames[-1]
    due = 400_000 / 25 * FRAMES - sum(frame["bits"] for frame in frames[:-1])
    assert last["target_bits"] == pytest.approx(due, rel=1e-3)  # all that is left of the budget


def test_progress_shows_the_target(rqlvc: CommandLine, long_clip: Path, tmp_path: Path) -> None:
    shown = on_terminal(rqlvc, "encode", long_clip, "-o", tmp_path / "coded.mkv", "--codec", "toy", "--bitrate", "300k")
    assert f"frame {FRAMES}/{FRAMES}" in shown
    assert re.search(r"\d+ kbit/s now, \d+ average, 300 target", shown)


# The list


def test_controllers_are_listed_with_their_sources(rqlvc: CommandLine) -> None:
    program = "import sys; from rqlvc.cli import main\ntry: main()\nexcept SystemExit: print('torch' in sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-c", program, "controllers"],
        capture_output=True,
        text=True,
        env=rqlvc.environment,
        check=True,
    )
    *listed, torch_was_needed = finished.stdout.splitlines()
    assert torch_was_needed == "False"
    assert [line.split()[0] for line in listed] == list(CONTROLLERS)
    for line, entry in zip(listed, CONTROLLERS.values(), strict=True):
        assert entry.summary in line
        assert entry.source == "-" or line.endswith(entry.source)
        assert f"| `{entry.name}` |" in DOCUMENT.read_text()


# What goes wrong


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--quality=30", "--bitrate=300k"], ["--quality and --bitrate", "contradict"]),
        (["--bitrate=300k", "--target-size=5M"], ["--bitrate and --target-size"]),
        (["--bitrate=0"], ["no bitrate", "800k"]),
        (["--bitrate=-5k"], ["no bitrate"]),
        (["--bitrate=fast"], ["no bitrate"]),
        (["--bitrate=nan"], ["no bitrate"]),
        (["--bitrate=" + "9" * 400], ["no bitrate"]),
        (["--target-size=0.5"], ["no size", "bytes"]),
        (["--target-size=5MB"], ["no size", "5M"]),
        (["--bitrate=300k", "--min-quality=40", "--max-quality=20"], ["--min-quality 40 is above --max-quality 20"]),
        (["--bitrate=300k", "--max-quality=64"], ["63 is best"]),
        (["--bitrate=300k", "--gop-weights=1,0"], ["no weights", "2,3,2,6"]),
        (["--bitrate=300k", "--gop-weights=1,,2"], ["no weights"]),
        (["--bitrate=300k", "--gop-weights=inf"], ["no weights"]),
        (["--bitrate=300k", "--controller=best"], ["no controller 'best'", "adaptive", "pi"]),
        (["--bitrate=300k", "--controller=constant"], ["needs --quality"]),
        (["--quality=30", "--controller=pi"], ["'pi' needs --bitrate or --target-size"]),
        (["--quality=30", "--min-quality=20"], ["--min-quality goes with"]),
        (["--quality=30", "--gop-weights=1,2"], ["--gop-weights goes with"]),
    ],
)
def test_impossible_values_are_wrong_usage(options: list[str], words: list[str]) -> None:
    finished = CliRunner().invoke(app, ["encode", "in.mp4", "-o", "out.mkv", *options])
    error = " ".join(finished.stderr.split())  # however the lines are broken
    assert finished.exit_code == 2 and finished.stdout == ""
    for word in words:
        assert word in error


def test_what_a_codec_cannot_have_is_one_sentence(rqlvc: CommandLine, clip: Path, coded: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"no weights at all")
    toy = ("encode", clip, "-o", tmp_path / "out.mkv", "--codec", "toy", "--bitrate", "300k")
    assert_sentence(rqlvc(*toy, "--controller", "rq-lvc"), "needs RQNet", "'toy'", "--rqnet", "no-rqnet")
    assert_sentence(rqlvc(*toy, "--controller", "pi", "--rqnet", weights), "'pi' does not use RQNet")
    assert_sentence(rqlvc(*toy, "--rqnet", weights), "weights.safetensors cannot be read")
    assert_sentence(rqlvc(*toy, "--model", weights), "'toy'", "takes no weights", "weights.safetensors")
    for option in ("--model", "--rqnet"):
        assert_sentence(rqlvc(*toy, option, "missing.safetensors"), "does not exist", code=2)
    decode = ("decode", coded, "-o", tmp_path / "out.y4m", "--model")
    assert_sentence(rqlvc(*decode, "missing.safetensors"), "does not exist", code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


# Our own codec


@pytest.mark.slow
def test_the_neural_codec_with_weights_of_ones_own(rqlvc: CommandLine, clip: Path, coded: Path, tmp_path: Path) -> None:
    from small_streams import weights_path

    ours, decoded = tmp_path / "ours.mkv", tmp_path / "decoded.y4m"
    model = ("--model", weights_path(), "--threads", "1")
    encoding = rqlvc("encode", clip, "-o", ours, "--bitrate", "80k", "--json", *model)
    assert encoding.returncode == 0, encoding.stderr.decode()
    summary = lines_of(encoding)[-1]
    assert summary["codec"] == "rqlvc" and abs(summary["error_percent"]) < 15  # of twelve frames, untrained
    assert rqlvc("decode", ours, "-o", decoded, *model).returncode == 0
    assert len(read_frames(decoded)) == summary["frames"] == 12
    assert_sentence(rqlvc("decode", coded, "-o", decoded, "-y", *model), "codec 'toy'", summary["model"])


# The document


def test_documented_example_lands_on_its_bitrate_without_torch(rqlvc: CommandLine) -> None:
    example = DOCUMENT.read_text().split("```python\n")[1].split("```")[0]
    program = example + "\nimport sys\nprint('torch' in sys.modules)\n"
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=rqlvc.environment, check=True
    )
    rate, torch_was_needed = finished.stdout.splitlines()
    assert float(rate.removesuffix(" kbit/s")) == pytest.approx(800, rel=0.01)
    assert torch_was_needed == "False"
