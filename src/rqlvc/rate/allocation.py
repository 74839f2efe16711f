"""How many bits each frame gets: sliding window and miniGOP (RQ-LVC, Eqs. 7 and 8), with intra frames in the budget.

Eq. (7), R_mg = (R_avg * (N_coded + SW) - R_coded) / SW * N_m, is written here as *plan minus a share of the debt*:

    R_mg = planned bits of the miniGOP - (R_coded - planned bits of the frames coded) * (its part of the window)

which is the same number when all frames are inter frames, and stays smooth when every intra frame is planned to cost
several times as much, when the rate changes on the way, and when the end comes near: then the window is what is left,
so that the plan and the debt meet exactly at the last frame.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rqlvc.errors import RqlvcError
from rqlvc.rate.hierarchy import GOP_WEIGHTS
from rqlvc.rate.initial import INTER, intra_ratio
from rqlvc.rate.protocol import FrameInfo, FrameResult

WINDOW = 40
"""Frames over which a debt is usually paid back (the paper's SW)."""
INTRA_WEIGHT = 10.0
"""Bits of an intra frame in mean inter frames before the content has shown its own: 4 to 40 on real sequences."""
WEIGHING_FRAMES = 4
"""Inter frames that it takes to judge that."""
INTRA_WEIGHT_RANGE = (1.0, 100.0)
INTRA_ADVANTAGE = 0.0
"""Quality levels by which an intra frame is meant to exceed the mean of its inter frames."""
INTRA_STEP = 12.0
"""Quality levels that one group of pictures may correct, since the slope is only known on average."""
FLOOR_SHARE = 0.1
FLOOR_BITS = 100.0
"""A frame never gets less than a tenth of its plan, nor less than HM's 100 bits, however deep the debt."""
LANDING_FRAMES, LANDING = 2, 0.03
"""Last inter frames that should meet their target, and by what part of it they may miss it."""


def landing(info: FrameInfo) -> float | None:
    """The tolerance (:attr:`Decision.tolerance`) with which a total is met in the end; None before that."""
    last = info.frames_left is not None and info.frames_left <= LANDING_FRAMES
    return LANDING if last and not info.intra else None


class Pattern:
    """The weights of the frames of a group of pictures: one intra frame, then miniGOPs with weights of mean 1."""

    def __init__(self, weights: Sequence[float] = GOP_WEIGHTS, intra_weight: float = INTRA_WEIGHT) -> None:
        if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise RqlvcError("the weights of a miniGOP must be positive numbers, such as 1,1.6,1,2.")
        mean = sum(weights) / len(weights)
        self.inter = tuple(weight / mean for weight in weights)
        self.intra = intra_weight

    def __len__(self) -> int:
        """Inter frames in a miniGOP (the paper's N_m)."""
        return len(self.inter)

    def slot(self, position: int) -> int:
        """Index in its miniGOP of the inter frame ``position`` frames after the intra frame."""
        return (position - 1) % len(self.inter)

    def weight(self, position: int) -> float:
        return self.inter[self.slot(position)] if position else self.intra

    def total(self, position: int, frames: int, period: int | None) -> float:
        """Weight of ``frames`` frames from ``position`` on, with an intra frame every ``period`` (None: no more)."""
        return self._from_intra(position + frames, period) - self._from_intra(position, period)

    def _from_intra(self, frames: int, period: int | None) -> float:
        groups, rest = divmod(frames, period) if period else (0, frames)
        return groups * self._group(period or 0) + self._group(rest)

    def _group(self, frames: int) -> float:
        if frames == 0:
            return 0.0
        mini_gops, rest = divmod(frames - 1, len(self.inter))
        return self.intra + mini_gops * len(self.inter) + sum(self.inter[:rest])


@dataclass(slots=True)
class GroupCost:
    """What the group of pictures in hand has cost so far, to weigh the next intra frame by it."""

    intra_bits: float = 0.0
    intra_quality: float = 0.0
    inter_frames: int = 0
    inter_bits: float = 0.0
    inter_quality: float = 0.0

    def add(self, result: FrameResult) -> None:
        if result.info.intra:
            self.intra_bits, self.intra_quality = result.bits, result.quality
        else:
            self.inter_frames += 1
            self.inter_bits += result.bits
            self.inter_quality += result.quality

    def intra_weight(self) -> float | None:
        """Bits of the intra frame over those of a mean inter frame, had both been at the quality they should have.

        None while there is too little to tell.
        """
        if self.inter_frames < WEIGHING_FRAMES or not self.intra_bits:
            return None
        ratio = self.intra_bits * self.inter_frames / max(self.inter_bits, FLOOR_BITS)
        gap = self.inter_quality / self.inter_frames + INTRA_ADVANTAGE - self.intra_quality
        weight = ratio * math.exp(min(max(gap, -INTRA_STEP), INTRA_STEP) / INTER.alpha)
        return _possible_weight(weight)


def _possible_weight(weight: float) -> float:
    """The weight of an intra frame, moved into the range of those that are believed."""
    return min(max(weight, INTRA_WEIGHT_RANGE[0]), INTRA_WEIGHT_RANGE[1])


class Due(NamedTuple):
    """What is left for the next ``frames`` frames: ``bits``, which may be below 0, and their ``weight`` in the plan."""

    frames: int
    bits: float
    weight: float


class BitBudget:
    """Hands out the bits of a stream, frame by frame: ``target`` before a frame, ``spend`` after it.

    ``bitrate`` in bits per second; ``window``: frames over which a debt is paid back. Raises :class:`RqlvcError` for
    rates that are not positive.
    """

    def __init__(
        self,
        bitrate: float,
        framerate: float,
        total_frames: int | None = None,
        weights: Sequence[float] | None = None,
        window: int = WINDOW,
    ) -> None:
        self.pattern = Pattern(GOP_WEIGHTS if weights is None else weights)
        self.total_frames = total_frames
        self.window = window
        self.frames = 0
        self.coded = 0.0
        self._entitled = 0.0  # average bits of the frames coded so far, each at the rate of its time
        self._planned = 0.0  # the same bits as the pattern spreads them
        self._share = 0.0  # planned bits of the frame in hand
        self._group = GroupCost()
        self._mini_gop: float | None = None  # bits of this miniGOP that are not yet spent; None before it is planned
        self.set_rates(bitrate, framerate)

    def set_rates(self, bitrate: float, framerate: float) -> None:
        """New rates from the next frame on; what was coded before is held against the old ones."""
        if not (math.isfinite(bitrate) and bitrate > 0):
            raise RqlvcError(f"the bitrate must be above 0 bits per second, not {bitrate:g}.")
        if not (math.isfinite(framerate) and framerate > 0):
            raise RqlvcError(f"the frame rate must be above 0 frames per second, not {framerate:g}.")
        self.frame_bits = bitrate / framerate
        self.replan()

    def replan(self) -> None:
        """Let the next frame start a plan of its own.

        Called before every frame, this pays errors back over the window rather than within the rest of the miniGOP,
        which keeps the quality steadier.
        """
        self._mini_gop = None

    @property
    def debt(self) -> float:
        """Bits spent beyond the average rate so far; negative when there is credit."""
        return self.coded - self._entitled

    def frames_left(self, info: FrameInfo) -> int | None:
        """Frames still to code, this one included; None when the end is unknown or already passed."""
        if info.frames_left is not None:
            return info.frames_left if info.frames_left > 0 else None
        left = (self.total_frames or 0) - self.frames
        return left if left > 0 else None

    def due(self, info: FrameInfo) -> "Due":
        """What the frames of the window from this one on may cost together. To be asked once before each frame."""
        if info.new_rate:
            self.coded = self._planned = self._entitled
        left = self.frames_left(info)
        period = info.group_length
        if info.intra or self.pattern.slot(info.position) == 0 or self._mini_gop is None:
            self.pattern.intra = self._group.intra_weight() or self.pattern.intra
            if info.novelty and (info.cut or not self.frames):  # the content is not what it was
                self.pattern.intra = _possible_weight(intra_ratio(info.novelty))
        if info.intra:
            self._group = GroupCost()
            if left is None:
                self._planned = self._entitled  # a group cut short leaves no gap between plan and entitlement
        unit = self._unit(info, left, period)
        self._share = unit * self.pattern.weight(info.position)
        frames = min(self.window, left or self.window)
        total = self.pattern.total(info.position, frames, period)
        return Due(frames, unit * total - (self.coded - self._planned), total)

    def target(self, info: FrameInfo) -> float:
        """Bits for this frame, always positive (Eqs. 7 and 8)."""
        due = self.due(info)
        unit, weight = due.bits / due.weight, self.pattern.weight(info.position)
        if info.intra:
            self._mini_gop = None
            return self._floored(unit * weight)
        slot = self.pattern.slot(info.position)
        limits = len(self.pattern) - slot, self.frames_left(info), info.frames_to_intra
        rest = sum(self.pattern.inter[slot : slot + min(limit for limit in limits if limit)])
        if slot == 0 or self._mini_gop is None:
            self._mini_gop = unit * rest
        return self._floored(self._mini_gop * weight / rest)

    def spend(self, result: FrameResult) -> None:
        """Book what the frame really cost."""
        info, bits = result.info, result.bits if result.charged is None else result.charged
        # Where nothing says when the next intra frame comes, its extra bits are a debt like any other.
        planned = self.frames_left(info) is not None or info.frames_to_intra is not None or not info.intra
        self._planned += self._share if planned else self.frame_bits
        self._entitled += self.frame_bits
        self._mini_gop = None if self._mini_gop is None else self._mini_gop - bits
        self._group.add(result)
        self.coded += bits
        self.frames += 1

    def _unit(self, info: FrameInfo, left: int | None, period: int | None) -> float:
        """Planned bits of a frame of weight 1: what is due until the end, or else until the next intra frame."""
        horizon = left or info.frames_to_intra
        if not horizon:
            return self.frame_bits
        due = self._entitled + self.frame_bits * horizon - self._planned
        return max(due, 0.0) / self.pattern.total(info.position, horizon, period)

    def _floored(self, target: float) -> float:
        return max(target, FLOOR_SHARE * self._share, FLOOR_BITS)
