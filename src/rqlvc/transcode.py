"""From a video file to a coded file: reader -> encoding session -> container."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain, repeat, takewhile
from typing import NamedTuple

from rqlvc.codec.protocol import Codec
from rqlvc.control import Control, RateTarget, open_control
from rqlvc.encoder import DEFAULT_KEYINT, Encoder, check_keyint
from rqlvc.groups import grouped, groups_at_once, pictures_that_fit, side_by_side
from rqlvc.media.container import ContainerWriter, StreamHeader, VideoPacket, carried_times
from rqlvc.media.frame import Frame
from rqlvc.media.properties import VideoProperties
from rqlvc.media.reader import open_reader
from rqlvc.rate.constant import Constant
from rqlvc.rate.hierarchy import LOOKAHEAD
from rqlvc.rate.protocol import Controller
from rqlvc.scenecut import MINIMUM_DISTANCE, cuts
from rqlvc.summary import FrameStats, Summary, Totals

PACE_FRAMES = 8
"""Frames whose time stamps it takes to judge the frame rate."""
PACE_CHANGE = 0.02
"""Relative change of the frame rate that a controller is told."""
PACE_WINDOW = 40
"""Frames over which it is made good that those before lasted longer or shorter than the controller was told."""


def encode_file(
    source: str,
    output: str,
    codec: Codec,
    control: Controller | RateTarget,
    *,
    keyint: int | None = DEFAULT_KEYINT,
    scenecut: bool = True,
    lookahead: int = LOOKAHEAD,
    start: int = 0,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    frame_rate: Fraction | None = None,
    overwrite: bool = False,
    on_target: Callable[[float], None] = lambda bitrate: None,
    on_frame: Callable[[FrameStats], None] = lambda stats: None,
    on_rehearsed: Callable[[int, int], None] = lambda done, frames: None,
    on_warning: Callable[[str], None] = lambda message: None,
) -> Summary:
    """Code ``frames`` frames of ``source`` from frame ``start`` on into the Matroska file ``output`` (``-``: a pipe).

    ``control`` is a :class:`RateTarget`, or a controller made elsewhere, which then gets no predicted points. A
    :class:`Constant` one, which learns nothing from one group of pictures for the next, has several coded at once
    where the codec can do that; but what comes in a pipe is coded as it comes. With ``scenecut``, a new scene begins a
    group of pictures. Every frame waits until ``lookahead`` more are there, which tell what it is worth.
    ``on_target`` hears the bitrate to hit, in bits per second, before the first frame, where there is one;
    ``on_rehearsed`` is that of an :class:`Encoder`.
    ``size`` (width, height) and ``frame_rate`` describe raw 4:2:0 input, which does not say them itself. The coded
    file starts at time 0; audio and subtitles of the same span are copied. Ctrl-C keeps the frames coded so far, as a
    whole file under another name: ``Summary.interrupted`` is set and ``Summary.output`` is that name.

    A target out of the codec's reach on this content ends with a warning and the best that could be done. Raises
    :class:`RqlvcError` for input that cannot be read, output that cannot be written, and what
    :func:`rqlvc.control.open_control` refuses.
    """
    totals = Totals()
    with open_reader(source, start=start, frames=frames, size=size, frame_rate=frame_rate) as reader:
        first = next(reader)
        warned = len(reader.warnings)
        for message in reader.warnings:
            on_warning(message)
        check_keyint(keyint)
        target: Control | None = None
        follower: _Follower | None = None
        if isinstance(control, RateTarget):
            target = open_control(control, codec, reader.properties, reader.frame_count, on_warning)
            if target.policy != "capped":
                on_target(target.bitrate)
                totals.limits = target.quality
            frame_rate_now = float(reader.properties.frame_rate)
            if control.size is None:
                follower = _Follower(target.bitrate, frame_rate_now, deque(control.schedule))
            new_encoder = partial(
                Encoder,
                codec,
                target.controller,
                keyint=keyint,
                predictor=target.predictor,
                limits=target.quality,
                buffer=control.buffer,
                policy=target.policy,
                total_bits=None if control.size is None else 8 * control.size,
                max_drops=control.max_drops,
                frame_rate=frame_rate_now,
                on_rehearsed=on_rehearsed,
            )
        else:
            new_encoder = partial(Encoder, codec, control, keyint=keyint)

        def code(pictures: Iterable[_Picture]) -> Generator[tuple[VideoPacket, FrameStats]]:
            encoder: Encoder | None = None
            cut = False
            for picture in pictures:
                frame, cut = picture.frame, cut or picture.cut
                encoder = encoder or new_encoder(index=picture.number)
                frames_left = picture.left
                if frames_left is None and reader.frame_count is not None:  # which may be an estimate
                    frames_left = max(reader.frame_count - picture.number, view + 1)
                if follower is not None:
                    follower.follow(encoder, frame.time, on_target)
                if encoder.drops(frame.time):
                    totals.dropped += 1
                    continue
                yield encoder.encode(
                    frame, frames_left=frames_left, cut=cut, ahead=picture.ahead, scene_ends=picture.scene_ends
                )
                cut = False

        exact = isinstance(control, RateTarget) and control.size is not None
        view = max(lookahead, 1) if exact else lookahead  # a size must know the last frame
        pictures = _pictures(chain([first], reader), reader.properties.frame_rate, scenecut=scenecut, view=view)
        at_once = 1
        if keyint is not None and source != "-" and isinstance(control, Constant):
            at_once = min(groups_at_once(codec), pictures_that_fit(first.width, first.height) // keyint - 1)
        if keyint is not None and at_once > 1:
            groups = grouped(pictures, _group_starts(keyint))
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
        bitrate = None if target is None or target.policy == "capped" else target.bitrate
        if isinstance(control, RateTarget):
            duration = totals.duration(reader.properties)
            if control.size is not None and not interrupted:
                bitrate = 8 * control.size / duration  # the number of frames was an estimate
            elif control.schedule:
                bitrate = control.mean_bitrate(duration)
        overhead_bits = 8 * container.overhead_bytes
        summary = totals.summary(name, reader.properties, codec, bitrate, overhead_bits, elapsed, interrupted)
        for warning in (totals.out_of_reach(summary), totals.skipping(summary)):
            if warning is not None:
                on_warning(warning)
        return summary


@dataclass(slots=True)
class _Follower:
    """The rates that a session works with: the bitrate as a schedule has it, and the frame rate of the time stamps,
    for a video may skip frames, and an encoder may drop some."""

    bitrate: float
    frame_rate: float
    schedule: deque[tuple[Fraction, float]]
    _frames: int = 0
    _told: float = 0.0
    """Seconds that so many frames last, as the controller was told."""

    def follow(self, encoder: Encoder, time: Fraction, on_target: Callable[[float], None]) -> None:
        """Tell ``encoder`` what has become another by ``time`` (seconds), that of its next frame."""
        while self.schedule and self.schedule[0][0] <= time:
            since, self.bitrate = self.schedule.popleft()
            encoder.set_rates(self.bitrate, self.frame_rate, time=since)
            on_target(self.bitrate)
        self._told += (encoder.index - self._frames) / self.frame_rate
        self._frames = encoder.index
        if self._frames < PACE_FRAMES or time <= 0:
            return
        duration = float(time) / self._frames + (float(time) - self._told) / PACE_WINDOW
        if duration > 0 and abs(duration * self.frame_rate - 1) > PACE_CHANGE:
            self.frame_rate = 1 / duration
            maxrate = None if encoder.bucket is None else float(encoder.bucket.rate)
            encoder.set_rates(self.bitrate, self.frame_rate, maxrate=maxrate)


class _Picture(NamedTuple):
    """A frame on its way to the encoder, at the time that the file will carry."""

    number: int
    frame: Frame
    cut: bool
    ahead: tuple[Frame, ...] = ()
    """Those after it in the same scene, as far as they were waited for."""
    scene_ends: bool = False
    """Whether another scene begins after these, or nothing comes."""
    left: int | None = None
    """Frames from this one to the last, both included, where the end is in view."""


def _pictures(frames: Iterable[Frame], rate: Fraction, *, scenecut: bool, view: int) -> Iterator[_Picture]:
    """``frames`` from time 0 on, each held back until ``view`` more are there."""
    timed = carried_times(frames, rate)
    marked: Iterator[tuple[Frame, bool]] = cuts(timed) if scenecut else zip(timed, repeat(False))
    pictures = (_Picture(number, frame, cut) for number, (frame, cut) in enumerate(marked))
    if not view:
        yield from pictures
        return
    waiting: deque[_Picture] = deque()
    for picture in chain(pictures, repeat(None, view)):
        if picture is not None:
            waiting.append(picture)
        if waiting and (picture is None or len(waiting) > view):
            now = waiting.popleft()
            left = len(waiting) + 1 if picture is None else None
            scene = tuple(later.frame for later in takewhile(lambda later: not later.cut, waiting))
            scene_ends = left is not None or len(scene) < len(waiting)
            yield now._replace(ahead=scene, scene_ends=scene_ends, left=left)


def _group_starts(keyint: int) -> Callable[[_Picture], bool]:
    """Whether a picture begins a group of pictures, as an :class:`Encoder` would have it; asked from the second on."""
    position = 0

    def starts(picture: _Picture) -> bool:
        nonlocal position
        position += 1
        if position == keyint or (picture.cut and position >= MINIMUM_DISTANCE):
            position = 0
        return position == 0

    return starts


def _span(first: Frame, frames: int | None, properties: VideoProperties) -> tuple[Fraction, Fraction | None]:
    """The part of the source that is coded, in seconds, for the tracks that are copied beside it."""
    return first.time, None if frames is None else first.time + frames / properties.frame_rate
