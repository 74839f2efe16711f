"""Decoded frames out: YUV4MPEG2, raw 4:2:0, or a file that PyAV writes."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import av
import av.container
import av.video.frame

from rqlvc.errors import RqlvcError
from rqlvc.media import y4m
from rqlvc.media.frame import Frame
from rqlvc.media.matroska import TICK, VIDEO_TRACK, Block, Muxer, Track, video_track
from rqlvc.media.output import STANDARD_OUTPUT, AtomicOutput, TemporaryName
from rqlvc.media.properties import Colour, VideoProperties
from rqlvc.media.reader import FULL_RANGE, LIMITED_RANGE, RAW_SUFFIXES, READ_ERRORS, open_container, plane_samples
from rqlvc.media.remux import TrackCopier

BASE_RATE = 90_000
"""Ticks per second that most containers can hold; with the frame rate's own, times are exact to a tick."""
MAX_BASE_RATE = 100_000_000
DEFAULT_LAYOUTS = {1: "mono", 2: "stereo"}


H264_SUFFIXES = (".mp4", ".mov")
H264_OPTIONS = {"crf": "12", "preset": "medium"}
"""Near transparency: what is to be judged is our codec, not this one."""

T = TypeVar("T")


class Writer(Protocol):
    """Takes frames in the order of time. A context manager: an exception inside it removes the unfinished file."""

    warnings: list[str]

    def write(self, frame: Frame) -> None: ...

    def close(self) -> None:
        """Completes the file and gives it its name."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_writer(path: str, properties: VideoProperties, *, overwrite: bool, copy_from: str | None = None) -> Writer:
    """A writer for ``path``, chosen by its suffix; ``-`` is YUV4MPEG2 on standard output.

    ``.y4m``, ``.yuv`` and ``.mkv`` (FFV1) lose nothing; ``.mp4`` and ``.mov`` are H.264 near transparency.
    ``copy_from`` names a Matroska file of ours whose audio, and subtitles where the format takes them, go along.
    Raises RqlvcError for a suffix that is not known, an existing file without ``overwrite``, and sizes that the format
    cannot hold.
    """
    suffix = os.path.splitext(path)[1].lower()
    if path == STANDARD_OUTPUT or suffix == ".y4m":
        return _PlanarWriter(AtomicOutput(path, overwrite=overwrite), properties, framed=True)
    if suffix in RAW_SUFFIXES:
        return _PlanarWriter(AtomicOutput(path, overwrite=overwrite), properties, framed=False)
    if suffix == ".mkv":
        return _MatroskaWriter(path, properties, copy_from, overwrite=overwrite)
    if suffix not in H264_SUFFIXES:
        known = ", ".join((".y4m", *RAW_SUFFIXES, ".mkv", *H264_SUFFIXES))
        raise RqlvcError(f"{path} has no suffix that says how to write it: use one of {known}, or - for a pipe.")
    if properties.width % 2 or properties.height % 2:
        raise RqlvcError(
            f"H.264 in {suffix} needs even sizes and this video is {properties.width}x{properties.height}: "
            "write .mkv or .y4m instead."
        )
    return _H264Writer(TemporaryName(path, overwrite=overwrite), properties, copy_from)


class _PlanarWriter:
    """Back-to-back planes, with YUV4MPEG2's header and FRAME lines when ``framed``."""

    def __init__(self, output: AtomicOutput, properties: VideoProperties, *, framed: bool) -> None:
        self.warnings: list[str] = []
        self._output = output
        self._properties = properties
        self._frame_head = y4m.FRAME_SIGNATURE + b"\n" if framed else b""
        self._start: Fraction | None = None
        self._count = 0
        if framed:
            output.write(y4m.header_bytes(properties))

    def write(self, frame: Frame) -> None:
        _check_frame(frame, self._properties)
        self._check_time(frame.time)
        planes = b"".join(plane.tobytes() for plane in (frame.y, frame.u, frame.v))
        self._output.write(self._frame_head + planes)
        self._count += 1

    def _check_time(self, time: Fraction) -> None:
        """Says once that this format has no time stamps, when they matter."""
        if self._start is None:
            self._start = time
        drift = abs(time - self._start - self._count / self._properties.frame_rate)
        if drift > 1 / (2 * self._properties.frame_rate) and not self.warnings:
            self.warnings.append(
                f"{self._output.name} has a constant frame rate: the time stamps, which vary from frame {self._count} "
                "on, are lost (.mkv keeps them)"
            )

    def close(self) -> None:
        self._output.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._output.abandon()


class _MatroskaWriter:
    """FFV1, which loses nothing, by PyAV's encoder and our own muxer, whose time stamps are ten times finer."""

    def __init__(self, path: str, properties: VideoProperties, copy_from: str | None, *, overwrite: bool) -> None:
        self.warnings: list[str] = []
        self._properties = properties
        self._last: Fraction | None = None
        self._output = AtomicOutput(path, overwrite=overwrite)
        self._copier: TrackCopier | None = None
        try:
            self._encoder = _ffv1_encoder(properties)
            copied: tuple[Track, ...] = ()
            if copy_from is not None:
                self._copier = _try_to_copy(
                    lambda: TrackCopier(copy_from, Fraction(0), Fraction(0), None), self.warnings
                )
            if self._copier is not None:
                self.warnings = self._copier.warnings
                copied = self._copier.tracks
            track = video_track("V_FFV1", self._encoder.extradata or b"", properties)
            self._muxer = Muxer(self._output, (track, *copied))
        except BaseException:
            self._abandon()
            raise

    def write(self, frame: Frame) -> None:
        _check_frame(frame, self._properties, self._last)
        self._last = frame.time
        picture = _picture(frame, self._properties)
        picture.time_base = TICK
        picture.pts = round(frame.time / TICK)
        self._copy(frame.time)
        self._mux(picture)

    def close(self) -> None:
        try:
            self._mux(None)
            self._copy(None)
            self._muxer.finish(Fraction(0) if self._last is None else self._last + 1 / self._properties.frame_rate)
        except BaseException:
            self._abandon()
            raise
        self._close_copier()
        self._output.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    def _mux(self, picture: av.video.frame.VideoFrame | None) -> None:
        try:
            packets = self._encoder.encode(picture)
        except READ_ERRORS as error:
            raise RqlvcError(f"{self._output.name} cannot be written: FFV1 refuses the picture ({error}).") from error
        for packet in packets:
            time = packet.pts * packet.time_base
            self._muxer.write(Block(VIDEO_TRACK, time, bytes(packet), bool(packet.is_keyframe)))

    def _copy(self, time: Fraction | None) -> None:
        if self._copier is not None:
            for block in self._copier.until(time):
                self._muxer.write(block)

    def _abandon(self) -> None:
        self._close_copier()
        self._output.abandon()

    def _close_copier(self) -> None:
        if self._copier is not None:
            self._copier.close()


class _H264Writer:
    """H.264 and copied streams, interleaved by time."""

    def __init__(self, name: TemporaryName, properties: VideoProperties, copy_from: str | None) -> None:
        self.warnings: list[str] = []
        self._name = name
        self._properties = properties
        self._closed = False
        self._last: Fraction | None = None
        self._copy: _StreamCopy | None = None
        try:
            self._container = av.open(f"file:{name.path}", "w")
        except READ_ERRORS as error:
            raise RqlvcError(f"{name.path} cannot be written: {error}.") from error
        try:
            self._stream = _add_h264(self._container, properties)
            if copy_from is not None:
                self._copy = _try_to_copy(lambda: _StreamCopy(copy_from, self._container, self.warnings), self.warnings)
            self._container.start_encoding()
        except READ_ERRORS as error:
            self._abandon()
            raise RqlvcError(f"{name.path} cannot be written: {error}.") from error
        except BaseException:
            self._abandon()
            raise

    def write(self, frame: Frame) -> None:
        _check_frame(frame, self._properties, self._last)
        self._last = frame.time
        picture = _picture(frame, self._properties)
        base = self._stream.codec_context.time_base
        picture.time_base = base
        picture.pts = round(frame.time / base)
        self._mux(frame.time, picture)

    def close(self) -> None:
        if self._closed:
            return
        try:
            self._mux(None, None)
            self._closed = True
            self._container.close()
            self._name.commit()
        except READ_ERRORS as error:
            self._abandon()
            raise RqlvcError(f"{self._name.path} cannot be completed: {error}.") from error
        except BaseException:
            self._abandon()
            raise
        finally:
            self._close_copy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif not self._closed:
            self._abandon()

    def _mux(self, time: Fraction | None, picture: av.video.frame.VideoFrame | None) -> None:
        """Encodes ``picture`` (None = what the encoder still holds) after what is to be copied up to ``time``."""
        if self._copy is not None:
            try:
                for packet in self._copy.until(time):
                    self._container.mux(packet)
            except READ_ERRORS as error:  # the source may be cut or damaged: its pictures are worth keeping
                self.warnings.append(f"audio and subtitles end early: {error}")
                self._close_copy()
        try:
            self._container.mux(self._stream.encode(picture))
        except READ_ERRORS as error:
            raise RqlvcError(f"{self._name.path} cannot be written: {error}.") from error

    def _abandon(self) -> None:
        self._closed = True
        self._close_copy()
        with contextlib.suppress(*READ_ERRORS):  # what was not written whole is removed now anyway
            self._container.close()
        self._name.abandon()

    def _close_copy(self) -> None:
        if self._copy is not None:
            self._copy.close()
            self._copy = None


class _StreamCopy:
    """Audio and subtitle packets of a file for the streams of another container that take them."""

    def __init__(self, path: str, target: av.container.OutputContainer, warnings: list[str]) -> None:
        self._source = open_container(path)
        self._streams: dict[int, Any] = {}
        taken = target.supported_codecs
        chosen = []
        for stream in self._source.streams:
            if stream.type not in ("audio", "subtitle"):
                continue
            context: Any = stream.codec_context
            codec = "" if context is None else context.codec.canonical_name
            # Matroska counts channels without naming them; MP4 wants names, for uncompressed sound always.
            layout = DEFAULT_LAYOUTS.get(context.channels) if codec and stream.type == "audio" else None
            if codec not in taken or (codec.startswith("pcm_") and layout is None):
                what = f"{stream.type} stream {stream.index}"
                warnings.append(f"{what} is left out: this file cannot hold {codec or 'its codec'}")
                continue
            copied: Any = target.add_stream_from_template(stream)
            if layout is not None:
                copied.codec_context.layout = layout
            self._streams[stream.index] = copied
            chosen.append(stream)
        self._packets = self._read(chosen)
        self._next = next(self._packets, None)

    def until(self, time: Fraction | None) -> Iterator[Any]:
        """Packets that begin at ``time`` (seconds) or before and were not given yet; all for None."""
        while self._next is not None and (time is None or self._next[0] <= time):
            _, packet = self._next
            self._next = next(self._packets, None)
            yield packet

    def close(self) -> None:
        self._source.close()

    def _read(self, chosen: list[Any]) -> Iterator[tuple[Fraction, Any]]:
        for packet in self._source.demux(chosen) if chosen else ():
            if packet.pts is not None and packet.size:
                time = packet.pts * packet.time_base
                packet.stream = self._streams[packet.stream_index]
                yield time, packet


def _try_to_copy(open_copy: Callable[[], T], warnings: list[str]) -> T | None:
    """None and a warning where the source has no sound that can be read: its pictures are worth keeping."""
    try:
        return open_copy()
    except (RqlvcError, *READ_ERRORS) as error:
        warnings.append(f"audio and subtitles are left out: {str(error).rstrip('.')}")
        return None


def _add_h264(container: av.container.OutputContainer, properties: VideoProperties) -> Any:
    stream: Any = container.add_stream("libx264", rate=_short(properties.frame_rate), options=H264_OPTIONS)
    stream.width, stream.height, stream.pix_fmt = properties.width, properties.height, "yuv420p"
    context = stream.codec_context
    base = Fraction(1, _base_rate(properties.frame_rate))
    context.time_base = stream.time_base = base
    context.sample_aspect_ratio = _short(properties.sample_aspect_ratio)
    _tag(context, properties.colour)
    if properties.rotation:
        stream.set_display_rotation(-properties.rotation)  # PyAV counts counter-clockwise
    return stream


def _ffv1_encoder(properties: VideoProperties) -> Any:
    encoder: Any = av.CodecContext.create("ffv1", "w")
    encoder.width, encoder.height, encoder.pix_fmt = properties.width, properties.height, "yuv420p"
    encoder.time_base, encoder.framerate = TICK, _short(properties.frame_rate)
    _tag(encoder, properties.colour)
    try:
        encoder.open()
    except READ_ERRORS as error:
        size = f"{properties.width}x{properties.height}"
        raise RqlvcError(f"FFV1 refuses a video of {size} ({error}): write .y4m instead.") from error
    return encoder


def _base_rate(frame_rate: Fraction) -> int:
    """Ticks per second in which both frame periods and common time stamps are whole."""
    rate = math.lcm(frame_rate.numerator, BASE_RATE)
    return rate if rate <= MAX_BASE_RATE else BASE_RATE


def _short(ratio: Fraction) -> Fraction:
    """FFmpeg's fractions have 32 bits."""
    return ratio.limit_denominator(1_000_000)


def _picture(frame: Frame, properties: VideoProperties) -> av.video.frame.VideoFrame:
    picture = av.video.frame.VideoFrame(frame.width, frame.height, "yuv420p")
    for index, samples in enumerate((frame.y, frame.u, frame.v)):
        plane_samples(picture, index)[:] = samples
    _tag(picture, properties.colour)
    return picture


def _tag(target: Any, colour: Colour) -> None:
    """Sets the colour tags of a codec context or a picture."""
    target.color_primaries, target.color_trc, target.colorspace = colour.primaries, colour.transfer, colour.matrix
    target.color_range = FULL_RANGE if colour.full_range else LIMITED_RANGE


def _check_frame(frame: Frame, properties: VideoProperties, last: Fraction | None = None) -> None:
    """Raises RqlvcError for a frame of another size than the video's, or not after the one at ``last``."""
    height, width = properties.height, properties.width
    chroma = ((height + 1) // 2, (width + 1) // 2)
    if frame.y.shape != (height, width) or frame.u.shape != chroma or frame.v.shape != chroma:
        raise RqlvcError(f"A frame of {frame.width}x{frame.height} does not fit a video of {width}x{height}.")
    if last is not None and frame.time <= last:
        raise RqlvcError(f"The frame at {float(frame.time):.6f} s does not come after the one before it.")
