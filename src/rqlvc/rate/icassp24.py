"""``icassp24``: a power law per position and one common quality for the rest of the group of pictures.

Liao, Jia, Fan, Yan, Ma: "Rate-Quality Based Rate Control Model for Neural Video Compression", ICASSP 2024, after the
authors' published code. Their intra frames have a fixed level, tuned by hand for each target; here they are one more
class of the same model, so that their share too follows from the target.
"""

import math

from rqlvc.rate.allocation import FLOOR_BITS, WINDOW, BitBudget
from rqlvc.rate.initial import initial_model
from rqlvc.rate.models import LOG_LAMBDA_SPAN, MINIMUM_BITS
from rqlvc.rate.protocol import QUALITY_MAX, Decision, FrameInfo, FrameResult, QualityRange

POSITIONS = 4
INTRA_CLASS = POSITIONS
GROUP_LIMIT = 32
"""The authors' group of pictures; longer ones are budgeted in pieces of this length, since a debt that is paid back
within the group must not be many times the window's share."""
RATE_OF_C = 0.1
RATE_OF_K = 0.05
TOLERANCE = 0.01
BISECTIONS = 30
"""Resolves 63 levels to 1e-7; the authors' 50 change nothing."""

CENTRE = QUALITY_MAX / 2
LOG_STEP_PER_LEVEL = -LOG_LAMBDA_SPAN / QUALITY_MAX / 2
"""ln s falls by this per level: s is the quantiser step, s^2 ~ 1 / lambda, relative to the step at the centre."""


def log_step(quality: float) -> float:
    """ln of the quantiser step, 0 at the middle of the quality range."""
    return (quality - CENTRE) * LOG_STEP_PER_LEVEL


class Icassp24:
    """bpp = c * s^k for each of four positions, (c, k) moved after each frame by its log error."""

    def __init__(self, budget: BitBudget, pixels: int, limits: QualityRange) -> None:
        self.budget = budget
        self.limits = limits
        self.pixels = pixels
        self._c: list[float] = []
        self._k: list[float] = []
        for index in range(POSITIONS + 1):
            model = initial_model(index == INTRA_CLASS, pixels)
            self._c.append(model.bits(CENTRE) / pixels)
            self._k.append(1 / (model.alpha * LOG_STEP_PER_LEVEL))
        self._group_left = 0.0

    @staticmethod
    def _class(position: int) -> int:
        return position % POSITIONS if position else INTRA_CLASS

    def decide(self, info: FrameInfo) -> Decision:
        frames = self._frames_in_group(info)
        if info.position % GROUP_LIMIT == 0 or self.budget.frames == 0:
            self._group_left = self._group_bits(info, frames)
        quality = self._common_quality(info, frames)
        index = self._class(info.position)
        return Decision(quality, max(self._bits(index, quality), FLOOR_BITS))

    def update(self, result: FrameResult) -> None:
        self.budget.spend(result)
        self._group_left -= result.bits
        index = self._class(result.info.position)
        log_rate = math.log(max(result.bits, MINIMUM_BITS) / self.pixels)
        x = log_step(result.quality)
        for _ in range(self._repeats(result.info.index)):
            c, k = self._c[index], self._k[index]
            error = math.log(c) + k * x - log_rate
            if abs(math.expm1(error)) < TOLERANCE:
                break
            self._c[index] = min(max(c - RATE_OF_C * error * c, c / 3), 5 * c / 3)
            self._k[index] = min(max(k - RATE_OF_K * error * x, 5 * k / 3), k / 3)

    def set_rates(self, bitrate: float, framerate: float) -> None:
        before = self.budget.frame_bits
        self.budget.set_rates(bitrate, framerate)
        self._group_left *= self.budget.frame_bits / before

    @staticmethod
    def _repeats(index: int) -> int:
        return 10 if index < 16 else 6 if index < 160 else 2

    def _frames_in_group(self, info: FrameInfo) -> int:
        left = self.budget.frames_left(info) or GROUP_LIMIT
        return max(min(GROUP_LIMIT - info.position % GROUP_LIMIT, info.frames_to_intra or GROUP_LIMIT, left), 1)

    def _group_bits(self, info: FrameInfo, frames: int) -> float:
        """Eq. (7) with a group of pictures in place of the miniGOP."""
        window = min(WINDOW, self.budget.frames_left(info) or WINDOW)
        return (self.budget.frame_bits - self.budget.debt / window) * frames

    def _bits(self, index: int, quality: float) -> float:
        return self.pixels * self._c[index] * math.exp(self._k[index] * log_step(quality))

    def _common_quality(self, info: FrameInfo, frames: int) -> float:
        """The level at which the rest of the group costs what is left of its bits."""
        counts = [0] * (POSITIONS + 1)
        for position in range(info.position, info.position + frames):
            counts[self._class(position)] += 1
        low, high = self.limits.minimum, self.limits.maximum
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            bits = sum(count * self._bits(index, middle) for index, count in enumerate(counts) if count)
            low, high = (middle, high) if bits < self._group_left else (low, middle)
        return (low + high) / 2
