"""The encoding session: controller -> codec -> packet, frame by frame, and what each frame cost back to the controller.

For anyone who has frames: a file (:mod:`rqlvc.transcode`), a live source, a simulation.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

from rqlvc.codec.protocol import Codec, EncodedFrame, State, carried_quality
from rqlvc.control import Predictor, RealEncodes
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.metrics import mse_y, psnr_y, psnr_yuv
from rqlvc.media.container import VideoPacket
from rqlvc.media.frame import Frame
from rqlvc.rate.allocation import LANDING
from rqlvc.rate.buffer import (
    DROP_BELOW,
    FREE,
    LARGEST,
    NEW_RATE,
    Bounds,
    Bucket,
    Buffer,
    Policy,
    SteadyRate,
    fit,
    lost_credit,
    plan,
    steady_levels,
)
from rqlvc.rate.hierarchy import FADING_VIEW, fading
from rqlvc.rate.protocol import Controller, Decision, FrameInfo, FrameResult, QualityRange, RatePoint
from rqlvc.scenecut import MINIMUM_DISTANCE, Novelties, novelty_of
from rqlvc.summary import FrameStats

DEFAULT_KEYINT = 32
REHEARSED = 16
"""Frames after the first of a scene that are coded with it to see what they cost, at most: two miniGOPs, for frames
after the first one cost up to half as much again."""
LAST_FRAMES = 8
LAST_USE = 1 - LANDING
"""With a total to meet, each of the last frames is coded again until it is as near to its target as this, and the very
last until it takes this part of what is left."""

_WHOLE_RANGE = QualityRange()

__all__ = ["DEFAULT_KEYINT", "Encoder", "FrameStats"]


def check_keyint(keyint: int | None) -> None:
    """Raises :class:`RqlvcError` when ``keyint`` is no number of frames."""
    if keyint is not None and keyint < 1:
        raise RqlvcError(f"the keyframe interval must be at least 1 frame, not {keyint}.")


class Encoder:
    """Codes frames one after the other, with an intra frame every ``keyint`` frames.

    A frame that begins another scene is intra as well, and the count starts again from it. ``index`` counts the frames
    of the video before the first one coded here.
    With ``keyint=None``, for low latency, only the first frame is intra, and nothing is saved for later frames; at a
    constant rate, frames are coded again where a second would take much more or less than the channel brings in it.
    ``predictor`` gives the controller points of each frame's rate-quality curve. No frame breaks ``buffer``, and
    all packets together never take more than ``total_bits``: a frame that would is coded again at a lower level,
    never below those of ``limits``, and is left out where not even the lowest fits: a skipped frame, an empty
    packet that repeats the picture before it. With a buffer, the time stamps of frames are those that the decoder
    will see, from 0 on, and ``policy`` says what the channel is to the controller's target. With ``total_bits``,
    which needs ``frames_left``, the last frames are coded again until they use what is left. Where frames are coded
    only to see what they cost, ``on_rehearsed`` hears after each how many are done, and of how many.
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
        on_rehearsed: Callable[[int, int], None] = lambda done, frames: None,
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
        self._steady = SteadyRate() if keyint is None and policy == "constant" else None
        self.bits_left = math.inf if total_bits is None else total_bits
        """Of ``total_bits``."""
        self._smallest = math.inf  # bits of any inter frame so far
        self.index = index
        self.on_rehearsed = on_rehearsed
        self.state: State | None = None
        self.reconstruction: Frame | None = None
        """What the decoder will show for the frame coded last."""
        self.last: FrameResult | None = None
        """What the frame coded last cost."""
        self._novelties = Novelties()
        self._position = 0
        self._dropped = 0  # in succession
        self._credit = 0.0  # bits of the channel that were not spent, as far as they can be
        self._new_rate = False  # since the frame coded last

    def set_rates(
        self, bitrate: float, framerate: float, *, maxrate: float | None = None, time: Fraction | None = None
    ) -> None:
        """From now on another ``bitrate`` (bits per second) and ``framerate`` (frames per second).

        The channel of a buffer delivers ``maxrate`` from ``time`` (seconds) on, which are ``bitrate`` and the time of
        the frame coded last unless told otherwise. The buffer keeps its size in bits; where the rate is constant and
        becomes quite another, what was spent or saved before is forgotten, as the buffer bears it. Raises
        :class:`RqlvcError` for rates that are not positive.
        """
        self.controller.set_rates(bitrate, framerate)
        if self.bucket is not None:
            old, new = float(self.bucket.rate), bitrate if maxrate is None else maxrate
            if self.policy == "constant" and self.state is not None and max(new / old, old / new) >= NEW_RATE:
                self._new_rate, self._credit = True, -old / self.frame_rate
            now = self.bucket if time is None else self.bucket.at(max(time, self.bucket.time))
            self._credit += old * float(now.time - self.bucket.time)
            if self._steady is not None and new != old:
                self._steady.restart(now.time)
            self.bucket = now.with_rate(new)
        self.frame_rate = framerate

    def drops(self, time: Fraction) -> bool:
        """Whether a frame at ``time`` (seconds) had better not be coded, so that the buffer recovers; it is counted.

        Never the first, and never more than ``max_drops`` in succession.
        """
        low = self.bucket is not None and self.bucket.at(time).fullness < Fraction(DROP_BELOW) * self.bucket.size
        self._dropped = self._dropped + 1 if low and self.state is not None and self._dropped < self.max_drops else 0
        return self._dropped > 0

    def encode(
        self,
        frame: Frame,
        *,
        frames_left: int | None = None,
        cut: bool = False,
        ahead: Sequence[Frame] = (),
        scene_ends: bool = False,
    ) -> tuple[VideoPacket, FrameStats]:
        """Code the next frame. ``frames_left`` counts it and those to come, where the end is known; ``cut`` says that
        another scene begins with it (see :mod:`rqlvc.scenecut`); ``ahead`` are frames of its scene after it, one after
        the other, that are there already: the more they have in common with an intra frame, the more that frame is
        worth. ``scene_ends`` says that the scene or the video ends with them: nothing need be kept.

        Raises :class:`RqlvcError` when the first frame, which cannot be left out, does not fit.
        """
        started = time.perf_counter()
        bucket = None if self.bucket is None else self.bucket.at(frame.time)
        new_scene = cut and self.keyint is not None and self._position >= MINIMUM_DISTANCE
        intra = self.state is None or self._position == self.keyint or new_scene
        info = self._info(frame, intra, frames_left, cut, ahead, scene_ends)
        decision, encodes = self._decide(info, frame, ahead, scene_ends)
        attempt = self._attempt(frame, bucket, info, frames_left, decision, encodes)
        if attempt.level is None and self.state is None:
            raise RqlvcError(_first_too_large(8 * len(attempt.coded.payload), bucket, self.limits.minimum))
        if attempt.level is None and intra:  # it stays due; an inter frame may fit
            intra = False
            info = self._info(frame, intra, frames_left, cut, ahead, scene_ends)
            attempt = self._attempt(frame, bucket, info, frames_left, self.controller.decide(info), attempt.encodes)
        decision, coded, skipped = attempt.decision, attempt.coded, attempt.level is None
        quality = self.limits.minimum if attempt.level is None else attempt.level
        payload = b"" if skipped else coded.payload
        self.last = FrameResult(info, quality, 8 * len(coded.payload), mse_y(frame, coded.reconstruction))
        self.controller.update(self._charged(self.last, 8 * len(payload), bucket))

        seconds = time.perf_counter() - started
        self.index += 1
        self._new_rate = False
        self.bits_left -= 8 * len(payload)
        if not (skipped or intra):
            self._smallest = min(self._smallest, 8 * len(payload))
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
            fading=info.fading,
            skipped=skipped,
            buffer_planned=attempt.buffer_planned,
            buffer=None if self.bucket is None else float(self.bucket.fullness),
        )

    def _info(
        self, frame: Frame, intra: bool, frames_left: int | None, cut: bool, ahead: Sequence[Frame], scene_ends: bool
    ) -> FrameInfo:
        """What is known of ``frame`` before it is coded."""
        position = 0 if intra else self._position
        seen = ahead[:FADING_VIEW] if intra else ()
        return FrameInfo(
            index=self.index,
            intra=intra,
            position=position,
            pixels=frame.width * frame.height,
            frames_left=None if self.policy == "capped" or self.keyint is None else frames_left,
            frames_to_intra=None if self.keyint is None else max(self.keyint - position, 1),
            cut=cut,
            scene_left=len(ahead) + 1 if scene_ends else None,
            novelties=self._novelties.of((frame, *ahead)),
            fading=fading(novelty_of(seen[-1], frame), len(seen)) if seen else None,
            new_rate=self._new_rate,
            points=self._points(frame, intra),
        )

    def _decide(self, info: FrameInfo, frame: Frame, ahead: Sequence[Frame], scene_ends: bool) -> tuple[Decision, int]:
        """What the controller makes of ``frame``, and how often it had the frame and those ``ahead`` rehearsed."""
        decision, rehearsals = self.controller.decide(info), 0
        while decision.rehearsal and ahead:
            seen = self._rehearsed(decision.rehearsal, (frame, *ahead), scene_ends)
            decision = self.controller.decide(replace(info, rehearsal=seen))
            rehearsals += 1
        return decision, rehearsals

    def _attempt(
        self,
        frame: Frame,
        bucket: Bucket | None,
        info: FrameInfo,
        frames_left: int | None,
        decision: Decision,
        encodes: int,
    ) -> "_Attempt":
        """Code ``frame`` as in ``decision`` or, if need be, so that it leaves the buffer something. Nothing of the
        session changes. ``encodes``: times that it was coded before."""
        intra = info.intra
        tries: dict[float, EncodedFrame] = {}

        def cost(level: float) -> int:
            level = carried_quality(level)
            if level not in tries:
                tries[level] = self.codec.encode(frame, level, None if intra else self.state)
            return 8 * len(tries[level].payload)

        if decision.tentative:
            tried = carried_quality(decision.quality)
            decision = self.controller.decide(replace(info, tried=RatePoint(tried, cost(tried))))
        quality, room, bounds, steady, left = self._allowance(bucket, info, frames_left, decision)
        near = steady_levels(decision.quality, steady, self.limits)
        both = Bounds(max(bounds.least, steady.least), min(bounds.most, steady.most))
        level = fit(cost, quality, both, limits=near, alpha=decision.alpha, intra=intra)
        if level is None and steady != FREE:
            level = fit(cost, near.minimum, bounds, limits=self.limits, alpha=decision.alpha)
        lowest = carried_quality(self.limits.minimum)
        # An intra frame that could only be had by emptying the buffer had better wait.
        if level is None and cost(lowest) <= room and not (intra and self.state is not None):
            level = lowest
        level = None if level is None else carried_quality(level)
        coded = tries[lowest if level is None else level]
        return _Attempt(decision, level, coded, encodes + len(tries), left)

    def _allowance(
        self, bucket: Bucket | None, info: FrameInfo, frames_left: int | None, decision: Decision
    ) -> "_Allowance":
        """What the buffer, the total and the end leave of ``decision``, before the frame is coded."""
        last, room = frames_left == 1, self.bits_left
        quality, most, steady, left = decision.quality, (room if last else LARGEST * room), FREE, None
        if bucket is not None:
            full, frame_bits = float(bucket.fullness), float(bucket.rate) / self.frame_rate
            if self._steady is not None and not (info.intra or info.cut):
                steady = self._steady.bounds(bucket, self._brought(bucket))
            planned = plan(
                decision, bucket, frame_bits, intra=info.intra, limits=self.limits, policy=self.policy, steady=steady
            )
            quality, room = planned.quality, min(room, math.floor(bucket.fullness))
            most = min(most, full if last else LARGEST * full)
            left = None if planned.bits is None else full - planned.bits
        # What the buffer has changed the level of need not meet its target any more.
        tolerance = decision.tolerance if quality == decision.quality else None
        wanted = self._wanted(frames_left, decision.target_bits or 0.0, tolerance)
        most = min(most, wanted.most)
        return _Allowance(quality, room, Bounds(min(wanted.least, LAST_USE * most), most), steady, left)

    def _rehearsed(self, controller: Controller, frames: Sequence[Frame], scene_ends: bool) -> tuple[FrameResult, ...]:
        """What the first of ``frames``, an intra frame, and those just after it cost if ``controller`` codes them.
        Nothing of the session changes."""
        session = Encoder(self.codec, controller, keyint=self.keyint, predictor=self.predictor, index=self.index)
        results: list[FrameResult] = []
        count = min(1 + REHEARSED, len(frames))
        for index, frame in enumerate(frames[:count]):
            session.encode(frame, ahead=frames[index + 1 :], scene_ends=scene_ends)
            assert session.last is not None
            results.append(session.last)
            self.on_rehearsed(len(results), count)
        return tuple(results)

    def _wanted(self, frames_left: int | None, target: float, tolerance: float | None) -> Bounds:
        """Bits that a frame should take: of one of the last where there is a total, what is due to it; else as near to
        its ``target`` as ``tolerance`` says."""
        if frames_left is not None and frames_left <= LAST_FRAMES and math.isfinite(self.bits_left):
            if frames_left == 1:
                return Bounds(LAST_USE * self.bits_left, self.bits_left)
            least_after = (frames_left - 1) * self._smallest if math.isfinite(self._smallest) else 0.0
            due = Bounds.near(target, LANDING)
            return due._replace(most=min(due.most, self.bits_left - least_after))
        return FREE if tolerance is None or not target else Bounds.near(target, tolerance)

    def _charged(self, result: FrameResult, bits: int, bucket: Bucket | None) -> FrameResult:
        """Take the ``bits`` that are really sent out of the buffer, and of the budget with what the channel lost."""
        if bucket is None or self.bucket is None:
            return result if bits == result.bits else replace(result, charged=bits)
        gained = self._brought(bucket)
        if self._steady is not None:
            self._steady.add(bucket, bits, gained, cut=result.info.cut)
        self.bucket = bucket.taken(bits)
        if self.policy == "peak":
            return replace(result, charged=bits) if bits != result.bits else result
        self._credit += gained - bits
        lost = lost_credit(self._credit, self.bucket)
        self._credit -= lost
        return replace(result, charged=bits + lost) if lost or bits != result.bits else result

    def _brought(self, bucket: Bucket) -> float:
        """Bits that the channel delivered between the frame coded last and that of ``bucket``, were it never idle."""
        assert self.bucket is not None
        return float(self.bucket.rate * (bucket.time - self.bucket.time))

    def _points(self, frame: Frame, intra: bool) -> tuple[RatePoint, ...]:
        if self.predictor is None:
            return ()
        if isinstance(self.predictor, RealEncodes):
            return self.predictor.points(self.codec, frame, None if intra else self.state)
        return tuple(self.predictor.predict(frame, None if intra else self.reconstruction, self.last))


class _Allowance(NamedTuple):
    """What one frame may take."""

    quality: float
    """The level to try first."""
    room: float
    """Bits that there are at all."""
    bounds: Bounds
    """Bits that it should take."""
    steady: Bounds
    """Bits that make a second take what the channel brings in it."""
    buffer_planned: float | None


class _Attempt(NamedTuple):
    """One frame coded, as an intra or an inter frame."""

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
