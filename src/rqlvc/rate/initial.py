"""What controllers believe of the codec before they have seen a frame.

The RQ-LVC paper starts its baselines from "averages over the first frames" of its sequences; these constants are that
average for the built-in codec, as Q = alpha * ln(bits per pixel) + beta: means of the lines through six constant
levels of twelve sequences (``benchmarks/surfaces.py``), of the first frame for intra and of all inter frames.
"""

import math

from rqlvc.rate.models import LogarithmicModel

INTER = LogarithmicModel(alpha=14.1, beta=76.4)
INTRA = LogarithmicModel(alpha=21.4, beta=38.3)


INTRA_RATIO, NOVELTY_POWER = 6.1, -0.73
"""Bits of an intra frame over those of a mean inter frame after it, at one level, are about ratio * novelty ** power:
least squares on the groups of pictures of the same sequences (the ratio runs from 7 to 66; half a unit of its logarithm
remains unexplained)."""


def intra_ratio(novelty: float) -> float:
    """Bits of an intra frame over those of a mean inter frame after it."""
    return INTRA_RATIO * math.pow(novelty, NOVELTY_POWER)


def initial_model(intra: bool, pixels: int) -> LogarithmicModel:
    """The starting model in bits for frames of ``pixels`` luma pixels."""
    return (INTRA if intra else INTER).in_bits(pixels)
