"""The decoding session: container -> codec -> writer.

:class:`Decoder` is the session for anyone who has packets; :func:`decode_file` puts a Matroska file before it and an
output file behind it.
"""

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice
from typing import Literal

from rqlvc.codec.protocol import Codec, State
from rqlvc.codec.registry import load_codec
from rqlvc.errors import RqlvcError
from rqlvc.groups import grouped, groups_at_once, pictures_that_fit, side_by_side
from rqlvc.media.container import ContainerReader, StreamHeader, VideoPacket
from rqlvc.media.frame import Frame
from rqlvc.media.writer import open_writer


@dataclass(frozen=True, slots=True)
class DecodedFrameStats:
    """One frame on its way out. ``time`` is its presentation time in the output, in seconds."""

    index: int
    time: float
    type: Literal["I", "P"]
    bits: int
    seconds: float
    """Wall-clock time of the codec."""
    frames_left: int | None
    """Frames still to come, itself included, as far as the file tells; None where it does not."""


@dataclass(frozen=True, slots=True)
class DecodeSummary:
    """A whole decode. ``damage`` says what ended it early, where something did; the output holds the frames before."""

    frames: int
    width: int
    height: int
    fps: float
    bits: int
    decode_fps: float
    """Frames per second of wall clock, reading and writing included, loading the model not."""
    codec: str
    model: str
    damage: str | None


class Decoder:
    """Decodes packets one after the other, beginning with a keyframe."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.state: State | None = None
        self._shown: Frame | None = None

    def decode(self, packet: VideoPacket) -> Frame:
        """The frame in ``packet``, at the packet's time; an empty packet, a skipped frame, repeats the one before.

        Raises :class:`RqlvcError` for a damaged packet.
        """
        if self.state is None and not packet.keyframe:
            raise RqlvcError(f"the packet at {float(packet.time):.3f} s needs frames before it that are not there.")
        if not packet.payload and not packet.keyframe and self._shown is not None:
            return replace(self._shown, time=packet.time)
        try:
            decoded = self.codec.decode(packet.payload, None if packet.keyframe else self.state)
        except RqlvcError as error:
            raise RqlvcError(f"the packet at {float(packet.time):.3f} s does not decode: {error}") from error
        self.state, self._shown = decoded.state, decoded.frame
        return replace(decoded.frame, time=packet.time)


def check_model(header: StreamHeader, codec: Codec) -> None:
    """Raises :class:`RqlvcError` when ``codec`` is not the one that made the stream."""
    if (header.codec, header.identity) != (codec.name, codec.identity):
        raise RqlvcError(
            f"this stream needs model {header.identity} of codec '{header.codec}', and the one here is model "
            f"{codec.identity} of codec '{codec.name}'. Install the release that carries that model."
        )


def decode_file(
    source: str,
    output: str,
    *,
    codec: Codec | None = None,
    device: str = "auto",
    threads: int | None = None,
    frames: int | None = None,
    start_time: Fraction = Fraction(0),
    overwrite: bool = False,
    on_frame: Callable[[DecodedFrameStats], None] = lambda stats: None,
    on_warning: Callable[[str], None] = lambda message: None,
) -> DecodeSummary:
    """Decode the Matroska file ``source`` (``-``: a pipe) into ``output``, with the codec that the file names.

    The output begins with the first frame at or after ``start_time`` (seconds; found through the keyframe before it)
    and has at most ``frames`` frames. Audio and subtitles are copied when the whole file is decoded to a file that can
    hold them.

    A stream that is cut or damaged decodes up to there: the output is kept and ``DecodeSummary.damage`` says why.
    Raises :class:`RqlvcError` when there is no frame to show, when the model is not the stream's, and for unusable
    files.
    """
    with ContainerReader(source) as container:
        header = container.header
        codec = codec or load_codec(header.codec, device=device, threads=threads)
        check_model(header, codec)
        started = time.perf_counter()
        if start_time > 0:
            container.seek(start_time)
        packets = islice(container, frames if start_time == 0 else None)

        def decode(group: Iterable[VideoPacket]) -> Generator[_Decoded]:
            return _decoded(group, Decoder(codec), start_time)

        at_once = groups_at_once(codec)
        if at_once > 1 and source != "-":
            groups = grouped(packets, lambda packet: packet.keyframe)
            properties = header.properties
            waiting = max(1, pictures_that_fit(properties.width, properties.height) // at_once)
            pictures = side_by_side(groups, decode, codec, at_once=at_once, waiting=waiting)
        else:  # what comes in a pipe is decoded as it comes
            pictures = decode(packets)
        first = next(pictures, None)  # a stream that fails here has nothing to keep, and leaves no output
        if first is None:
            raise RqlvcError(container.truncated or f"{source} has no frame at or after {float(start_time):g} s.")
        offset = first.frame.time if start_time > 0 else Fraction(0)
        whole = start_time == 0 and frames is None and source != "-"
        left = container.frame_count if start_time == 0 else None
        total = min((known for known in (left, frames) if known is not None), default=None)

        count = bits = 0
        damage: str | None = None
        upcoming = islice(chain([first], pictures), frames)
        with (
            closing(pictures),
            open_writer(output, header.properties, overwrite=overwrite, copy_from=source if whole else None) as writer,
        ):
            while True:
                try:
                    picture = next(upcoming, None)
                except RqlvcError as error:
                    damage = str(error)
                    break
                if picture is None:
                    break
                frame = replace(picture.frame, time=picture.frame.time - offset)
                writer.write(frame)
                on_frame(
                    DecodedFrameStats(
                        index=count,
                        time=float(frame.time),
                        type=picture.type,
                        bits=picture.bits,
                        seconds=picture.seconds,
                        frames_left=None if total is None else max(total - count, 1),
                    )
                )
                count, bits = count + 1, bits + picture.bits
        elapsed = time.perf_counter() - started
        for message in writer.warnings:
            on_warning(message)
        return DecodeSummary(
            frames=count,
            width=header.properties.width,
            height=header.properties.height,
            fps=float(header.properties.frame_rate),
            bits=bits,
            decode_fps=count / elapsed,
            codec=codec.name,
            model=codec.identity,
            damage=damage or container.truncated,
        )


@dataclass(frozen=True, slots=True)
class _Decoded:
    frame: Frame
    type: Literal["I", "P"]
    bits: int
    seconds: float


def _decoded(packets: Iterable[VideoPacket], decoder: Decoder, start_time: Fraction) -> Generator[_Decoded]:
    """The frames at or after ``start_time``; those before it, back to the keyframe, are decoded and dropped."""
    for packet in packets:
        started = time.perf_counter()
        frame = decoder.decode(packet)
        seconds = time.perf_counter() - started
        if frame.time >= start_time:
            yield _Decoded(frame, "I" if packet.keyframe else "P", 8 * len(packet.payload), seconds)
