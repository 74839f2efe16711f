"""What a predictor gets wrong time and again with one video, learnt from the frames that were coded since.

RQNet is out by a factor that differs from content to content and hardly from frame to frame: a texture that moves by
fractions of a sample is cheaper than its search tells, for all frames of the scene.
"""

import math
from collections.abc import Iterable

from rqlvc.rate.estimation import PredictedCurve
from rqlvc.rate.models import log_bits
from rqlvc.rate.protocol import FrameResult, RatePoint

RATE = 0.2
"""Part of the newest frame's error in what is learnt; of the first frames their mean counts."""
LARGEST = 1.0
"""Of an error in ln bits: beyond, a frame is an exception."""


class LastingError:
    """The mean error of the predicted inter frames of a video in ln bits. Intra frames are predicted well enough."""

    def __init__(self) -> None:
        self.mean = 0.0
        self._seen = 0

    def mended(self, points: Iterable[RatePoint]) -> tuple[RatePoint, ...]:
        """The predicted ``points`` of an inter frame, with all bits changed by the factor that frames before show."""
        factor = math.exp(self.mean)
        return tuple(RatePoint(point.quality, factor * point.bits) for point in points)

    def observe(self, result: FrameResult) -> None:
        """Learn from a coded frame, whose points were mended before."""
        if result.info.cut:
            self.mean, self._seen = 0.0, 0
        curve = PredictedCurve.through(result.info.points)
        if curve is None or result.info.intra:
            return
        error = log_bits(result.bits) - curve(result.quality)
        self._seen += 1
        self.mean += max(RATE, 1 / (1 + self._seen)) * min(max(error, -LARGEST), LARGEST)
