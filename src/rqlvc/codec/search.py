"""Motion estimation: a block search with a price on vectors. Encoder only, so free to change.

First one vector for each 16x16 square, then one for each of its 8x8 blocks. Seeds come from a full search at quarter
resolution, the last frame's motion and zero; good vectors spread to their neighbours. Every pass reads only the pass
before it, so the result does not depend on the number of threads. So far prices are rough. The last pass goes through
the squares in the order of coding and decides by what each would really cost to code, and so what is found also
depends on the contexts. All vectors are in quarter samples.

In the pictures before the reference only squares are searched, from where the vectors to the reference lead on and
without walks: full searches there gain 0.2 % of bits more, for 4 ms a frame.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rqlvc.codec.binary import counter, pricer
from rqlvc.codec.entropy import MotionContext
from rqlvc.codec.interpolation import BLOCK, MARGIN, PEL, follow, towards_reference
from rqlvc.codec.mixing import MixedCoder, blank_decision
from rqlvc.codec.motion import (
    COLUMNS,
    FACTS,
    ROWS,
    VECTOR_LIMIT,
    as_field,
    as_motion,
    assign,
    candidate_of,
    find_candidates,
)
from rqlvc.codec.motion_coding import code_split, code_square, code_vector, known_of
from rqlvc.codec.references import PICTURES
from rqlvc.codec.residual_price import block_coefficients, price_scale, residual_price
from rqlvc.compiled import inner_loop, loop, over_rows

COARSE = 4  # the full search runs on luma averaged over 4x4
COARSE_RANGE = 7  # +-28 luma samples
COARSE_PRICE = 3.2e-3  # sum of differences of 16 averaged samples that 4 luma samples of distance are worth
MOVE_BITS, MOVE_BITS_PER_DOUBLING = 0.5, 1.2
"""Rough price of a component that differs from what its neighbours suggest."""
SPLIT_BITS, SPLIT_BITS_PER_DOUBLING = 2.0, 1.0
"""Rough price of a component of a block that leaves its square's motion."""
FIRST_BLOCK = 2.5
"""A square's first block is what the others' vectors are differences from: leaving alone is dearer for it."""
PASSES = (True, False)
"""Good vectors spread to the neighbours once in each; whether fractions of a sample are then tried around them."""
PASSES_BEYOND = PASSES[:1]
"""The same in the pictures before the reference: the other pass gains 0.1 % there."""
WALK = 6  # steps that the search of a square may take at each distance

_DOUBLINGS = np.log2(1 + np.arange(VECTOR_LIMIT + 1.0))  # of a difference
_CROSS = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])
_AROUND = np.array([(-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1)])


class Search(NamedTuple):
    """What every candidate is measured on."""

    fine: npt.NDArray[np.uint8]
    """The reference at quarter-pel, (N, 4, 4, H + 2 margin, W + 2 margin)."""
    blocks: npt.NDArray[np.float32]
    """The frame's 8x8 blocks as :func:`block_coefficients` has them, (N, h, w, 64)."""
    last: npt.NDArray[np.int32]
    """The last frame's vectors, (N, h, w, 2; x, y); zero after an intra frame."""
    scale: npt.NDArray[np.float32]
    """What :func:`price_scale` makes of the quantiser steps, (N,)."""


@inner_loop
def _price(difference: int, fixed: float, per_doubling: float) -> float:
    """Rough bits of one component's difference, in quarter samples."""
    return fixed + per_doubling * _DOUBLINGS[min(abs(difference), VECTOR_LIMIT)] if difference else 0.0


@inner_loop
def _motion_bits(difference: Any, around: Any) -> float:
    """Price of a square's difference where ``around`` is what its neighbours suggest."""
    bits = _price(difference[0] - around[0], MOVE_BITS, MOVE_BITS_PER_DOUBLING)
    return bits + _price(difference[1] - around[1], MOVE_BITS, MOVE_BITS_PER_DOUBLING)


@inner_loop
def _block_bits(search: Search, n: int, row: int, column: int, x: int, y: int) -> Any:
    """Estimated price of what (x, y) leaves of a block."""
    h, w = search.last.shape[1:3]
    top, left = row * BLOCK, column * BLOCK
    x = min(max(x, -(left + MARGIN) * PEL), ((w - 1) * BLOCK - left + MARGIN) * PEL)
    y = min(max(y, -(top + MARGIN) * PEL), ((h - 1) * BLOCK - top + MARGIN) * PEL)
    samples = search.fine[n, y & (PEL - 1), x & (PEL - 1)]
    i, j = top + MARGIN + (y >> 2), left + MARGIN + (x >> 2)
    return residual_price(samples, i, j, search.blocks[n, row, column], search.scale[n])


@inner_loop
def _square_bits(search: Search, n: int, row: int, column: int, x: int, y: int, limit: float) -> float:
    """Price of what (x, y) leaves of a square; some number above ``limit`` once it is above."""
    bits = 0.0
    for i in range(2):
        for j in range(2):
            if bits < limit:
                bits += _block_bits(search, n, 2 * row + i, 2 * column + j, x, y)
    return bits


@inner_loop
def _consider(
    search: Search, n: int, row: int, column: int, x: int, y: int, around: Any, best: Any, bits: float
) -> float:
    """Take (x, y) for a square if it is better than ``best`` with its ``bits``; returns the bits of the better."""
    if x == best[0] and y == best[1]:
        return bits
    price = _motion_bits((x, y), around)
    if price >= bits:
        return bits
    total = price + _square_bits(search, n, row, column, x, y, bits - price)
    if total < bits:
        best[0], best[1] = x, y
        return total
    return bits


@inner_loop
def _walk(
    search: Search,
    n: int,
    row: int,
    column: int,
    distance: int,
    steps: int,
    around: Any,
    best: Any,
    bits: float,
) -> float:
    """Go to the best neighbour at ``distance`` until none is better, at most ``steps`` times."""
    for _ in range(steps):
        x, y = best[0], best[1]
        for k in range(len(_CROSS)):
            dx, dy = _CROSS[k]
            bits = _consider(search, n, row, column, x + dx * distance, y + dy * distance, around, best, bits)
        if best[0] == x and best[1] == y:
            break
    return bits


@loop
def _squares_from_seeds(begin: int, end: int, search: Search, seeds: Any, steps: int, left: Any, result: Any) -> None:
    """Vectors (N, h / 2, w / 2, 2) found from seeds (N, h, w, 2), at most ``steps`` whole or double samples away.

    ``left`` (N, h / 2, w / 2) receives the price of what each leaves of its square.
    """
    h, w = search.last.shape[1:3]
    for line in range(begin, end):
        n, row = line // (h // 2), line % (h // 2)
        none = np.zeros(2, np.int32)
        for column in range(w // 2):
            best = result[n, row, column]
            bits = _square_bits(search, n, row, column, 0, 0, np.inf)
            for k in range(2):
                x, y = seeds[n, 2 * row + k, 2 * column + k]
                bits = _consider(search, n, row, column, x, y, none, best, bits)
                x, y = search.last[n, 2 * row + k, 2 * column + k]
                bits = _consider(search, n, row, column, x, y, none, best, bits)
            for distance in (2 * PEL, PEL):
                bits = _walk(search, n, row, column, distance, steps, none, best, bits)
            left[n, row, column] = bits - _motion_bits(best, none)


@inner_loop
def _mean_around(field: Any, row: int, column: int, mean: Any) -> None:
    """Mean of 3x3 vectors of ``field`` (h, w, 2), rounded, into ``mean``; beyond the border the nearest counts."""
    h, w = field.shape[:2]
    for c in range(2):
        total = 0
        for i in range(-1, 2):
            for j in range(-1, 2):
                total += field[min(max(row + i, 0), h - 1), min(max(column + j, 0), w - 1), c]
        mean[c] = round(total / 9)


@loop
def _squares_from_neighbours(
    begin: int, end: int, search: Search, squares: Any, known: Any, fractions: bool, left: Any, result: Any
) -> None:
    """Vectors, each the best of its own and its neighbours', priced by what is around; then refined.

    ``known``: what was ``left`` of ``squares``.
    """
    rows, columns = squares.shape[1:3]
    for line in range(begin, end):
        n, row = line // rows, line % rows
        around = np.empty(2, np.int32)
        for column in range(columns):
            best = result[n, row, column]
            best[:] = squares[n, row, column]
            _mean_around(squares[n], row, column, around)
            bits = known[n, row, column] + _motion_bits(best, around)
            for k in range(len(_CROSS)):
                i = min(max(row + _CROSS[k, 1], 0), rows - 1)
                j = min(max(column + _CROSS[k, 0], 0), columns - 1)
                x, y = squares[n, i, j]
                bits = _consider(search, n, row, column, x, y, around, best, bits)
            if fractions:
                for distance in (PEL // 2, 1):
                    x, y = best
                    for k in range(len(_AROUND)):
                        dx, dy = _AROUND[k]
                        bits = _consider(
                            search, n, row, column, x + dx * distance, y + dy * distance, around, best, bits
                        )
            left[n, row, column] = bits - _motion_bits(best, around)


@inner_loop
def _leave(search: Search, n: int, row: int, column: int, x: int, y: int, common: Any, best: Any, bits: float) -> float:
    """As :func:`_consider`, for a block that leaves its square's vector, ``common``."""
    if x == best[0] and y == best[1]:
        return bits
    price = _price(x - common[0], SPLIT_BITS, SPLIT_BITS_PER_DOUBLING)
    price += _price(y - common[1], SPLIT_BITS, SPLIT_BITS_PER_DOUBLING)
    if row % 2 == 0 and column % 2 == 0:
        price *= FIRST_BLOCK
    if price >= bits:
        return bits
    total = price + _block_bits(search, n, row, column, x, y)
    if total < bits:
        best[0], best[1] = x, y
        return total
    return bits


@loop
def _blocks(begin: int, end: int, search: Search, squares: Any, seeds: Any, result: Any) -> None:
    """Vectors (N, h, w, 2): each block's own where that pays, its square's elsewhere."""
    h, w = search.last.shape[1:3]
    for line in range(begin, end):
        n, row = line // h, line % h
        best = np.empty(2, np.int32)
        for column in range(w):
            common = squares[n, row // 2, column // 2]
            best[0], best[1] = common
            bits = _block_bits(search, n, row, column, best[0], best[1])
            x, y = seeds[n, row, column]
            bits = _leave(search, n, row, column, x, y, common, best, bits)
            for k in range(len(_CROSS)):
                i = min(max(row // 2 + _CROSS[k, 1], 0), h // 2 - 1)
                j = min(max(column // 2 + _CROSS[k, 0], 0), w // 2 - 1)
                x, y = squares[n, i, j]
                bits = _leave(search, n, row, column, x, y, common, best, bits)
            for distance in (PEL // 2, 1):
                x, y = best
                for k in range(len(_CROSS)):
                    dx, dy = _CROSS[k]
                    bits = _leave(search, n, row, column, x + dx * distance, y + dy * distance, common, best, bits)
            result[n, row, column] = best


@inner_loop
def _choose(
    searches: Any,
    n: int,
    row: int,
    column: int,
    slot: int,
    own: Any,
    left: Any,
    around: Any,
    square: Any,
    price: Any,
    found: Any,
    vector: Any,
    best: Any,
) -> float:
    """The cheapest reference and vector for the block or (``slot`` 0) square at (row, column), of its candidates and
    ``own`` (references, 2), into ``best`` (3,); returns its bits, those of motion included. ``left``: what each of
    ``own`` leaves of a square. Works in ``found``, as :func:`find_candidates` fills it, and ``vector`` (3,)."""
    least = np.inf
    find_candidates(around, row, column, 1 if slot else 2, found)
    count = found[FACTS, 0]
    for k in range(count + len(own)):
        if k < count:
            assign(vector, found[k])
        else:
            vector[0], vector[1] = own[k - count]
            vector[2] = k - count
            if candidate_of(found, count, vector[0], vector[1], vector[2]) >= 0:  # it has been tried
                continue
        search, mine = searches[vector[2]], own[vector[2]]
        if slot:
            bits = _block_bits(search, n, row, column, vector[0], vector[1])
        elif vector[0] == mine[0] and vector[1] == mine[1]:
            bits = left[vector[2]]
        else:
            bits = _square_bits(search, n, row // 2, column // 2, vector[0], vector[1], least)
        if bits >= least:  # a price takes longer than a block
            continue
        price.coder.bits[0] = 0.0
        code_vector(price, around, square, row, column, slot, found, vector)
        bits += price.coder.bits[0]
        if bits < least:
            least = bits
            assign(best, vector)
    return least


@inner_loop
def _split_bits(price: Any, square: Any, row: int, column: int, split: bool) -> float:
    price.coder.bits[0] = 0.0
    code_split(price, square, row, column, split)
    return price.coder.bits[0]


@loop
def _decide(
    searches: Any, n: int, squares: Any, left: Any, blocks: Any, around: Any, price: Any, learning: Any
) -> None:
    """Fill the field of ``around`` for picture ``n``, square by square with what costs least to code.

    ``searches``: what candidates of each reference are measured on. ``squares`` (N, h / 2, w / 2, references, 2),
    ``blocks`` (N, h, w, references, 2): what the search has found for each. ``left`` (N, h / 2, w / 2, references): the
    price of what is left of squares. ``price`` tells what motion costs, and ``learning`` lets the contexts adapt.
    """
    field = around.field
    found = np.zeros((ROWS, COLUMNS), np.int32)
    vector, common, best = np.empty(3, np.int32), np.empty(3, np.int32), np.empty(3, np.int32)
    for row in range(field.shape[0] // 2):
        for column in range(field.shape[1] // 2):
            r, c = 2 * row, 2 * column
            square = known_of(around, row, column)
            whole = _split_bits(price, square, row, column, False)
            remains = left[n, row, column]
            own = squares[n, row, column]
            whole += _choose(searches, n, r, c, 0, own, remains, around, square, price, found, vector, common)
            differs = False
            for k in range(4):
                apart = blocks[n, r + k // 2, c + k % 2, 0]
                differs |= common[2] != 0 or apart[0] != common[0] or apart[1] != common[1]
            split = _split_bits(price, square, row, column, True) if differs else np.inf
            for k in range(4):
                i, j = r + k // 2, c + k % 2
                if split < whole:
                    own = blocks[n, i, j]
                    split += _choose(searches, n, i, j, k + 1, own, remains, around, square, price, found, vector, best)
                    field[i, j] = best
            if split >= whole:
                for k in range(4):
                    field[r + k // 2, c + k % 2] = common
            code_square(learning, around, row, column, found, vector)


@loop
def _coarse_seeds(begin: int, end: int, small: Any, reference: Any, result: Any) -> None:
    """Vectors (N, h, w, 2) from a full search over 16x16 luma samples around each block, at quarter resolution.

    ``small``: the frame's luma averaged over 4x4 (N, 2h, 2w) with a border of 1; ``reference`` likewise with the
    search range more.
    """
    h, w = result.shape[1:3]
    span = 2 * COARSE_RANGE + 1
    for line in range(begin, end):
        n, row = line // h, line % h
        lowest = np.full(w, np.inf, np.float32)
        sums = np.empty(small.shape[2], np.float32)
        for dy in range(span):
            for dx in range(span):
                sums[:] = 0.0
                for i in range(4):
                    for j in range(small.shape[2]):
                        sums[j] += abs(small[n, 2 * row + i, j] - reference[n, 2 * row + i + dy, j + dx])
                price = np.float32(COARSE_PRICE * (abs(dx - COARSE_RANGE) + abs(dy - COARSE_RANGE)))
                for column in range(w):
                    j = 2 * column
                    cost = sums[j] + sums[j + 1] + sums[j + 2] + sums[j + 3] + price
                    if cost < lowest[column]:
                        lowest[column] = cost
                        result[n, row, column, 0] = (dx - COARSE_RANGE) * COARSE * PEL
                        result[n, row, column, 1] = (dy - COARSE_RANGE) * COARSE * PEL


def _vectors(kernel: Callable[..., None], shape: tuple[int, int, int], *arguments: Any) -> npt.NDArray[np.int32]:
    """Vectors of ``shape`` (N, h, w) from a kernel that fills some rows of them."""
    result = np.zeros((*shape, 2), np.int32)
    over_rows(kernel, shape[0] * shape[1], *arguments, result)
    return result


def _smaller(plane: Tensor, border: int) -> npt.NDArray[np.float32]:
    return np.asarray(F.pad(F.avg_pool2d(plane, COARSE), [border] * 4, mode="replicate")[:, 0].cpu())


def _lead_on(vectors: npt.NDArray[np.int32], through: Tensor) -> npt.NDArray[np.int32]:
    """Vectors (N, h, w, 2) to the reference, then ``through`` (N, 2, h, w) on to a picture before it."""
    there = follow(torch.from_numpy(vectors).permute(0, 3, 1, 2), through.to("cpu", torch.int32))
    return there.permute(0, 2, 3, 1).clamp(-VECTOR_LIMIT, VECTOR_LIMIT).contiguous().numpy()


def _find_squares(
    search: Search, seeds: npt.NDArray[np.int32], steps: int, passes: tuple[bool, ...]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Vectors (N, h / 2, w / 2, 2) of squares from seeds (N, h, w, 2), and the price of what each leaves."""
    pictures, h, w = seeds.shape[:3]
    half = (pictures, h // 2, w // 2)
    left = np.empty(half, np.float64)
    squares = _vectors(_squares_from_seeds, half, search, seeds, steps, left)
    for fractions in passes:
        before, left = left, np.empty(half, np.float64)
        squares = _vectors(_squares_from_neighbours, half, search, squares, before, fractions, left)
    return squares, left


@torch.no_grad()
def block_search(
    luma: Tensor, reference: Tensor, fine: list[Tensor], through: list[Tensor], known: MotionContext, step: Tensor
) -> Tensor:
    """Motion (N, 3, H / 8, W / 8; x, y in quarter samples, which picture they reach to) that predicts ``luma``.

    ``luma``, ``reference``: (N, 1, H, W) on [0, 1]; H and W are multiples of 16. ``fine``: what
    :func:`~rqlvc.codec.interpolation.quarter_pel` made of the reference and of the pictures before it, where there are
    any, with a margin of 24. ``through``: vectors (N, 2, H / 8, W / 8) from the reference to each of these. ``known``:
    what motion is coded with. ``step``: quantiser step (N,), which sets the price. Runs on the CPU.
    """
    pictures, h, w = luma.shape[0], luma.shape[2] // BLOCK, luma.shape[3] // BLOCK
    last = np.zeros((pictures, h, w, 2), np.int32)
    if known.last is not None:
        last = np.stack([as_field(vectors) for vectors in towards_reference(known.last, known.distances)])
    scale = price_scale(step)
    search = Search(fine[0].numpy(), block_coefficients(luma), last, scale)
    small, other = _smaller(luma, 1), _smaller(reference, COARSE_RANGE + 1)
    seeds = _vectors(_coarse_seeds, (pictures, h, w), small, other)
    squares, left = _find_squares(search, seeds, WALK, PASSES)
    apart = _vectors(_blocks, (pictures, h, w), search, squares, seeds)
    searches, found, found_left, found_apart = [search], [squares], [left], [apart]
    for samples, vectors in zip(fine[1:], through, strict=True):
        before = Search(samples.numpy(), search.blocks, _lead_on(last, vectors), scale)
        there = _lead_on(apart, vectors)
        squares, left = _find_squares(before, there, 0, PASSES_BEYOND)
        searches.append(before)
        found.append(squares)
        found_left.append(left)
        found_apart.append(_vectors(_blocks, (pictures, h, w), before, squares, there))
    # A tuple of one length is compiled once; no vector reaches to a picture that is not there.
    all_searches = (*searches, *[search] * (PICTURES - len(searches)))
    squares, left, apart = np.stack(found, axis=-2), np.stack(found_left, axis=-1), np.stack(found_apart, axis=-2)
    fields = []
    for n in range(pictures):
        around, mixer = known.of(n, np.zeros((h, w, 3), np.int32))
        price, learning = (MixedCoder(coder, mixer, blank_decision(1)) for coder in (pricer(), counter()))
        _decide(all_searches, n, squares, left, apart, around, price, learning)
        fields.append(as_motion(around.field))
    return torch.stack(fields).to(luma)
