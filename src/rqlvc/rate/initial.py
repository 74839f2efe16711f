"""What controllers believe of the codec before they have seen a frame.

The RQ-LVC paper starts its baselines from "averages over the first frames" of its sequences; these constants are that
average for the built-in codec, as Q = alpha * ln(bits per pixel) + beta. They are estimates from the codec's design
range (inter frames of about 0.01 bpp at quality 0 and 1 bpp at quality 63, intra frames about seven times that) until
they are measured on the trained codec.
"""

from rqlvc.rate.models import LogarithmicModel

INTER = LogarithmicModel(alpha=13.7, beta=63.0)
INTRA = LogarithmicModel(alpha=13.7, beta=36.4)


def initial_model(intra: bool, pixels: int) -> LogarithmicModel:
    """The starting model in bits for frames of ``pixels`` luma pixels."""
    return (INTRA if intra else INTER).in_bits(pixels)
