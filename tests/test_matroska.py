"""The container: our Matroska against itself, against FFmpeg's reader, and against damage."""

import io
import itertools
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqlvc.errors import RqlvcError
from rqlvc.media import ebml
from rqlvc.media.container import (
    ContainerReader,
    ContainerWriter,
    StreamHeader,
    VideoPacket,
    header_to_private,
    private_to_header,
)
from rqlvc.media.frame import Frame
from rqlvc.media.matroska import TICK
from rqlvc.media.properties import Colour, VideoProperties
from rqlvc.media.reader import open_reader
from rqlvc.media.writer import open_writer

PROPERTIES = VideoProperties(175, 99, Fraction(30000, 1001), Colour(9, 16, 9, True), 270, Fraction(12, 11))
unhurried = settings(deadline=None)  # a busy machine is no defect
HEADER = StreamHeader("rqlvc", "c0ffee" * 8, PROPERTIES)


def make_packets(
    count: int, *, rate: Fraction = PROPERTIES.frame_rate, interval: int = 8, size: int = 60
) -> list[VideoPacket]:
    generator = random.Random(count)
    return [
        VideoPacket(generator.randbytes(generator.randrange(1, size)), index / rate, index % interval == 0)
        for index in range(count)
    ]


def write(path: Path | str, packets: list[VideoPacket], **options: Any) -> ContainerWriter:
    with ContainerWriter(str(path), HEADER, overwrite=True, **options) as writer:
        for packet in packets:
            writer.write(packet)
    return writer


def pipe_bytes(monkeypatch: pytest.MonkeyPatch, packets: list[VideoPacket]) -> bytes:
    collected = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", SimpleNamespace(buffer=collected))
        write("-", packets)
    return collected.getvalue()


def read_pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> ContainerReader:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    return ContainerReader("-")


# EBML


@unhurried
@given(st.integers(0, ebml.MAX_SIZE), st.integers(0, 8), st.binary(max_size=4))
def test_sizes_round_trip(value: int, length: int, tail: bytes) -> None:
    coded = ebml.encode_size(value, length)
    assert ebml.decode_vint(coded + tail) == (value, len(coded))
    assert len(coded) >= length


@unhurried
@given(st.integers(0, ebml.MAX_SIZE))
def test_sizes_are_as_short_as_can_be(value: int) -> None:
    length = len(ebml.encode_size(value))
    # RFC 8794, 4: a length of n has 7n value bits, and all of them set means "unknown".
    assert value <= 2 ** (7 * length) - 2
    assert length == 1 or value > 2 ** (7 * (length - 1)) - 2


@pytest.mark.parametrize("length", range(1, 9))
def test_unknown_size(length: int) -> None:
    assert ebml.decode_vint(((1 << 7 * length + 1) - 1).to_bytes(length, "big")) == (ebml.UNKNOWN_SIZE, length)


@unhurried
@given(st.integers(0, 2**64 - 1), st.integers(-(2**62), 2**62))
def test_numbers_round_trip(value: int, number: int) -> None:
    assert [(i, ebml.decode_unsigned(p)) for i, p in ebml.children(ebml.unsigned(0xD7, value))] == [(0xD7, value)]
    [(_, payload)] = ebml.children(ebml.signed(0xFB, number))
    assert int.from_bytes(payload, "big", signed=True) == number


@unhurried
@given(st.binary(max_size=60))
def test_any_bytes_are_elements_or_damage(data: bytes) -> None:
    try:
        elements = list(ebml.children(data))
    except ebml.DamagedError:
        return
    assert sum(len(payload) for _, payload in elements) + 2 * len(elements) <= len(data)


# The stream header


@unhurried
@given(
    st.builds(
        VideoProperties,
        st.integers(1, 16384),
        st.integers(1, 16384),
        st.fractions(Fraction(1, 1000), 1000, max_denominator=10**6),
        st.builds(Colour, st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.booleans()),
        st.sampled_from([0, 90, 180, 270]),
        st.fractions(Fraction(1, 100), 100, max_denominator=10**4),
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
)
def test_stream_header_round_trip(properties: VideoProperties, name: str) -> None:
    header = StreamHeader(name, "ab12", properties)
    assert private_to_header(header_to_private(header)) == header


@pytest.mark.parametrize(
    "private",
    [
        b"",
        b"RQLV",
        b"RQLV\x01",
        b"RQLV\x01{}",
        b"RQLV\x01[1]",
        b"RQLV\x01" + b"[" * 60000,
        b"RQLV\x01" + b"9" * 60000,
        header_to_private(HEADER).replace(b'"width":175', b'"width":1e9'),
        header_to_private(HEADER).replace(b'"width":175', b'"width":0'),
        header_to_private(HEADER).replace(b"[30000,1001]", b"[30000,0]"),
        header_to_private(HEADER).replace(b"270", b'"x"'),
    ],
)
def test_bad_stream_headers(private: bytes) -> None:
    with pytest.raises(ebml.DamagedError):
        private_to_header(private)


def test_a_later_version_is_named() -> None:
    with pytest.raises(ebml.DamagedError, match="version 7"):
        private_to_header(b"RQLV\x07{}")


# Round trips


@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_round_trip(tmp_path: Path, count: int) -> None:
    packets = make_packets(count)
    path = tmp_path / "a.mkv"
    writer = write(path, packets)
    payload = sum(len(packet.payload) for packet in packets)
    assert writer.overhead_bytes == path.stat().st_size - payload
    assert count < 300 or writer.overhead_bytes < 800 + 16 * count
    with ContainerReader(str(path)) as reader:
        assert reader.header == HEADER
        assert reader.frame_count == count
        assert reader.duration is not None
        assert abs(reader.duration - count / PROPERTIES.frame_rate) < Fraction(1, 1000)
        assert list(reader) == packets
        assert reader.truncated is None
    assert os.listdir(tmp_path) == ["a.mkv"]


def test_round_trip_through_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    packets = make_packets(40)
    reader = read_pipe(monkeypatch, pipe_bytes(monkeypatch, packets))
    assert (reader.frame_count, reader.duration) == (None, None)
    assert list(reader) == packets
    assert reader.truncated is None


def test_variable_frame_rate_through_the_whole_line(tmp_path: Path) -> None:
    """Times on the container's tick (100 microseconds) pass exactly, from a file through ours to a file."""
    picture = np.zeros((16, 16), np.uint8)
    ticks = [0, 333, 334, 1000, 9999, 70000, 70001]
    times = [Fraction(tick, 10000) for tick in ticks]
    source = tmp_path / "source.mkv"
    with open_writer(str(source), VideoProperties(16, 16, Fraction(30)), overwrite=False) as writer:
        for time in times:
            writer.write(Frame(picture, picture[:8, :8], picture[:8, :8], time))
    with open_reader(str(source)) as frames:
        properties = frames.properties
        read = [frame.time for frame in frames]
    assert read == times
    middle = tmp_path / "coded.mkv"
    with ContainerWriter(str(middle), StreamHeader("x", "0", properties), overwrite=False) as container:
        for time in read:
            container.write(VideoPacket(b"x", time, True))
    with ContainerReader(str(middle)) as reader:
        assert [round(packet.time / TICK) for packet in reader] == ticks


@unhurried
@given(
    st.fractions(1, 240, max_denominator=1001),
    st.lists(st.integers(1, 400), min_size=1, max_size=30),
)
def test_constant_frame_rate_times_are_exact(rate: Fraction, gaps: list[int]) -> None:
    """Even where a frame period is no whole number of ticks, and where frames are missing."""
    header = StreamHeader("x", "0", VideoProperties(16, 16, rate))
    index, packets = 0, []
    for gap in gaps:
        packets.append(VideoPacket(b"p", index / rate, gap % 3 == 0))
        index += gap
    out = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
        with ContainerWriter("-", header, overwrite=False) as writer:
            for packet in packets:
                writer.write(packet)
        assert list(read_pipe(patch, out.getvalue())) == packets


def test_frames_within_a_tick_stay_apart(tmp_path: Path) -> None:
    times = [Fraction(0), Fraction(1, 10**6), Fraction(2, 10**6)]
    write(tmp_path / "a.mkv", [VideoPacket(b"x", time, True) for time in times])
    with ContainerReader(str(tmp_path / "a.mkv")) as reader:
        back = [packet.time for packet in reader]
    assert len(set(back)) == 3 and back == sorted(back) and back[2] < Fraction(1, 1000)


def test_times_must_grow(tmp_path: Path) -> None:
    with pytest.raises(RqlvcError, match="does not come after"):
        write(tmp_path / "a.mkv", [VideoPacket(b"x", Fraction(1), True), VideoPacket(b"x", Fraction(1), False)])
    assert os.listdir(tmp_path) == []


# What others make of it


@pytest.mark.parametrize("seekable", [True, False])
def test_ffmpeg_lists_our_track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seekable: bool) -> None:
    path = tmp_path / "a.mkv"
    write(path, make_packets(20))
    if not seekable:
        path.write_bytes(pipe_bytes(monkeypatch, make_packets(20)))
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        packets = [packet for packet in container.demux() if packet.size]
        assert [bytes(packet) for packet in packets] == [packet.payload for packet in make_packets(20)]
        assert [packet.is_keyframe for packet in packets] == [packet.keyframe for packet in make_packets(20)]
    with pytest.raises(RqlvcError, match="decoder"):
        open_reader(str(path))


def test_other_files_are_refused(tmp_path: Path) -> None:
    picture = np.zeros((16, 16), np.uint8)
    for suffix, message in ((".mkv", "V_RQLVC track.*V_FFV1"), (".mp4", "no Matroska"), (".y4m", "no Matroska")):
        path = tmp_path / f"a{suffix}"
        with open_writer(str(path), VideoProperties(16, 16, Fraction(25)), overwrite=False) as writer:
            writer.write(Frame(picture, picture[:8, :8], picture[:8, :8]))
        with pytest.raises(RqlvcError, match=f"not an RQ-LVC file.*{message}"):
            ContainerReader(str(path))
    (tmp_path / "empty.mkv").write_bytes(b"")
    for path in (tmp_path / "empty.mkv", tmp_path / "missing.mkv", tmp_path):
        with pytest.raises(RqlvcError):
            ContainerReader(str(path))


# Seeking


@pytest.mark.parametrize("how", ["index", "scan", "pipe"])
def test_seek(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    packets = make_packets(200, interval=16)
    path = tmp_path / "a.mkv"
    data = pipe_bytes(monkeypatch, packets)
    if how == "index":
        write(path, packets)
    else:
        path.write_bytes(data)
    generator = random.Random(5)
    times = [Fraction(0), Fraction(100), *(packets[generator.randrange(200)].time for _ in range(8)), Fraction(31, 10)]
    shared = None if how == "pipe" else ContainerReader(str(path))
    for time in times:
        reader = shared or read_pipe(monkeypatch, data)
        reader.seek(time)
        first = max(index for index in range(0, 200, 16) if packets[index].time <= time)
        assert list(reader) == packets[first:]
        assert reader.truncated is None


def test_seek_survives_a_wrong_index(tmp_path: Path) -> None:
    packets = make_packets(64, interval=8)
    path = tmp_path / "a.mkv"
    write(path, packets)
    whole = bytearray(path.read_bytes())
    cues = whole.rindex(b"\x1c\x53\xbb\x6b")
    for place in range(cues + 6, len(whole)):
        path.write_bytes(bytes(whole[:place]) + bytes([whole[place] ^ 0x15]) + bytes(whole[place + 1 :]))
        with ContainerReader(str(path)) as reader:
            reader.seek(packets[42].time)
            rest = list(reader)
        assert rest and rest[0].keyframe and rest[0].time <= packets[42].time and rest == packets[-len(rest) :]


# Damage


@pytest.mark.parametrize("seekable", [True, False])
def test_cut_at_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seekable: bool) -> None:
    packets = make_packets(12, interval=5)
    path = tmp_path / "a.mkv"
    write(path, packets)
    data = path.read_bytes() if seekable else pipe_bytes(monkeypatch, packets)
    ends = [data.index(packet.payload) + len(packet.payload) for packet in packets]
    usable = False
    for cut in range(len(data) + 1):
        try:
            if seekable:
                path.write_bytes(data[:cut])
                reader = ContainerReader(str(path))
            else:
                reader = read_pipe(monkeypatch, data[:cut])
        except RqlvcError:
            assert not usable and cut < ends[0]
            continue
        usable = True
        with reader:
            assert list(reader) == packets[: sum(end <= cut for end in ends)]
            assert (reader.truncated is None) == (cut == len(data))


@pytest.mark.parametrize("seekable", [True, False])
def test_random_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seekable: bool) -> None:
    packets = make_packets(30, interval=7)
    path = tmp_path / "a.mkv"
    write(path, packets)
    data = path.read_bytes() if seekable else pipe_bytes(monkeypatch, packets)
    generator = random.Random(99)
    unharmed = 0
    for _ in range(1000):
        damaged = bytearray(data)
        for _ in range(generator.choice((1, 1, 4))):
            damaged[generator.randrange(len(data))] ^= generator.randrange(1, 256)
        try:
            if seekable:
                path.write_bytes(damaged)
                reader = ContainerReader(str(path))
            else:
                reader = read_pipe(monkeypatch, bytes(damaged))
        except RqlvcError:
            continue
        with reader:
            if seekable and generator.random() < 0.2:
                reader.seek(Fraction(1, 2))
            found = list(reader)
            assert len(found) <= len(packets)
            assert all(early.time < late.time for early, late in itertools.pairwise(found))
            unharmed += reader.truncated is None
    assert 0 < unharmed < 1000


def test_a_claimed_size_allocates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    data = pipe_bytes(monkeypatch, make_packets(2))
    huge = ebml.identifier_bytes(0xA3) + ebml.encode_size(60 << 20) + b"\x81\0\0\x80"
    place = data.index(b"\x1c\x53\xbb\x6b")
    for payload in (huge, ebml.identifier_bytes(0xA3) + ebml.encode_size(1 << 50), b"\xec" + ebml.encode_size(1 << 50)):
        bad = data[:place] + payload
        (tmp_path / "a.mkv").write_bytes(bad)
        for reader in (read_pipe(monkeypatch, bad), ContainerReader(str(tmp_path / "a.mkv"))):
            tracemalloc.start()
            with reader:
                assert len(list(reader)) == 2
                assert reader.truncated is not None
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
            tracemalloc.stop()


def test_a_killed_writer_leaves_its_packets(tmp_path: Path) -> None:
    program = (
        "import os, sys; from fractions import Fraction as F\n"
        "from rqlvc.media.container import *; from rqlvc.media.properties import VideoProperties as P\n"
        "writer = ContainerWriter(sys.argv[1], StreamHeader('x', '0', P(16, 16, F(25))), overwrite=False)\n"
        "for n in range(30): writer.write(VideoPacket(b'packet', F(n, 25), n % 8 == 0))\n"
        "os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "a.mkv"
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    assert os.listdir(tmp_path) == ["a.part.mkv"]
    with ContainerReader(str(tmp_path / "a.part.mkv")) as reader:
        assert len(list(reader)) == 30
        assert reader.truncated is not None


def test_interruption_keeps_and_failure_removes(tmp_path: Path) -> None:
    packets = make_packets(10)
    path = tmp_path / "a.mkv"
    for failure in (KeyboardInterrupt, ValueError):
        with pytest.raises(failure), ContainerWriter(str(path), HEADER, overwrite=False) as writer:
            for packet in packets:
                writer.write(packet)
            raise failure
        kept = os.listdir(tmp_path)
        assert kept == (["a.part.mkv"] if failure is KeyboardInterrupt else [])
        for name in kept:
            with ContainerReader(str(tmp_path / name)) as reader:
                assert list(reader) == packets and reader.truncated is None
            (tmp_path / name).unlink()


# Audio and subtitles


def make_sound(path: Path, codec: str, rate: int, samples: int, layout: str = "stereo") -> None:
    """A second or so of a tone beside a small moving picture, written by FFmpeg."""
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio: Any = container.add_stream(codec, rate=rate, layout=layout)
        wave = (9000 * np.sin(np.arange(samples) / 20)).astype(np.int16)
        channels = 2 if layout == "stereo" else 1
        sound = av.AudioFrame.from_ndarray(np.repeat(wave, channels)[None], "s16", layout)
        sound.sample_rate, sound.pts, sound.time_base = rate, 0, Fraction(1, rate)
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
        for index in range(25):
            picture = av.VideoFrame(32, 32, "yuv420p")
            for plane in picture.planes:
                plane.update(bytes(plane.buffer_size))
            picture.pts, picture.time_base = index, Fraction(1, 25)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))


def decode_sound(path: Path) -> tuple[np.ndarray, Fraction]:
    """(samples of the first channel, time of the first)."""
    with av.open(str(path)) as container:
        pieces = list(container.decode(audio=0))
    first = pieces[0]
    packed = [p.to_ndarray().reshape(-1) if p.format.is_planar else p.to_ndarray()[0] for p in pieces]
    channels = len(first.layout.channels)
    samples = np.concatenate(
        [a[: a.size // channels] if p.format.is_planar else a[::channels] for a, p in zip(packed, pieces, strict=True)]
    )
    return samples, first.pts * first.time_base


CODECS = [
    ("aac", 44100, ".mp4"),
    ("aac", 48000, ".ts"),
    ("libmp3lame", 44100, ".mp4"),
    ("libopus", 48000, ".mkv"),
    ("flac", 48000, ".mkv"),
    ("ac3", 48000, ".mp4"),
    ("alac", 44100, ".mp4"),
    ("pcm_s16le", 8000, ".mkv"),
    ("pcm_s24le", 48000, ".mov"),
]


@pytest.mark.parametrize(("codec", "rate", "suffix"), CODECS)
def test_copied_audio_is_the_same_sound(tmp_path: Path, codec: str, rate: int, suffix: str) -> None:
    source, coded = tmp_path / f"source{suffix}", tmp_path / "coded.mkv"
    make_sound(source, codec, rate, rate)
    packets = make_packets(25, rate=Fraction(25))
    writer = write(coded, packets, copy_from=str(source))
    assert writer.warnings == []
    assert writer.copied_bytes > 0
    before, start = decode_sound(source)
    after, new_start = decode_sound(coded)
    if suffix == ".ts":  # sound that comes before the first picture is left out; times count from elsewhere
        before = before[1024:]
    else:
        assert abs(new_start - start) <= Fraction(1, 1000)
    assert after.size == before.size
    # What is left out at the start still primes the decoder, but for the first packet of a transport stream.
    assert np.array_equal(after[2048:], before[2048:])
    assert np.abs(after.astype(float) - before).max() <= 0.02 * np.abs(before).max()
    with ContainerReader(str(coded)) as reader:
        assert [packet.payload for packet in reader] == [packet.payload for packet in packets]
    for final in (tmp_path / "final.mkv", tmp_path / "final.mp4"):
        picture = np.zeros((32, 32), np.uint8)
        with open_writer(
            str(final), VideoProperties(32, 32, Fraction(25)), overwrite=False, copy_from=str(coded)
        ) as video:
            for packet in packets:
                video.write(Frame(picture, picture[:16, :16], picture[:16, :16], packet.time))
        if codec.startswith("pcm") and final.suffix == ".mp4" and video.warnings:
            continue  # said to be left out
        assert video.warnings == []
        last, _ = decode_sound(final)
        assert abs(last.size - before.size) <= 2048  # MP4 counts priming in its own way
        with open_reader(str(final)) as frames:
            assert [frame.time for frame in frames] == [packet.time for packet in packets]


def test_copy_range(tmp_path: Path) -> None:
    source, coded = tmp_path / "source.mkv", tmp_path / "coded.mkv"
    make_sound(source, "pcm_s16le", 8000, 8000, "mono")
    write(
        coded, make_packets(10, rate=Fraction(25)), copy_from=str(source), copy_range=(Fraction(2, 5), Fraction(4, 5))
    )
    whole, _ = decode_sound(source)
    part, start = decode_sound(coded)
    offset = round((Fraction(2, 5) + start) * 8000)
    assert start <= 0 or start < Fraction(1, 4)
    assert np.array_equal(part, whole[offset : offset + part.size])
    assert 0.2 * 8000 < part.size <= 8000


def test_subtitles_are_copied(tmp_path: Path) -> None:
    text = tmp_path / "a.srt"
    text.write_text("1\n00:00:00,200 --> 00:00:00,700\nHello\n\n2\n00:00:01,000 --> 00:00:01,500\n<i>there</i>\n")
    coded = tmp_path / "coded.mkv"
    writer = write(coded, make_packets(50, rate=Fraction(25)), copy_from=str(text))
    assert writer.warnings == []
    with av.open(str(coded)) as container:
        found = [
            (packet.pts * packet.time_base, packet.duration * packet.time_base, bytes(packet))
            for packet in container.demux(subtitles=0)
            if packet.size
        ]
    assert found == [
        (Fraction(1, 5), Fraction(1, 2), b"Hello"),
        (Fraction(1), Fraction(1, 2), b"<i>there</i>"),
    ]


def test_mp4_subtitles_become_plain_text(tmp_path: Path) -> None:
    text, source, coded = tmp_path / "a.srt", tmp_path / "a.mp4", tmp_path / "coded.mkv"
    text.write_text("1\n00:00:00,200 --> 00:00:00,700\nHéllo\n\n")
    with av.open(str(text)) as given_text, av.open(str(source), "w") as out:
        copied: Any = out.add_mux_stream("mov_text")
        for packet in given_text.demux():
            if packet.size:
                said = bytes(packet)
                moved = av.Packet(len(said).to_bytes(2, "big") + said)
                moved.pts, moved.dts, moved.duration = packet.pts, packet.pts, packet.duration
                moved.time_base, moved.stream = packet.time_base, copied
                out.mux(moved)
    writer = write(coded, make_packets(50, rate=Fraction(25)), copy_from=str(source))
    assert len(writer.warnings) == 1
    with av.open(str(coded)) as container:
        assert "Héllo".encode() in [bytes(packet) for packet in container.demux(subtitles=0)]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_copying_from_a_damaged_file_keeps_the_pictures(tmp_path: Path, suffix: str) -> None:
    source, coded = tmp_path / "source.mp4", tmp_path / "coded.mkv"
    make_sound(source, "aac", 44100, 44100)
    write(coded, make_packets(25, rate=Fraction(25)), copy_from=str(source))
    whole = coded.read_bytes()
    picture = np.zeros((32, 32), np.uint8)
    generator = random.Random(3)
    for attempt in range(12):
        cut = bytearray(whole[: len(whole) * 2 // 3])
        for _ in range(40 * (attempt % 2)):
            cut[generator.randrange(300, len(cut))] ^= 0x55
        coded.write_bytes(cut)
        final = tmp_path / f"final{suffix}"
        with open_writer(
            str(final), VideoProperties(32, 32, Fraction(25)), overwrite=True, copy_from=str(coded)
        ) as video:
            for index in range(25):
                video.write(Frame(picture, picture[:16, :16], picture[:16, :16], Fraction(index, 25)))
        with open_reader(str(final)) as frames:
            assert len(list(frames)) == 25


def test_nothing_to_copy(tmp_path: Path) -> None:
    assert write(tmp_path / "a.mkv", make_packets(3), copy_from="-").warnings == []
    assert write(tmp_path / "a.mkv", make_packets(3), copy_from="clip.y4m").warnings == []
    with pytest.raises(RqlvcError):
        write(tmp_path / "a.mkv", make_packets(3), copy_from=str(tmp_path / "missing.mp4"))
