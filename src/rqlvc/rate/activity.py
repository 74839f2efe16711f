"""What RQNet measures on pictures: how much is in their blocks, and in what motion leaves of them.

Blocks are transformed as instructions for eight numbers at once (:mod:`rqlvc.lanes`). The motion is a sketch of the
codec's (:mod:`rqlvc.rate.motion`): what it leaves is close to what the codec has to code, whereas the plain difference
of two frames is not.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from rqlvc.compiled import announce, loop, transform_of_eight
from rqlvc.errors import RqlvcError
from rqlvc.lanes import FLOAT, SHORT, Lanes, Place, total, transposed
from rqlvc.media.frame import Frame, Plane
from rqlvc.rate.motion import (
    CHROMA_PARTS,
    EDGE,
    EIGHTHS,
    PARTS,
    QUARTERS,
    SQUARE,
    UNIT,
    Vectors,
    across_rows,
    down_rows,
    motion,
    unlikeness,
)

Samples = npt.NDArray[np.float32]

BLOCK = 8
BAND_LIMITS = (1, 2, 4, 7, 14)
"""Bands of the cosine transform: the greatest sum of the two frequency indices in each."""
BANDS = len(BAND_LIMITS)
PICTURE_MAPS = BANDS + 2
"""Mean luma, the bands, chroma's texture."""
MAPS = 2 * PICTURE_MAPS + BANDS + 4
"""Of the picture; of its difference to the reference; and of that to the moved reference, with chroma's mean and the
vectors' unlikeness."""
FLOOR = 0.1
"""Magnitude, in 8-bit units, that is told from nothing: maps are ln(magnitude / FLOOR + 1)."""
LUMA_UNIT = 25.5
"""The map of mean luma is in these units, so that all maps span about 0 to 10."""

_HALF = BLOCK // 2  # samples of chroma on each side of a block
_BAND_OF = np.searchsorted((0, *BAND_LIMITS), np.arange(2 * BLOCK - 1))
_BAND = _BAND_OF[np.add.outer(np.arange(BLOCK), np.arange(BLOCK))]
_MEAN_OF_BAND = (1 / np.bincount(_BAND.reshape(-1))).astype(np.float32)
_COS4, _SIN4 = (np.float32(np.sqrt(0.5) * f(np.pi / 8)) for f in (np.cos, np.sin))


_DARK = tuple(np.zeros((side, side), np.uint8) for side in (SQUARE, BLOCK, BLOCK))
"""What a square is compared to where its own activity is asked for: luma and chroma of nothing."""


def activity_maps(frame: Frame, reference: Frame | None) -> Samples:
    """Maps of shape (ceil(height / 16) * 2, ceil(width / 16) * 2, 23), each from 0 to about 10.

    ``reference`` is the last decoded picture; None, for an intra frame, reads as no difference at all. Raises
    :class:`RqlvcError` when the two pictures differ in size.
    """
    if reference is not None and reference.y.shape != frame.y.shape:
        raise RqlvcError(
            f"the reference is {reference.width}x{reference.height} and the frame {frame.width}x{frame.height}: "
            "start with an intra frame where the picture size changes."
        )
    announce(measure)
    rows, columns = (-(-side // SQUARE) for side in frame.y.shape)
    maps = np.ones((2 * rows, 2 * columns, MAPS), np.float32)
    planes, still = _extended(frame, rows, columns, 0), np.zeros((rows, columns, 2), np.int32)
    measure(*planes, *_DARK, still, 0, 0, 1, maps)
    luma = (maps[..., 0] - 1) * np.float32(FLOOR / (BLOCK * LUMA_UNIT))
    if reference is not None:
        before = _extended(reference, rows, columns, EDGE)
        vectors = motion(planes[0], before[0])
        measure(*planes, *before, still, SQUARE, EDGE, 1, maps[..., PICTURE_MAPS:])
        measure(*planes, *before, vectors, SQUARE, EDGE, 2, maps[..., 2 * PICTURE_MAPS :])
        unlikeness(vectors, maps[..., -1])
    np.log(maps, out=maps)
    maps[..., 0] = luma
    return maps


def _luma(filtered: bool) -> Any:
    """Makes an intrinsic: mean magnitudes of the mean and the bands, a tuple of six, of an 8x8 block of ``plane`` less
    that of ``before`` at (``line``, ``left``) or, with ``filtered``, through the filters ``down`` and ``across``."""

    def measured(
        typing: Any, plane: Any, row: Any, column: Any, before: Any, line: Any, left: Any, down: Any, across: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rest = _rest(context, builder, signature, arguments, filtered)
            coefficients = transform_of_eight(*transposed(transform_of_eight(*rest)))
            bands: list[list[Lanes]] = [[] for _ in range(BANDS + 1)]
            for i in range(BLOCK):
                magnitude = abs(coefficients[i])
                for band in set(_BAND[i].tolist()):
                    bands[band].append(magnitude * np.where(_BAND[i] == band, _MEAN_OF_BAND[band], 0))
            return context.make_tuple(builder, signature.return_type, [total(band).total() for band in bands])

        return _signature(plane, before, down, across, BANDS + 1), generate

    return intrinsic(measured)


def _chroma(filtered: bool) -> Any:
    """Likewise, of the 4x4 blocks of an 8x8 square of chroma: the mean of each, column after column, and what the rest
    of each is on average, a tuple of eight."""

    def measured(
        typing: Any, plane: Any, row: Any, column: Any, before: Any, line: Any, left: Any, down: Any, across: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rest = _rest(context, builder, signature, arguments, filtered)
            columns = transposed([*_transform_of_four(*rest[:_HALF]), *_transform_of_four(*rest[_HALF:])])
            sides = [[abs(line) for line in _transform_of_four(*columns[k : k + _HALF])] for k in (0, _HALF)]
            means = sides[0][0].shuffled(sides[1][0], [0, _HALF, BLOCK, BLOCK + _HALF])
            sums = total(sides[0]), total(sides[1])
            for _ in range(2):  # pairs of neighbours
                joined = sums[0].shuffled(sums[1], range(0, 16, 2)) + sums[0].shuffled(sums[1], range(1, 16, 2))
                sums = joined, joined
            rests = (sums[0].shuffled(None, range(_HALF)) - means) * np.float32(1 / (_HALF * _HALF - 1))
            found = [lanes.lane(k) for lanes in (means, rests) for k in range(_HALF)]
            return context.make_tuple(builder, signature.return_type, found)

        return _signature(plane, before, down, across, 2 * _HALF), generate

    return intrinsic(measured)


def _signature(plane: Any, before: Any, down: Any, across: Any, numbers: int) -> Any:
    results: Any = types.UniTuple(types.float32, numbers)  # type: ignore[no-untyped-call]
    return results(plane, types.intp, types.intp, before, types.intp, types.intp, down, across)


def _rest(context: Any, builder: Any, signature: Any, arguments: Any, filtered: bool) -> list[Lanes]:
    """The rows of a block less what is somewhere in another picture: writes the instructions."""
    here, there = (Place(context, builder, signature, arguments, k, 2) for k in (0, 3))
    rows = [Lanes.of_bytes(builder, here.at(i), BLOCK, SHORT) for i in range(BLOCK)]
    if not filtered:
        others = (Lanes.of_bytes(builder, there.at(i), BLOCK, SHORT) for i in range(BLOCK))
        return [(row - other).converted(FLOAT) for row, other in zip(rows, others, strict=True)]
    taps = Place(context, builder, signature, arguments, 6).repeated(0, 4, BLOCK)
    moved = down_rows(across_rows(context, builder, signature, arguments, BLOCK), taps, -1, range(BLOCK))
    rests = (row * UNIT - other for row, other in zip(rows, moved, strict=True))
    return [rest.converted(FLOAT) * np.float32(1 / UNIT) for rest in rests]


def _transform_of_four(a: Lanes, b: Lanes, c: Lanes, d: Lanes) -> tuple[Lanes, ...]:
    """Orthonormal DCT-II of 4 samples."""
    s, t, u, v = a + d, b + c, a - d, b - c
    return np.float32(0.5) * (s + t), _COS4 * u + _SIN4 * v, np.float32(0.5) * (s - t), _SIN4 * u - _COS4 * v


_luma_at, _luma_between, _chroma_at, _chroma_between = _luma(False), _luma(True), _chroma(False), _chroma(True)


@loop
def measure(
    luma: Plane,
    u: Plane,
    v: Plane,
    before: Plane,
    u_before: Plane,
    v_before: Plane,
    vectors: Vectors,
    apart: int,
    edge: int,
    colours: int,
    maps: Samples,
) -> None:
    """Mean magnitudes in what a picture has more than another moved by ``vectors`` (h, w, 2; quarter luma samples), as
    magnitude / FLOOR + 1, into the first of ``maps`` (2 h, 2 w, ...): of the mean and the bands of luma, with
    ``colours`` = 2 of the mean of chroma, and of the rest of it.

    ``luma``: (16 h, 16 w), chroma half of that. ``before``: another picture extended by ``edge``, whose squares are
    ``apart`` from each other.
    """
    unit, half_unit = np.float32(1 / FLOOR), np.float32(0.5 / FLOOR)
    for row in range(vectors.shape[0]):
        for column in range(vectors.shape[1]):
            x, y = vectors[row, column]
            between = x % PARTS != 0 or y % PARTS != 0
            down, across = QUARTERS[y % PARTS], QUARTERS[x % PARTS]
            for k in range(4):
                i, j = k // 2, k % 2
                top, left = BLOCK * i, BLOCK * j
                here = SQUARE * row + top, SQUARE * column + left
                line, place = apart * row + edge + y // PARTS + top, apart * column + edge + x // PARTS + left
                if between:
                    found = _luma_between(luma, *here, before, line, place, down, across)
                else:
                    found = _luma_at(luma, *here, before, line, place, down, across)
                for n in range(BANDS + 1):
                    maps[2 * row + i, 2 * column + j, n] = found[n] * unit + 1
            between = x % CHROMA_PARTS != 0 or y % CHROMA_PARTS != 0
            down, across = EIGHTHS[y % CHROMA_PARTS], EIGHTHS[x % CHROMA_PARTS]
            here = BLOCK * row, BLOCK * column
            line, place = (
                (apart * row + edge) // 2 + y // CHROMA_PARTS,
                (apart * column + edge) // 2 + x // CHROMA_PARTS,
            )
            if between:
                of_u = _chroma_between(u, *here, u_before, line, place, down, across)
                of_v = _chroma_between(v, *here, v_before, line, place, down, across)
            else:
                of_u = _chroma_at(u, *here, u_before, line, place, down, across)
                of_v = _chroma_at(v, *here, v_before, line, place, down, across)
            for k in range(4):
                block = maps[2 * row + k % 2, 2 * column + k // 2]
                if colours == 2:
                    block[BANDS + 1] = (of_u[k] + of_v[k]) * half_unit + 1
                block[BANDS + colours] = (of_u[4 + k] + of_v[4 + k]) * half_unit + 1


def _extended(frame: Frame, rows: int, columns: int, edge: int) -> tuple[Plane, Plane, Plane]:
    """The planes repeated at their borders up to whole squares, and luma by ``edge`` more on each side."""
    height, width = SQUARE * rows + 2 * edge, SQUARE * columns + 2 * edge

    def extended(plane: Plane, part: int) -> Plane:
        if (height // part, width // part) == plane.shape:
            return np.ascontiguousarray(plane)
        result = np.empty((height // part, width // part), np.uint8)
        extend(np.ascontiguousarray(plane), edge // part, result)
        return result

    return extended(frame.y, 1), extended(frame.u, 2), extended(frame.v, 2)


@loop
def extend(plane: Plane, edge: int, result: Plane) -> None:
    """``plane`` repeated at its borders: by ``edge`` before it, and after it as far as ``result`` goes."""
    height, width = plane.shape
    for i in range(result.shape[0]):
        source, row = plane[min(max(i - edge, 0), height - 1)], result[i]
        for j in range(edge):
            row[j] = source[0]
        for j in range(width):
            row[edge + j] = source[j]
        for j in range(edge + width, row.shape[0]):
            row[j] = source[width - 1]
