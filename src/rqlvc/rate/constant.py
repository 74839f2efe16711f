"""``constant`` and ``hierarchical``: a quality level, whatever it costs; the anchors of every rate-control table."""

from rqlvc.errors import RqlvcError
from rqlvc.rate.hierarchy import GOP_WEIGHTS, held_level, level_offset
from rqlvc.rate.protocol import QUALITY_MAX, QUALITY_MIN, Decision, FrameInfo, FrameResult


class Constant:
    """Codes every frame at ``quality`` (in [0, 63], 63 is best), whatever it costs.

    Raises :class:`RqlvcError` for a quality outside [0, 63].
    """

    def __init__(self, quality: float) -> None:
        if not QUALITY_MIN <= quality <= QUALITY_MAX:
            raise RqlvcError(f"quality {quality:g} is outside [0, 63]: choose a level from 0 (coarsest) to 63 (best).")
        self.quality = float(quality)

    def decide(self, info: FrameInfo) -> Decision:
        return Decision(self.quality)

    def update(self, result: FrameResult) -> None:
        """Nothing is learnt: the level is fixed."""

    def set_rates(self, bitrate: float, framerate: float) -> None:
        """Ignored: a constant quality has no bitrate to hit."""


class Hierarchical(Constant):
    """Codes every frame at ``quality`` and the offset of its place in the group of pictures, within [0, 63].

    ``weights`` are the relative bits of the inter frames of a miniGOP. Takes fewer bits than one level for all frames
    takes for the same mean PSNR. Raises :class:`RqlvcError` for a quality outside [0, 63].
    """

    def __init__(self, quality: float, weights: tuple[float, ...] = GOP_WEIGHTS) -> None:
        super().__init__(quality)
        self.weights = weights

    def decide(self, info: FrameInfo) -> Decision:
        return Decision(held_level(self.quality, level_offset(info, self.weights)))
