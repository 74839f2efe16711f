"""What RQNet measures on pictures: how blocks move, and how much is in them and in what motion leaves of them.

Compiled loops, written so that they run over long rows. Pictures are float32 in 8-bit units, of sides that are
multiples of 16 and those of chroma half of that.

The motion search is a sketch of the codec's: a full search at quarter resolution, then whole luma samples, then halves.
What it leaves is close to what the codec has to code, whereas the plain difference of two frames is not.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from rqlvc.compiled import announce, dct, inner_loop, loop
from rqlvc.errors import RqlvcError
from rqlvc.media.frame import Frame, Plane

Samples = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.int32]

BLOCK = 8
SQUARE = 16
"""Luma samples on each side of what has a vector."""
COARSE = 4
"""The first search is on luma averaged over 4x4."""
COARSE_REACH = 7
"""28 luma samples, as in the codec."""
COARSE_PRICE = 0.8
"""Sum of differences of 16 averaged samples that 4 luma samples of distance are worth, as in the codec."""
FINE_REACH = 2
"""Luma samples around what the first search found: half its grid."""
EDGE = COARSE * COARSE_REACH + FINE_REACH + 2
"""Luma samples by which a reference is extended: what vectors reach, and a multiple of 4."""
ROWS_APART = 2
"""Every second row is compared."""
OWN_PRICE = 64.0
"""Sum of differences of 128 samples that a vector is worth that no neighbour has."""
VECTOR_PRICE = 8.0
"""Sum of differences of 128 samples that a vector unlike its neighbours' is worth."""

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

_AROUND = np.array([(0, -1), (-1, 0), (-1, 1), (0, 1), (1, 0)])
_PITCH = SQUARE + 2 * FINE_REACH  # of the squares' windows in a strip
_BAND_OF = np.searchsorted((0, *BAND_LIMITS), np.arange(2 * BLOCK - 1))
_BAND_SIZE = np.bincount(_BAND_OF[np.add.outer(np.arange(BLOCK), np.arange(BLOCK))].reshape(-1))
_BAND_SHARE = (1 / _BAND_SIZE).astype(np.float32)
_HALF = np.float32(0.5)
_COS4, _SIN4 = (np.float32(np.sqrt(0.5) * f(np.pi / 8)) for f in (np.cos, np.sin))


@loop
def extend(plane: Plane, edge: int, result: Samples) -> None:
    """``plane`` as floats, repeated at its borders: by ``edge`` before it, and after it as far as ``result`` goes."""
    height, width = plane.shape
    for i in range(result.shape[0]):
        source, row = plane[min(max(i - edge, 0), height - 1)], result[i]
        for j in range(edge):
            row[j] = source[0]
        for j in range(width):
            row[edge + j] = source[j]
        for j in range(edge + width, result.shape[1]):
            row[j] = source[width - 1]


@loop
def smaller(plane: Samples, result: Samples) -> None:
    """Means of 4x4 samples of ``plane`` (4 H, 4 W) into ``result`` (H, W)."""
    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            total = np.float32(0)
            for i in range(COARSE):
                for j in range(COARSE):
                    total += plane[COARSE * row + i, COARSE * column + j]
            result[row, column] = total * np.float32(1 / COARSE**2)


@loop
def search_coarsely(small: Samples, reference: Samples, vectors: Vectors) -> None:
    """``vectors`` (h, w, 2; x, y in luma samples) of squares, each the best of a full search at quarter resolution.

    ``small``: luma averaged over 4x4, (4 h, 4 w); ``reference`` likewise, with EDGE / 4 more on each side.
    """
    width = small.shape[1]
    sums, lowest = np.empty(width, np.float32), np.empty(vectors.shape[1], np.float32)
    origin = EDGE // COARSE
    for row in range(vectors.shape[0]):
        lowest[:] = np.inf
        for y in range(-COARSE_REACH, COARSE_REACH + 1):
            for x in range(-COARSE_REACH, COARSE_REACH + 1):
                sums[:] = 0.0
                for i in range(COARSE):
                    here, there = small[COARSE * row + i], reference[COARSE * row + i + y + origin]
                    for j in range(width):
                        sums[j] += abs(here[j] - there[j + x + origin])
                price = np.float32(COARSE_PRICE * (abs(x) + abs(y)))
                for column in range(vectors.shape[1]):
                    j = COARSE * column
                    cost = sums[j] + sums[j + 1] + sums[j + 2] + sums[j + 3] + price
                    if cost < lowest[column]:
                        lowest[column] = cost
                        vectors[row, column, 0], vectors[row, column, 1] = COARSE * x, COARSE * y


@loop
def interpolate(planes: Samples) -> None:
    """Fill planes 1 to 3 of (4, H, W): plane 0 half a sample to the right, half a sample down, and both.

    Means of neighbours: HEVC's filter takes as long as the search and leaves as much. The last row and column stay as
    they are.
    """
    height, width = planes.shape[1:]
    for row in range(height):
        samples, right = planes[0, row], planes[1, row]
        for j in range(width - 1):
            right[j] = _HALF * (samples[j] + samples[j + 1])
    for k in range(2):
        for i in range(height - 1):
            upper, lower, down = planes[k, i], planes[k, i + 1], planes[2 + k, i]
            for j in range(width):
                down[j] = _HALF * (upper[j] + lower[j])


@inner_loop
def _gather(plane: Samples, top: int, vectors: Any, strip: Samples) -> None:
    """Windows of ``plane`` around the squares of the row at ``top``, moved by ``vectors`` (w, 2), side by side."""
    for column in range(vectors.shape[0]):
        y, x = top + vectors[column, 1] - FINE_REACH, SQUARE * column + EDGE + vectors[column, 0] - FINE_REACH
        for i in range(_PITCH):
            here, there = strip[i, _PITCH * column : _PITCH * (column + 1)], plane[y + i, x : x + _PITCH]
            for j in range(_PITCH):
                here[j] = there[j]


@inner_loop
def _compare(frame: Samples, strip: Samples, x: int, y: int, sums: Any, costs: Any) -> None:
    """``costs`` (w,): sums of differences of each square to its window at (x, y) from the middle."""
    width = sums.shape[0]
    sums[:] = 0.0
    for i in range(0, SQUARE, ROWS_APART):
        here, there = frame[i], strip[i + y + FINE_REACH, x + FINE_REACH :]
        for j in range(width):
            sums[j] += abs(here[j] - there[j])
    for column in range(costs.shape[0]):
        total = np.float32(0)
        for j in range(SQUARE):
            total += sums[_PITCH * column + j]
        costs[column] = total


@loop
def refine(frame: Samples, planes: Samples, half: bool, vectors: Vectors) -> None:
    """Refine ``vectors`` (h, w, 2), given in luma samples: to the best within FINE_REACH, or with ``half``, to half
    samples, and then they are counted in these.

    ``planes``: what :func:`interpolate` made of the reference, which has EDGE more on each side.
    """
    rows, columns = vectors.shape[:2]
    squares = np.zeros((SQUARE, _PITCH * columns), np.float32)
    strip = np.zeros((_PITCH, _PITCH * columns + _PITCH), np.float32)
    sums, costs = np.empty(_PITCH * columns, np.float32), np.empty(columns, np.float32)
    lowest, best = np.empty(columns, np.float32), np.zeros((columns, 2), np.int32)
    price = np.float32(VECTOR_PRICE)
    for row in range(rows):
        found = vectors[row]
        for i in range(SQUARE):
            for column in range(columns):
                for j in range(SQUARE):
                    squares[i, _PITCH * column + j] = frame[SQUARE * row + i, SQUARE * column + j]
        _gather(planes[0], SQUARE * row + EDGE, found, strip)
        _compare(squares, strip, 0, 0, sums, lowest)
        best[:] = 0
        for k in range(1, 4) if half else range(1):
            if half:
                _gather(planes[k], SQUARE * row + EDGE, found, strip)
            top, left = (k // 2, k % 2) if half else (FINE_REACH, FINE_REACH)
            for y in range(-top, 1 if half else top + 1):
                for x in range(-left, 1 if half else left + 1):
                    _compare(squares, strip, x, y, sums, costs)
                    for column in range(columns):
                        cost = costs[column] + price
                        if cost < lowest[column]:
                            lowest[column] = cost
                            best[column, 0], best[column, 1] = (2 * x + k % 2, 2 * y + k // 2) if half else (x, y)
        for column in range(columns):
            for c in range(2):
                found[column, c] = (2 * found[column, c] if half else found[column, c]) + best[column, c]


@inner_loop
def _difference(frame: Samples, plane: Samples, row: int, column: int, x: int, y: int) -> Any:
    """Sum of differences of the square to what is at (x, y) from it."""
    total = np.float32(0)
    left, other = np.uintp(SQUARE * column), np.uintp(SQUARE * column + EDGE + x)  # unsigned: cannot count from the end
    for i in range(0, SQUARE, ROWS_APART):
        here, there = frame[SQUARE * row + i], plane[SQUARE * row + EDGE + y + i]
        for j in range(SQUARE):
            total += abs(here[left + np.uintp(j)] - there[other + np.uintp(j)])
    return total


@loop
def spread(frame: Samples, plane: Samples, vectors: Vectors) -> None:
    """Give squares the vectors of their neighbours, or zero, where these do as well as their own (h, w, 2)."""
    rows, columns = vectors.shape[:2]
    tried = np.zeros((len(_AROUND) + 2, 2), np.int32)  # zero, its own, the neighbours'
    for row in range(rows):
        for column in range(columns):
            tried[1] = vectors[row, column]
            count = 2
            for k in range(len(_AROUND)):
                i, j = row + _AROUND[k, 0], column + _AROUND[k, 1]
                if 0 <= i < rows and 0 <= j < columns:
                    tried[count] = vectors[i, j]
                    count += 1
            lowest = np.float32(np.inf)
            for k in range(count):
                x, y = tried[k]
                known = False  # several squares often have one vector
                for n in range(k):
                    known |= tried[n, 0] == x and tried[n, 1] == y
                if not known or k == 1:
                    alone = True
                    for n in range(2, count):
                        alone &= tried[n, 0] != x or tried[n, 1] != y
                    cost = _difference(frame, plane, row, column, x, y) + np.float32(OWN_PRICE if alone else 0.0)
                    if cost < lowest:
                        lowest = cost
                        vectors[row, column, 0], vectors[row, column, 1] = x, y


@inner_loop
def _transform(columns: Samples) -> None:
    """The cosine transform of each column of ``columns`` (8, n), in place."""
    for j in range(columns.shape[1]):
        a, b, c, d = columns[0, j], columns[1, j], columns[2, j], columns[3, j]
        a, b, c, d, e, f, g, h = dct(a, b, c, d, columns[4, j], columns[5, j], columns[6, j], columns[7, j])
        columns[0, j], columns[1, j], columns[2, j], columns[3, j] = a, b, c, d
        columns[4, j], columns[5, j], columns[6, j], columns[7, j] = e, f, g, h


@loop
def _luma_bands(strip: Samples, result: Samples) -> None:
    """Mean magnitudes of the mean and the bands of the 8x8 blocks side by side in ``strip`` (8, 8 w), into the first
    six columns of ``result`` (w, 8)."""
    blocks = result.shape[0]
    turned, bands = np.empty((BLOCK, BLOCK, blocks), np.float32), np.zeros((BANDS + 1, blocks), np.float32)
    _transform(strip)
    for i in range(BLOCK):
        for block in range(blocks):
            for j in range(BLOCK):
                turned[j, i, block] = strip[i, BLOCK * block + j]
    _transform(turned.reshape(BLOCK, BLOCK * blocks))
    for j in range(BLOCK):
        for i in range(BLOCK):
            band, coefficients = bands[_BAND_OF[i + j]], turned[j, i]
            for block in range(blocks):
                band[block] += abs(coefficients[block])
    for band in range(BANDS + 1):
        for block in range(blocks):
            result[block, band] = bands[band, block] * _BAND_SHARE[band]


@inner_loop
def _dct4(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Orthonormal DCT-II of 4 samples."""
    s, t, u, v = a + d, b + c, a - d, b - c
    return _HALF * (s + t), _COS4 * u + _SIN4 * v, _HALF * (s - t), _SIN4 * u - _COS4 * v


@loop
def _chroma_bands(strip: Samples, result: Samples) -> None:
    """Add half the mean magnitudes of the 4x4 blocks side by side in ``strip``: of the mean and the rest, to the last
    two columns of ``result`` (w, 8)."""
    blocks = result.shape[0]
    size = BLOCK // 2
    turned, rest = np.empty((size, size, blocks), np.float32), np.zeros(blocks, np.float32)
    for j in range(size * blocks):
        strip[0, j], strip[1, j], strip[2, j], strip[3, j] = _dct4(strip[0, j], strip[1, j], strip[2, j], strip[3, j])
    for i in range(size):
        for block in range(blocks):
            for j in range(size):
                turned[j, i, block] = strip[i, size * block + j]
    for i in range(size):
        for k in range(blocks):
            a, b, c, d = _dct4(turned[0, i, k], turned[1, i, k], turned[2, i, k], turned[3, i, k])
            rest[k] += abs(a) + abs(b) + abs(c) + abs(d)
            turned[0, i, k] = abs(a)
    for block in range(blocks):
        mean = turned[0, 0, block]
        result[block, BANDS + 1] += _HALF * mean
        result[block, BANDS + 2] += _HALF / np.float32(size * size - 1) * (rest[block] - mean)


@loop
def activity(luma: Samples, chroma: Samples, result: Samples) -> None:
    """Mean magnitudes of what is in a picture or difference, (h, w, 8): of the mean and the bands of luma, of the mean
    and the rest of chroma.

    ``luma``: (8 h, 8 w); ``chroma``: (2, 4 h, 4 w).
    """
    strip, half = np.empty((BLOCK, luma.shape[1]), np.float32), np.empty((BLOCK // 2, chroma.shape[2]), np.float32)
    for row in range(result.shape[0]):
        for i in range(BLOCK):
            for j in range(luma.shape[1]):
                strip[i, j] = luma[BLOCK * row + i, j]
        _luma_bands(strip, result[row])
        for k in range(2):
            for i in range(BLOCK // 2):
                for j in range(chroma.shape[2]):
                    half[i, j] = chroma[k, BLOCK // 2 * row + i, j]
            _chroma_bands(half, result[row])


@loop
def subtract_moved(
    luma: Samples, chroma: Samples, planes: Samples, colours: Samples, vectors: Vectors, rest: Samples, colour: Samples
) -> None:
    """What ``luma`` (H, W) and ``chroma`` (2, H / 2, W / 2) have more than the reference moved by ``vectors``
    (h, w, 2; half luma samples), into ``rest`` and ``colour``.

    ``planes``: luma of the reference, as :func:`interpolate` left it; ``colours``: its chroma, EDGE / 2 larger.
    """
    size, edge = SQUARE // 2, EDGE // 2
    for row in range(vectors.shape[0]):
        for column in range(vectors.shape[1]):
            x, y = vectors[row, column]
            plane = planes[2 * (y & 1) + (x & 1)]
            left = SQUARE * column
            for i in range(SQUARE * row, SQUARE * row + SQUARE):
                here, difference = luma[i, left : left + SQUARE], rest[i, left : left + SQUARE]
                there = plane[i + EDGE + (y >> 1), left + EDGE + (x >> 1) :]
                for j in range(SQUARE):
                    difference[j] = here[j] - there[j]
            right, down = np.float32((x & 3) / 4), np.float32((y & 3) / 4)
            left = size * column
            for k in range(2):
                for i in range(size * row, size * row + size):
                    here, difference = chroma[k, i, left : left + size], colour[k, i, left : left + size]
                    upper = colours[k, i + edge + (y >> 2), left + edge + (x >> 2) :]
                    lower = colours[k, i + edge + (y >> 2) + 1, left + edge + (x >> 2) :]
                    for j in range(size):
                        above = upper[j] + right * (upper[j + 1] - upper[j])
                        below = lower[j] + right * (lower[j + 1] - lower[j])
                        difference[j] = here[j] - above - down * (below - above)


@loop
def unlikeness(vectors: Vectors, result: Samples) -> None:
    """How far each vector (h, w, 2) is from the nearer of its left and upper neighbours', (h, w), in half samples."""
    for row in range(vectors.shape[0]):
        for column in range(vectors.shape[1]):
            x, y = vectors[row, column]
            least = abs(x) + abs(y) if row == column == 0 else 1 << 30
            if column:
                least = min(least, abs(x - vectors[row, column - 1, 0]) + abs(y - vectors[row, column - 1, 1]))
            if row:
                least = min(least, abs(x - vectors[row - 1, column, 0]) + abs(y - vectors[row - 1, column, 1]))
            result[row, column] = least


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
    announce(activity)
    height, width = (-(-side // SQUARE) * SQUARE for side in frame.y.shape)
    luma, chroma = _extended(frame.y, height, width, 0), _extended_chroma(frame, height, width, 0)
    maps = np.zeros((height // BLOCK, width // BLOCK, MAPS), np.float32)
    own = _activity(luma, chroma)
    maps[..., 0] = own[..., 0] * np.float32(1 / (BLOCK * LUMA_UNIT))
    maps[..., 1:PICTURE_MAPS] = _logarithm(own[..., [*range(1, BANDS + 1), BANDS + 2]])
    if reference is not None:
        rest = np.concatenate(_differences(luma, chroma, reference), axis=-1)
        maps[..., PICTURE_MAPS:] = _logarithm(rest)
    return maps


def _differences(luma: Samples, chroma: Samples, reference: Frame) -> tuple[Samples, ...]:
    """Magnitudes in the difference to ``reference``, (h, w, 7), in that to ``reference`` moved, (h, w, 8), and how
    unlike their neighbours the vectors are, (h, w, 1)."""
    height, width = luma.shape
    planes = np.empty((4, height + 2 * EDGE, width + 2 * EDGE), np.float32)
    planes[0] = _extended(reference.y, height, width, EDGE)
    colours = _extended_chroma(reference, height, width, EDGE // 2)
    still, inside = planes[0, EDGE:-EDGE, EDGE:-EDGE], colours[:, EDGE // 2 : -EDGE // 2, EDGE // 2 : -EDGE // 2]
    plain = _activity(luma - still, chroma - inside)

    vectors = motion(luma, planes)
    rest, colour = np.empty_like(luma), np.empty_like(chroma)
    subtract_moved(luma, chroma, planes, colours, vectors, rest, colour)
    unlike = np.empty(vectors.shape[:2], np.float32)
    unlikeness(vectors, unlike)
    per_block = SQUARE // BLOCK
    unlike = np.repeat(np.repeat(unlike, per_block, axis=0), per_block, axis=1) * np.float32(FLOOR)
    return plain[..., [*range(BANDS + 1), BANDS + 2]], _activity(rest, colour), unlike[..., None]


def motion(luma: Samples, planes: Samples) -> Vectors:
    """Vectors of the 16x16 squares of ``luma`` (H, W) into a reference, (H / 16, W / 16, 2; x, y in half samples).

    ``planes`` (4, H + 2 EDGE, W + 2 EDGE): the reference, extended, in the first one; the others are filled.
    """
    small = np.empty((luma.shape[0] // COARSE, luma.shape[1] // COARSE), np.float32)
    around = np.empty((planes.shape[1] // COARSE, planes.shape[2] // COARSE), np.float32)
    smaller(luma, small)
    smaller(planes[0], around)
    interpolate(planes)
    vectors = np.zeros((luma.shape[0] // SQUARE, luma.shape[1] // SQUARE, 2), np.int32)
    search_coarsely(small, around, vectors)
    refine(luma, planes, False, vectors)
    spread(luma, planes[0], vectors)
    refine(luma, planes, True, vectors)
    return vectors


def _activity(luma: Samples, chroma: Samples) -> Samples:
    result = np.zeros((luma.shape[0] // BLOCK, luma.shape[1] // BLOCK, BANDS + 3), np.float32)
    activity(luma, chroma, result)
    return result


def _logarithm(magnitudes: Samples) -> Samples:
    logarithms: Samples = np.log1p(magnitudes * np.float32(1 / FLOOR))
    return logarithms


def _extended(plane: Plane, height: int, width: int, edge: int) -> Samples:
    """The plane as floats, repeated at its borders up to (height, width) and by ``edge`` more on each side."""
    samples = np.empty((height + 2 * edge, width + 2 * edge), np.float32)
    extend(np.ascontiguousarray(plane), edge, samples)
    return samples


def _extended_chroma(frame: Frame, height: int, width: int, edge: int) -> Samples:
    return np.stack([_extended(plane, height // 2, width // 2, edge) for plane in (frame.u, frame.v)])
