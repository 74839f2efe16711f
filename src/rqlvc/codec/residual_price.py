"""What the search measures vectors by: the estimated price of what one leaves of a block.

It is asked for some hundred times for each block of a frame. So this one loop is not left to the compiler, which
transforms sample by sample: it is written as instructions for eight numbers at once, in a third of the time.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from rqlvc.codec.interpolation import BLOCK
from rqlvc.codec.transforms import dct_matrix
from rqlvc.compiled import transform_of_eight

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

_BYTES = ir.VectorType(ir.IntType(8), BLOCK)
_FLOATS = ir.VectorType(ir.FloatType(), BLOCK)
_INDEX = ir.IntType(64)
_ANY_ORDER = ("fast",)  # of floating-point operations, as in all loops


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
        plane, row, column, coefficients, scale = arguments
        plane = context.make_array(signature.args[0])(context, builder, plane)
        pitch = builder.extract_value(plane.strides, 0)
        start = builder.gep(plane.data, [builder.add(builder.mul(row, pitch), column)])
        rows = [_Eight.of_bytes(builder, start, builder.mul(pitch, _INDEX(i))) for i in range(BLOCK)]
        columns = _transposed(transform_of_eight(*rows))
        data = context.make_array(signature.args[3])(context, builder, coefficients).data
        factor = _Eight.repeated(builder, scale)
        prices = []
        for index, moved in enumerate(transform_of_eight(*columns)):
            magnitude = abs(moved - _Eight.of_floats(builder, data, index)) * factor
            prices.append((magnitude * magnitude).least(_CODED_SLOPE * magnitude + _CODED))
        return functools.reduce(operator.add, prices).total()

    return signature, generate


residual_price: Any = intrinsic(_residual_price)
"""``residual_price(samples, row, column, block, scale)``, for compiled loops: bits, as float32, that what the 8x8
``samples`` from (row, column) on leave of a block will cost. A coefficient of it is coded, or is an error.

``samples``: uint8 (H, W); ``block``: its coefficients (64,), as :func:`block_coefficients` has them; ``scale``: of
:func:`price_scale`. Nothing checks that the samples are inside.
"""


class _Eight:
    """Eight float32 of one register: arithmetic with it writes the instructions that do it."""

    __array_ufunc__ = None  # NumPy's numbers leave it to this class what their product with one is

    def __init__(self, builder: Any, value: Any) -> None:
        self._builder = builder
        self._value = value

    @classmethod
    def of_bytes(cls, builder: Any, start: Any, offset: Any) -> "_Eight":
        """Bytes ``offset`` after ``start``."""
        place = builder.bitcast(builder.gep(start, [offset]), _BYTES.as_pointer())
        return cls(builder, builder.uitofp(_read(builder, place, 1), _FLOATS))

    @classmethod
    def of_floats(cls, builder: Any, data: Any, index: int) -> "_Eight":
        """The eight of that ``index``."""
        place = builder.gep(builder.bitcast(data, _FLOATS.as_pointer()), [_INDEX(index)])
        return cls(builder, _read(builder, place, 4))

    @classmethod
    def repeated(cls, builder: Any, value: Any) -> "_Eight":
        """One number of the program, eight times."""
        first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, _INDEX(0))
        return cls(builder, first).shuffled(None, [0] * BLOCK)

    def __add__(self, other: Any) -> "_Eight":
        return self._new(self._builder.fadd, other)

    def __sub__(self, other: Any) -> "_Eight":
        return self._new(self._builder.fsub, other)

    def __mul__(self, other: Any) -> "_Eight":
        return self._new(self._builder.fmul, other)

    __rmul__ = __mul__

    def __abs__(self) -> "_Eight":
        negative = self * np.float32(-1)
        return self._where("<", negative, negative)

    def least(self, other: "_Eight") -> "_Eight":
        """The smaller ones."""
        return self._where(">", other, other)

    def shuffled(self, other: "_Eight | None", places: Sequence[int]) -> "_Eight":
        """Those at ``places``: from 8 on, of the ``other``."""
        beside = ir.Constant(self._value.type, ir.Undefined) if other is None else other._value
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))
        return _Eight(self._builder, self._builder.shuffle_vector(self._value, beside, mask))

    def total(self) -> Any:
        """Their sum, a number of the program."""
        width, rest = BLOCK, self
        while width > 1:
            width //= 2
            rest = rest.shuffled(None, range(width)) + rest.shuffled(None, range(width, 2 * width))
        return self._builder.extract_element(rest._value, _INDEX(0))

    def _new(self, operation: Any, other: Any) -> "_Eight":
        value = other._value if isinstance(other, _Eight) else ir.Constant(_FLOATS, [float(other)] * BLOCK)
        return _Eight(self._builder, operation(self._value, value, flags=_ANY_ORDER))

    def _where(self, comparison: str, limit: "_Eight", other: "_Eight") -> "_Eight":
        """``other`` where these compare so to ``limit``."""
        chosen = self._builder.fcmp_ordered(comparison, self._value, limit._value, flags=_ANY_ORDER)
        return _Eight(self._builder, self._builder.select(chosen, other._value, self._value))


def _read(builder: Any, place: Any, alignment: int) -> Any:
    value = builder.load(place)
    value.align = alignment
    return value


def _transposed(rows: Sequence[_Eight]) -> list[_Eight]:
    """Columns from eight rows: quarters change places, then theirs."""
    lines = list(rows)
    for step in (4, 2, 1):
        for i in (i for i in range(BLOCK) if not i & step):
            upper, lower = lines[i], lines[i + step]
            lines[i] = upper.shuffled(lower, [k + BLOCK - step if k & step else k for k in range(BLOCK)])
            lines[i + step] = upper.shuffled(lower, [k + BLOCK if k & step else k + step for k in range(BLOCK)])
    return lines
