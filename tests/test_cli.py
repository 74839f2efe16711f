"""The command line as its users meet it: the real program in its own process, on real files and pipes."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from conftest import CommandLine, make_clip, read_frames, register, same_picture
from rqlvc import __version__
from rqlvc.evaluation.metrics import psnr_y
from rqlvc.media.container import ContainerReader
from rqlvc.media.frame import Frame
from rqlvc.media.reader import open_reader
from rqlvc.media.writer import open_writer

Finished = subprocess.CompletedProcess[bytes]
LOSSLESS = ("--quality=63", "--controller=constant", "--codec=toy")


def lines_of(finished: Finished) -> list[dict[str, Any]]:
    return [json.loads(line) for line in finished.stdout.splitlines()]


def assert_sentence(finished: Finished, *words: str, code: int = 1) -> None:
    """The command failed with ``code`` and says why in words, not in a traceback."""
    error = finished.stderr.decode()
    assert finished.returncode == code, error
    assert "Traceback" not in error
    for word in words:
        assert word in error
    if code == 1:
        assert "rqlvc: error: " in error


def frame_times(path: Path) -> list[float]:
    with open_reader(str(path)) as reader:
        return [float(frame.time) for frame in reader]


def y4m_of(clip: Path, path: Path) -> bytes:
    with open_reader(str(clip)) as reader, open_writer(str(path), reader.properties, overwrite=False) as writer:
        for frame in reader:
            writer.write(frame)
    return path.read_bytes()


def on_terminal(rqlvc: CommandLine, *arguments: str | Path) -> str:
    """What a command that ends well shows on a terminal; nothing of it on stdout."""
    ours, theirs = pty.openpty()
    finished = subprocess.run(
        rqlvc.command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=60,
        env=rqlvc.environment | {"TERM": "xterm", "COLUMNS": "160"},
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert finished.returncode == 0, shown
    assert finished.stdout == b""
    return shown


# The door


def test_help_is_instant_and_heavy_imports_wait(rqlvc: CommandLine) -> None:
    program = "import sys; from rqlvc.cli import main\ntry: main()\nexcept SystemExit: print(sorted(sys.modules))"
    finished = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, text=True, env=rqlvc.environment, check=True
    )
    assert "encode" in finished.stdout and "decode" in finished.stdout
    for module in ("torch", "numpy", "av", "matplotlib", "rich"):
        assert f"'{module}'" not in finished.stdout


def test_version_codecs_and_training(rqlvc: CommandLine) -> None:
    assert rqlvc("--version").stdout.decode() == f"rqlvc {__version__}\n"
    assert rqlvc("train", "--help").returncode == rqlvc("collect", "--help").returncode == 0
    listed = rqlvc("codecs").stdout.decode()
    assert "toy_codec:ToyCodec" in listed and "plugged-in 1.0" in listed


# There and back


def test_encode_then_decode(rqlvc: CommandLine, codec_name: str, clip: Path, tmp_path: Path) -> None:
    coded, decoded = tmp_path / "coded.mkv", tmp_path / "decoded.y4m"
    encoding = rqlvc("encode", clip, "-o", coded, "--quality", "45.5", "--codec", codec_name, "--json")
    assert encoding.returncode == 0, encoding.stderr.decode()
    decoding = rqlvc("decode", coded, "-o", decoded, "--json")
    assert decoding.returncode == 0, decoding.stderr.decode()
    summary, back = lines_of(encoding)[-1], lines_of(decoding)[-1]
    sources, results = read_frames(clip), read_frames(decoded)
    assert len(results) == summary["frames"] == back["frames"] == len(sources)
    assert summary["bits"] == back["bits"] and summary["model"] == back["model"]

    measured = sum(psnr_y(a, b) for a, b in zip(sources, results, strict=True)) / len(sources)
    # Floats of the networks may differ in their last bits between processes; never by what can be seen.
    assert measured == pytest.approx(summary["psnr_y"], abs=1e-9 if codec_name == "toy" else 0.05)


def test_json_is_the_documented_contract(rqlvc: CommandLine, clip: Path, tmp_path: Path) -> None:
    coded, stats = tmp_path / "coded.mkv", tmp_path / "stats.jsonl"
    finished = rqlvc(
        "encode", clip, "-o", coded, "--quality=30", "--codec=toy", "--keyint=5", "--stats", stats, "--json"
    )
    lines = lines_of(finished)
    *frames, summary = lines
    assert [line["type"] for line in lines] == ["frame"] * 12 + ["summary"]
    assert "".join(line["frame_type"] for line in frames) == "IPPPPIPPPPIP"
    assert {"frames", "width", "height", "fps", "bits", "bitrate", "bits_per_pixel", "psnr_y", "psnr_yuv"} <= set(
        summary
    )
    assert {"encode_fps", "model", "codec", "keyframes", "duration", "container_overhead_bits"} <= set(summary)
    assert [json.loads(line) for line in stats.read_text().splitlines()] == lines
    documented = (Path(__file__).parent.parent / "docs" / "json.md").read_text()
    info = lines_of(rqlvc("info", coded, "--json"))[0]
    decoding = lines_of(rqlvc("decode", coded, "-o", tmp_path / "decoded.y4m", "--json"))[0]
    for key in {*frames[0], *summary, *info, *decoding} - {"type"}:
        assert f"`{key}`" in documented
    assert info["type"] == "info"
    assert (info["bits"], info["frames"], info["keyframes"]) == (summary["bits"], 12, 3)
    assert info["bits_per_keyframe"] == pytest.approx(sum(f["bits"] for f in frames if f["frame_type"] == "I") / 3)
    assert info["largest_frame_bits"] == max(frame["bits"] for frame in frames)


def test_overhead_and_packets_make_the_file(rqlvc: CommandLine, tmp_path: Path) -> None:
    source, coded = make_clip(tmp_path / "mute.mkv"), tmp_path / "coded.mkv"
    summary = lines_of(rqlvc("encode", source, "-o", coded, "--quality=30", "--codec=toy", "--json"))[-1]
    assert summary["bits"] + summary["container_overhead_bits"] == 8 * coded.stat().st_size


def test_info_and_summary_for_people(rqlvc: CommandLine, coded: Path, clip: Path, tmp_path: Path) -> None:
    text = rqlvc("info", coded).stdout.decode()
    assert "codec      toy, model 70c0dec0" in text and "64x48 at 25.000 fps" in text and "3 keyframes" in text
    finished = rqlvc("encode", clip, "-o", tmp_path / "coded.mkv", "--quality", "30", "--codec", "toy")
    assert finished.stdout == b""
    assert "12 frames of 64x48 at 25.00 fps" in finished.stderr.decode()


def test_pipes_in_and_out(rqlvc: CommandLine, clip: Path, tmp_path: Path) -> None:
    video = y4m_of(clip, tmp_path / "clip.y4m")
    encoding = rqlvc("encode", "-", "-o", "-", *LOSSLESS, input=video)
    assert encoding.returncode == 0, encoding.stderr.decode()
    decoding = rqlvc("decode", "-", "-o", "-", input=encoding.stdout)
    assert decoding.returncode == 0, decoding.stderr.decode()
    assert decoding.stdout == video  # the toy codec loses nothing at quality 63


def test_reader_of_our_output_goes_away(rqlvc: CommandLine, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "large.mkv", width=320, height=240, frames=12)
    with rqlvc.start("encode", source, "-o", "-", "--quality", "63", "--codec", "toy") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1000)
        process.stdout.close()
        error = process.stderr.read().decode()
        assert process.wait(60) == 1
    assert "rqlvc: error: " in error and "closed" in error and "Traceback" not in error and "Exception" not in error


def test_progress_on_a_terminal(rqlvc: CommandLine, tmp_path: Path) -> None:
    source, coded = make_clip(tmp_path / "clip.mkv"), tmp_path / "coded.mkv"
    shown = on_terminal(rqlvc, "encode", source, "-o", coded, "--quality=30", "--controller=constant", "--codec=toy")
    assert "frame 12/12" in shown and "kbit/s now" in shown and "q 30.0" in shown
    assert "target" not in shown


def test_start_and_frames(rqlvc: CommandLine, clip: Path, tmp_path: Path) -> None:
    coded, decoded = tmp_path / "coded.mkv", tmp_path / "decoded.y4m"
    rqlvc(
        "encode",
        clip,
        "-o",
        coded,
        "--quality",
        "63",
        "--controller=constant",
        "--codec",
        "toy",
        "--start",
        "3",
        "--frames",
        "4",
    )
    assert rqlvc("decode", coded, "-o", decoded).returncode == 0
    results = read_frames(decoded)
    assert len(results) == 4 and results[0].time == 0
    assert all(same_picture(a, b) for a, b in zip(read_frames(clip)[3:7], results, strict=True))


def test_decode_from_a_time_and_a_number_of_frames(rqlvc: CommandLine, coded: Path, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.y4m", tmp_path / "part.y4m"
    rqlvc("decode", coded, "-o", whole)
    assert rqlvc("decode", coded, "-o", part, "--start-time", "0.28", "--frames", "3").returncode == 0
    # 0.28 s is frame 7 of 25 per second, two frames after the keyframe at 5.
    expected, results = read_frames(whole)[7:10], read_frames(part)
    assert len(results) == 3
    assert all(same_picture(a, b) for a, b in zip(expected, results, strict=True))
    assert_sentence(
        rqlvc("decode", coded, "-o", tmp_path / "none.y4m", "--start-time", "60"), "no frame at or after 60"
    )


def test_variable_frame_rate_is_kept(rqlvc: CommandLine, tmp_path: Path) -> None:
    times = [0, 40, 140, 150, 400, 420, 1000]
    source = make_clip(tmp_path / "variable.mkv", frames=len(times), times=times)
    coded, decoded = tmp_path / "coded.mkv", tmp_path / "decoded.mkv"
    assert rqlvc("encode", source, "-o", coded, "--quality", "30", "--codec", "toy").returncode == 0
    assert rqlvc("decode", coded, "-o", decoded).returncode == 0
    assert frame_times(decoded) == pytest.approx([time / 1000 for time in times], abs=1e-3)


def test_audio_travels_along(rqlvc: CommandLine, coded: Path, clip: Path, tmp_path: Path) -> None:
    def sound(path: Path) -> int:
        with av.open(str(path)) as container:
            return sum(frame.samples for frame in container.decode(audio=0))

    decoded = tmp_path / "decoded.mkv"
    assert rqlvc("decode", coded, "-o", decoded).returncode == 0
    assert sound(clip) == sound(coded) == sound(decoded) > 0


def test_raw_input_with_its_geometry(rqlvc: CommandLine, clip: Path, tmp_path: Path) -> None:
    raw, coded, decoded = tmp_path / "clip.yuv", tmp_path / "coded.mkv", tmp_path / "decoded.y4m"
    frames = read_frames(clip)
    raw.write_bytes(b"".join(frame.y.tobytes() + frame.u.tobytes() + frame.v.tobytes() for frame in frames))
    shape = ("--size", "64x48", "--fps", "30000/1001")
    assert rqlvc("encode", raw, "-o", coded, *LOSSLESS, *shape).returncode == 0
    assert rqlvc("decode", coded, "-o", decoded).returncode == 0
    assert all(same_picture(a, b) for a, b in zip(frames, read_frames(decoded), strict=True))
    with ContainerReader(str(coded)) as container:
        assert float(container.header.properties.frame_rate) == pytest.approx(30000 / 1001)


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quality", "64"], ["63 is best"]),
        (["--quality", "-1"], ["63 is best"]),
        (["--quality", "nan"], ["63 is best"]),
        (["--quality", "good"], ["63 is best"]),
        ([], ["--quality"]),
        (["--quality", "30", "--keyint", "0"], ["--keyint"]),
        (["--quality", "30", "--frames", "0"], ["--frames"]),
        (["--quality", "30", "--size", "64"], ["WIDTHxHEIGHT"]),
        (["--quality", "30", "--fps", "1/0"], ["frame rate"]),
        (["--quality", "30", "--no-such-option"], ["--no-such-option"]),
        (["--quality", "30", "-o", "out.mp4"], ["Matroska", ".mkv"]),
    ],
)
def test_wrong_usage_is_exit_code_2(rqlvc: CommandLine, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    assert_sentence(rqlvc("encode", "in.mp4", "-o", tmp_path / "out.mkv", *arguments), *words, code=2)


def test_json_and_video_cannot_share_stdout(rqlvc: CommandLine, clip: Path, coded: Path) -> None:
    assert_sentence(rqlvc("encode", clip, "-o", "-", "--quality", "30", "--json"), "stdout", code=2)
    assert_sentence(rqlvc("decode", coded, "-o", "-", "--json"), "stdout", code=2)


def test_unusable_files_are_one_sentence(rqlvc: CommandLine, clip: Path, tmp_path: Path) -> None:
    output, text, empty = tmp_path / "out.mkv", tmp_path / "text.mp4", tmp_path / "empty.mkv"
    text.write_text("this is no video\n" * 100)
    empty.touch()
    toy = ("--quality", "30", "--codec", "toy")
    assert_sentence(rqlvc("encode", tmp_path / "missing.mp4", "-o", output, *toy), "missing.mp4")
    assert_sentence(rqlvc("encode", text, "-o", output, *toy), "text.mp4")
    assert_sentence(rqlvc("encode", clip, "-o", tmp_path / "nowhere" / "out.mkv", *toy), "does not exist")
    assert_sentence(rqlvc("encode", clip, "-o", output, "--quality", "30", "--codec", "nosuch"), "nosuch", "toy")
    assert_sentence(rqlvc("encode", clip, "-o", output, *toy, "--start", "500"), "500")
    assert_sentence(rqlvc("decode", empty, "-o", tmp_path / "out.y4m"), "empty.mkv")
    assert_sentence(rqlvc("decode", text, "-o", tmp_path / "out.y4m"), "text.mp4")
    assert_sentence(rqlvc("decode", clip, "-o", tmp_path / "out.y4m"))
    assert_sentence(rqlvc("info", text), "text.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.mkv", "text.mp4"]


def test_existing_files_are_safe_without_y(rqlvc: CommandLine, clip: Path, coded: Path, tmp_path: Path) -> None:
    output, stats, decoded = tmp_path / "out.mkv", tmp_path / "stats.jsonl", tmp_path / "out.y4m"
    for path in (output, stats, decoded):
        path.write_text("precious")
    toy = ("--quality", "30", "--codec", "toy")
    assert_sentence(rqlvc("encode", clip, "-o", output, *toy), "exists", "-y")
    assert_sentence(rqlvc("encode", clip, "-o", tmp_path / "new.mkv", "--stats", stats, *toy), "stats.jsonl exists")
    assert_sentence(rqlvc("decode", coded, "-o", decoded), "exists", "-y")
    assert {path.read_text() for path in tmp_path.iterdir()} == {"precious"}
    assert rqlvc("encode", clip, "-o", output, "-y", *toy).returncode == 0
    assert rqlvc("info", output).returncode == 0


def test_input_is_never_overwritten(rqlvc: CommandLine, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mkv")
    before = source.read_bytes()
    link = tmp_path / "link.mkv"
    link.symlink_to(source)
    for output in (source, link):
        assert_sentence(rqlvc("encode", source, "-o", output, "--quality", "30", "--codec", "toy", "-y"), "itself")
        assert_sentence(rqlvc("decode", source, "-o", output, "-y"), "itself")
    assert source.read_bytes() == before


def test_full_disk_is_one_sentence(rqlvc: CommandLine, clip: Path, tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    assert_sentence(rqlvc("encode", clip, "-o", full, "--quality", "30", "--codec", "toy", "-y"), "No space left")
    stats = ("--stats", full, "-y")
    assert_sentence(
        rqlvc("encode", clip, "-o", tmp_path / "out.mkv", "--quality", "30", "--codec", "toy", *stats), "No space left"
    )


def test_a_cut_file_decodes_up_to_the_cut(rqlvc: CommandLine, coded: Path, tmp_path: Path) -> None:
    whole, cut, part = tmp_path / "whole.y4m", tmp_path / "cut.mkv", tmp_path / "part.y4m"
    rqlvc("decode", coded, "-o", whole)
    data = coded.read_bytes()
    cut.write_bytes(data[: len(data) * 2 // 3])
    finished = rqlvc("decode", cut, "-o", part)
    assert finished.returncode == 1
    assert "warning" in finished.stderr.decode() and "Traceback" not in finished.stderr.decode()
    results = read_frames(part)
    assert 0 < len(results) < 12
    assert all(same_picture(a, b) for a, b in zip(read_frames(whole), results, strict=False))
    info = rqlvc("info", cut, "--json")
    assert info.returncode == 1 and "cut" in lines_of(info)[0]["damage"]


def test_a_damaged_packet_ends_the_decoding_there(rqlvc: CommandLine, coded: Path, tmp_path: Path) -> None:
    with ContainerReader(str(coded)) as container:
        payloads = [packet.payload for packet in container]
    data = bytearray(coded.read_bytes())
    position = data.index(payloads[6])
    data[position + len(payloads[6]) // 2] ^= 0x55
    damaged, part = tmp_path / "damaged.mkv", tmp_path / "part.y4m"
    damaged.write_bytes(data)
    finished = rqlvc("decode", damaged, "-o", part, "--json")
    assert finished.returncode == 1 and b"Traceback" not in finished.stderr
    assert "checksum" in finished.stderr.decode() and "holds the 6 frames" in finished.stderr.decode()
    summary = lines_of(finished)[-1]
    assert summary["frames"] == len(read_frames(part)) == 6
    assert "0.240 s" in summary["damage"]


def test_a_stream_names_the_model_it_needs(rqlvc: CommandLine, coded: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.y4m"
    strangers = register(tmp_path / "strangers", {"toy": "toy_codec:StrangerCodec"})
    assert_sentence(rqlvc("decode", coded, "-o", output, plugins=strangers), "70c0dec0", "0ddba110")
    nobody = tmp_path / "nobody"
    nobody.mkdir()
    assert_sentence(rqlvc("decode", coded, "-o", output, plugins=nobody), "no codec called 'toy'")
    broken = register(tmp_path / "broken", {"toy": "no_such_module:Codec"})
    assert_sentence(rqlvc("decode", coded, "-o", output, plugins=broken), "could not be loaded", "no_such_module")
    assert not output.exists()
    assert rqlvc("info", coded, plugins=nobody).returncode == 0  # what a file holds can be told without its codec


# Ctrl-C


def start_live_encode(rqlvc: CommandLine, clip: Path, coded: Path, frames: int) -> "subprocess.Popen[bytes]":
    """An encode from a pipe that has coded the first ``frames`` frames and waits for more."""
    pictures = read_frames(clip)[: frames + 1]
    process = rqlvc.start("encode", "-", "-o", coded, "--quality", "30", "--codec", "toy", "--json")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"YUV4MPEG2 W64 H48 F25:1 Ip A1:1 C420\n" + b"".join(map(y4m_frame, pictures[:frames])))
    process.stdin.flush()
    for _ in range(frames):
        assert json.loads(process.stdout.readline())["type"] == "frame"
    return process


def y4m_frame(frame: Frame) -> bytes:
    return b"FRAME\n" + frame.y.tobytes() + frame.u.tobytes() + frame.v.tobytes()


def test_interrupt_keeps_what_was_coded(rqlvc: CommandLine, clip: Path, tmp_path: Path) -> None:
    coded, kept = tmp_path / "coded.mkv", tmp_path / "coded.part.mkv"
    with start_live_encode(rqlvc, clip, coded, 5) as process:
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=60)
        assert process.returncode == 130, error.decode()
    assert f"{kept} holds the first 5 frames" in error.decode() and b"Traceback" not in error
    summary = json.loads(output.splitlines()[-1])
    assert (summary["type"], summary["interrupted"], summary["output"]) == ("summary", True, str(kept))
    assert not coded.exists()  # a script that looks for its output must not take a part for the whole
    decoding = rqlvc("decode", kept, "-o", tmp_path / "decoded.y4m", "--json")
    assert decoding.returncode == 0, decoding.stderr.decode()
    assert lines_of(decoding)[-1]["frames"] == summary["frames"] == 5


def test_interrupt_of_a_decode_leaves_nothing(rqlvc: CommandLine, coded: Path, tmp_path: Path) -> None:
    with rqlvc.start("decode", "-", "-o", tmp_path / "out.y4m") as process:
        assert process.stdin is not None
        process.stdin.write(coded.read_bytes()[:3000])
        process.stdin.flush()
        time.sleep(1.5)  # the imports must be over
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130, error.decode()
    assert b"Traceback" not in error
    assert list(tmp_path.iterdir()) == []


# Size


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(rqlvc: CommandLine, tmp_path: Path) -> None:
    program = (
        "import resource, sys\nfrom rqlvc.cli import main\ntry: main()\nexcept SystemExit as end: assert not end.code\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    luma, chroma = np.random.default_rng(1).integers(0, 256, (2, 96, 128), np.uint8)
    picture = y4m_frame(Frame(luma, chroma[:48, :64], chroma[48:, :64]))

    def peak_kilobytes(frames: int) -> int:
        source, coded = tmp_path / f"{frames}.y4m", tmp_path / f"{frames}.mkv"
        source.write_bytes(b"YUV4MPEG2 W128 H96 F25:1 Ip A1:1 C420\n" + picture * frames)
        arguments = ("encode", str(source), "-o", str(coded), "--quality", "60", "--codec", "toy")
        finished = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, env=rqlvc.environment, check=True
        )
        return int(finished.stdout)

    assert peak_kilobytes(3000) < 1.03 * peak_kilobytes(100)
