"""What the search measures vectors by: the estimated price of what one leaves of a block.

It is asked for some hundred times for each block of a frame. So this one loop is not left to the compiler, which
transforms sample by sample: it is written as instructions for eight numbers at once, in a third of the time.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from rqlvc.codec.interpolation import BLOCK
from rqlvc.codec.transforms import dct_matrix
from rqlvc.compiled import transform_of_eight
from rqlvc.lanes import FLOAT, Lanes, Place, total, transposed

ERROR_BITS = 6 / math.log(2)
"""Price of a squared quantiser step of error, at lambda: lambda * step^2 / 1.5."""
CODED_BITS, CODED_BITS_PER_STEP = 7.0, 2.5
"""Rough price of a coefficient of the residual that is coded instead."""
TRUST = 1.0
"""Share of the residual's estimated price that counts against motion's; chosen by trial, and flat around."""

_UNIT = math.sqrt(TRUST * ERROR_BITS)  # of a quantiser step: coefficients whose squares are bits
_CODED = np.float32(TRUST * CODED_BITS)
_CODED_SLOPE = np.float32(TRUST * CODED_BITS_PER_STEP / _UNIT)
_DCT = dct_matrix(BLOCK).float()


def block_coefficients(luma: Tensor) -> npt.NDArray[np.float32]:
    """The DCT of 8x8 blocks of (N, 1, H, W) on [0, 1], in 8-bit units and column after column, (N, h, w, 64)."""
    blocks = (255 * luma[:, 0]).cpu().float().unfold(1, BLOCK, BLOCK).unfold(2, BLOCK, BLOCK)
    with torch.autocast("cpu", enabled=False):
        return (_DCT @ blocks @ _DCT.T).mT.flatten(3).contiguous().numpy()


def price_scale(step: Tensor) -> npt.NDArray[np.float32]:
    """What makes squares of coefficients, in 8-bit units, bits, (N,), of quantiser steps (N,) on [0, 1]."""
    return (_UNIT / (255 * step)).float().cpu().numpy()


def _residual_price(typing: Any, samples: Any, row: Any, column: Any, block: Any, scale: Any) -> Any:
    """The types of :data:`residual_price`, and what writes its instructions."""
    signature = types.float32(samples, types.intp, types.intp, block, types.float32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = Place(context, builder, signature, arguments, 0, 2)
        rows = [Lanes.of_bytes(builder, place.at(i), BLOCK, FLOAT) for i in range(BLOCK)]
        columns = transposed(transform_of_eight(*rows))
        block = Place(context, builder, signature, arguments, 3)
        factor = Lanes.repeated(builder, arguments[4], BLOCK)
        prices = []
        for index, moved in enumerate(transform_of_eight(*columns)):
            magnitude = abs(moved - Lanes.read(builder, block.at(0, index * BLOCK), BLOCK)) * factor
            prices.append((magnitude * magnitude).least(_CODED_SLOPE * magnitude + _CODED))
        return total(prices).total()

    return signature, generate


residual_price: Any = intrinsic(_residual_price)
"""``residual_price(samples, row, column, block, scale)``, for compiled loops: bits, as float32, that what the 8x8
``samples`` from (row, column) on leave of a block will cost. A coefficient of it is coded, or is an error.

``samples``: uint8 (H, W); ``block``: its coefficients (64,), as :func:`block_coefficients` has them; ``scale``: of
:func:`price_scale`. Nothing checks that the samples are inside.
"""
