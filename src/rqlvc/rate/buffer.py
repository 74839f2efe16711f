"""The decoder's buffer (VBV of MPEG-2, HRD of H.264): what it holds, how much of it a frame may take, and how to fit.

A channel delivers ``maxrate`` bits per second into a buffer of ``size`` bits, and waits while it is full. The decoder
takes each frame out whole at the frame's time stamp; the first when the buffer is full to ``initial`` of its size. A
frame of which not all bits are there at its time is a violation (underflow). So between two frames the buffer gains
the time between their stamps times the rate of the channel, whatever the frame rate is said to be. A full buffer is no
violation: the channel idles, as a network does, and no stuffing is sent.

Fullness is counted in fractions: what fits here fits in every later check of the file.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal, NamedTuple

from rqlvc.errors import RqlvcError
from rqlvc.rate.initial import INTER, INTRA
from rqlvc.rate.models import LogarithmicModel, log_bits
from rqlvc.rate.protocol import Decision, QualityRange, RatePoint

INITIAL = 0.9
"""Part of the buffer that is full when the first frame is taken, unless told otherwise (x264's default)."""
RESERVE, RESERVE_FRAMES = 0.2, 1.5
"""An inter frame is planned to leave this part of the buffer, and this many mean frames at least, for what follows."""
STEP = 0.25
"""Part of what is there beyond the reserve, or lacks, that one inter frame may spend or must save."""
LARGEST = 0.8
"""Part of the bits there that one frame is planned to take at most."""
EASY, EASY_INTRA = 0.8, 0.5
"""With a capped quality: parts of the buffer that are never spent to keep the quality up when the cap is near. Where it
is lower, the controller comes back to the quality step by step, rather than with a frame here and there."""
USABLE = 0.7
"""Credit that would need the buffer to fall below this part is not saved: the channel lost it while it idled."""
NEW_RATE = 1.25
"""A constant rate that rises or falls by this factor begins anew: debt and credit of the old rate, paid back at the new
one, would keep it from its target, and the buffer bears them anyway."""
DROP_BELOW = 0.2
"""A frame whose time comes with less than this part in the buffer is dropped, where frames may be."""
SECOND, SETTLED = 1, Fraction(1, 2)
"""A steady channel takes about the same in every second that begins so many seconds after a new rate or scene."""
STEADY = 0.085
"""Part of it by which it may take more or less: less than the tenth that is meant, for time stamps are not even."""
STEADY_FRAMES = 1.5
"""Where frames are few, it may be as much as these bring at least."""
STEADY_LEVELS = 18.0, 6.0
"""Levels that a frame may be moved by for it. What is then still too large is something new, and begins a second."""
SPARE = 0.5
"""Part of the buffer that must be there before a second may be said to have taken too little: it is filled first."""
TRIES = 4
"""Encodes of one frame before the lowest level is tried."""
AIM = 0.94
"""A frame that is coded again aims at this part of its room: its law is only known by what was tried."""
SAME_LOG_BITS = 1e-3
SMALLEST_STEP = 0.25
"""Quality levels between two tries, at least."""

Policy = Literal["peak", "constant", "capped"]
"""What the channel's rate is beside the target: a peak above an average; the target itself, so that what is not spent
is lost; or a cap over a constant quality."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """``maxrate`` in bits per second, ``size`` in bits. Raises :class:`RqlvcError` for values that make no sense."""

    maxrate: float
    size: float
    initial: float = INITIAL

    def __post_init__(self) -> None:
        for name, value in (("rate of the channel", self.maxrate), ("size of the buffer", self.size)):
            if not (math.isfinite(value) and value > 0):
                raise RqlvcError(f"the {name} must be above 0, not {value:g}.")
        if not 0 < self.initial <= 1:
            raise RqlvcError(f"the buffer starts full to a part above 0 and up to 1, not {self.initial:g}.")


@dataclass(frozen=True, slots=True)
class Bucket:
    """A buffer at one moment."""

    rate: Fraction
    size: Fraction
    fullness: Fraction
    time: Fraction

    @classmethod
    def of(cls, buffer: Buffer) -> "Bucket":
        """Before the first frame, whose time is 0."""
        size = Fraction(buffer.size)
        return cls(Fraction(buffer.maxrate), size, size * Fraction(buffer.initial), Fraction(0))

    def at(self, time: Fraction) -> "Bucket":
        """The same buffer at a later ``time`` (seconds), nothing taken."""
        filled = self.fullness + self.rate * max(time - self.time, Fraction(0))
        return replace(self, fullness=min(filled, self.size), time=time)

    def taken(self, bits: int) -> "Bucket":
        return replace(self, fullness=self.fullness - bits)

    def with_rate(self, rate: float) -> "Bucket":
        """From this moment on the channel delivers ``rate`` bits per second."""
        return replace(self, rate=Fraction(rate))


class Bounds(NamedTuple):
    """The bits that a frame may take."""

    least: float = 0.0
    most: float = math.inf

    @classmethod
    def near(cls, bits: float, tolerance: float) -> "Bounds":
        """Those that miss ``bits`` by this part of it at most."""
        return cls((1 - tolerance) * bits, (1 + tolerance) * bits)


FREE = Bounds()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a frame shall get, the buffer considered, before it is coded."""

    quality: float
    bits: float | None
    """Expected at that quality; None where the controller has no curve."""


def plan(
    decision: Decision,
    bucket: Bucket,
    frame_bits: float,
    *,
    intra: bool,
    limits: QualityRange,
    policy: Policy,
    steady: Bounds = FREE,
) -> Plan:
    """Keep the expected bits of a frame to what the buffer can spare, and near ``steady``. ``frame_bits`` is what the
    channel brings during a mean frame; ``bucket`` is at the frame's time."""
    curve = _curve(decision, intra)
    if curve is None:
        return Plan(decision.quality, None)
    full, size = float(bucket.fullness), float(bucket.size)
    spare = full - max(RESERVE * size, RESERVE_FRAMES * frame_bits)
    most = LARGEST * full if intra else min(LARGEST * full, frame_bits + STEP * spare)
    quality = _steadied(decision.quality, curve, steady, limits)
    kept = (EASY_INTRA if intra else EASY) * size - (0 if intra else frame_bits)
    if policy == "capped" and curve.bits(limits.maximum) <= full - kept:
        return Plan(limits.maximum, curve.bits(limits.maximum))
    expected = curve.bits(quality)
    if expected > most:
        quality = limits.clip(min(curve.quality(max(most, 1.0)), quality))
    elif policy == "constant" and expected < full + frame_bits - size:
        quality = limits.clip(max(curve.quality(full + frame_bits - size), quality))
    return Plan(quality, curve.bits(quality))


def steady_levels(quality: float, steady: Bounds, limits: QualityRange) -> QualityRange:
    """The levels that a frame may be moved to from ``quality`` so that it keeps to ``steady``."""
    return limits if steady == FREE else limits.around(quality, *STEADY_LEVELS)


def _steadied(quality: float, curve: LogarithmicModel, steady: Bounds, limits: QualityRange) -> float:
    """The level nearest to ``quality``, and near enough, at which a frame is expected within the bounds."""
    bits, near = curve.bits(quality), steady_levels(quality, steady, limits)
    if bits > AIM * steady.most:
        return near.clip(curve.quality(AIM * steady.most))
    return near.clip(curve.quality(steady.least / AIM)) if bits < steady.least else quality


def _curve(decision: Decision, intra: bool) -> LogarithmicModel | None:
    """The controller's curve of the frame, or one of the usual slope through what it expects; None without either."""
    if decision.alpha is not None and decision.beta is not None:
        return LogarithmicModel(decision.alpha, decision.beta)
    if decision.target_bits is None:
        return None
    return (INTRA if intra else INTER).through(RatePoint(decision.quality, decision.target_bits))


@dataclass(slots=True)
class SteadyRate:
    """Keeps what every second takes near what the channel brings, for encoders that save nothing for later."""

    since: Fraction = SETTLED
    """Time from which on seconds count."""
    balance: float = 0.0
    """Bits that all frames took less what the channel brought."""
    _before: list[tuple[Fraction, float]] = field(default_factory=list)
    """The balance before each frame of the last second, with the frame's time."""

    def restart(self, time: Fraction) -> None:
        """What follows ``time`` is new, and shall be given time to settle."""
        self.since = time + SETTLED
        self._before.clear()

    def bounds(self, bucket: Bucket, brought: float) -> Bounds:
        """What a frame may take so that neither the second that it ends nor a part of that is off. ``bucket`` is at its
        time, before which the channel ``brought`` something since the last frame."""
        if bucket.time < self.since:
            return FREE
        off = max(STEADY * float(bucket.rate) * SECOND, STEADY_FRAMES * brought)
        past = [self.balance, *(balance for _, balance in self._last_second(bucket.time))]
        own = self.balance - brought
        most = min(past) + off - own
        least = max(past) - off - own if bucket.fullness >= Fraction(SPARE) * bucket.size else 0.0
        return Bounds(min(least, AIM * most), most)

    def add(self, bucket: Bucket, bits: float, brought: float, *, cut: bool) -> None:
        """A frame at the time of ``bucket`` took ``bits``; ``cut``: another scene begins with it."""
        if cut or bits > self.bounds(bucket, brought).most:
            self.restart(bucket.time)
        if bucket.time >= self.since:
            self._before = [*self._last_second(bucket.time), (bucket.time, self.balance)]
        self.balance += bits - brought

    def _last_second(self, time: Fraction) -> list[tuple[Fraction, float]]:
        return [(then, balance) for then, balance in self._before if then > time - SECOND]


def lost_credit(credit: float, bucket: Bucket) -> float:
    """Bits saved against the channel's rate that the buffer can not give back any more."""
    return max(credit - max(float(bucket.fullness - Fraction(USABLE) * bucket.size), 0.0), 0.0)


def _slope(first: RatePoint, second: RatePoint) -> float | None:
    """d q / d ln R between two points; None where bits do not rise with the level."""
    rise = log_bits(second.bits) - log_bits(first.bits)
    step = second.quality - first.quality
    return abs(step) / max(abs(rise), SAME_LOG_BITS) if rise * step >= 0 else None


def fit(
    cost: Callable[[float], int],
    quality: float,
    bounds: Bounds,
    *,
    limits: QualityRange,
    alpha: float | None = None,
    intra: bool = False,
) -> float | None:
    """A level at which a frame costs no more than ``bounds`` allow and, where that can be, no less.

    ``cost`` codes the frame at a level; it is asked ``TRIES`` times at most, ``quality`` first, and then for the lowest
    level if nothing fitted. None when that does not fit either. ``alpha`` of Q = alpha * ln R + beta is where the
    search starts from; then it knows the frame itself.
    """
    slope = alpha or (INTRA if intra else INTER).alpha
    least, room = bounds
    most, smallest = max(AIM * room, (least + room) / 2), min(least / AIM, (least + room) / 2)
    fits: RatePoint | None = None
    over: RatePoint | None = None
    before: RatePoint | None = None
    for _ in range(TRIES):
        tried = RatePoint(quality, cost(quality))
        if tried.bits > room:
            over = tried
        elif fits is None or tried.bits > fits.bits:
            fits = tried
        wanting = tried.bits > room or tried.bits < least
        if not wanting or quality == (limits.minimum if tried.bits > room else limits.maximum):
            break
        bracket = fits is not None and over is not None and fits.quality < over.quality  # costs need not rise
        if fits is not None and over is not None and bracket:
            slope = _slope(fits, over) or slope
        elif before is not None:
            slope = _slope(before, tried) or slope
        before = tried
        aim = most if tried.bits > room else smallest
        step = slope * (log_bits(aim) - log_bits(tried.bits))
        quality = limits.clip(quality + math.copysign(max(abs(step), SMALLEST_STEP), step))
        if fits is not None and over is not None and bracket and not fits.quality < quality < over.quality:
            quality = (fits.quality + over.quality) / 2
    if fits is not None:
        return fits.quality
    return limits.minimum if cost(limits.minimum) <= room else None
