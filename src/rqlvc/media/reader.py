"""Frames from any video: a file that PyAV opens, YUV4MPEG2 or raw 4:2:0, from a file or standard input.

Everything streams: at no time are more than a few pictures in memory. Colour ranges, rotation and sample aspect ratio
are carried and never applied.
"""

import contextlib
import hashlib
import io
import itertools
import os
import stat
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import av
import av.container
import av.video.frame
import av.video.stream
import numpy as np
from av.packet import Packet
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from rqlvc.errors import RqlvcError
from rqlvc.media import y4m
from rqlvc.media.frame import Frame, Plane
from rqlvc.media.properties import MAX_DIMENSION, UNSPECIFIED, Colour, VideoProperties

STANDARD_INPUT = "-"
RAW_SUFFIXES = (".yuv", ".i420")
VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".y4m", ".webm", ".avi"}
"""What is taken for a video in a folder."""
RAW_FRAME_RATE = Fraction(25)
"""What raw files without a stated frame rate are taken for; FFmpeg's default too."""
CHUNK = 1 << 20
LIMITED_RANGE, FULL_RANGE = 1, 2
"""AVCOL_RANGE_MPEG and AVCOL_RANGE_JPEG."""
READ_ERRORS = (av.error.FFmpegError, OSError, ValueError, EOFError)


class Reader:
    """A stream of :class:`Frame`: iterate once; a context manager.

    ``frame_count`` is the number of frames that iteration will yield as far as the file tells, None where it does not.
    ``warnings`` grows while frames are read. Made by :func:`open_reader`.
    """

    def __init__(
        self,
        properties: VideoProperties,
        frame_count: int | None,
        warnings: list[str],
        frames: Iterator[Frame],
        close: Callable[[], None],
    ) -> None:
        self.properties = properties
        self.frame_count = frame_count
        self.warnings = warnings
        self._frames = frames
        self._close = close

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        return next(self._frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._frames = iter(())
        self._close()


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises :class:`RqlvcError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RqlvcError(f"{path} cannot be read: {error.strerror or error}.") from error


def open_reader(
    path: str,
    *,
    start: int = 0,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    frame_rate: Fraction | None = None,
) -> Reader:
    """Opens ``path`` and reads its first frame.

    ``path`` is a file, or ``-`` for standard input, which carries YUV4MPEG2 (known by its signature) or raw 8-bit
    planar 4:2:0. ``start`` frames are left out and at most ``frames`` are given; times still count from the first
    frame of the file. ``size`` (width, height) and ``frame_rate`` (Hz) belong to raw video alone.
    Raises RqlvcError when there is no video to be had.
    """
    if start < 0 or (frames is not None and frames < 1):
        raise RqlvcError("The first frame must be 0 or later, and the number of frames 1 or more.")
    if frame_rate is not None and frame_rate <= 0:
        raise RqlvcError("The frame rate must be above 0.")
    if size is not None and not all(1 <= side <= MAX_DIMENSION for side in size):
        raise RqlvcError(f"A picture size of {size[0]}x{size[1]} is not between 1 and {MAX_DIMENSION}.")
    if path == STANDARD_INPUT:
        return _open_pipe(sys.stdin.buffer, start, frames, size, frame_rate)
    if not os.path.exists(path):
        raise RqlvcError(f"{path} does not exist.")
    if os.path.isdir(path):
        raise RqlvcError(f"{path} is a folder: name a video file.")
    if stat.S_ISREG(os.stat(path).st_mode) and os.path.getsize(path) == 0:
        raise RqlvcError(f"{path} is empty.")
    if path.lower().endswith(RAW_SUFFIXES):
        if size is None:
            raise RqlvcError(f"{path} is raw video, which does not tell its picture size: give it (WIDTHxHEIGHT).")
        return _open_raw(_open_binary(path), path, start, frames, size, frame_rate)
    if size is not None or frame_rate is not None:
        raise RqlvcError(f"{path} states its own picture size and frame rate: only raw video can be given them.")
    if path.lower().endswith(".y4m"):
        stream = _open_binary(path)
        try:
            header = y4m.read_header(stream, path)
        except RqlvcError:
            stream.close()
            raise
        if header.plain:
            return _open_y4m(stream, path, header, start, frames)
        stream.close()
    return _open_av(path, start, frames)


def _assemble(
    path: str,
    properties: VideoProperties,
    total: int | None,
    start: int,
    frames: int | None,
    warnings: list[str],
    source: Iterator[Frame],
    close: Callable[[], None],
) -> Reader:
    """Limits ``source``, which begins at frame ``start``, and makes sure that it has a frame to give."""
    limited = itertools.islice(source, frames)
    try:
        first = next(limited, None)
    except BaseException:
        close()
        raise
    if first is None:
        close()
        reason = f" ({warnings[-1]})" if warnings else ""
        where = f"has no frame number {start}: it is shorter" if start else "has no whole frame"
        raise RqlvcError(f"{path} {where}{reason}.")
    left = None if total is None else max(total - start, 1)
    count = min((known for known in (left, frames) if known is not None), default=None)
    return Reader(properties, count, warnings, itertools.chain([first], limited), close)


# Raw planes and YUV4MPEG2


def _open_binary(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise RqlvcError(f"{path} cannot be read: {error.strerror or error}.") from error


def _open_pipe(
    pipe: BinaryIO, start: int, frames: int | None, size: tuple[int, int] | None, frame_rate: Fraction | None
) -> Reader:
    name = "standard input"
    head = _read_up_to(pipe, len(y4m.SIGNATURE))
    if not head:
        raise RqlvcError("Standard input is empty.")
    stream: BinaryIO = io.BufferedReader(_Prefixed(bytes(head), pipe))
    if head == y4m.SIGNATURE:
        if size is not None or frame_rate is not None:
            raise RqlvcError("Standard input is YUV4MPEG2, which states its own picture size and frame rate.")
        header = y4m.read_header(stream, name)
        if not header.plain:
            raise RqlvcError(
                f"Standard input is YUV4MPEG2 with C{header.colour_space}; from a pipe only 8-bit 4:2:0 is read. "
                "Convert it first (ffmpeg: -pix_fmt yuv420p) or give a file."
            )
        return _open_y4m(stream, name, header, start, frames)
    if size is None or frame_rate is None:
        raise RqlvcError(
            "Standard input is not YUV4MPEG2: for raw 4:2:0 give the picture size and the frame rate; "
            "any other format must come from a file."
        )
    return _open_raw(stream, name, start, frames, size, frame_rate)


def _open_raw(
    stream: BinaryIO, path: str, start: int, frames: int | None, size: tuple[int, int], frame_rate: Fraction | None
) -> Reader:
    properties = VideoProperties(size[0], size[1], frame_rate or RAW_FRAME_RATE)
    warnings = []
    if frame_rate is None:
        warnings.append(f"{path} is raw video without a frame rate: {RAW_FRAME_RATE} frames per second are assumed")
    total = _whole_frames(stream, _picture_bytes(properties))
    source = _planar_frames(stream, properties, start, warnings, framed=False)
    return _assemble(path, properties, total, start, frames, warnings, source, stream.close)


def _open_y4m(stream: BinaryIO, path: str, header: y4m.Y4mHeader, start: int, frames: int | None) -> Reader:
    properties = header.properties
    warnings = []
    if header.interlaced:
        warnings.append(_interlaced_warning())
    total = _whole_frames(stream, _picture_bytes(properties) + len(y4m.FRAME_SIGNATURE) + 1)
    source = _planar_frames(stream, properties, start, warnings, framed=True)
    return _assemble(path, properties, total, start, frames, warnings, source, stream.close)


def _planar_frames(
    stream: BinaryIO, properties: VideoProperties, start: int, warnings: list[str], *, framed: bool
) -> Iterator[Frame]:
    """Frames from ``start`` on of back-to-back planes, each behind a FRAME line when ``framed``."""
    picture_bytes = _picture_bytes(properties)
    for index in itertools.count():
        if framed:
            line = y4m.read_line(stream)
            if line == b"":
                return
            if line is None or not line.startswith(y4m.FRAME_SIGNATURE):
                warnings.append(f"the stream is damaged at frame {index}, where it ends")
                return
        data = _read_up_to(stream, picture_bytes)
        if not data and not framed:
            return
        if len(data) < picture_bytes:
            warnings.append(f"the stream is cut in the middle of frame {index}, before which it ends")
            return
        if index >= start:
            yield _split_planes(data, properties, Fraction(index) / properties.frame_rate)


def _split_planes(data: bytearray, properties: VideoProperties, time: Fraction) -> Frame:
    width, height = properties.width, properties.height
    chroma_width, chroma_height = (width + 1) // 2, (height + 1) // 2
    samples = np.frombuffer(data, np.uint8)
    luma, chroma = width * height, chroma_width * chroma_height
    return Frame(
        samples[:luma].reshape(height, width),
        samples[luma : luma + chroma].reshape(chroma_height, chroma_width),
        samples[luma + chroma :].reshape(chroma_height, chroma_width),
        time,
    )


def _picture_bytes(properties: VideoProperties) -> int:
    width, height = properties.width, properties.height
    return width * height + 2 * ((width + 1) // 2) * ((height + 1) // 2)


def _whole_frames(stream: BinaryIO, frame_bytes: int) -> int | None:
    """Frames from here to the end of a regular file; None for a pipe."""
    try:
        status = os.fstat(stream.fileno())
        return (status.st_size - stream.tell()) // frame_bytes if stat.S_ISREG(status.st_mode) else None
    except OSError:  # io.UnsupportedOperation is one: no descriptor behind the stream
        return None


def _read_up_to(stream: BinaryIO, count: int) -> bytearray:
    """``count`` bytes, fewer only at the end of the stream; memory follows what arrives, not what is asked for.

    Writable, because pictures are views of it and PyTorch warns of pictures that are not.
    """
    data = bytearray()
    while len(data) < count:
        piece = stream.read(min(CHUNK, count - len(data)))
        if not piece:
            break
        data += piece
    return data


class _Prefixed(io.RawIOBase):
    """A stream put back together from its first bytes and the rest. Closing it leaves the rest open."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)]
        if data:
            self._head = self._head[len(data) :]
        else:
            # read1 gives what has arrived: a live source must not wait for a full buffer.
            data = (
                self._rest.read1(len(buffer))
                if isinstance(self._rest, io.BufferedReader)
                else self._rest.read(len(buffer))
            )
        buffer[: len(data)] = data
        return len(data)


# Files through PyAV


def open_container(path: str) -> av.container.InputContainer:
    """A file as PyAV sees it. Raises RqlvcError where it sees nothing."""
    if not os.path.isfile(path):
        raise RqlvcError(f"{path} does not exist or is no file.")
    try:
        # The protocol keeps FFmpeg from taking a name such as "a:b.mp4" for another protocol.
        container = av.open(f"file:{path}", "r", metadata_errors="replace")
    except READ_ERRORS as error:
        raise RqlvcError(f"{path} is no video that can be opened: {_reason(error)}.") from error
    if container.format.name == "tty":  # FFmpeg's screen of a text terminal: any .txt
        container.close()
        raise RqlvcError(f"{path} is text and no video.")
    return container


def video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream | None:
    """The first video stream that is no cover picture."""
    moving = (stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic)
    return next(moving, None)


def _open_av(path: str, start: int, frames: int | None) -> Reader:
    container = open_container(path)
    try:
        warnings: list[str] = []
        stream = video_stream(container)
        if stream is None:
            raise RqlvcError(f"{path} has no video stream.")
        if stream.codec_context is None:
            raise RqlvcError(f"{path}: there is no decoder for its video; if rqlvc wrote it, decode it with rqlvc.")
        # Not by frames: a decoder that works on several at once loses the error of a file's cut end.
        stream.thread_type = "SLICE"
        decoded = _decode(container, stream, path, warnings)
        first = next(decoded, None)
        if first is None:
            raise RqlvcError(f"{path} has no frame that can be decoded{''.join(f' ({text})' for text in warnings)}.")
        properties = _av_properties(stream, first[1])
    except BaseException:
        container.close()
        raise
    source = _av_frames(itertools.chain([first], decoded), properties, start, warnings)
    total = _av_frame_count(path, container, stream, properties.frame_rate)
    return _assemble(path, properties, total, start, frames, warnings, source, container.close)


def _decode(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, path: str, warnings: list[str]
) -> Iterator[tuple[int, av.video.frame.VideoFrame]]:
    """(index, picture) in presentation order; an error of the demuxer or decoder ends it with a warning."""
    index = 0
    try:
        for packet in container.demux(stream):
            for frame in packet.decode():
                yield index, frame
                index += 1
    except READ_ERRORS as error:
        with contextlib.suppress(*READ_ERRORS):  # pictures that were decoded before and are still held back
            for frame in stream.decode(None):
                frame.time_base = frame.time_base or stream.time_base
                yield index, frame
                index += 1
        warnings.append(f"{path} cannot be decoded past frame {index}, where it ends: {_reason(error)}")


def _av_frames(
    decoded: Iterator[tuple[int, av.video.frame.VideoFrame]],
    properties: VideoProperties,
    start: int,
    warnings: list[str],
) -> Iterator[Frame]:
    converter = _Converter(properties, warnings)
    origin: Fraction | None = None
    previous: Fraction | None = None
    timed = damaged = interlaced = False
    for index, picture in decoded:
        stamp = time_stamp(picture)
        if origin is None:
            origin = stamp or Fraction(0)
        time = None if stamp is None else stamp - origin
        if previous is None:
            time = Fraction(0)
        elif time is None or time <= previous:
            time = previous + 1 / properties.frame_rate
            if not timed:
                timed = True
                warnings.append(f"time stamps are missing or do not grow at frame {index}: the frame rate fills in")
        previous = time
        if picture.is_corrupt and not damaged:
            damaged = True
            warnings.append(f"the video is damaged at frame {index}: the decoder made up what it could not read")
        if picture.interlaced_frame and not interlaced:
            interlaced = True
            warnings.append(_interlaced_warning())
        if index >= start:
            yield converter.convert(index, picture, time)


class _Converter:
    """Pictures of any format to 8-bit 4:2:0 of one size. States each kind of conversion that loses something once."""

    def __init__(self, properties: VideoProperties, warnings: list[str]) -> None:
        self._size = (properties.width, properties.height)
        self._full_range = properties.colour.full_range
        self._warnings = warnings
        self._reformatter = VideoReformatter()
        self._stated: set[str] = set()

    def convert(self, index: int, picture: av.video.frame.VideoFrame, time: Fraction) -> Frame:
        layout = picture.format
        if (picture.width, picture.height) != self._size:
            self._state(
                "size",
                f"the picture size changes to {picture.width}x{picture.height} at frame {index}: "
                f"frames are scaled to {self._size[0]}x{self._size[1]}",
            )
        elif layout.name in ("yuv420p", "yuvj420p"):
            return _frame(picture, time)
        if not _is_plain_420(layout):
            self._state("format", f"{layout.name} pictures are converted to 8-bit 4:2:0")
        # Ranges that are equal on both sides keep swscale from stretching levels; RGB has no levels to keep.
        levels: dict[str, Any] = (
            {"dst_colorspace": "ITU709", "dst_color_range": "MPEG"}
            if _is_rgb(layout)
            else {"src_color_range": FULL_RANGE, "dst_color_range": FULL_RANGE}
        )
        try:
            converted = self._reformatter.reformat(
                picture, self._size[0], self._size[1], "yuv420p", interpolation="BICUBIC", **levels
            )
        except READ_ERRORS as error:
            raise RqlvcError(
                f"Frame {index} ({layout.name}) cannot be converted to 4:2:0: {_reason(error)}."
            ) from error
        return _frame(converted, time)

    def _state(self, kind: str, text: str) -> None:
        if kind not in self._stated:
            self._stated.add(kind)
            self._warnings.append(text)


def plane_samples(picture: av.video.frame.VideoFrame, index: int) -> Plane:
    """A view of one plane of an 8-bit planar picture, without the padding at the ends of its rows."""
    plane: Any = picture.planes[index]
    rows: Plane = np.frombuffer(plane, np.uint8, count=plane.line_size * plane.height)
    return rows.reshape(plane.height, plane.line_size)[:, : plane.width]


def _frame(picture: av.video.frame.VideoFrame, time: Fraction) -> Frame:
    y, u, v = (plane_samples(picture, index).copy() for index in range(3))
    return Frame(y, u, v, time)


def _is_rgb(layout: Any) -> bool:
    return bool(layout.is_rgb or layout.has_palette)


def _is_plain_420(layout: Any) -> bool:
    """8 bits, no alpha, chroma halved both ways: nothing is lost on the way to yuv420p."""
    components = layout.components
    halved = layout.chroma_width(16) == 8 and layout.chroma_height(16) == 8
    return len(components) == 3 and not _is_rgb(layout) and halved and all(part.bits == 8 for part in components)


def _av_properties(stream: av.video.stream.VideoStream, first: av.video.frame.VideoFrame) -> VideoProperties:
    width, height = first.width, first.height
    if not (1 <= width <= MAX_DIMENSION and 1 <= height <= MAX_DIMENSION):
        raise RqlvcError(f"Pictures of {width}x{height} are larger than {MAX_DIMENSION} on a side.")
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    aspect = stream.sample_aspect_ratio
    return VideoProperties(
        width=width,
        height=height,
        frame_rate=Fraction(rate) if rate and rate > 0 else RAW_FRAME_RATE,
        colour=_av_colour(stream, first),
        # FFmpeg counts counter-clockwise; a display matrix can hold any angle, pictures turn by quarters.
        rotation=-90 * round(first.rotation / 90) % 360,
        sample_aspect_ratio=Fraction(aspect) if aspect and aspect > 0 else Fraction(1),
    )


def _av_colour(stream: av.video.stream.VideoStream, first: av.video.frame.VideoFrame) -> Colour:
    def known(of_frame: int, of_stream: int) -> int:
        # 0 is reserved for primaries and transfer; as a matrix it says RGB, which we convert.
        return next((int(code) for code in (of_frame, of_stream) if code not in (0, UNSPECIFIED)), UNSPECIFIED)

    rgb = _is_rgb(first.format)
    full = FULL_RANGE in (first.color_range, stream.color_range) or first.format.name.startswith("yuvj")
    return Colour(
        primaries=known(first.color_primaries, stream.color_primaries),
        transfer=known(first.color_trc, stream.color_trc),
        matrix=1 if rgb else known(first.colorspace, stream.colorspace),  # 1 = BT.709, what RGB is converted with
        full_range=full and not rgb,
    )


COUNTED_BYTES = 256 * 2**20
"""Files of this size are walked through for the number of their frames where the header only tells how long they are:
it takes less than a second, and a header can be wrong by a fifth."""


def _av_frame_count(
    path: str, container: av.container.InputContainer, stream: av.video.stream.VideoStream, rate: Fraction
) -> int | None:
    if stream.frames > 0:
        return int(stream.frames)
    if os.path.isfile(path) and os.path.getsize(path) <= COUNTED_BYTES:
        count = _packet_count(path, stream.index)
        if count:
            return count
    if stream.duration and stream.time_base:
        return max(1, round(stream.duration * stream.time_base * rate))
    if container.duration and container.duration > 0:
        return max(1, round(Fraction(container.duration, av.time_base) * rate))
    return None


def _packet_count(path: str, stream: int) -> int:
    """Packets of a stream, up to the first that cannot be read."""
    count = 0
    with open_container(path) as container:
        try:
            for packet in container.demux(container.streams[stream]):
                count += packet.size > 0
        except READ_ERRORS:
            return count
    return count


def time_stamp(picture: "av.video.frame.VideoFrame | Packet[Any]") -> Fraction | None:
    """Presentation time (seconds) in the file's own count; None where it has none."""
    return None if picture.pts is None or picture.time_base is None else picture.pts * picture.time_base


def _interlaced_warning() -> str:
    return "the video is interlaced: its frames are taken whole, not deinterlaced"


def _reason(error: BaseException) -> str:
    """What went wrong in a few words, without FFmpeg's error number and our own path prefix."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).strip().rstrip(".")
