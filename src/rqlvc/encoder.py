"""The encoding session: reader -> controller -> codec -> container, and what each frame cost back to the controller.

:class:`Encoder` is the session for anyone who has frames (a file, a live source, a simulation); :func:`encode_file`
puts a reader before it and a Matroska file behind it.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import chain, pairwise, repeat
from typing import NamedTuple

from rqlvc.codec.protocol import Codec, EncodedFrame, State, carried_quality
from rqlvc.control import Control, Predictor, RateTarget, RealEncodes, open_control
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.metrics import mse_y, psnr_y, psnr_yuv
from rqlvc.groups import grouped, groups_at_once, pictures_that_fit, side_by_side
from rqlvc.media.container import ContainerWriter, StreamHeader, VideoPacket, carried_times
from rqlvc.media.frame import Frame
from rqlvc.media.properties import VideoProperties
from rqlvc.media.reader import open_reader
from rqlvc.rate.buffer import DROP_BELOW, LARGEST, Bucket, Buffer, Policy, fit, lost_credit, plan
from rqlvc.rate.constant import Constant
from rqlvc.rate.protocol import Controller, Decision, FrameInfo, FrameResult, QualityRange, RatePoint
from rqlvc.scenecut import MINIMUM_DISTANCE, cuts, novelty_of
from rqlvc.summary import FrameStats, Summary, Totals

DEFAULT_KEYINT = 32
PACE_FRAMES = 8
"""Frames whose time stamps it takes to judge the frame rate."""
LAST_FRAMES = 8
LAST_USE, LAST_EXCESS = 0.97, 1.03
"""With a total to meet, each of the last frames is coded again until it takes this much of what it is due."""
PACE_CHANGE = 0.1
"""Relative change of the frame rate that a controller is told."""

_WHOLE_RANGE = QualityRange()

__all__ = ["DEFAULT_KEYINT", "Encoder", "FrameStats", "Summary", "encode_file"]


def check_keyint(keyint: int | None) -> None:
    """Raises :class:`RqlvcError` when ``keyint`` is no number of frames."""
    if keyint is not None and keyint < 1:
        raise RqlvcError(f"the keyframe interval must be at least 1 frame, not {keyint}.")


class Encoder:
    """Codes frames one after the other, with an intra frame every ``keyint`` frames.

    A frame that begins another scene is intra as well, and the count starts again from it. ``index`` counts the frames
    of the video before the first one coded here.
    With ``keyint=None``, for low latency, only the first frame is intra, and nothing is saved for later frames.
    ``predictor`` gives the controller points of each frame's rate-quality curve. No frame breaks ``buffer``, and all
    packets together never take more than ``total_bits``: a frame that would is coded again at a lower level, never
    below those of ``limits``, and is left out where not even the lowest fits: a skipped frame, an empty packet that
    repeats the picture before it. With a buffer, the time stamps of frames are those that the decoder will see, from 0
    on, and ``policy`` says what the channel is to the controller's target. With ``total_bits``, which needs
    ``frames_left``, the last frames are coded again until they use what is left.
    """

    def __init__(
        self,
        codec: Codec,
        controller: Controller,
        *,
        keyint: int | None = DEFAULT_KEYINT,
        predictor: Predictor | RealEncodes | None = None,
        limits: QualityRange = _WHOLE_RANGE,
        buffer: Buffer | None = None,
        policy: Policy = "peak",
        total_bits: int | None = None,
        max_drops: int = 0,
        frame_rate: float = 30.0,
        index: int = 0,
    ) -> None:
        check_keyint(keyint)
        self.codec = codec
        self.controller = controller
        self.keyint = keyint
        self.predictor = predictor
        self.limits = limits
        self.policy = policy
        self.max_drops = max_drops
        """Frames in succession that :meth:`drops` may leave out."""
        self.frame_rate = frame_rate
        """Frames per second, as the buffer is planned; what it really gains is told by the time stamps."""
        self.bucket = None if buffer is None else Bucket.of(buffer)
        """The buffer after the frame coded last."""
        self.bits_left = math.inf if total_bits is None else total_bits
        """Of ``total_bits``."""
        self.index = index
        self.state: State | None = None
        self.reconstruction: Frame | None = None
        """What the decoder will show for the frame coded last."""
        self.last: FrameResult | None = None
        """What the frame coded last cost."""
        self._position = 0
        self._dropped = 0  # in succession
        self._credit = 0.0  # bits of the channel that were not spent, as far as they can be

    def set_rates(
        self, bitrate: float, framerate: float, *, maxrate: float | None = None, time: Fraction | None = None
    ) -> None:
        """From now on another ``bitrate`` (bits per second) and ``framerate`` (frames per second).

        The channel of a buffer delivers ``maxrate`` from ``time`` (seconds) on, which are ``bitrate`` and the time of
        the frame coded last unless told otherwise. The buffer keeps its size in bits. Raises :class:`RqlvcError` for
        rates that are not positive.
        """
        self.controller.set_rates(bitrate, framerate)
        self.frame_rate = framerate
        if self.bucket is not None:
            now = self.bucket if time is None else self.bucket.at(max(time, self.bucket.time))
            self._credit += float(self.bucket.rate * (now.time - self.bucket.time))
            self.bucket = now.with_rate(bitrate if maxrate is None else maxrate)

    def drops(self, time: Fraction) -> bool:
        """Whether a frame at ``time`` (seconds) had better not be coded, so that the buffer recovers; it is counted.

        Never the first, and never more than ``max_drops`` in succession.
        """
        low = self.bucket is not None and self.bucket.at(time).fullness < Fraction(DROP_BELOW) * self.bucket.size
        self._dropped = self._dropped + 1 if low and self.state is not None and self._dropped < self.max_drops else 0
        return self._dropped > 0

    def encode(
        self, frame: Frame, *, frames_left: int | None = None, cut: bool = False, following: Frame | None = None
    ) -> tuple[VideoPacket, FrameStats]:
        """Code the next frame. ``frames_left`` counts it and those to come, where the end is known; ``cut`` says that
        another scene begins with it (see :mod:`rqlvc.scenecut`); ``following`` is the frame after it, where that is
        there already: the more it has in common with an intra frame, the more that frame is worth.

        Raises :class:`RqlvcError` when the first frame, which cannot be left out, does not fit.
        """
        started = time.perf_counter()
        bucket = None if self.bucket is None else self.bucket.at(frame.time)
        new_scene = cut and self.keyint is not None and self._position >= MINIMUM_DISTANCE
        intra = self.state is None or self._position == self.keyint or new_scene
        novelty = None if following is None or not intra else novelty_of(following, frame)
        attempt = self._attempt(frame, bucket, intra, cut, novelty, frames_left)
        if attempt.level is None and self.state is None:
            raise RqlvcError(_first_too_large(8 * len(attempt.coded.payload), bucket, self.limits.minimum))
        if attempt.level is None and intra:  # it stays due; an inter frame may fit
            intra = False
            attempt = self._attempt(frame, bucket, intra, cut, None, frames_left, attempt.encodes)
        info, decision, coded, skipped = attempt.info, attempt.decision, attempt.coded, attempt.level is None
        quality = self.limits.minimum if attempt.level is None else attempt.level
        payload = b"" if skipped else coded.payload
        self.last = FrameResult(info, quality, 8 * len(coded.payload), mse_y(frame, coded.reconstruction))
        self.controller.update(self._charged(self.last, 8 * len(payload), bucket))

        seconds = time.perf_counter() - started
        self.index += 1
        self.bits_left -= 8 * len(payload)
        if not skipped:
            self.state, self.reconstruction = coded.state, coded.reconstruction
        self._position = info.position + 1 if intra or self._position != self.keyint else self._position
        shown = self.reconstruction
        assert shown is not None
        return VideoPacket(payload, frame.time, intra), FrameStats(
            index=info.index,
            time=float(frame.time),
            type="I" if intra else "P",
            quality=quality,
            target_bits=decision.target_bits,
            bits=8 * len(payload),
            psnr_y=psnr_y(frame, shown),
            psnr_yuv=psnr_yuv(frame, shown),
            seconds=seconds,
            frames_left=frames_left,
            alpha=decision.alpha,
            beta=decision.beta,
            points=info.points,
            parts={} if skipped else coded.parts,
            encodes=attempt.encodes,
            cut=info.cut,
            skipped=skipped,
            buffer_planned=attempt.buffer_planned,
            buffer=None if self.bucket is None else float(self.bucket.fullness),
        )

    def _attempt(
        self,
        frame: Frame,
        bucket: Bucket | None,
        intra: bool,
        cut: bool,
        novelty: float | None,
        frames_left: int | None,
        encodes: int = 0,
    ) -> "_Attempt":
        """Code ``frame`` so that it leaves the buffer something, if it can; nothing of the session changes."""
        position = 0 if intra else self._position
        info = FrameInfo(
            index=self.index,
            intra=intra,
            position=position,
            pixels=frame.width * frame.height,
            frames_left=None if self.policy == "capped" or self.keyint is None else frames_left,
            frames_to_intra=None if self.keyint is None else max(self.keyint - position, 1),
            cut=cut,
            novelty=novelty,
            points=self._points(frame, intra),
        )
        decision = self.controller.decide(info)
        quality, room, left = decision.quality, self.bits_left, None
        preferred, least = (room if frames_left == 1 else LARGEST * room), 0.0
        if bucket is not None:
            frame_bits = float(bucket.rate) / self.frame_rate
            planned = plan(decision, bucket, frame_bits, intra=intra, limits=self.limits, policy=self.policy)
            quality, room = planned.quality, min(room, math.floor(bucket.fullness))
            preferred = min(preferred, float(bucket.fullness) if frames_left == 1 else LARGEST * float(bucket.fullness))
            left = None if planned.bits is None else float(bucket.fullness) - planned.bits
        if frames_left is not None and frames_left <= LAST_FRAMES and math.isfinite(self.bits_left):
            due = self.bits_left if frames_left == 1 else decision.target_bits or 0.0
            preferred = min(preferred, due if frames_left == 1 else LAST_EXCESS * due)
            least = LAST_USE * min(due, preferred)
        tries: dict[float, EncodedFrame] = {}

        def cost(level: float) -> int:
            level = carried_quality(level)
            if level not in tries:
                tries[level] = self.codec.encode(frame, level, None if intra else self.state)
            return 8 * len(tries[level].payload)

        level = fit(cost, quality, room=preferred, least=least, limits=self.limits, alpha=decision.alpha, intra=intra)
        lowest = carried_quality(self.limits.minimum)
        # An intra frame that could only be had by emptying the buffer had better wait.
        if level is None and cost(lowest) <= room and not (intra and self.state is not None):
            level = lowest
        level = None if level is None else carried_quality(level)
        coded = tries[lowest if level is None else level]
        return _Attempt(info, decision, level, coded, encodes + len(tries), left)

    def _charged(self, result: FrameResult, bits: int, bucket: Bucket | None) -> FrameResult:
        """Take the ``bits`` that are really sent out of the buffer, and of the budget with what the channel lost."""
        if bucket is None or self.bucket is None:
            return result if bits == result.bits else replace(result, charged=bits)
        gained = float(self.bucket.rate * (bucket.time - self.bucket.time))
        self.bucket = bucket.taken(bits)
        if self.policy == "peak":
            return replace(result, charged=bits) if bits != result.bits else result
        self._credit += gained - bits
        lost = lost_credit(self._credit, self.bucket)
        self._credit -= lost
        return replace(result, charged=bits + lost) if lost or bits != result.bits else result

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
    keyint: int | None = DEFAULT_KEYINT,
    scenecut: bool = True,
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
    where the codec can do that; but what comes in a pipe is coded as it comes. With ``scenecut``, a new scene begins a
    group of pictures.
    ``on_target`` hears the bitrate to hit, in bits per second, before the first frame, where there is one.
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
            )
        else:
            new_encoder = partial(Encoder, codec, control, keyint=keyint)

        def code(pictures: Iterable[_Picture]) -> Generator[tuple[VideoPacket, FrameStats]]:
            encoder: Encoder | None = None
            cut = False
            for picture in pictures:
                frame, cut = picture.frame, cut or picture.cut
                encoder = encoder or new_encoder(index=picture.number)
                frames_left = None if reader.frame_count is None else max(reader.frame_count - picture.number, 1)
                if ahead and frames_left is not None:
                    frames_left = (
                        1 if picture.following is None else max(frames_left, 2)
                    )  # the count may be an estimate
                if follower is not None:
                    follower.follow(encoder, frame.time, on_target)
                if encoder.drops(frame.time):
                    totals.dropped += 1
                    continue
                yield encoder.encode(frame, frames_left=frames_left, cut=cut, following=picture.following)
                cut = False

        # A live source has no next frame yet; but a size must know the last one.
        exact = isinstance(control, RateTarget) and control.size is not None
        ahead = exact or (target is not None and source != "-" and keyint is not None)
        pictures = _pictures(chain([first], reader), reader.properties.frame_rate, scenecut=scenecut, ahead=ahead)
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

    def follow(self, encoder: Encoder, time: Fraction, on_target: Callable[[float], None]) -> None:
        """Tell ``encoder`` what has become another by ``time`` (seconds), that of its next frame."""
        while self.schedule and self.schedule[0][0] <= time:
            since, self.bitrate = self.schedule.popleft()
            encoder.set_rates(self.bitrate, self.frame_rate, time=since)
            on_target(self.bitrate)
        mean = encoder.index / float(time) if time > 0 else self.frame_rate
        if encoder.index >= PACE_FRAMES and abs(mean / self.frame_rate - 1) > PACE_CHANGE:
            self.frame_rate = mean
            maxrate = None if encoder.bucket is None else float(encoder.bucket.rate)
            encoder.set_rates(self.bitrate, mean, maxrate=maxrate)


class _Picture(NamedTuple):
    """A frame on its way to the encoder, at the time that the file will carry."""

    number: int
    frame: Frame
    cut: bool
    following: Frame | None
    """The next one, where it was waited for; None for the last."""


def _pictures(frames: Iterable[Frame], rate: Fraction, *, scenecut: bool, ahead: bool) -> Iterator[_Picture]:
    """``frames`` from time 0 on. With ``ahead``, each is held back until the one after it is there."""
    timed = carried_times(frames, rate)
    marked: Iterator[tuple[Frame, bool]] = cuts(timed) if scenecut else zip(timed, repeat(False))
    if not ahead:
        return (_Picture(number, frame, cut, None) for number, (frame, cut) in enumerate(marked))
    pairs = enumerate(pairwise(chain(marked, [None])))
    return (
        _Picture(number, *now, None if following is None else following[0])
        for number, (now, following) in pairs
        if now is not None
    )


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


class _Attempt(NamedTuple):
    """One frame coded, as an intra or an inter frame."""

    info: FrameInfo
    decision: Decision
    level: float | None
    """None when it does not fit: then ``coded`` is what it is at the lowest level."""
    coded: EncodedFrame
    encodes: int
    buffer_planned: float | None


def _first_too_large(bits: int, bucket: Bucket | None, lowest: float) -> str:
    lower = f", or allow a lower quality than {lowest:g}" if lowest else ""
    needs = f"the first frame takes {bits} bits at the lowest quality allowed"
    if bucket is None or bucket.fullness >= bits:
        return f"{needs}, more than the whole video may: ask for a larger --target-size{lower}."
    return (
        f"{needs}, and the buffer holds {float(bucket.fullness):.0f} when it is due: ask for one that holds {bits} "
        f"bits then (--bufsize times --bufinit){lower}."
    )


def _span(first: Frame, frames: int | None, properties: VideoProperties) -> tuple[Fraction, Fraction | None]:
    """The part of the source that is coded, in seconds, for the tracks that are copied beside it."""
    return first.time, None if frames is None else first.time + frames / properties.frame_rate
