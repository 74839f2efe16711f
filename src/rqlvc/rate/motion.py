"""How the blocks of a picture move: a sketch of the codec's search, for RQNet.

A full search at quarter resolution, then whole luma samples, then halves. Blocks are compared by the sum of their
differences; all of it is in integers, and the comparisons are written as instructions for sixteen samples at once
(:mod:`rqlvc.lanes`).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from rqlvc.compiled import loop
from rqlvc.lanes import INTEGER, SHORT, Lanes, Place, total
from rqlvc.media.frame import Plane

Vectors = npt.NDArray[np.int32]
Sums = npt.NDArray[np.int16]

SQUARE = 16
"""Luma samples on each side of what has a vector."""
COARSE = 4
"""The first search is on sums of 4x4 luma samples."""
COARSE_REACH = 7
"""28 luma samples, as in the codec."""
FINE_REACH = 2
"""Luma samples around what the first search found: half its grid."""
EDGE = COARSE * COARSE_REACH + FINE_REACH + 2
"""Luma samples by which a reference is extended: what vectors reach, and a multiple of 4."""
ROWS_APART = 2
"""Every second row is compared."""

COARSE_WEIGHT, COARSE_PRICE = 5, 64
"""What 4 luma samples of distance are worth, and a difference of these sums: 0.8 of a mean of 16 samples, as in the
codec."""
OWN_PRICE = 64
"""Sum of differences of 128 samples that a vector is worth that no neighbour has."""
VECTOR_PRICE = 8
"""Sum of differences of 128 samples that a vector unlike its neighbours' is worth."""

_AROUND = np.array([(0, -1), (-1, 0), (-1, 1), (0, 1), (1, 0)])
_HALVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (1, -1), (-1, 1), (1, 1)])
_CANDIDATES = 2 * COARSE_REACH + 1
_LANES = 16  # candidates side by side, of which the last does not count
_QUARTERS = 4  # differences to half samples are in quarters: what lies between two or four samples is a sum of these
_DISTANCES = np.array([COARSE_PRICE * abs(x - COARSE_REACH) for x in range(_LANES)])


def motion(luma: Plane, reference: Plane) -> Vectors:
    """Vectors of the 16x16 squares of ``luma`` (H, W) into ``reference``, (H / 16, W / 16, 2; x, y in half samples).

    Both are uint8, H and W multiples of 16, and the reference is extended by ``EDGE`` on each side.
    """
    small, around = (
        np.empty((plane.shape[0] // COARSE, plane.shape[1] // COARSE), np.int16) for plane in (luma, reference)
    )
    _add_up(luma, small)
    _add_up(reference, around)
    vectors = np.zeros((luma.shape[0] // SQUARE, luma.shape[1] // SQUARE, 2), np.int32)
    search_coarsely(small, around, vectors)
    _refine(luma, reference, vectors)
    _spread(luma, reference, vectors)
    _refine_to_halves(luma, reference, vectors)
    return vectors


@loop
def unlikeness(vectors: Vectors, result: npt.NDArray[np.float32]) -> None:
    """How far each vector (h, w, 2) is from the nearer of its left and upper neighbours', in half samples and one more,
    for each of the four blocks of a square, (2 h, 2 w)."""
    for row in range(vectors.shape[0]):
        for column in range(vectors.shape[1]):
            x, y = vectors[row, column]
            least = abs(x) + abs(y) if row == column == 0 else 1 << 30
            if column:
                least = min(least, abs(x - vectors[row, column - 1, 0]) + abs(y - vectors[row, column - 1, 1]))
            if row:
                least = min(least, abs(x - vectors[row - 1, column, 0]) + abs(y - vectors[row - 1, column, 1]))
            result[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = least + 1


@loop
def _add_up(plane: Plane, sums: Sums) -> None:
    """Sums of 4x4 samples of ``plane`` (4 H, 4 W) into ``sums`` (H, W)."""
    for row in range(sums.shape[0]):
        for column in range(sums.shape[1]):
            total = np.int32(0)
            for i in range(COARSE):
                for j in range(COARSE):
                    total += plane[COARSE * row + i, COARSE * column + j]
            sums[row, column] = total


@loop
def search_coarsely(small: Sums, reference: Sums, vectors: Vectors) -> None:
    """``vectors`` (h, w, 2; x, y in luma samples) of squares, each the best of a full search at quarter resolution.

    ``small``: what :func:`_add_up` made of luma, (4 h, 4 w), and ``reference`` of the reference.
    """
    lowest, found = np.empty(_LANES, np.int32), np.empty(_LANES, np.int32)
    origin = EDGE // COARSE - COARSE_REACH
    for row in range(vectors.shape[0]):
        for column in range(vectors.shape[1]):
            lowest[:] = np.iinfo(np.int32).max
            for k in range(_CANDIDATES):
                price = np.int32(COARSE_PRICE * abs(k - COARSE_REACH))
                i, j = COARSE * row, COARSE * column
                _try_a_line(small, i, j, reference, i + origin + k, j + origin, price, np.int32(k), lowest, found)
            best = 0
            for k in range(1, _CANDIDATES):
                if lowest[k] < lowest[best] or (lowest[k] == lowest[best] and found[k] < found[best]):
                    best = k
            vectors[row, column, 0] = COARSE * (best - COARSE_REACH)
            vectors[row, column, 1] = COARSE * (found[best] - COARSE_REACH)


def _line_tried(
    typing: Any,
    small: Any,
    row: Any,
    column: Any,
    reference: Any,
    line: Any,
    left: Any,
    price: Any,
    number: Any,
    lowest: Any,
    found: Any,
) -> Any:
    """The types of :data:`_try_a_line`, and what writes its instructions."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def place(index: int, count: int) -> Place:
            return Place(context, builder, signature.args[index], *arguments[index : index + count])

        here, there = place(0, 3), place(3, 3)
        sums = []
        for i in range(COARSE):
            for j in range(COARSE):
                sample = Lanes.repeated(builder, builder.load(here.at(i, j)), _LANES)
                sums.append(abs(sample - Lanes.read(builder, there.at(i, j), _LANES)))
        # 16 differences of up to 4,080: unsigned, they just fit.
        cost = total(sums).converted(INTEGER, signed=False) * COARSE_WEIGHT + _DISTANCES
        cost = cost + Lanes.repeated(builder, arguments[6], _LANES)
        least, where = place(8, 1), place(9, 1)
        before, seen = (Lanes.read(builder, one.at(0), _LANES) for one in (least, where))
        Lanes.repeated(builder, arguments[7], _LANES).unless(cost, "<", before, seen).write(where.at(0))
        cost.least(before).write(least.at(0))
        return context.get_dummy_value()

    return types.void(
        small, types.intp, types.intp, reference, types.intp, types.intp, types.int32, types.int32, lowest, found
    ), generate


_try_a_line: Any = intrinsic(_line_tried)
"""Compare a square of 4x4 sums to those of the ``reference`` at (``line``, ``left``) and at the fifteen places to the
right of it, a lane for each: where that and its ``price`` are below the ``lowest`` so far, it is the ``lowest``, and
``found`` at this ``number``."""


def _compared(typing: Any, luma: Any, row: Any, column: Any, reference: Any, line: Any, left: Any) -> Any:
    """The types of :data:`_difference`, and what writes its instructions."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        here = Place(context, builder, signature.args[0], *arguments[0:3])
        there = Place(context, builder, signature.args[3], *arguments[3:6])
        rows = (
            [Lanes.of_bytes(builder, place.at(i), SQUARE, SHORT) for place in (here, there)]
            for i in range(0, SQUARE, ROWS_APART)
        )
        return total([abs(one - other) for one, other in rows]).converted(INTEGER).total()

    return types.int32(luma, types.intp, types.intp, reference, types.intp, types.intp), generate


_difference: Any = intrinsic(_compared)
"""Sum of differences of the square of ``luma`` at (``row``, ``column``) to that of the ``reference`` at (``line``,
``left``)."""


def _half_compared(
    typing: Any, luma: Any, row: Any, column: Any, reference: Any, line: Any, left: Any, down: Any, right: Any
) -> Any:
    """The types of :data:`_difference_to_half`, and what writes its instructions."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        here = Place(context, builder, signature.args[0], *arguments[0:3])
        there = Place(context, builder, signature.args[3], *arguments[3:6])
        down, right = (Lanes.repeated(builder, one, SQUARE) for one in arguments[6:8])
        sums = []
        for i in range(0, SQUARE, ROWS_APART):
            moved = between(builder, there, i, SQUARE, down, right, 2)
            sums.append(abs(Lanes.of_bytes(builder, here.at(i), SQUARE, SHORT) * _QUARTERS - moved))
        return total(sums).converted(INTEGER).total()

    return types.int32(
        luma, types.intp, types.intp, reference, types.intp, types.intp, types.int16, types.int16
    ), generate


_difference_to_half: Any = intrinsic(_half_compared)
"""The same, in quarters, to the square half a sample to the ``right`` or ``down``, where these are 1 and not 0.

Means of neighbours: HEVC's filter takes as long as the search and leaves as much.
"""


def between(builder: Any, place: Place, row: int, count: int, down: Lanes, right: Lanes, parts: int) -> Lanes:
    """``count`` samples from the start of that ``row`` on, interpolated from four each, ``down`` and ``right`` parts of
    a sample away, of which it has so many: times the square of ``parts``, as int16. Writes the instructions."""

    def beside(i: int) -> Lanes:
        here, other = (Lanes.of_bytes(builder, place.at(i, k), count, SHORT) for k in range(2))
        return here * parts + right * (other - here)

    upper = beside(row)
    return upper * parts + down * (beside(row + 1) - upper)


@loop
def _refine(luma: Plane, reference: Plane, vectors: Vectors) -> None:
    """Move ``vectors`` (h, w, 2; luma samples) to the best within ``FINE_REACH``."""
    for row in range(vectors.shape[0]):
        for column in range(vectors.shape[1]):
            i, j = SQUARE * row, SQUARE * column
            line, left = i + EDGE + vectors[row, column, 1], j + EDGE + vectors[row, column, 0]
            lowest = _difference(luma, i, j, reference, line, left) - np.int32(VECTOR_PRICE)
            x, y = 0, 0
            for down in range(-FINE_REACH, FINE_REACH + 1):
                for right in range(-FINE_REACH, FINE_REACH + 1):
                    cost = _difference(luma, i, j, reference, line + down, left + right)
                    if cost < lowest:
                        lowest, x, y = cost, right, down
            vectors[row, column, 0] += x
            vectors[row, column, 1] += y


@loop
def _refine_to_halves(luma: Plane, reference: Plane, vectors: Vectors) -> None:
    """Move ``vectors`` (h, w, 2), given in luma samples, to the best half a sample away, and count them in these."""
    for row in range(vectors.shape[0]):
        for column in range(vectors.shape[1]):
            i, j = SQUARE * row, SQUARE * column
            line, left = i + EDGE + vectors[row, column, 1], j + EDGE + vectors[row, column, 0]
            lowest = _QUARTERS * (_difference(luma, i, j, reference, line, left) - VECTOR_PRICE)
            x, y = 0, 0
            for k in range(len(_HALVES)):
                right, down = _HALVES[k]
                halves = np.int16(down & 1), np.int16(right & 1)
                cost = _difference_to_half(luma, i, j, reference, line + (down >> 1), left + (right >> 1), *halves)
                if cost < lowest:
                    lowest, x, y = cost, right, down
            vectors[row, column, 0] = 2 * vectors[row, column, 0] + x
            vectors[row, column, 1] = 2 * vectors[row, column, 1] + y


@loop
def _spread(luma: Plane, reference: Plane, vectors: Vectors) -> None:
    """Give squares the vectors of their neighbours, or zero, where these do as well as their own (h, w, 2)."""
    rows, columns = vectors.shape[:2]
    tried = np.zeros((len(_AROUND) + 2, 2), np.int32)  # zero, its own, the neighbours'
    shared = np.zeros(len(tried), np.bool_)  # whether a neighbour has it
    for row in range(rows):
        for column in range(columns):
            tried[1] = vectors[row, column]
            shared[:2] = False
            count = 2
            for k in range(len(_AROUND)):
                i, j = row + _AROUND[k, 0], column + _AROUND[k, 1]
                if 0 <= i < rows and 0 <= j < columns:
                    x, y = vectors[i, j]
                    at = 0
                    while at < count and (tried[at, 0] != x or tried[at, 1] != y):
                        at += 1
                    tried[at, 0], tried[at, 1], shared[at] = x, y, True
                    count = max(count, at + 1)
            lowest = np.iinfo(np.int32).max
            i, j = SQUARE * row, SQUARE * column
            for k in range(count):
                x, y = tried[k]
                cost = _difference(luma, i, j, reference, i + EDGE + y, j + EDGE + x) + (0 if shared[k] else OWN_PRICE)
                if cost < lowest:
                    lowest = cost
                    vectors[row, column, 0], vectors[row, column, 1] = x, y
