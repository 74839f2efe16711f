"""How the blocks of a picture move: a sketch of the codec's search, for RQNet.

A full search at quarter resolution, then whole luma samples, halves and quarters. Blocks are compared by the sum of
their differences; all of it is in integers, and the comparisons are written as instructions for sixteen samples at once
(:mod:`rqlvc.lanes`).
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from rqlvc.compiled import TAPS_OF_EIGHTHS, loop
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
EDGE = COARSE * COARSE_REACH + FINE_REACH + 6
"""Luma samples by which a reference is extended: what vectors and filters reach, and a multiple of 4."""
PARTS, CHROMA_PARTS = 4, 8
"""Of a sample: vectors are in quarters of luma's, which are eighths of chroma's."""
EIGHTHS = np.array(TAPS_OF_EIGHTHS, np.int16)
QUARTERS = EIGHTHS[:: CHROMA_PARTS // PARTS].copy()
"""Filters of chroma and of luma: of that, HEVC's of chroma leaves as little as its longer one, and means of neighbours
leave a fifth more of fine texture."""
UNIT = 4
"""What lies between samples is in quarters of a step."""
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
_BESIDE = np.array([(-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (1, -1), (-1, 1), (1, 1)])
_DOWN = np.zeros((3, PARTS, 3, 5), np.int16)
"""``QUARTERS`` for samples from two above on: by distance, phase, and whether it is that far up, not at all, or
down."""
for _distance, _phase, _turn in itertools.product((1, 2), range(PARTS), range(3)):
    _lines, _place = divmod(_phase + _distance * (_turn - 1), PARTS)
    if _lines <= 0:
        _DOWN[_distance, _phase, _turn, 1 + _lines : 5 + _lines] = QUARTERS[_place]
_CANDIDATES = 2 * COARSE_REACH + 1
_LANES = 16  # candidates side by side, of which the last does not count
_DISTANCES = np.array([COARSE_PRICE * abs(x - COARSE_REACH) for x in range(_LANES)])


def motion(luma: Plane, reference: Plane) -> Vectors:
    """Vectors of the 16x16 squares of ``luma`` (H, W) into ``reference``, (H / 16, W / 16, 2; x, y in quarters).

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
    vectors *= PARTS
    for distance in (PARTS // 2, 1):
        _refine_between(luma, reference, distance, vectors)
    return vectors


@loop
def unlikeness(vectors: Vectors, result: npt.NDArray[np.float32]) -> None:
    """How far each vector (h, w, 2) is from the nearer of its left and upper neighbours', in quarter samples, and one
    more, for each of the four blocks of a square, (2 h, 2 w)."""
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
        place = functools.partial(Place, context, builder, signature, arguments)
        here, there, least, where = place(0, 2), place(3, 2), place(8), place(9)
        sums = []
        for i in range(COARSE):
            for j in range(COARSE):
                sample = Lanes.repeated(builder, builder.load(here.at(i, j)), _LANES)
                sums.append(abs(sample - Lanes.read(builder, there.at(i, j), _LANES)))
        # 16 differences of up to 4,080: unsigned, they just fit.
        cost = total(sums).converted(INTEGER, signed=False) * COARSE_WEIGHT + _DISTANCES
        cost = cost + Lanes.repeated(builder, arguments[6], _LANES)
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
        here, there = (Place(context, builder, signature, arguments, k, 2) for k in (0, 3))
        rows = (
            [Lanes.of_bytes(builder, place.at(i), SQUARE, SHORT) for place in (here, there)]
            for i in range(0, SQUARE, ROWS_APART)
        )
        return total([abs(one - other) for one, other in rows]).converted(INTEGER).total()

    return types.int32(luma, types.intp, types.intp, reference, types.intp, types.intp), generate


_difference: Any = intrinsic(_compared)
"""Sum of differences of the square of ``luma`` at (``row``, ``column``) to that of the ``reference`` at (``line``,
``left``)."""


def _column_compared(
    typing: Any, luma: Any, row: Any, column: Any, reference: Any, line: Any, left: Any, down: Any, across: Any
) -> Any:
    """The types of :data:`_differences_between`, and what writes its instructions."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        here, taps = (
            Place(context, builder, signature, arguments, 0, 2),
            Place(context, builder, signature, arguments, 6),
        )
        wide = across_rows(context, builder, signature, arguments, SQUARE)
        rows = range(0, SQUARE, ROWS_APART)
        samples = [Lanes.of_bytes(builder, here.at(i), SQUARE, SHORT) * UNIT for i in rows]
        costs = []
        for turn in range(3):
            moved = down_rows(wide, taps.repeated(turn, 5, SQUARE), -2, rows)
            differences = [abs(one - other) for one, other in zip(samples, moved, strict=True)]
            costs.append(total(differences).converted(INTEGER).total())
        return context.make_tuple(builder, signature.return_type, costs)

    results: Any = types.UniTuple(types.int32, 3)  # type: ignore[no-untyped-call]
    return results(luma, types.intp, types.intp, reference, types.intp, types.intp, down, across), generate


_differences_between: Any = intrinsic(_column_compared)
"""The same, in quarters, to three squares between samples, one below the other: through the filter ``across``, a row of
``QUARTERS``, and each of ``down``, (3, 5), for the samples from two above on."""


def across_rows(context: Any, builder: Any, signature: Any, arguments: Any, count: int) -> Callable[[int], Lanes]:
    """Gives ``count`` samples of a row, filtered from left to right, as int16: writes the instructions, once for each.
    ``arguments``: a picture, a place in it, another, a place in it, and the filters downwards and across."""
    there = Place(context, builder, signature, arguments, 3, 2)
    taps = Place(context, builder, signature, arguments, 7).repeated(0, 4, count)

    @functools.cache
    def row(index: int) -> Lanes:
        sums = [tap * Lanes.of_bytes(builder, there.at(index, k - 1), count, SHORT) for k, tap in enumerate(taps)]
        return (total(sums) + 32) >> 6

    return row


def down_rows(wide: Callable[[int], Lanes], taps: Sequence[Lanes], first: int, rows: Iterable[int]) -> list[Lanes]:
    """These ``rows`` filtered downwards as well, from the one that is ``first`` on: in quarters of a step."""
    return [(total([tap * wide(row + first + k) for k, tap in enumerate(taps)]) + 8) >> 4 for row in rows]


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
def _refine_between(luma: Plane, reference: Plane, distance: int, vectors: Vectors) -> None:
    """Move ``vectors`` (h, w, 2; multiples of twice the ``distance``, in quarters) to the best of those so far away."""
    costs = np.empty((3, 3), np.int32)
    for row in range(vectors.shape[0]):
        for column in range(vectors.shape[1]):
            i, j = SQUARE * row, SQUARE * column
            x, y = vectors[row, column]
            down = _DOWN[distance, y % PARTS]
            for k in range(3):
                right = x + distance * (k - 1)
                place = i + EDGE + y // PARTS, j + EDGE + right // PARTS
                found = _differences_between(luma, i, j, reference, *place, down, QUARTERS[right % PARTS])
                costs[0, k], costs[1, k], costs[2, k] = found
            lowest = costs[1, 1] - UNIT * VECTOR_PRICE
            for k in range(len(_BESIDE)):
                cost = costs[1 + _BESIDE[k, 1], 1 + _BESIDE[k, 0]]
                if cost < lowest:
                    lowest = cost
                    vectors[row, column, 0] = x + distance * _BESIDE[k, 0]
                    vectors[row, column, 1] = y + distance * _BESIDE[k, 1]


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
