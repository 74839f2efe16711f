"""The encoding session: reader -> controller -> codec -> container, and what each frame cost back to the controller.

:class:`Encoder` is the session for anyone who has frames (a file, a live source, a simulation); :func:`encode_file`
puts a reader before it and a Matroska file behind it.
"""

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain

from rqlvc.codec.protocol import Codec, State, carried_quality
from rqlvc.control import Control, Predictor, RateTarget, RealEncodes, open_control
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.metrics import mse_y, psnr_y, psnr_yuv
from rqlvc.groups import grouped, groups_at_once, pictures_that_fit, side_by_side
from rqlvc.media.container import ContainerWriter, StreamHeader, VideoPacket
from rqlvc.media.frame import Frame
from rqlvc.media.properties import VideoProperties
from rqlvc.media.reader import open_reader
from rqlvc.rate.constant import Constant
from rqlvc.rate.protocol import Controller, FrameInfo, FrameResult, RatePoint
from rqlvc.summary import FrameStats, Summary, Totals

DEFAULT_KEYINT = 32
PACE_FRAMES = 8
"""Frames whose time stamps it takes to judge the frame rate."""
PACE_CHANGE = 0.1
"""Relative change of the frame rate that a controller is told."""

__all__ = ["DEFAULT_KEYINT", "Encoder", "FrameStats", "Summary", "encode_file"]


def check_keyint(keyint: int) -> None:
    """Raises :class:`RqlvcError` when ``keyint`` is no number of frames."""
    if keyint < 1:
        raise RqlvcError(f"the keyframe interval must be at least 1 frame, not {keyint}.")


class Encoder:
    """Codes frames one after the other, with an intra frame every ``keyint`` frames.

    The controller's rates may be set between any two calls of :meth:`encode`. ``predictor`` gives the controller
    points of each frame's rate-quality curve. ``index``: frames of the video before the first one coded here.
    """

    def __init__(
        self,
        codec: Codec,
        controller: Controller,
        *,
        keyint: int = DEFAULT_KEYINT,
        predictor: Predictor | RealEncodes | None = None,
        index: int = 0,
    ) -> None:
        check_keyint(keyint)
        self.codec = codec
        self.controller = controller
        self.keyint = keyint
        self.predictor = predictor
        self.index = index
        self.state: State | None = None
        self.reconstruction: Frame | None = None
        """What the decoder will show for the frame coded last."""
        self.last: FrameResult | None = None
        """What the frame coded last cost."""

    def encode(self, frame: Frame, *, frames_left: int | None = None) -> tuple[VideoPacket, FrameStats]:
        """Code the next frame. ``frames_left`` counts it and those to come, where the end is known."""
        started = time.perf_counter()
        position = self.index % self.keyint
        intra = position == 0
        info = FrameInfo(
            index=self.index,
            intra=intra,
            position=position,
            pixels=frame.width * frame.height,
            frames_left=frames_left,
            frames_to_intra=self.keyint - position,
            points=self._points(frame, intra),
        )

        decision = self.controller.decide(info)
        coded = self.codec.encode(frame, decision.quality, None if intra else self.state)
        quality, bits = carried_quality(decision.quality), 8 * len(coded.payload)
        self.last = FrameResult(info, quality, bits, mse_y(frame, coded.reconstruction))
        self.controller.update(self.last)

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

    def _points(self, frame: Frame, intra: bool) -> tuple[RatePoint, ...]:
        if self.predictor is None:
            return ()
        if isinstance(self.predictor, RealEncodes):
            return self.predictor.points(self.codec, frame, None if intra else self.state)
        return tuple(self.predictor.predict(frame, None if intra else self.reconstruction, self.last))


def encode_file(
    source: str,
    output: str,
    codec: Codec,
    control: Controller | RateTarget,
    *,
    keyint: int = DEFAULT_KEYINT,
    start: int = 0,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    frame_rate: Fraction | None = None,
    overwrite: bool = False,
    on_target: Callable[[float], None] = lambda bitrate: None,
    on_frame: Callable[[FrameStats], None] = lambda stats: None,
    on_warning: Callable[[str], None] = lambda message: None,
) -> Summary:
    """Code ``frames`` frames of ``source`` from frame ``start`` on into the Matroska file ``output`` (``-``: a pipe).

    ``control`` is a :class:`RateTarget`, or a controller made elsewhere, which then gets no predicted points. A
    :class:`Constant` one, which learns nothing from one group of pictures for the next, has several coded at once
    where the codec can do that; but what comes in a pipe is coded as it comes.
    ``on_target`` hears the bitrate to hit, in bits per second, before the first frame, where there is one.
    ``size`` (width, height) and ``frame_rate`` describe raw 4:2:0 input, which does not say them itself. The coded
    file starts at time 0; audio and subtitles of the same span are copied. Ctrl-C keeps the frames coded so far, as a
    whole file under another name: ``Summary.interrupted`` is set and ``Summary.output`` is that name.

    A target out of the codec's reach on this content ends with a warning and the best that could be done. Raises
    :class:`RqlvcError` for input that cannot be read, output that cannot be written, and what
    :func:`rqlvc.control.open_control` refuses.
    """
    check_keyint(keyint)
    totals = Totals()
    with open_reader(source, start=start, frames=frames, size=size, frame_rate=frame_rate) as reader:
        first = next(reader)
        warned = len(reader.warnings)
        for message in reader.warnings:
            on_warning(message)
        target: Control | None = None
        pace: _Pace | None = None
        if isinstance(control, RateTarget):
            target = open_control(control, codec, reader.properties, reader.frame_count, on_warning)
            on_target(target.bitrate)
            totals.limits = target.quality
            pace = None if control.size is not None else _Pace(float(reader.properties.frame_rate))
            controller, predictor = target.controller, target.predictor
        else:
            controller, predictor = control, None

        def code(pictures: Iterable[tuple[int, Frame]]) -> Generator[tuple[VideoPacket, FrameStats]]:
            encoder: Encoder | None = None
            for index, frame in pictures:
                encoder = encoder or Encoder(codec, controller, keyint=keyint, predictor=predictor, index=index)
                frames_left = None if reader.frame_count is None else max(reader.frame_count - index, 1)
                picture = replace(frame, time=frame.time - first.time)
                if pace is not None and target is not None:
                    pace.follow(index, picture.time, target)
                yield encoder.encode(picture, frames_left=frames_left)

        pictures = enumerate(chain([first], reader))
        at_once = min(groups_at_once(codec), pictures_that_fit(first.width, first.height) // keyint - 1)
        if at_once > 1 and source != "-" and isinstance(controller, Constant):
            groups = grouped(pictures, lambda picture: picture[0] % keyint == 0)
            coded = side_by_side(groups, code, codec, at_once=at_once, waiting=keyint)
        else:
            coded = code(pictures)
        header = StreamHeader(codec.name, codec.identity, reader.properties)
        copy_from = None if source == "-" else source
        copy_range = _span(first, frames, reader.properties)
        started = time.perf_counter()
        interrupted = False
        try:
            with (
                ContainerWriter(
                    output, header, overwrite=overwrite, copy_from=copy_from, copy_range=copy_range
                ) as container,
                closing(coded),
            ):
                for packet, stats in coded:
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
        bitrate = None if target is None else target.bitrate
        if isinstance(control, RateTarget) and control.size is not None and not interrupted:
            bitrate = 8 * control.size / totals.duration(reader.properties)  # the number of frames was an estimate
        overhead_bits = 8 * container.overhead_bytes
        summary = totals.summary(name, reader.properties, codec, bitrate, overhead_bits, elapsed, interrupted)
        missed = totals.out_of_reach(summary)
        if missed is not None:
            on_warning(missed)
        return summary


@dataclass(slots=True)
class _Pace:
    """The frame rate that a controller works with, kept to that of the time stamps: a video may skip frames."""

    frame_rate: float

    def follow(self, index: int, time: Fraction, target: Control) -> None:
        """Tell the controller where the mean rate of the ``index`` frames up to ``time`` (seconds) is another."""
        if index < PACE_FRAMES or time <= 0:
            return
        mean = index / float(time)
        if abs(mean / self.frame_rate - 1) > PACE_CHANGE:
            self.frame_rate = mean
            target.controller.set_rates(target.bitrate, mean)


def _span(first: Frame, frames: int | None, properties: VideoProperties) -> tuple[Fraction, Fraction | None]:
    """The part of the source that is coded, in seconds, for the tracks that are copied beside it."""
    return first.time, None if frames is None else first.time + frames / properties.frame_rate
