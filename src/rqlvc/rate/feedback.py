"""What a predictor gets wrong time and again with one scene, learnt from the frames that were coded since.

RQNet is out by a factor that differs from content to content and hardly from frame to frame: a texture that moves by
fractions of a sample is cheaper than its search tells, for all frames of the scene.
"""

import math

from rqlvc.rate.estimation import PredictedCurve
from rqlvc.rate.models import log_bits
from rqlvc.rate.protocol import FrameInfo, FrameResult, RatePoint

RATE = 0.2
"""Part of the newest frame's error in what is learnt; of the first frames their mean counts."""
LARGEST = 1.0
"""Of an error in ln bits: beyond, a frame is an exception."""


class LastingError:
    """The mean error of the predicted inter frames of a scene in ln bits. Intra frames are predicted well enough."""

    def __init__(self) -> None:
        self.mean = 0.0
        self._seen = 0

    def mended(self, info: FrameInfo) -> tuple[RatePoint, ...]:
        """The frame's points, with all bits of an inter frame changed by the factor that frames before show."""
        factor = 1.0 if info.intra else math.exp(self.mean)
        return tuple(RatePoint(point.quality, factor * point.bits) for point in info.points)

    def observe(self, result: FrameResult) -> None:
        """Learn from a coded frame."""
        curve = PredictedCurve.through(self.mended(result.info))
        if curve is None or result.info.intra:
            return
        error = log_bits(result.bits) - curve(result.quality)
        self._seen += 1
        self.mean += max(RATE, 1 / (1 + self._seen)) * min(max(error, -LARGEST), LARGEST)
