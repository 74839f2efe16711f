"""Frames in and out: real files through the readers and writers."""

import io
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from conftest import make_clip
from rqlvc.errors import RqlvcError
from rqlvc.media.frame import Frame
from rqlvc.media.properties import Colour, VideoProperties
from rqlvc.media.reader import open_reader
from rqlvc.media.writer import open_writer

SIZES = [(48, 32), (17, 19), (1, 1), (33, 16)]


def make_frames(width: int, height: int, count: int, rate: Fraction = Fraction(25), seed: int = 0) -> list[Frame]:
    generator = np.random.default_rng(seed)
    chroma = ((height + 1) // 2, (width + 1) // 2)
    return [
        Frame(
            generator.integers(0, 256, (height, width), np.uint8),
            generator.integers(0, 256, chroma, np.uint8),
            generator.integers(0, 256, chroma, np.uint8),
            index / rate,
        )
        for index in range(count)
    ]


def write(path: Path | str, frames: list[Frame], properties: VideoProperties, **options: Any) -> list[str]:
    with open_writer(str(path), properties, overwrite=False, **options) as writer:
        for frame in frames:
            writer.write(frame)
    return writer.warnings


def same_pictures(left: list[Frame], right: list[Frame]) -> bool:
    return len(left) == len(right) and all(
        np.array_equal(getattr(a, plane), getattr(b, plane))
        for a, b in zip(left, right, strict=True)
        for plane in ("y", "u", "v")
    )


def encode_with_av(path: Path, codec: str, layout: str, stamps: list[int], base: Fraction, **tags: Any) -> None:
    """A 64x48 video whose picture n is flat at luma 16 + 8n."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=tags.pop("options", {}))
        stream.width, stream.height, stream.pix_fmt = 64, 48, layout
        stream.codec_context.time_base = base
        if "rotation" in tags:
            stream.set_display_rotation(tags.pop("rotation"))
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for index, stamp in enumerate(stamps):
            picture = av.VideoFrame(64, 48, "yuv420p")
            for plane in picture.planes:
                plane.update(np.full(plane.buffer_size, 16 + 8 * index % 200, np.uint8))
            picture = picture.reformat(format=layout)
            picture.pts, picture.time_base = stamp, base
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("suffix", [".y4m", ".yuv", ".mkv"])
def test_lossless_round_trip(tmp_path: Path, size: tuple[int, int], count: int, suffix: str) -> None:
    rate = Fraction(25)
    frames = make_frames(*size, count)
    path = tmp_path / f"clip{suffix}"
    assert write(path, frames, VideoProperties(*size, rate)) == []
    raw = {"size": size, "frame_rate": rate} if suffix == ".yuv" else {}
    with open_reader(str(path), **raw) as reader:
        back = list(reader)
    assert same_pictures(frames, back)
    assert [frame.time for frame in back] == [frame.time for frame in frames]
    assert (reader.properties.width, reader.properties.height, reader.properties.frame_rate) == (*size, rate)
    assert reader.frame_count == count
    assert reader.warnings == []
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".y4m", ".mkv", ".mp4"])
def test_properties_survive(tmp_path: Path, suffix: str) -> None:
    colour = Colour(9, 16, 9, full_range=True)
    properties = VideoProperties(64, 48, Fraction(30000, 1001), colour, 90, Fraction(4, 3))
    path = tmp_path / f"clip{suffix}"
    write(path, make_frames(64, 48, 3, Fraction(30000, 1001)), properties)
    with open_reader(str(path)) as reader:
        read = reader.properties
    if suffix == ".y4m":  # it has no place for code points and rotation
        read = replace(read, colour=Colour(9, 16, 9, read.colour.full_range), rotation=90)
    assert read.colour == colour
    assert read.rotation == 90
    assert read.sample_aspect_ratio == Fraction(4, 3)
    assert abs(read.frame_rate - properties.frame_rate) < Fraction(1, 1000)


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
def test_rotation_is_carried_and_not_applied(tmp_path: Path, clockwise: int) -> None:
    path = tmp_path / "turned.mp4"
    encode_with_av(path, "libx264", "yuv420p", [0, 1, 2], Fraction(1, 25), rotation=-clockwise)
    with open_reader(str(path)) as reader:
        frame = next(reader)
    assert reader.properties.rotation == clockwise
    assert (frame.width, frame.height) == (64, 48)


def test_variable_frame_rate_times_are_exact(tmp_path: Path) -> None:
    base = Fraction(1, 90000)
    stamps = [900, 4503, 4504, 20001, 90000, 93003]
    path = tmp_path / "vfr.mp4"
    encode_with_av(path, "libx264", "yuv420p", stamps, base)
    expected = [(stamp - stamps[0]) * base for stamp in stamps]
    with open_reader(str(path)) as reader:
        frames = list(reader)
    assert [frame.time for frame in frames] == expected
    again = tmp_path / "again.mp4"
    write(again, frames, reader.properties)
    with open_reader(str(again)) as reader:
        assert [frame.time for frame in reader] == expected


def test_y4m_says_once_that_it_loses_times(tmp_path: Path) -> None:
    frames = make_frames(16, 16, 6)
    late = [*frames[:3], *(replace(frame, time=frame.time + 1) for frame in frames[3:])]
    assert len(write(tmp_path / "a.y4m", late, VideoProperties(16, 16, Fraction(25)))) == 1
    assert write(tmp_path / "b.y4m", frames, VideoProperties(16, 16, Fraction(25))) == []


@pytest.mark.parametrize(
    ("codec", "layout"), [("libx264", "yuv444p10le"), ("ffv1", "yuv422p"), ("ffv1", "gray"), ("ffv1", "yuv420p10le")]
)
def test_other_layouts_are_converted_with_one_warning(tmp_path: Path, codec: str, layout: str) -> None:
    path = tmp_path / "deep.mkv"
    encode_with_av(path, codec, layout, list(range(6)), Fraction(1, 25), options={"crf": "1"} if "264" in codec else {})
    with open_reader(str(path)) as reader:
        frames = list(reader)
    assert len(frames) == 6
    assert len(reader.warnings) == 1 and layout in reader.warnings[0]
    if layout == "gray":
        assert all(np.all(frame.u == 128) for frame in frames)
        return
    for index, frame in enumerate(frames):
        assert abs(float(frame.y.mean()) - (16 + 8 * index)) < 1.5  # levels are not stretched


def test_full_range_stays_full_range(tmp_path: Path) -> None:
    path = tmp_path / "full.mp4"
    encode_with_av(path, "libx264", "yuvj444p", [0, 1, 2], Fraction(1, 25), color_range=2, options={"crf": "1"})
    with open(path, "rb"), open_reader(str(path)) as reader:
        frames = list(reader)
    assert reader.properties.colour.full_range
    with av.open(str(path)) as container:
        reference = [float(np.frombuffer(picture.planes[0], np.uint8)[0]) for picture in container.decode(video=0)]
    assert [float(frame.y.mean()) for frame in frames] == pytest.approx(reference, abs=0.6)


def test_rgb_pictures(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "red.png"
    Image.new("RGB", (20, 10), (255, 0, 0)).save(path)
    with open_reader(str(path)) as reader:
        frame = next(reader)
    assert reader.properties.colour.matrix == 1 and not reader.properties.colour.full_range
    assert abs(int(frame.y[5, 5]) - 63) <= 1  # BT.709 red at limited range: 16 + 219 * 0.2126
    assert len(reader.warnings) == 1


@pytest.mark.parametrize("suffix", [".y4m", ".yuv", ".mkv"])
def test_start_and_frames(tmp_path: Path, suffix: str) -> None:
    frames = make_frames(24, 16, 10)
    path = tmp_path / f"clip{suffix}"
    write(path, frames, VideoProperties(24, 16, Fraction(25)))
    raw: dict[str, Any] = {"size": (24, 16), "frame_rate": Fraction(25)} if suffix == ".yuv" else {}
    with open_reader(str(path), start=3, frames=4, **raw) as reader:
        assert reader.frame_count == 4
        part = list(reader)
    assert same_pictures(part, frames[3:7])
    assert [frame.time for frame in part] == [Fraction(index, 25) for index in range(3, 7)]
    with open_reader(str(path), start=8, frames=100, **raw) as reader:
        assert reader.frame_count == 2
        assert len(list(reader)) == 2
    with pytest.raises(RqlvcError, match="shorter"):
        open_reader(str(path), start=10, **raw)


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = make_frames(17, 19, 3)
    properties = VideoProperties(17, 19, Fraction(25))
    collected = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=collected))
    write("-", frames, properties)
    data = collected.getvalue()
    write(tmp_path / "a.y4m", frames, properties)
    assert data == (tmp_path / "a.y4m").read_bytes()
    pipe(monkeypatch, data)
    with open_reader("-") as reader:
        assert reader.frame_count is None
        assert same_pictures(list(reader), frames)
    write(tmp_path / "a.yuv", frames, properties)
    raw = (tmp_path / "a.yuv").read_bytes()
    pipe(monkeypatch, raw)
    with open_reader("-", size=(17, 19), frame_rate=Fraction(25)) as reader:
        assert same_pictures(list(reader), frames)
    for bad, options in ((raw, {}), (b"", {}), (data, {"size": (17, 19)}), (data.replace(b"C420jpeg", b"C444", 1), {})):
        pipe(monkeypatch, bad)
        with pytest.raises(RqlvcError):
            open_reader("-", **options)  # type: ignore[arg-type]


def test_y4m_variants(tmp_path: Path) -> None:
    frames = make_frames(8, 6, 2)
    body = b"".join(b"FRAME\n" + f.y.tobytes() + f.u.tobytes() + f.v.tobytes() for f in frames)
    for name in ("420", "420mpeg2", "420paldv", None):
        tag = f" C{name}" if name else ""
        path = tmp_path / "a.y4m"
        path.write_bytes(f"YUV4MPEG2 W8 H6 F24000:1001 It A10:11{tag} XYSCSS=420\n".encode() + body)
        with open_reader(str(path)) as reader:
            assert same_pictures(list(reader), frames)
        assert reader.properties.frame_rate == Fraction(24000, 1001)
        assert reader.properties.sample_aspect_ratio == Fraction(10, 11)
        assert len(reader.warnings) == 1 and "interlaced" in reader.warnings[0]
    deep = tmp_path / "b.y4m"
    encode_with_av(deep, "wrapped_avframe", "yuv444p", [0, 1], Fraction(1, 25))
    with open_reader(str(deep)) as reader:
        assert len(list(reader)) == 2
    assert len(reader.warnings) == 1


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.mp4", b""),
        ("garbage.mp4", bytes(range(256)) * 40),
        ("text.txt", b"hello world\n" * 100),
        ("cut.y4m", b"YUV4MPEG2 W16 H16 F25:1"),
        ("header.y4m", b"YUV4MPEG2 W16 H16 F25:1\n"),
        ("sizeless.y4m", b"YUV4MPEG2 F25:1\nFRAME\n" + bytes(500)),
        ("huge.y4m", b"YUV4MPEG2 W999999999 H999999999 F25:1\nFRAME\n" + bytes(500)),
        ("digits.y4m", b"YUV4MPEG2 W1\xb2 H16 F25:1\nFRAME\n" + bytes(500)),
        ("rate.y4m", b"YUV4MPEG2 W16 H16 Fx:1\nFRAME\n" + bytes(500)),
        ("noframe.y4m", b"YUV4MPEG2 W16 H16 F25:1\nFRANE\n" + bytes(500)),
        ("long.y4m", b"YUV4MPEG2 " + b"X" * 100000),
        ("raw.yuv", bytes(384)),
    ],
)
def test_bad_input_is_a_sentence(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(RqlvcError, match=r"\.$"):
        open_reader(str(path))


def test_no_such_video(tmp_path: Path) -> None:
    for path in (str(tmp_path / "missing.mp4"), str(tmp_path), "http://127.0.0.1:9/x.mp4"):
        with pytest.raises(RqlvcError):
            open_reader(path)
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        audio = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        audio.sample_rate = 8000
        container.mux(stream.encode(audio))
    with pytest.raises(RqlvcError, match="no video stream"):
        open_reader(str(sound))


def test_cut_files_end_with_a_warning(tmp_path: Path) -> None:
    frames = make_frames(16, 16, 5)
    properties = VideoProperties(16, 16, Fraction(25))
    write(tmp_path / "a.y4m", frames, properties)
    write(tmp_path / "a.yuv", frames, properties)
    for name, options in (("a.y4m", {}), ("a.yuv", {"size": (16, 16), "frame_rate": Fraction(25)})):
        whole = (tmp_path / name).read_bytes()
        for cut in range(1, 390, 43):
            (tmp_path / name).write_bytes(whole[:-cut])
            with open_reader(str(tmp_path / name), **options) as reader:  # type: ignore[arg-type]
                part = list(reader)
            assert same_pictures(part, frames[: len(part)]) and len(part) >= 3
            assert len(reader.warnings) == (cut != 390)
            assert len(part) == 4 or cut > 384
    many = make_frames(64, 64, 20)
    write(tmp_path / "a.mkv", many, VideoProperties(64, 64, Fraction(25)))
    whole = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "b.mkv").write_bytes(whole[: len(whole) // 2])
    with open_reader(str(tmp_path / "b.mkv")) as reader:
        part = list(reader)
    assert 0 < len(part) < 20 and same_pictures(part[:-1], many[: len(part) - 1])
    damaged = bytearray(whole)
    damaged[len(whole) // 2 :] = np.random.default_rng(1).bytes(len(whole) - len(whole) // 2)
    (tmp_path / "c.mkv").write_bytes(damaged)
    with open_reader(str(tmp_path / "c.mkv")) as reader:
        assert len(list(reader)) < 20


def test_cut_mp4_keeps_its_times(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    options = {"crf": "1", "g": "10"}
    encode_with_av(path, "libx264", "yuv420p", list(range(0, 60, 2)), Fraction(1, 50), options=options)
    with open_reader(str(path)) as reader:
        whole = list(reader)
    with (
        av.open(str(path)) as source,
        av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as out,
    ):
        copied = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copied
                out.mux(packet)
    data = (tmp_path / "fast.mp4").read_bytes()
    path.write_bytes(data[: len(data) - (len(data) - data.index(b"mdat")) // 6])
    with open_reader(str(path)) as reader:
        part = list(reader)
    assert 0 < len(part) < 30
    assert [frame.time for frame in part] == [frame.time for frame in whole[: len(part)]]
    assert len(reader.warnings) == 1 and f"past frame {len(part)}" in reader.warnings[0]


def test_size_change_is_scaled_with_a_warning(tmp_path: Path) -> None:
    small, large = tmp_path / "small.h264", tmp_path / "large.h264"
    for path, size in ((small, (64, 48)), (large, (128, 96))):
        with av.open(str(path), "w", format="h264") as container:
            stream: Any = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for index in range(3):
                picture = av.VideoFrame(*size, "yuv420p")
                for plane in picture.planes:
                    plane.update(np.full(plane.buffer_size, 100, np.uint8))
                picture.pts = index
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    path = tmp_path / "both.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with open_reader(str(path)) as reader:
        frames = list(reader)
    assert {(frame.width, frame.height) for frame in frames} == {(64, 48)}
    assert len(frames) == 6
    assert all(late.time > early.time for early, late in itertools.pairwise(frames))
    assert sum("size changes" in text for text in reader.warnings) == 1


def test_writer_refuses(tmp_path: Path) -> None:
    properties = VideoProperties(16, 16, Fraction(25))
    frames = make_frames(16, 16, 1)
    with pytest.raises(RqlvcError, match=r"\.y4m.*\.mp4"):
        open_writer(str(tmp_path / "a.xyz"), properties, overwrite=False)
    with pytest.raises(RqlvcError, match="even"):
        open_writer(str(tmp_path / "a.mp4"), VideoProperties(17, 16, Fraction(25)), overwrite=False)
    with pytest.raises(RqlvcError, match="folder"):
        open_writer(str(tmp_path / "none" / "a.y4m"), properties, overwrite=False)
    with pytest.raises(RqlvcError, match="does not fit"):
        write(tmp_path / "b.y4m", make_frames(16, 18, 1), properties)
    for suffix in (".y4m", ".mkv", ".mp4"):
        path = tmp_path / f"a{suffix}"
        write(path, frames, properties)
        before = path.read_bytes()
        with pytest.raises(RqlvcError, match="exists"):
            open_writer(str(path), properties, overwrite=False)
        with pytest.raises(ZeroDivisionError), open_writer(str(path), properties, overwrite=True) as writer:
            writer.write(frames[0])
            raise ZeroDivisionError
        assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.mkv", "a.mp4", "a.y4m"]


def test_a_temporary_name_takes_nobody_elses(tmp_path: Path) -> None:
    """Decoding clip.part.mkv, the rest of a killed encode, to clip.mkv must not write over what it reads."""
    frames = make_frames(16, 16, 2)
    properties = VideoProperties(16, 16, Fraction(25))
    for suffix in (".y4m", ".mkv", ".mp4"):
        rest = tmp_path / f"clip.part{suffix}"
        rest.write_bytes(b"precious")
        write(tmp_path / f"clip{suffix}", frames, properties)
        assert rest.read_bytes() == b"precious"
    assert len(os.listdir(tmp_path)) == 6


def test_a_full_device_is_a_sentence() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    from rqlvc.media.output import AtomicOutput

    output = AtomicOutput("/dev/full", overwrite=False)
    with pytest.raises(RqlvcError, match="cannot be written"):
        output.write(b"x")
    output.abandon()
    assert os.path.exists("/dev/full")


@pytest.mark.slow
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from rqlvc.media.reader import open_reader\n"
        "with open_reader(sys.argv[1], frames=int(sys.argv[2])) as reader: count = sum(1 for _ in reader)\n"
        "assert count == int(sys.argv[2]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    path = tmp_path / "long.mkv"
    properties = VideoProperties(320, 240, Fraction(25))
    ramp = np.tile(np.arange(320, dtype=np.uint8), (240, 1))
    frame = Frame(ramp, ramp[:120, :160], ramp[:120, :160])
    with open_writer(str(path), properties, overwrite=False) as writer:
        for index in range(600):
            writer.write(replace(frame, time=Fraction(index, 25)))

    def peak(count: int) -> int:
        done = subprocess.run([sys.executable, "-c", program, str(path), str(count)], capture_output=True, check=True)
        return int(done.stdout)

    # 550 more frames of 115 kB would be 63 MB.
    assert peak(600) - peak(50) < 12_000


def test_frames_are_counted_where_the_header_only_tells_the_duration(tmp_path: Path) -> None:
    """A gap in the time stamps makes the file as long as fifty frames."""
    path = make_clip(tmp_path / "gap.mkv", frames=11, times=[*range(0, 400, 40), 2000])
    with open_reader(str(path)) as reader:
        assert reader.frame_count == 11 == len(list(reader))
