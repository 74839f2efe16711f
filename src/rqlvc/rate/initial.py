"""What controllers believe of the codec before they have seen a frame.

The RQ-LVC paper starts its baselines from "averages over the first frames" of its sequences; these constants are that
average for the built-in codec, as Q = alpha * ln(bits per pixel) + beta: means of the lines through six constant
levels of twelve sequences (``benchmarks/surfaces.py``), of the first frame for intra and of all inter frames.
"""

import math

from rqlvc.rate.models import LogarithmicModel
from rqlvc.rate.protocol import QUALITY_MAX

INTER = LogarithmicModel(alpha=13.9, beta=78.7)
INTRA = LogarithmicModel(alpha=20.6, beta=40.2)


INTRA_RATIO, NOVELTY_POWER = 16.39, -0.57
"""Bits of an intra frame over those of a mean inter frame after it, at the middle level, are about ratio * novelty **
power: least squares on the groups of pictures of the same sequences (at all levels the ratio runs from 3 to 97; half a
unit of its logarithm remains unexplained)."""


def intra_ratio(novelty: float) -> float:
    """Bits of an intra frame over those of a mean inter frame after it, both at the middle level."""
    return INTRA_RATIO * math.pow(novelty, NOVELTY_POWER)


def ratio_change(level: float) -> float:
    """By what factor that ratio is another at ``level``: bits of intra frames rise less with the level."""
    return math.exp((1 / INTRA.alpha - 1 / INTER.alpha) * (level - QUALITY_MAX / 2))


def initial_model(intra: bool, pixels: int) -> LogarithmicModel:
    """The starting model in bits for frames of ``pixels`` luma pixels."""
    return (INTRA if intra else INTER).in_bits(pixels)
