"""What controllers believe of the codec before they have seen a frame.

The RQ-LVC paper starts its baselines from "averages over the first frames" of its sequences; these constants are that
average for the built-in codec, as Q = alpha * ln(bits per pixel) + beta: means of the lines through nine constant
levels of twelve sequences (``benchmarks/surfaces.py``), of the first frame for intra and of all inter frames.
"""

from rqlvc.rate.models import LogarithmicModel

INTER = LogarithmicModel(alpha=17.6, beta=80.7)
INTRA = LogarithmicModel(alpha=21.4, beta=37.4)


def initial_model(intra: bool, pixels: int) -> LogarithmicModel:
    """The starting model in bits for frames of ``pixels`` luma pixels."""
    return (INTRA if intra else INTER).in_bits(pixels)


def usual_slope(intra: bool) -> float:
    """d ln R / dQ of usual content."""
    return 1 / (INTRA if intra else INTER).alpha
