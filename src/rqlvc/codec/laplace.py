"""Scale bins: the Laplace distributions that priors speak in, what symbols of theirs cost, and how they are rounded.

Training counts these costs. The real coder (:mod:`rqlvc.codec.coefficients`) starts from the bin and learns better.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

BINS = 64
SCALE_MIN = 0.08
SCALE_MAX = 64.0
LOG_STEP = math.log(SCALE_MAX / SCALE_MIN) / (BINS - 1)
"""Bin b stands for a Laplace distribution of scale SCALE_MIN * exp(b * LOG_STEP)."""

SKIP_BIN = 0
"""Latents of this bin are not coded: they differ from their mean with a probability below 0.3 %. Hyper-latents are,
for else a band that the prior takes to be silent would stay so, whatever the picture holds."""

BIT_PRICE = {"texture": math.log(2) / 6}
"""Squared quantiser steps that a bit is worth: lambda * step^2 / 1.5 = 6 / ln2 bits a squared step is the high-rate
optimum of the samples' quantiser. Hyper-latents are rounded to nearest."""


def scale_of(bins: Tensor) -> Tensor:
    """Laplace scale of ``bins``, in quantiser steps."""
    return SCALE_MIN * torch.exp(bins * LOG_STEP)


def bin_scales() -> Tensor:
    """That of each bin, (64,)."""
    return scale_of(torch.arange(BINS, dtype=torch.float32))


def laplace_bits(symbol: Tensor, bins: Tensor) -> Tensor:
    """-log2 of the probability that a Laplace variable of the bin's scale rounds to ``symbol``."""
    scale = scale_of(bins)
    magnitude = symbol.abs()
    tail = torch.exp(-0.5 / scale)
    zero = -torch.log2(1 - tail + 1e-9)
    # For n >= 1: exp(-(n - 1/2) / scale) * (1 - exp(-1 / scale)) / 2.
    other = ((magnitude - 0.5) / scale - torch.log(1 - tail * tail + 1e-9)) / math.log(2) + 1
    return torch.where(magnitude < 0.5, zero, other)


def _first_step(bins: Tensor) -> Tensor:
    """Bits that a one costs more than a zero."""
    return laplace_bits(torch.ones_like(bins), bins) - laplace_bits(torch.zeros_like(bins), bins)


def _further_step(bins: Tensor) -> Tensor:
    """Bits that every further step of magnitude costs."""
    return 1 / (math.log(2) * scale_of(bins))


class Rounding(NamedTuple):
    """By bin: what is added to a magnitude before it is rounded down, and the magnitude below which it is zero."""

    offset: Tensor
    threshold: Tensor


MOST = 0.6
"""A bin that hardly ever sees a one must still be able to send it: thresholds are at most this far above 0.5."""


@functools.cache
def laplace_rounding(part: str) -> Rounding:
    """Rate-distortion optimised rounding of Laplace variables: the nearest integer, or the next towards zero where that
    saves more.

    Going from n - 1 to n lowers the squared error of v by 2 (v - n + 1/2). Parts without a price, the hyper-latents,
    are rounded to nearest. Encoder only, so free to change.
    """
    price = BIT_PRICE.get(part, 0.0) / 2
    bins = torch.arange(BINS, dtype=torch.float32)
    return Rounding(
        0.5 - (price * _further_step(bins)).clamp(0, 0.45), 0.5 + (price * _first_step(bins)).clamp(0, MOST)
    )


def bits_of_one() -> Tensor:
    """What a one costs by bin, once it is known not to be a zero: its sign, and that it ends there."""
    return 1 - torch.log2(1 - torch.exp(-1 / bin_scales()))


def quantise(value: Tensor, bins: Tensor, rounding: Rounding) -> Tensor:
    """Integers from latents in quantiser steps, whose scale bins are ``bins``."""
    magnitude = value.abs()
    offset, threshold = (table.to(value.device)[bins.long()] for table in rounding)
    rounded = torch.floor(magnitude + offset).clamp(min=1.0)
    return torch.sign(value) * torch.where(magnitude < threshold, 0.0, rounded)


SOFTNESS = 3
"""Exponent of :func:`gradient_share` below the rounding threshold."""


def gradient_share(value: Tensor, symbol: Tensor, bins: Tensor, rounding: Rounding) -> Tensor:
    """How much of a change of ``value`` its rounding is taken to pass on, in [0, 1]: training's straight-through rule.

    All of it where a symbol is coded, next to nothing far below the threshold. Were it all of it everywhere, an inter
    frame would seem not to depend on its prediction, whose every change the residual makes up for: but nearly all of
    the residual is rounded to zero.
    """
    threshold = rounding.threshold.to(value.device)[bins.long()]
    below = (value.abs() / threshold).clamp(max=1) ** SOFTNESS
    return torch.where(symbol == 0, below, 1.0)


def rate_gradient(value: Tensor, symbol: Tensor, bins: Tensor) -> Tensor:
    """Zero, with the gradient in ``value`` that the rate has in truth: bits per step of magnitude.

    The rate of the rounded symbol is flat around zero. Left at that, training would amplify whatever rounding drops,
    until it is coded: distortion pulls, and no rate holds against it.
    """
    if not value.requires_grad:
        return torch.zeros_like(value)
    with torch.no_grad():
        slope = torch.where(symbol == 0, _first_step(bins), _further_step(bins))
    magnitude = value.abs() * slope
    return magnitude - magnitude.detach()
