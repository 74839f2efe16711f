"""What a coded video looks like in a file: Matroska with a video track ``V_RQLVC``, audio and subtitles beside it.

The track's CodecPrivate is ``RQLV``, a version byte, and JSON (UTF-8) with the fields of :class:`StreamHeader`.
"""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from types import TracebackType
from typing import Any, BinaryIO, Self

from rqlvc.errors import RqlvcError
from rqlvc.media.ebml import DamagedError
from rqlvc.media.frame import Frame
from rqlvc.media.matroska import TICK, VIDEO_TRACK, Block, Demuxer, Muxer, video_track
from rqlvc.media.output import AtomicOutput
from rqlvc.media.properties import MAX_DIMENSION, Colour, VideoProperties
from rqlvc.media.reader import STANDARD_INPUT
from rqlvc.media.remux import TrackCopier, first_frame_time

CODEC_ID = "V_RQLVC"
PRIVATE_SIGNATURE = b"RQLV"
PRIVATE_VERSION = 1
MAX_PRIVATE_BYTES = 1 << 16
MAX_RATIO_TERM = 1 << 31


@dataclass(frozen=True, slots=True)
class StreamHeader:
    """What a decoder must know before the first packet."""

    codec: str
    """Registered name of the codec."""
    identity: str
    """Digest (hex) of the model's weights."""
    properties: VideoProperties


@dataclass(frozen=True, slots=True)
class VideoPacket:
    """One coded frame. ``time`` in seconds."""

    payload: bytes
    time: Fraction
    keyframe: bool


class ContainerWriter:
    """Writes a stream to ``path``, or to standard output for ``-``. A context manager.

    Leaving it in good order completes the file and gives it its name; an exception removes it. Only Ctrl-C leaves what
    there is, complete and playable, under the temporary name (``clip.part.mkv``).
    With ``copy_from``, the audio and subtitles of that file between the two times of ``copy_range`` (seconds from its
    first video frame; None = to the end) go along; what cannot is named in ``warnings``.
    """

    def __init__(
        self,
        path: str,
        header: StreamHeader,
        *,
        overwrite: bool,
        copy_from: str | None = None,
        copy_range: tuple[Fraction, Fraction | None] = (Fraction(0), None),
    ) -> None:
        self.warnings: list[str] = []
        self.payload_bytes = 0
        """Bytes of video packets."""
        self.copied_bytes = 0
        """Bytes of audio and subtitle packets."""
        self.overhead_bytes = 0
        """Bytes of the file that are no packets; known after the end."""
        self._properties = header.properties
        self._last: Fraction | None = None
        self._last_tick = -1
        self._closed = False
        private = _checked_private(header)
        self._copier: TrackCopier | None = None
        if copy_from is not None:
            start, end = copy_range
            self._copier = TrackCopier(copy_from, first_frame_time(copy_from), Fraction(start), end)
            self.warnings = self._copier.warnings
        copied = self._copier.tracks if self._copier is not None else ()
        try:
            self._output = AtomicOutput(path, overwrite=overwrite)
        except RqlvcError:
            self._close_copier()
            raise
        try:
            self._muxer = Muxer(self._output, (video_track(CODEC_ID, private, header.properties), *copied))
        except BaseException:
            self.abandon()
            raise

    @property
    def temporary_path(self) -> str | None:
        """Where the file is until it is complete; None for a pipe."""
        return self._output.temporary_path

    def write(self, packet: VideoPacket) -> None:
        """Appends a frame and flushes it. Raises RqlvcError when its time does not grow."""
        if packet.time < 0 or (self._last is not None and packet.time <= self._last):
            raise RqlvcError(f"The frame at {float(packet.time):.6f} s does not come after the one before it.")
        self._copy(packet.time)
        tick = _next_tick(packet.time, self._last_tick)
        self._muxer.write(Block(VIDEO_TRACK, tick * TICK, packet.payload, packet.keyframe))
        self.payload_bytes += len(packet.payload)
        self._last, self._last_tick = packet.time, tick

    def close(self) -> None:
        """Completes the file and gives it its name."""
        if not self._closed:
            try:
                self._finish()
            except BaseException:
                self.abandon()
                raise
            self._closed = True
            self._close_copier()
            self._output.commit()

    def abandon(self) -> None:
        """Removes what was written."""
        if not self._closed:
            self._closed = True
            self._close_copier()
            self._output.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._last is not None and issubclass(kind, KeyboardInterrupt) and not self._closed:
            self._closed = True
            with contextlib.suppress(RqlvcError):
                self._finish(copy_rest=False)
            self._close_copier()
            self._output.abandon(keep=True)
        else:
            self.abandon()

    def _finish(self, *, copy_rest: bool = True) -> None:
        if copy_rest:
            self._copy(None)
        end = Fraction(0) if self._last is None else self._last + 1 / self._properties.frame_rate
        self._muxer.finish(end)
        self.overhead_bytes = self._output.bytes_written - self.payload_bytes - self.copied_bytes

    def _copy(self, time: Fraction | None) -> None:
        if self._copier is not None:
            for block in self._copier.until(time):
                self._muxer.write(block)
                self.copied_bytes += len(block.data)

    def _close_copier(self) -> None:
        if self._copier is not None:
            self._copier.close()


class ContainerReader:
    """Reads the stream header of ``path`` (``-`` = standard input), then its packets by iteration. A context manager.

    ``duration`` (seconds) and ``frame_count`` are None where the file does not tell, as after an interrupted encode.
    Raises RqlvcError when there is no stream header. Damage after it never raises: iteration ends, and ``truncated``
    says why and at which byte.
    """

    def __init__(self, path: str) -> None:
        self._name = "standard input" if path == STANDARD_INPUT else path
        self._stream, self._owned = _open_input(path)
        self.truncated: str | None = None
        try:
            self._demuxer = Demuxer(self._stream)
            self._track = next((track for track in self._demuxer.tracks if track.codec_id == CODEC_ID), None)
            if self._track is None:
                others = ", ".join(ascii(track.codec_id)[1:-1] for track in self._demuxer.tracks[:8]) or "none"
                raise DamagedError(f"it has no {CODEC_ID} track (its tracks: {others})")
            self.header = private_to_header(self._track.codec_private)
        except (DamagedError, OSError) as error:
            self.close()
            raise RqlvcError(f"{self._name} is not an RQ-LVC file: {error}.") from error
        except BaseException:
            self.close()
            raise
        self.duration = self._demuxer.duration
        self.frame_count = dict(self._demuxer.index.frames).get(self._track.uid)
        self._expected = self.frame_count
        self._packets = self._read()

    def __iter__(self) -> Iterator[VideoPacket]:
        return self

    def __next__(self) -> VideoPacket:
        return next(self._packets)

    def seek(self, time: Fraction) -> None:
        """Iteration goes on at the last keyframe at or before ``time`` (seconds), else at the first frame.

        Uses the index, or reads through the file where there is none. In a pipe only forward from where it is.
        """
        self._expected = None
        if self._demuxer.seekable:
            self.truncated = None
            ticks = time / self._demuxer.tick
            cue = max((cue for cue in self._demuxer.index.cues if cue[0] <= ticks), default=None)
            if cue is not None and self._demuxer.go_to_cluster(cue[1]):
                group, rest = self._scan(self._read(), time)
                if group and group[0].keyframe and group[0].time <= time:
                    self._packets = _chain(group, rest)
                    return
            self.truncated = None
            self._demuxer.rewind()
            self._packets = self._read()
        group, rest = self._scan(self._packets, time)
        self._packets = _chain(group, rest)

    def close(self) -> None:
        if self._owned:
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _scan(packets: Iterator[VideoPacket], time: Fraction) -> tuple[list[VideoPacket], Iterator[VideoPacket]]:
        """(packets from the last keyframe at or before ``time``, what follows): holds one group of pictures."""
        group: list[VideoPacket] = []
        for packet in packets:
            if packet.time > time:
                group.append(packet)
                break
            if packet.keyframe:
                group.clear()
            group.append(packet)
        return group, packets

    def _read(self) -> Iterator[VideoPacket]:
        assert self._track is not None
        last: Fraction | None = None
        count = 0
        try:
            for block in self._demuxer.blocks():
                if block.track != self._track.number:
                    continue
                time = exact_time(block.time, self._demuxer.tick, self.header.properties.frame_rate)
                if last is not None and time <= last:
                    raise DamagedError("time stamps run backwards")
                yield VideoPacket(block.data, time, block.keyframe)
                last = time
                count += 1
            if self._expected is not None and count != self._expected:
                self.truncated = f"{self._name} is damaged: {count} of its {self._expected} frames were found"
        except (DamagedError, OSError) as error:
            self.truncated = f"{self._name} is cut or damaged at byte {self._demuxer.position}: {error}"


def _next_tick(time: Fraction, last: int) -> int:
    """Two frames less than a tick apart must not fall on the same one."""
    return max(round(time / TICK), last + 1)


def carried_times(frames: Iterable[Frame], rate: Fraction) -> Iterator[Frame]:
    """``frames`` at the times (from 0 on) that a reader will see when they are written to a file of this frame rate."""
    first: Fraction | None = None
    tick = -1
    for frame in frames:
        first = frame.time if first is None else first
        tick = _next_tick(frame.time - first, tick)
        yield replace(frame, time=exact_time(tick * TICK, TICK, rate))


def exact_time(time: Fraction, tick: Fraction, rate: Fraction) -> Fraction:
    """The multiple of the frame period behind a time that the file could only hold rounded, where there is one."""
    exact = round(time * rate) / rate
    return exact if round(exact / tick) == round(time / tick) else time


def _chain(first: list[VideoPacket], rest: Iterator[VideoPacket]) -> Iterator[VideoPacket]:
    yield from first
    yield from rest


def _open_input(path: str) -> tuple[BinaryIO, bool]:
    """(stream, whether it is ours to close)."""
    if path == STANDARD_INPUT:
        return sys.stdin.buffer, False
    try:
        return open(path, "rb"), True
    except FileNotFoundError:
        raise RqlvcError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise RqlvcError(f"{path} is a folder: name a file.") from None
    except OSError as error:
        raise RqlvcError(f"{path} cannot be read: {error.strerror or error}.") from error


def header_to_private(header: StreamHeader) -> bytes:
    """CodecPrivate of a stream."""
    properties = header.properties
    colour = properties.colour
    fields = {
        "codec": header.codec,
        "identity": header.identity,
        "width": properties.width,
        "height": properties.height,
        "frame_rate": list(properties.frame_rate.as_integer_ratio()),
        "colour": [colour.primaries, colour.transfer, colour.matrix],
        "full_range": colour.full_range,
        "rotation": properties.rotation,
        "sample_aspect_ratio": list(properties.sample_aspect_ratio.as_integer_ratio()),
    }
    text = json.dumps(fields, separators=(",", ":"))
    return PRIVATE_SIGNATURE + bytes([PRIVATE_VERSION]) + text.encode("utf-8")


def _checked_private(header: StreamHeader) -> bytes:
    private = header_to_private(header)
    try:
        if private_to_header(private) == header:
            return private
    except DamagedError:
        pass
    raise RqlvcError(f"The properties of this video are beyond what a file can say: {header.properties}.")


def private_to_header(private: bytes) -> StreamHeader:
    """The inverse of :func:`header_to_private`. Raises DamagedError for anything that is not its result."""
    if not private.startswith(PRIVATE_SIGNATURE) or len(private) > MAX_PRIVATE_BYTES:
        raise DamagedError("its stream header makes no sense")
    version = private[len(PRIVATE_SIGNATURE)] if len(private) > len(PRIVATE_SIGNATURE) else 0
    if version != PRIVATE_VERSION:
        raise DamagedError(f"its stream header has version {version}, but this rqlvc reads version {PRIVATE_VERSION}")
    try:
        fields = json.loads(private[len(PRIVATE_SIGNATURE) + 1 :])
        primaries, transfer, matrix = (_whole(code, 0, 255) for code in fields["colour"])
        return StreamHeader(
            codec=_name(fields["codec"]),
            identity=_name(fields["identity"]),
            properties=VideoProperties(
                width=_whole(fields["width"], 1, MAX_DIMENSION),
                height=_whole(fields["height"], 1, MAX_DIMENSION),
                frame_rate=_ratio(fields["frame_rate"]),
                colour=Colour(primaries, transfer, matrix, bool(fields["full_range"])),
                rotation=90 * _whole(fields["rotation"] // 90, 0, 3),
                sample_aspect_ratio=_ratio(fields["sample_aspect_ratio"]),
            ),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError("its stream header is damaged") from error


def _whole(value: Any, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(value)
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(value)
    return value


def _ratio(value: Any) -> Fraction:
    numerator, denominator = (_whole(term, 1, MAX_RATIO_TERM) for term in value)
    return Fraction(numerator, denominator)
