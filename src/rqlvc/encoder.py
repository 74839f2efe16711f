"""The encoding session: reader -> controller -> codec -> container, and what each frame cost back to the controller.

:class:`Encoder` is the session for anyone who has frames (a file, a live source, a simulation); :func:`encode_file`
puts a reader before it and a Matroska file behind it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from typing import Literal

from rqlvc.codec.protocol import Codec, State, carried_quality
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.metrics import mse_y, psnr_y, psnr_yuv
from rqlvc.media.container import ContainerWriter, StreamHeader, VideoPacket
from rqlvc.media.frame import Frame
from rqlvc.media.properties import VideoProperties
from rqlvc.media.reader import open_reader
from rqlvc.rate.protocol import Controller, FrameInfo, FrameResult, RatePoint

DEFAULT_KEYINT = 32


@dataclass(frozen=True, slots=True)
class FrameStats:
    """Why a frame got its quality and what it then cost. ``quality`` is as carried in the packet (63 is best)."""

    index: int
    time: float
    """Presentation time in seconds in the coded file."""
    type: Literal["I", "P"]
    quality: float
    target_bits: float | None
    bits: int
    psnr_y: float
    psnr_yuv: float
    seconds: float
    """Wall-clock time of the controller and the codec."""
    frames_left: int | None
    """Frames still to code when this one was, itself included; None when the end is unknown."""
    alpha: float | None
    beta: float | None
    points: tuple[RatePoint, ...]
    parts: Mapping[str, float]
    """Information content in bits of each part of the packet, where the codec tells."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole encode. ``bits`` are packet bytes × 8; what Matroska adds is ``container_overhead_bits``."""

    frames: int
    keyframes: int
    width: int
    height: int
    fps: float
    duration: float
    """Seconds of video coded."""
    bits: int
    bitrate: float
    bits_per_pixel: float
    container_overhead_bits: int
    psnr_y: float
    """Mean over frames, in dB."""
    psnr_yuv: float
    encode_fps: float
    """Frames per second of wall clock, reading and writing included, loading the model not."""
    codec: str
    model: str
    """Identity of the codec's weights."""
    output: str
    """The file that holds it all."""
    interrupted: bool


class Encoder:
    """Codes frames one after the other, with an intra frame every ``keyint`` frames.

    The controller's rates may be set between any two calls of :meth:`encode`.
    """

    def __init__(self, codec: Codec, controller: Controller, *, keyint: int = DEFAULT_KEYINT) -> None:
        if keyint < 1:
            raise RqlvcError(f"the keyframe interval must be at least 1 frame, not {keyint}.")
        self.codec = codec
        self.controller = controller
        self.keyint = keyint
        self.index = 0
        self.state: State | None = None
        self.reconstruction: Frame | None = None
        """What the decoder will show for the frame coded last."""

    def encode(self, frame: Frame, *, frames_left: int | None = None) -> tuple[VideoPacket, FrameStats]:
        """Code the next frame. ``frames_left`` counts it and those to come, where the end is known."""
        started = time.perf_counter()
        position = self.index % self.keyint
        info = FrameInfo(self.index, position == 0, position, frame.width * frame.height, frames_left)

        decision = self.controller.decide(info)
        coded = self.codec.encode(frame, decision.quality, None if info.intra else self.state)
        quality, bits = carried_quality(decision.quality), 8 * len(coded.payload)
        self.controller.update(FrameResult(info, quality, bits, mse_y(frame, coded.reconstruction)))

        seconds = time.perf_counter() - started
        self.index, self.state, self.reconstruction = self.index + 1, coded.state, coded.reconstruction
        return VideoPacket(coded.payload, frame.time, info.intra), FrameStats(
            index=info.index,
            time=float(frame.time),
            type="I" if info.intra else "P",
            quality=quality,
            target_bits=decision.target_bits,
            bits=bits,
            psnr_y=psnr_y(frame, coded.reconstruction),
            psnr_yuv=psnr_yuv(frame, coded.reconstruction),
            seconds=seconds,
            frames_left=frames_left,
            alpha=decision.alpha,
            beta=decision.beta,
            points=info.points,
            parts=coded.parts,
        )


def encode_file(
    source: str,
    output: str,
    codec: Codec,
    controller: Controller,
    *,
    keyint: int = DEFAULT_KEYINT,
    start: int = 0,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    frame_rate: Fraction | None = None,
    overwrite: bool = False,
    on_frame: Callable[[FrameStats], None] = lambda stats: None,
    on_warning: Callable[[str], None] = lambda message: None,
) -> Summary:
    """Code ``frames`` frames of ``source`` from frame ``start`` on into the Matroska file ``output`` (``-``: a pipe).

    ``size`` (width, height) and ``frame_rate`` describe raw 4:2:0 input, which does not say them itself. The coded
    file starts at time 0; audio and subtitles of the same span are copied. Ctrl-C keeps the frames coded so far, as a
    whole file under another name: ``Summary.interrupted`` is set and ``Summary.output`` is that name.

    Raises :class:`RqlvcError` for input that cannot be read and output that cannot be written.
    """
    encoder = Encoder(codec, controller, keyint=keyint)
    totals = _Totals()
    with open_reader(source, start=start, frames=frames, size=size, frame_rate=frame_rate) as reader:
        first = next(reader)
        warned = len(reader.warnings)
        for message in reader.warnings:
            on_warning(message)
        header = StreamHeader(codec.name, codec.identity, reader.properties)
        copy_from = None if source == "-" else source
        copy_range = _span(first, frames, reader.properties)
        started = time.perf_counter()
        interrupted = False
        try:
            with ContainerWriter(
                output, header, overwrite=overwrite, copy_from=copy_from, copy_range=copy_range
            ) as container:
                for frame in chain([first], reader):
                    frames_left = None if reader.frame_count is None else max(reader.frame_count - encoder.index, 1)
                    picture = replace(frame, time=frame.time - first.time)
                    packet, stats = encoder.encode(picture, frames_left=frames_left)
                    container.write(packet)
                    totals.add(stats)
                    on_frame(stats)
        except KeyboardInterrupt:
            if not totals.frames:
                raise  # there is nothing to keep
            interrupted = True
        elapsed = time.perf_counter() - started
        for message in [*reader.warnings[warned:], *container.warnings]:
            on_warning(message)
        name = (container.temporary_path if interrupted else None) or output
        return totals.summary(name, reader.properties, codec, 8 * container.overhead_bytes, elapsed, interrupted)


def _span(first: Frame, frames: int | None, properties: VideoProperties) -> tuple[Fraction, Fraction | None]:
    """The part of the source that is coded, in seconds, for the tracks that are copied beside it."""
    return first.time, None if frames is None else first.time + frames / properties.frame_rate


@dataclass(slots=True)
class _Totals:
    """Running sums over the frames of an encode: memory does not grow with its length."""

    frames: int = 0
    keyframes: int = 0
    bits: int = 0
    psnr_y: float = 0.0
    psnr_yuv: float = 0.0
    last_time: float = 0.0

    def add(self, stats: FrameStats) -> None:
        self.frames += 1
        self.keyframes += stats.type == "I"
        self.bits += stats.bits
        self.psnr_y += stats.psnr_y
        self.psnr_yuv += stats.psnr_yuv
        self.last_time = stats.time

    def summary(
        self,
        output: str,
        properties: VideoProperties,
        codec: Codec,
        overhead_bits: int,
        elapsed: float,
        interrupted: bool,
    ) -> Summary:
        duration = self.last_time + float(1 / properties.frame_rate)
        return Summary(
            frames=self.frames,
            keyframes=self.keyframes,
            width=properties.width,
            height=properties.height,
            fps=float(properties.frame_rate),
            duration=duration,
            bits=self.bits,
            bitrate=self.bits / duration,
            bits_per_pixel=self.bits / (self.frames * properties.width * properties.height),
            container_overhead_bits=overhead_bits,
            psnr_y=self.psnr_y / self.frames,
            psnr_yuv=self.psnr_yuv / self.frames,
            encode_fps=self.frames / elapsed,
            codec=codec.name,
            model=codec.identity,
            output=output,
            interrupted=interrupted,
        )
