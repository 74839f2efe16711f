"""``adaptive``: a steady quality that spends the bitrate, whatever the frames cost.

There is a *base level*, from which every frame has the offset of its place in the group of pictures. Before each frame
it goes some way towards the level at which this frame and those of the window would cost the bits that are due: this
frame by what the filter makes of its predicted points and of the frames before (:mod:`rqlvc.rate.rate_filter`), those
to come as the last ones did, but for what a look-ahead shows of them. So a frame's target is what it is expected to
cost at a quality that hardly moves; equal bits for every frame would let the quality follow the content up and down,
which costs more than it gains.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from rqlvc.rate.allocation import FLOOR_SHARE, BitBudget, Due, landing
from rqlvc.rate.constant import Hierarchical
from rqlvc.rate.estimation import PredictedCurve
from rqlvc.rate.feedback import LastingError
from rqlvc.rate.hierarchy import (
    cut_short,
    group_length,
    last_use,
    level_offset,
    level_offsets,
    lower_as_a_whole,
)
from rqlvc.rate.initial import initial_model, ratio_change
from rqlvc.rate.models import MAXIMUM_LOG_BITS, FloatArray, LogarithmicModel, log_bits
from rqlvc.rate.outlook import Term, base_level, total_bits
from rqlvc.rate.protocol import QUALITY_MAX, Decision, FrameInfo, FrameResult, QualityRange
from rqlvc.rate.rate_filter import CENTRE, Context, RateFilter

READINGS = 2
"""Times the predicted curve is read, each time at the level that the last reading led to: it is not quite straight."""
WINDOW = 80
"""Frames over which a debt is usually paid back. Twice the paper's: over fewer, quality follows the content."""
WINDOW_RATE, END_RATE = 4.0, 24.0
"""Part of the way that the base goes to what the budget asks for at an inter frame, times the frames of the window, and
times the frames left, so that the total lands on the target. At an intra frame, where quality may change unseen, it
goes all the way."""
SLACK = 4.0
"""Levels that the base stays behind at most."""
RISE = 6.0
"""Levels that it may rise by from one frame to the next: bits spent in error do not come back."""
MEMORY, LAST_MEMORY, INTRA_MEMORY = 16, 8, 2
"""Frames whose mean cost those to come are expected to have, at most: inter frames of two miniGOPs; only the last inter
frames where hardly more are left to code; and intra frames."""
UNKNOWN = 2
"""Inter frames of a scene whose cost nobody knows well: they are coded once to see it, unless they were rehearsed."""
REHEARSALS, NEAR = 3, 6.0
"""Times that the first frames of a scene are coded to see what they cost, at most: again where that has shown them to
need a level further away than this."""
RATE_CHANGE = 0.1
"""Change of ln(bits per frame) beyond which the base may go all the way: it was asked for."""
ABOVE, CREEP = 8.0, 0.25
"""Levels that the base may be above the highest, where only the lowest frames still get better, and levels by which it
rises further from frame to frame if the bits that are due are more than can be spent."""
CHANGE_POWER, POWER_LOST, LARGEST_CHANGE = 1.1, 0.35, 4.0
"""Bits of inter frames rise with about this power of their novelty at the lowest levels, and with this part of it less
at the highest, where noise costs most; no change beyond this is believed."""
BEYOND = 0.7
"""Part of the change of the frames in view that those beyond are expected to show."""
YOUNG = 0.9
"""What an inter frame of the first miniGOP after an intra frame takes, in those that come later: there is less error to
mend in what it is predicted from."""
RECODED = 0.15
"""Part of its bits by which a frame may miss them with the controller ``recode``."""
KIND = 2.0
"""Levels by which frames may differ that are much the same to the plan: what limits do to one, they do to all."""


@lru_cache(maxsize=64)
def _counts(weights: tuple[float, ...], group: int | None) -> FloatArray:
    """Inter frames before each position of a group of pictures, (positions + 1, kinds, 3): how many, the sum of their
    offsets, and that of the levels by which they are above the frame before them; ``YOUNG`` ones, of which a group
    without end has none worth counting, count as the part of a frame that they take. Frames are of one kind whose
    offsets differ by less than ``KIND``."""
    offsets = np.array(level_offsets(weights, group))
    kinds = np.round(offsets / KIND).astype(int)
    counts = np.zeros((len(offsets) + 1, kinds.max() - kinds.min() + 1, 3))
    for position in range(1, len(offsets)):
        share = 1.0 if group is None else _share(position, weights)
        before = offsets[position - 1] if position > 1 or group else offsets[-1]
        rise = max(offsets[position] - before, 0.0)
        counts[position + 1, kinds[position] - kinds.min()] = share, share * offsets[position], share * rise
    return counts.cumsum(axis=0)


def _share(position: int, weights: tuple[float, ...]) -> float:
    """Of what later inter frames of a group of pictures take; 1 for the intra frame."""
    return YOUNG if 0 < position <= len(weights) else 1.0


class Alike(NamedTuple):
    """Frames that are much the same to the plan."""

    frames: float
    offset: float
    """Levels from the base, on average."""
    rise: float = 0.0
    """Levels above the frame before, on average; 0 for each that is below it."""


class Remaining(NamedTuple):
    """What is coded within the window after the frame in hand."""

    inter: tuple[Alike, ...]
    intra: tuple[Alike, ...]


class Ahead(NamedTuple):
    """What a decision depends on but for what the frame in hand costs."""

    due: Due
    offset: float
    """Levels from the base to that frame."""
    after: Remaining
    change: float
    """Times as much as before that inter frames are expected to cost."""


@dataclass(slots=True)
class Usual:
    """Mean bits of frames, each brought to the base level of its time, the mean of these, and of their novelties."""

    bits: float = 0.0
    base: float = 0.0
    novelty: float = 0.0
    seen: int = 0

    def observe(self, log_rate: float, base: float, novelty: float, memory: int) -> None:
        """A frame that took ``log_rate`` at ``base``; about as many count as ``memory`` says."""
        self.seen = min(self.seen + 1, memory)
        self.bits += (math.exp(min(log_rate, MAXIMUM_LOG_BITS)) - self.bits) / self.seen
        self.base += (base - self.base) / self.seen
        self.novelty += (novelty - self.novelty) / self.seen


class Rehearsed(NamedTuple):
    """A frame that was coded to see what it costs."""

    context: Context
    quality: float
    log_rate: float


class Adaptive:
    """The default controller. Works with predicted points and, less sharply, without. With ``tolerance`` it asks for
    every frame to be coded again that misses what it was expected to cost by more than this part, unless the
    base is beyond the limits, where bits are left over or lacking anyway."""

    def __init__(self, budget: BitBudget, pixels: int, limits: QualityRange, *, tolerance: float | None = None) -> None:
        self.budget = budget
        self.limits = limits
        self.tolerance = tolerance
        self._filter = RateFilter(initial_model(False, pixels), initial_model(True, pixels))
        self._lasting_error = LastingError()
        self._inter, self._intra = Usual(), Usual()
        self._base: float | None = None
        self._free = False  # whether the base may go all the way
        self._last_quality = CENTRE
        self._last_novelty = 0.0  # of an inter frame; 0 where not known
        self._rehearsals: list[float] = []  # base levels of those of the newest scene
        self._rehearsed: dict[int, Rehearsed] = {}  # by index

    def decide(self, info: FrameInfo) -> Decision:
        state = self._filter
        if info.rehearsal:
            self._learn(info.rehearsal)
        elif info.cut:
            state.expect_new_content()
            self._lasting_error = LastingError()
            self._inter.seen = self._intra.seen = 0
            self._free = True
        state.step(0.0 if info.tried or info.index in self._rehearsed else self._change(info))
        self.budget.replan()
        ahead = self._ahead(info)
        context, offset = Context.of(info, self._last_quality), ahead.offset
        curve = None  # predicted points were read before a trial
        if info.tried:
            state.observe_coded(context, info.tried.quality, log_bits(info.tried.bits))
        elif info.index not in self._rehearsed:
            curve = PredictedCurve.through(self._lasting_error.mended(info))
        unread = state.mean, state.covariance
        base = self._next_base(info, context, ahead, CENTRE if self._base is None else self._base)
        for _ in range(READINGS):
            quality = self.limits.clip(base + offset)
            if curve:
                state.mean, state.covariance = unread
                state.observe_predicted(context, quality, curve(quality), curve.slope(quality))
            base = self._next_base(info, context, ahead, base)
        quality = self.limits.clip(base + offset)
        self._base, self._free = base, False
        model = self._model(info, context, quality)
        tentative = not (info.intra or info.cut or info.tried) and self._inter.seen < UNKNOWN
        return Decision(
            quality,
            model.bits(quality),
            model.alpha,
            model.beta,
            tentative,
            self._rehearsal(info, base),
            landing(info) or (self.tolerance if self.limits.clip(base) == base else None),
        )

    def update(self, result: FrameResult) -> None:
        self.budget.spend(result)
        self._observe(result)

    def _rehearsal(self, info: FrameInfo, base: float) -> Hierarchical | None:
        """Codes a scene of which nobody knows what it costs, or has only seen that far from ``base``."""
        base = QualityRange().clip(base)
        if info.rehearsal:
            wanted = len(self._rehearsals) < REHEARSALS and abs(base - self._rehearsals[-1]) > NEAR
        else:
            wanted = info.intra and not (self._intra.seen or self._inter.seen)
            if wanted:
                self._rehearsals.clear()
                self._rehearsed.clear()
        if not wanted:
            return None
        self._rehearsals.append(base)
        return Hierarchical(base, self.budget.pattern.inter)

    def _learn(self, rehearsal: tuple[FrameResult, ...]) -> None:
        """From frames that were coded to see what they cost."""
        self._intra.seen = self._inter.seen = 0
        self._lasting_error = LastingError()
        before = self._last_quality
        for result in rehearsal:
            self._filter.step(self._change(result.info))
            context = Context.of(result.info, self._last_quality)
            self._observe(result)
            self._rehearsed[result.info.index] = Rehearsed(context, result.quality, log_bits(result.bits))
        self._last_quality = before

    def _observe(self, result: FrameResult) -> None:
        """Learn what frames cost from one."""
        context = Context.of(result.info, self._last_quality)
        log_rate = log_bits(result.bits)
        curve = PredictedCurve.through(self._lasting_error.mended(result.info))
        if curve:
            self._filter.judge_predicted(context, result.quality, log_rate - curve(result.quality))
        self._lasting_error.observe(result)
        usual = self._intra if result.info.intra else self._inter
        base = result.quality if self._base is None else self._base
        seen = self._rehearsed.get(result.info.index)
        if seen:
            self._filter.observe_change(seen.context, seen.quality, context, result.quality, log_rate - seen.log_rate)
        if seen or self._filter.observe_coded(context, result.quality, log_rate):
            at_base = log_rate - self._filter.difference(context, result.quality, base)
            at_base -= math.log(_share(result.info.position, self.budget.pattern.inter))
            memory = INTRA_MEMORY if result.info.intra else self._memory(result.info)
            usual.observe(at_base, base, _own_novelty(result.info), memory)
        else:  # the first frame of a new scene is no example of the next
            usual.seen = 0
        self._last_quality = result.quality
        self._last_novelty = 0.0 if result.info.intra else _own_novelty(result.info)

    def set_rates(self, bitrate: float, framerate: float) -> None:
        before = self.budget.frame_bits
        self.budget.set_rates(bitrate, framerate)
        self._free = self._free or abs(math.log(self.budget.frame_bits / before)) > RATE_CHANGE

    def _ahead(self, info: FrameInfo) -> Ahead:
        """What there is to decide on, whatever this frame is expected to cost."""
        due, weights = self.budget.due(info), self.budget.pattern.inter
        change = self._change_ahead(info, due.frames - 1)
        return Ahead(due, level_offset(info, weights), remaining(info, due.frames, weights), change)

    def _next_base(self, info: FrameInfo, context: Context, ahead: Ahead, near: float) -> float:
        """The base after some way towards the level at which all frames of the window cost what is due, which is
        thought to be ``near`` some level."""
        model, due = self._model(info, context, self.limits.clip(near + ahead.offset)), ahead.due
        here = Term(-model.beta / model.alpha, 1 / model.alpha, ahead.offset)
        terms = [here, *self._later(ahead, context, Usual(model.bits(near), near))]
        # However deep the debt. At the end of a group of pictures all that is left may cost far less than the mean.
        least = FLOOR_SHARE * min(due.frames * self.budget.frame_bits, total_bits(terms, near, self.limits))
        wanted = base_level(terms, max(due.bits, least), self.limits)
        wanted = min(wanted, max(self.limits.maximum + ABOVE, (self._base or 0.0) + CREEP))
        left = self.budget.frames_left(info)
        rate = max(WINDOW_RATE / self.budget.window, END_RATE / left if left else 0.0)
        if self._base is None or info.rehearsal or (left and rate >= 1):
            return wanted
        wanted = min(wanted, self._base + RISE)
        if self._free or info.intra:
            return wanted
        behind = min(max(self._base - wanted, -SLACK), SLACK)
        return wanted + (1 - min(rate, 1.0)) * behind

    def _model(self, info: FrameInfo, context: Context, quality: float) -> LogarithmicModel:
        """Of the frame in hand near ``quality``: as the filter has it, but through what a trial or the rehearsal has
        shown."""
        model = self._filter.model(context, quality)
        if info.tried:
            return model.through(info.tried)
        seen = self._rehearsed.get(info.index)
        if seen is None:
            return model
        expected = log_bits(self._filter.model(seen.context, seen.quality).bits(seen.quality))
        return replace(model, beta=model.beta - model.alpha * (seen.log_rate - expected))

    def _memory(self, info: FrameInfo) -> int:
        """Inter frames that tell what others cost."""
        left = self.budget.frames_left(info)
        return min(MEMORY, self.budget.window, MEMORY if left is None else max(LAST_MEMORY, left // 2))

    def _change(self, info: FrameInfo) -> float:
        """ln bits that an inter frame is expected to cost more than the inter frame before, at the same level."""
        before, now = self._last_novelty, _own_novelty(info)
        return math.log(self._cost_change(now / before)) if before and now and not info.intra else 0.0

    def _cost_change(self, change: float) -> float:
        """Times as many bits that inter frames take whose novelty is ``change`` times as much."""
        base = QualityRange().clip(CENTRE if self._base is None else self._base)
        power = CHANGE_POWER * (1 - POWER_LOST * (base / QUALITY_MAX) ** 2)
        return math.pow(min(max(change, 1 / LARGEST_CHANGE), LARGEST_CHANGE), power)

    def _change_ahead(self, info: FrameInfo, frames: int) -> float:
        """Times as much as before that an inter frame of the next ``frames`` is expected to cost, at the same level."""
        before, view = self._inter.novelty, info.novelties[1 : 1 + frames]
        if not (self._inter.seen and before and view):
            return 1.0
        change = sum(view) / len(view) / before - 1
        change *= BEYOND + (1 - BEYOND) * len(view) / frames
        return self._cost_change(1 + change)

    def _later(self, ahead: Ahead, context: Context, here: Usual) -> Iterator[Term]:
        """The frames after that in hand, which would cost what is ``here``. Each kind costs what it usually does, inter
        frames with the change ahead, or, as long as none has been seen, what the plan has it cost beside the other."""
        ratio, dependence = self.budget.pattern.intra * ratio_change(here.base), self._filter.dependence
        for intra, kinds in ((False, ahead.after.inter), (True, ahead.after.intra)):
            own, other = (self._intra, self._inter) if intra else (self._inter, self._intra)
            if own.seen or context.intra == intra:
                usual, scale = (own, 1.0 if intra else ahead.change) if own.seen else (here, 1.0)
            else:
                usual, scale = other if other.seen else here, ratio if intra else 1 / ratio
            slope = self._filter.steady_slope(intra)
            log_rate = log_bits(scale * usual.bits) - slope * usual.base
            for frames, offset, rise in kinds:
                if frames:
                    yield Term(log_rate + math.log(frames) + dependence * rise, slope, offset)


def _own_novelty(info: FrameInfo) -> float:
    """How much there is to code of this frame; 0 where that is not known."""
    return info.novelties[0] if info.novelties else 0.0


def remaining(info: FrameInfo, frames: int, weights: tuple[float, ...]) -> Remaining:
    """Of ``frames`` frames, those after the first one, which is that of ``info``."""
    group = group_length(info)
    every = _counts(weights, group)
    if group is None:
        return Remaining(_kinds((frames - 1) / len(weights) * every[-1]), ())
    own = _counts(weights, last_use(info))
    here = min(frames, len(own) - 1 - info.position)
    groups, rest = divmod(frames - here, group)
    left, lower = own[info.position + here] - own[info.position + 1], lower_as_a_whole(info)
    # Whether the last group ends with the video, as will be in view from its beginning.
    if rest and frames == info.frames_left and len(info.novelties) > rest:
        shorter = cut_short(rest, group)
        inter = _kinds(left, lower) + _kinds(groups * every[group]) + _kinds(_counts(weights, rest)[rest], shorter)
        return Remaining(inter, (Alike(groups, 0.0), Alike(1, shorter)))
    others = groups * every[group] + every[rest]
    inter = _kinds(left + others) if own is every and not lower else _kinds(left, lower) + _kinds(others)
    return Remaining(inter, (Alike(groups + (rest > 0), 0.0),))


def _kinds(counts: FloatArray, lower: float = 0.0) -> tuple[Alike, ...]:
    """Of frames by kind, (kinds, 3): how many of each that there are, their mean offset, with ``lower`` added, and mean
    rise."""
    return tuple(Alike(count, total / count + lower, rises / count) for count, total, rises in counts.tolist() if count)
