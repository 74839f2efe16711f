"""What a stream may cost, and who sees to it: from a :class:`RateTarget` to a controller and its predicted points.

Sessions meet a predictor here: RQNet, loaded only when the controller wants it, or real encodes of the frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

from rqlvc.codec.protocol import Codec, State, carried_quality
from rqlvc.codec.registry import DEFAULT_CODEC
from rqlvc.errors import RqlvcError
from rqlvc.media.frame import Frame
from rqlvc.media.properties import VideoProperties
from rqlvc.rate.allocation import WINDOW
from rqlvc.rate.buffer import Buffer, Policy
from rqlvc.rate.outlook import Outlook
from rqlvc.rate.protocol import QUALITY_MAX, QUALITY_MIN, Controller, FrameResult, QualityRange, RatePoint
from rqlvc.rate.registry import CONTROLLERS, DEFAULT_CONTROLLER, ControllerEntry, make_controller

CURVE_QUALITIES = (10.0, 27.0, 43.0, 60.0)
"""Where a frame's rate-quality curve is sampled (RQ-LVC, Table 4)."""

LEAST_WINDOW = 8
"""Frames: over fewer, what one cost too much would be felt in the quality of the next."""

RateSchedule = tuple[tuple[Fraction, float], ...]
"""From each time in seconds on, a bitrate in bits per second; times rise."""


class Predictor(Protocol):
    """Tells a frame's rate-quality curve before the frame is coded."""

    def predict(self, frame: Frame, reference: Frame | None, last: FrameResult | None) -> Sequence[RatePoint]:
        """Points of the curve of ``frame``. ``reference`` is the last decoded picture, None before an intra frame;
        ``last`` is what the frame before cost, None before the first."""
        ...


@dataclass(frozen=True, slots=True)
class RealEncodes:
    """Instead of a prediction: the frame is really coded at these levels first (the four-pass bound of RQ-LVC)."""

    qualities: tuple[float, ...] = CURVE_QUALITIES

    def points(self, codec: Codec, frame: Frame, state: State | None) -> tuple[RatePoint, ...]:
        """What ``frame`` costs from ``state``; nothing changes by it, for codecs are pure functions."""
        return tuple(
            RatePoint(carried_quality(quality), 8.0 * len(codec.encode(frame, quality, state).payload))
            for quality in self.qualities
        )


@dataclass(frozen=True, slots=True)
class RateTarget:
    """What a whole stream may cost: ``bitrate`` in bits per second, or ``size`` in bytes of its video packets, or what
    ``quality`` costs as long as the channel of ``buffer`` can carry it.

    ``bitrate`` holds until the first time of ``schedule``, if there is one. The decoder's ``buffer`` never runs empty,
    whatever the target. Where its channel is no faster than ``bitrate``, the rate is constant: bits that are not spent
    in time are lost, and the channel follows ``schedule``. Up to ``max_drops`` frames in succession may be left out
    where the buffer is low.

    ``min_quality`` and ``max_quality`` (in [0, 63], 63 is best) are taken to the 1/64 steps that packets carry.
    ``gop_weights`` are the relative bits of the inter frames of a miniGOP, None for the usual ones. ``rqnet`` is a
    weights file to use instead of the shipped one. ``outlook`` is what a first pass found, for
    the controller ``two-pass`` (see :mod:`rqlvc.first_pass`). Raises :class:`RqlvcError` for values that make no sense.
    """

    bitrate: float | None = None
    size: int | None = None
    quality: float | None = None
    buffer: Buffer | None = None
    schedule: RateSchedule = ()
    max_drops: int = 0
    controller: str = DEFAULT_CONTROLLER
    min_quality: float = QUALITY_MIN
    max_quality: float = QUALITY_MAX
    gop_weights: tuple[float, ...] | None = None
    rqnet: Path | None = None
    outlook: Outlook | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.bitrate, self.size, self.quality)) != 1:
            raise RqlvcError("a rate target is a bitrate, a size or a capped quality: give one of the three.")
        if self.quality is not None and self.buffer is None:
            raise RqlvcError("a capped quality needs the buffer that caps it.")
        if self.bitrate is not None and self.buffer is not None and self.buffer.maxrate < self.bitrate:
            raise RqlvcError(
                f"a channel of {self.buffer.maxrate:g} bits per second cannot carry {self.bitrate:g}: "
                "give a maxrate of at least the bitrate."
            )
        if self.size is not None and self.size < 1:
            raise RqlvcError(f"the target size must be at least 1 byte, not {self.size}.")
        if self.schedule and self.bitrate is None:
            raise RqlvcError("a schedule of bitrates begins with a bitrate: give one.")
        if self.schedule and self.buffer is not None and self.buffer.maxrate != self.bitrate:
            raise RqlvcError("with a schedule of bitrates the channel follows it: give a maxrate equal to the bitrate.")
        if self.outlook is not None and (self.schedule or self.max_drops or self.quality is not None):
            raise RqlvcError("a second pass meets one bitrate or one size, and leaves out no frames.")
        if self.max_drops and self.buffer is None:
            raise RqlvcError("frames are dropped where a buffer is low: give one, or drop none.")
        QualityRange(self.min_quality, self.max_quality)

    def mean_bitrate(self, duration: float) -> float:
        """Bits per second to hit over ``duration`` seconds, as ``schedule`` has it. Needs a ``bitrate``."""
        assert self.bitrate is not None
        steps = [(0.0, self.bitrate), *((float(time), rate) for time, rate in self.schedule), (duration, 0.0)]
        spans = ((min(end, duration) - min(start, duration), rate) for (start, rate), (end, _) in pairwise(steps))
        return sum(span * rate for span, rate in spans) / duration

    @property
    def policy(self) -> Policy:
        """What the channel of the buffer is to the target."""
        if self.quality is not None:
            return "capped"
        return "constant" if self.buffer is not None and self.buffer.maxrate == self.bitrate else "peak"

    def window(self, bitrate: float, frame_rate: float) -> int | None:
        """Frames that share what one cost too much: None for the controller's own number, or, of a constant rate, a
        quarter of those that the buffer holds, which leaves room for what nobody foresaw."""
        if self.buffer is None or self.policy != "constant":
            return None
        return min(max(round(self.buffer.size / bitrate * frame_rate / 4), LEAST_WINDOW), WINDOW)

    def bits_per_second(self, frame_rate: float, frame_count: int | None) -> float:
        """The bitrate to hit, or not to exceed with a capped quality.

        Raises :class:`RqlvcError` for a size when ``frame_count`` is not known.
        """
        if self.bitrate is not None:
            return self.bitrate
        if self.quality is not None and self.buffer is not None:
            return self.buffer.maxrate
        if frame_count is None:
            raise RqlvcError(
                "a target size needs the number of frames, which this input does not tell: "
                "give it with --frames, or give --bitrate."
            )
        return 8 * (self.size or 0) * frame_rate / frame_count


class Control(NamedTuple):
    """All that the encoding session needs to hit ``bitrate``."""

    controller: Controller
    predictor: Predictor | RealEncodes | None
    bitrate: float
    """Bits per second."""
    quality: QualityRange
    buffer: Buffer | None
    policy: Policy


def open_control(
    target: RateTarget,
    codec: Codec,
    properties: VideoProperties,
    frame_count: int | None,
    on_warning: Callable[[str], None],
) -> Control:
    """The controller that ``target`` names, for one stream of ``codec``, with the points that it works on.

    Raises :class:`RqlvcError` when there is no such controller, when it needs RQNet and that is not there, and when a
    size is asked for without knowing the number of frames.
    """
    frame_rate = float(properties.frame_rate)
    if target.outlook is not None:
        frame_count = len(target.outlook)
    bitrate = target.bits_per_second(frame_rate, frame_count)
    quality = QualityRange(carried_quality(target.min_quality), carried_quality(target.max_quality))
    if target.quality is not None:
        quality = QualityRange(min(quality.minimum, target.quality), carried_quality(target.quality))
    controller = make_controller(
        target.controller,
        bitrate=bitrate,
        framerate=frame_rate,
        pixels=properties.width * properties.height,
        total_frames=None if target.quality is not None else frame_count,
        min_quality=quality.minimum,
        max_quality=quality.maximum,
        weights=target.gop_weights,
        window=target.window(bitrate, frame_rate),
        outlook=target.outlook,
    )
    predictor = _predictor(CONTROLLERS[target.controller], codec, target.rqnet, on_warning)
    return Control(controller, predictor, bitrate, quality, target.buffer, target.policy)


def _predictor(
    entry: ControllerEntry, codec: Codec, weights: Path | None, on_warning: Callable[[str], None]
) -> Predictor | RealEncodes | None:
    if weights is not None and entry.points not in ("optional", "predicted"):
        raise RqlvcError(f"the controller '{entry.name}' does not use RQNet: leave out the weights {weights}.")
    if entry.points in ("none", "first pass"):
        return None
    if entry.points == "encoded":
        return RealEncodes()
    if weights is None and codec.name != DEFAULT_CODEC:
        if entry.points == "optional":
            return None
        raise RqlvcError(
            f"the controller '{entry.name}' needs RQNet, and none is shipped for the codec '{codec.name}': train one "
            "and give its weights with --rqnet, or choose adaptive or no-rqnet."
        )
    from rqlvc.rate.rqnet import DEFAULT_WEIGHTS, load_rqnet

    if weights is None and not DEFAULT_WEIGHTS.exists():
        if entry.points == "predicted":
            raise RqlvcError(
                f"the controller '{entry.name}' needs RQNet, whose weights {DEFAULT_WEIGHTS} are not there: "
                "get them, or choose adaptive or no-rqnet."
            )
        on_warning(f"RQNet's weights {DEFAULT_WEIGHTS} are not there: {entry.name} does without predictions.")
        return None
    # Where the codec's networks run; a codec of other make may have no such attribute.
    rqnet = load_rqnet(weights or DEFAULT_WEIGHTS)
    mismatch = rqnet.mismatch(codec.name, codec.identity)
    if mismatch is not None:
        on_warning(mismatch)
    return rqnet
