"""Arithmetic on all numbers of a processor's register at once, for the few loops that the compiler does not write well.

Most loops are plain ones that Numba compiles (:mod:`rqlvc.compiled`). Where such a loop transforms or compares small
blocks sample by sample, a function that Numba calls an *intrinsic* writes LLVM's instructions itself: it computes with
:class:`Lanes` as one would with numbers, and each operation writes the instruction that does it. LLVM turns them into
those of the machine at hand, whatever the width of its registers.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir

FLOAT, SHORT, INTEGER = ir.FloatType(), ir.IntType(16), ir.IntType(32)
"""What lanes may hold: float32, int16, int32."""
_BYTE, _INDEX = ir.IntType(8), ir.IntType(64)
_ANY_ORDER = ("fast",)  # of floating-point operations, as in all loops


class Place:
    """Where in an array numbers are read or written, while instructions are written."""

    def __init__(
        self, context: Any, builder: Any, signature: Any, arguments: Any, number: int, indices: int = 0
    ) -> None:
        """In the array that is argument ``number`` of an intrinsic, where so many ``indices``, the arguments after it,
        say, or at its first element; nothing checks that this is inside. Raises :class:`TypeError` unless the array is
        contiguous."""
        kind, array = signature.args[number], arguments[number]
        if kind.layout != "C":
            raise TypeError("lanes are read from and written to contiguous arrays only")
        view = context.make_array(kind)(context, builder, array)
        strides = [builder.extract_value(view.strides, axis) for axis in range(kind.ndim)]
        start = builder.bitcast(view.data, _BYTE.as_pointer())
        for index, stride in zip(arguments[number + 1 : number + 1 + indices], strides, strict=False):
            start = builder.gep(start, [builder.mul(index, stride)])
        self._builder = builder
        self._start, self._element = start, view.data.type
        self._pitch = strides[-2] if kind.ndim > 1 else _INDEX(0)

    def at(self, row: int, column: int = 0) -> Any:
        """The address so many rows down and columns to the right."""
        line = self._builder.gep(self._start, [self._builder.mul(self._pitch, _INDEX(row))])
        return self._builder.gep(self._builder.bitcast(line, self._element), [_INDEX(column)])

    def repeated(self, row: int, numbers: int, count: int) -> "list[Lanes]":
        """The first so many ``numbers`` of that row, each in all of ``count`` lanes."""
        builder = self._builder
        return [Lanes.repeated(builder, builder.load(self.at(row, k)), count) for k in range(numbers)]


class Lanes:
    """Numbers of one register. Arithmetic with it writes the instructions that do it."""

    __array_ufunc__ = None  # NumPy's numbers leave it to this class what their product with one is

    def __init__(self, builder: Any, value: Any) -> None:
        self._builder = builder
        self._value = value

    @classmethod
    def read(cls, builder: Any, address: Any, count: int) -> "Lanes":
        """``count`` numbers from ``address`` on, as they are."""
        kind = address.type.pointee
        value = builder.load(builder.bitcast(address, ir.VectorType(kind, count).as_pointer()))
        value.align = _size(kind)
        return cls(builder, value)

    @classmethod
    def of_bytes(cls, builder: Any, address: Any, count: int, kind: Any) -> "Lanes":
        """``count`` unsigned bytes from ``address`` on, as numbers of this ``kind``."""
        value = cls.read(builder, address, count)._value
        convert = builder.uitofp if kind == FLOAT else builder.zext
        return cls(builder, convert(value, ir.VectorType(kind, count)))

    @classmethod
    def repeated(cls, builder: Any, value: Any, count: int) -> "Lanes":
        """One number of the program in all lanes."""
        first = builder.insert_element(ir.Constant(ir.VectorType(value.type, count), ir.Undefined), value, _INDEX(0))
        return cls(builder, first).shuffled(None, [0] * count)

    def write(self, address: Any) -> None:
        """To the program's memory from ``address`` on."""
        place = self._builder.bitcast(address, self._value.type.as_pointer())
        self._builder.store(self._value, place, align=_size(self._kind))

    def __add__(self, other: Any) -> "Lanes":
        return self._new(self._builder.fadd, self._builder.add, other)

    def __sub__(self, other: Any) -> "Lanes":
        return self._new(self._builder.fsub, self._builder.sub, other)

    def __mul__(self, other: Any) -> "Lanes":
        return self._new(self._builder.fmul, self._builder.mul, other)

    __rmul__ = __mul__

    def __rshift__(self, bits: int) -> "Lanes":
        """Of integers, rounded down."""
        return Lanes(self._builder, self._builder.ashr(self._value, self._constant(bits)._value))

    def __abs__(self) -> "Lanes":
        negative = self * np.float32(-1) if self._kind == FLOAT else self._constant(0) - self
        return self.where("<", negative, negative)

    def rectified(self) -> "Lanes":
        """Zero instead of the negative ones."""
        return self.where("<", self._constant(0), self._constant(0))

    def least(self, other: "Lanes") -> "Lanes":
        """The smaller ones."""
        return self.where(">", other, other)

    def where(self, comparison: str, limit: "Lanes", other: "Lanes") -> "Lanes":
        """``other`` where these compare so to ``limit``."""
        return other.unless(self, comparison, limit, self)

    def unless(self, left: "Lanes", comparison: str, right: "Lanes", other: "Lanes") -> "Lanes":
        """These where ``left`` compares so to ``right``, elsewhere ``other``."""
        if left._kind == FLOAT:
            chosen = self._builder.fcmp_ordered(comparison, left._value, right._value, flags=_ANY_ORDER)
        else:
            chosen = self._builder.icmp_signed(comparison, left._value, right._value)
        return Lanes(self._builder, self._builder.select(chosen, self._value, other._value))

    def converted(self, kind: Any, *, signed: bool = True) -> "Lanes":
        """Integers as numbers of another ``kind``."""
        wider = ir.VectorType(kind, self._count)
        if kind == FLOAT:
            return Lanes(self._builder, self._builder.sitofp(self._value, wider))
        extend = self._builder.sext if signed else self._builder.zext
        return Lanes(self._builder, extend(self._value, wider))

    def shuffled(self, other: "Lanes | None", places: Sequence[int]) -> "Lanes":
        """Those at ``places``: from the number of lanes on, of the ``other``."""
        beside = ir.Constant(self._value.type, ir.Undefined) if other is None else other._value
        mask = ir.Constant(ir.VectorType(INTEGER, len(places)), list(places))
        return Lanes(self._builder, self._builder.shuffle_vector(self._value, beside, mask))

    def total(self) -> Any:
        """Their sum, a number of the program."""
        width, rest = self._count, self
        while width > 1:
            width //= 2
            rest = rest.shuffled(None, range(width)) + rest.shuffled(None, range(width, 2 * width))
        return rest.lane(0)

    def lane(self, index: int) -> Any:
        """One of them, a number of the program."""
        return self._builder.extract_element(self._value, _INDEX(index))

    @property
    def _kind(self) -> Any:
        return self._value.type.element

    @property
    def _count(self) -> int:
        return int(self._value.type.count)

    def _constant(self, value: Any) -> "Lanes":
        values = np.broadcast_to(value, self._count).tolist()
        return Lanes(self._builder, ir.Constant(self._value.type, values))

    def _new(self, of_floats: Any, of_integers: Any, other: Any) -> "Lanes":
        """``other``: lanes, one number for all lanes, or a number for each."""
        right = (other if isinstance(other, Lanes) else self._constant(other))._value
        if self._kind == FLOAT:
            return Lanes(self._builder, of_floats(self._value, right, flags=_ANY_ORDER))
        return Lanes(self._builder, of_integers(self._value, right))


def total(terms: Sequence[Lanes]) -> Lanes:
    """The sum of several."""
    return functools.reduce(operator.add, terms)


def transposed(rows: Sequence[Lanes]) -> list[Lanes]:
    """Columns from as many rows as there are lanes in each, a power of two: halves change places, then theirs."""
    lines, count = list(rows), len(rows)
    step = count // 2
    while step:
        for i in (i for i in range(count) if not i & step):
            upper, lower = lines[i], lines[i + step]
            lines[i] = upper.shuffled(lower, [k + count - step if k & step else k for k in range(count)])
            lines[i + step] = upper.shuffled(lower, [k + count if k & step else k + step for k in range(count)])
        step //= 2
    return lines


def _size(kind: Any) -> int:
    """Bytes of a number."""
    return 4 if kind == FLOAT else int(kind.width) // 8
