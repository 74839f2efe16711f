"""``constant``: one quality level for all frames, or one pattern of levels; the anchor of every rate-control table."""

import math
from collections.abc import Sequence

from rqlvc.errors import RqlvcError
from rqlvc.rate.hierarchy import GOP_WEIGHTS, level_offset
from rqlvc.rate.protocol import QUALITY_MAX, QUALITY_MIN, Decision, FrameInfo, FrameResult, QualityRange


class Constant:
    """Codes every frame at ``quality`` (in [0, 63], 63 is best), whatever it costs.

    ``offsets`` makes a hierarchy: an inter frame gets ``quality + offsets[(position - 1) % len(offsets)]``,
    clipped to [0, 63]; intra frames keep ``quality``. Raises :class:`RqlvcError` for a quality outside [0, 63].
    """

    def __init__(self, quality: float, offsets: Sequence[float] = ()) -> None:
        if not QUALITY_MIN <= quality <= QUALITY_MAX:
            raise RqlvcError(f"quality {quality:g} is outside [0, 63]: choose a level from 0 (coarsest) to 63 (best).")
        if not all(math.isfinite(offset) for offset in offsets):
            raise RqlvcError("the quality offsets must be finite numbers, such as 0,-4,-2,-4.")
        self.quality = float(quality)
        self.offsets = tuple(offsets)

    def decide(self, info: FrameInfo) -> Decision:
        if info.intra or not self.offsets:
            return Decision(self.quality)
        return Decision(QualityRange().clip(self.quality + self.offsets[(info.position - 1) % len(self.offsets)]))

    def update(self, result: FrameResult) -> None:
        """Nothing is learnt: the level is fixed."""

    def set_rates(self, bitrate: float, framerate: float) -> None:
        """Ignored: a constant quality has no bitrate to hit."""


ROOM = 8.0
"""Levels below the best from which on offsets get smaller: at 63 all frames are coded as well as they can be."""


class Hierarchical(Constant):
    """Codes every frame at ``quality`` and the offset of its place in the group of pictures, clipped to [0, 63].

    Fewer bits than one level for all frames take for the same mean PSNR. Raises :class:`RqlvcError` for a quality
    outside [0, 63].
    """

    def __init__(self, quality: float) -> None:
        super().__init__(quality)

    def decide(self, info: FrameInfo) -> Decision:
        share = min((QUALITY_MAX - self.quality) / ROOM, 1.0)
        return Decision(QualityRange().clip(self.quality + share * level_offset(info, GOP_WEIGHTS)))
