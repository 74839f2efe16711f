"""Latents and hyper-latents: symbols one by one, in contexts of what is around, on top of the prior's scale bins.

A prior says how large a symbol is likely to be before it knows any other symbol of the same step. The contexts know
them: those of neighbouring frequencies in the same block, those of the same frequency in the blocks around and in the
last frame, and whether the block has so far held more than the prior expected. Integers only, but for the encoder's
choice of a symbol.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rqlvc.codec.binary import ONE, READ, code, code_digits, code_plainly, mode
from rqlvc.codec.laplace import BINS, bin_scales
from rqlvc.codec.mixing import INPUTS, learn, predict
from rqlvc.codec.transforms import frequency_order
from rqlvc.compiled import inner_loop, loop

CHROMA = (64, 80)
"""The first of 16 channels of U and of V; before them come 64 of luma."""
CHROMA_BLOCK = 4
HYPER_CHANNELS = 24

UNARY = 20
"""Steps of a magnitude that are decided one by one; how far it goes beyond is coded plainly."""
SYMBOL_LIMIT = 2**15 - 1
_DIGITS = 15
_STEPS = 6  # that contexts tell apart
_SURPRISES = 12
_LEVELS, _COARSE_LEVELS = 6, 4  # of magnitudes around
_PARTNERS = 5
_LARGE = 3  # magnitudes from here on surprise alike
_UNIT = 256  # of what is expected
_SET_BINS = 7  # that share a set of weights
_BIN_SETS = BINS // _SET_BINS + 1
_SET_STEPS = 3  # that have weights of their own
SETS = _SET_STEPS * 2 * _BIN_SETS
"""Of weights, for a mixer: by step, by whether the squares beside are coded earlier, and by bin."""
SETS_OF_ONE = 3
"""That a decision takes: beside one of these, one by channel and step, and one by the magnitudes around and step."""
_FINE_STEPS = 4  # that the further sets tell apart


class Layout(NamedTuple):
    """What is fixed about the channels of a kind of latents, and about scale bins."""

    neighbours: npt.NDArray[np.int32]
    """(channels, 3): the channels of the next lower vertical, horizontal, and of both frequencies; -1 where none is."""
    partners: npt.NDArray[np.int32]
    """(channels,): the channel of U that has the frequency of one of V; -2 for U itself, -1 for luma."""
    contexts: npt.NDArray[np.int64]
    """(INPUTS + 1,): where the contexts of each input begin, and their number."""
    expected: npt.NDArray[np.int32]
    """(64,): magnitude to expect of each bin, at most 3, in 1/256."""
    shifts: npt.NDArray[np.int32]
    """(64,): lower binary digits that are coded plainly, because the bin spreads far beyond them."""


@functools.cache
def texture_layout() -> Layout:
    """Of the 96 channels of 8x8 luma and 4x4 chroma."""
    places: dict[tuple[int, int, int], int] = {}
    for start, size in ((0, 8), *((first, CHROMA_BLOCK) for first in CHROMA)):
        places |= {(start, *divmod(int(place), size)): start + k for k, place in enumerate(frequency_order(size))}
    neighbours = np.full((len(places), 3), -1, np.int32)
    for (start, u, v), channel in places.items():
        near = ((start, u - 1, v), (start, u, v - 1), (start, u - 1, v - 1))
        neighbours[channel] = [places.get(place, -1) for place in near]
    partners = np.full(len(places), -1, np.int32)
    partners[CHROMA[0] : CHROMA[1]] = -2
    partners[CHROMA[1] :] = range(*CHROMA)
    return _layout(neighbours, partners)


@functools.cache
def hyper_layout() -> Layout:
    """Of the 24 channels of hyper-latents, whose neighbours are the bands before them."""
    before = np.arange(HYPER_CHANNELS, dtype=np.int32)[:, None] - np.array([1, 2, 3], np.int32)
    return _layout(np.maximum(before, -1), np.full(HYPER_CHANNELS, -1, np.int32))


def _layout(neighbours: npt.NDArray[np.int32], partners: npt.NDArray[np.int32]) -> Layout:
    channels, steps = len(partners), _STEPS
    sizes = (  # as _find_places has them
        BINS * steps,
        BINS * steps * _SURPRISES,
        channels * steps * _COARSE_LEVELS**2,
        steps * _LEVELS**2 * _SURPRISES,
        channels * BINS * steps,
        BINS * steps * _COARSE_LEVELS * _PARTNERS,
    )
    scale = bin_scales().double().numpy()
    mean = np.exp(-0.5 / scale) / (1 - np.exp(-1 / scale))
    shifts = np.floor(np.log2(np.maximum(mean / 3, 1)))
    shifts[mean < 6] = 0
    expected = np.floor(np.minimum(mean, _LARGE) * _UNIT + 0.5)
    return Layout(neighbours, partners, np.cumsum([0, *sizes]), expected.astype(np.int32), shifts.astype(np.int32))


def further_sets(layout: Layout) -> int:
    """Sets of weights beside :data:`SETS`."""
    return (len(layout.partners) + _LEVELS**2) * _FINE_STEPS


class Around(NamedTuple):
    """What is decoded of a frame's latents of one kind."""

    magnitudes: npt.NDArray[np.int32]
    """Of symbols, (height * width, channels); 0 where none is known yet."""
    expected: npt.NDArray[np.int32]
    """(height * width,): the sum of what bins expected of a block, in 1/256."""
    surprise: npt.NDArray[np.int32]
    """(height * width,): what its symbols were more than that."""
    last: npt.NDArray[np.int32]
    """Magnitudes of the last frame's latents, (height * width, channels) or nothing."""
    width: int


def around(layout: Layout, squares: int, width: int, last: npt.NDArray[np.int32] | None) -> Around:
    """As it is before the first symbol of a frame with ``squares`` blocks, ``width`` in a row."""
    channels = len(layout.partners)
    nothing = np.zeros((0, channels), np.int32)
    blocks = np.zeros((2, squares), np.int32)
    known = np.zeros((squares, channels), np.int32)
    return Around(known, blocks[0], blocks[1], nothing if last is None else last, width)


class Choice(NamedTuple):
    """How an encoder chooses symbols (see :class:`rqlvc.codec.laplace.Rounding`)."""

    offset: npt.NDArray[np.float32]
    """(64,): what is added to a magnitude before it is rounded down."""
    one: npt.NDArray[np.float32]
    """(64,): bits of a one once it is known not to be zero, with its sign."""
    price: float
    """Squared quantiser steps that a bit is worth."""
    most: float
    """A magnitude of more than 0.5 + most is never made zero."""


@inner_loop
def _level(total: int) -> int:
    """0, 1, 2, up to 4, up to 8, more."""
    if total <= 2:
        return total
    return 3 if total <= 4 else 4 if total <= 8 else 5


@inner_loop
def _surprise(surprise: int, expected: int) -> int:
    """Twice ``surprise`` in units of about its deviation, the root of ``expected``, rounded down: 0 to 11, of which 4
    is none."""
    result = 0
    doubled = 4 * surprise * surprise
    unit = (expected + _UNIT // 2) * _UNIT
    if surprise >= 0:
        while result < _SURPRISES - 5 and (result + 1) * (result + 1) * unit <= doubled:
            result += 1
    else:
        while result > -4 and result * result * unit < doubled:
            result -= 1
    return result + 4


@inner_loop
def _find_places(layout: Any, around: Any, square: int, channel: int, scale_bin: int, places: Any) -> int:
    """The contexts of a symbol's first decision; those of further ones follow them. Returns the magnitudes around, as a
    number from 0 to 35."""
    magnitudes = around.magnitudes
    near = 0
    for k in range(3):
        neighbour = layout.neighbours[channel, k]
        if neighbour >= 0:
            near += magnitudes[square, neighbour] * (2 if k < 2 else 1)
    near = _level((near + 1) // 2)

    width = around.width
    row, column = square // width, square % width
    beside = 0
    if column > 0:
        beside += magnitudes[square - 1, channel]
    if row > 0:
        beside += magnitudes[square - width, channel]
    if column + 1 < width:
        beside += magnitudes[square + 1, channel]
    if square + width < len(magnitudes):
        beside += magnitudes[square + width, channel]
    if (row + column) % 2 == 0:  # these are coded before the squares beside them
        for diagonal in (square - width, square + width):
            if 0 <= diagonal < len(magnitudes):
                if column > 0:
                    beside += magnitudes[diagonal - 1, channel]
                if column + 1 < width:
                    beside += magnitudes[diagonal + 1, channel]
    beside = _level(beside)

    surprise = _surprise(np.int64(around.surprise[square]), np.int64(around.expected[square]))
    last = min(around.last[square, channel], _COARSE_LEVELS - 1) if len(around.last) else 0
    partner = layout.partners[channel]
    other = 0 if partner == -1 else 4 if partner == -2 else 1 + min(magnitudes[square, partner], 2)
    coarse = min(near, _COARSE_LEVELS - 1) * _COARSE_LEVELS + min(beside, _COARSE_LEVELS - 1)
    start = layout.contexts
    places[0] = start[0] + scale_bin * _STEPS
    places[1] = start[1] + (scale_bin * _SURPRISES + surprise) * _STEPS
    places[2] = start[2] + (channel * _COARSE_LEVELS**2 + coarse) * _STEPS
    places[3] = start[3] + ((near * _LEVELS + beside) * _SURPRISES + surprise) * _STEPS
    places[4] = start[4] + (channel * BINS + scale_bin) * _STEPS
    places[5] = start[5] + ((scale_bin * _COARSE_LEVELS + last) * _PARTNERS + other) * _STEPS
    return near * _LEVELS + beside


@inner_loop
def _chosen(value: float, scale_bin: int, zero: float, choice: Any) -> int:
    """The symbol for ``value``, in quantiser steps, where a zero has the probability ``zero``."""
    magnitude = abs(value)
    first = math.log2(zero / (1 - zero)) + choice.one[scale_bin]
    if magnitude < 0.5 + min(max(0.5 * choice.price * first, 0.0), choice.most):
        return 0
    rounded = int(min(max(math.floor(magnitude + choice.offset[scale_bin]), 1.0), SYMBOL_LIMIT))
    return rounded if value > 0 else -rounded


@loop
def code_block(
    coder: Any,
    mixer: Any,
    layout: Any,
    around: Any,
    squares: Any,
    channels: Any,
    bins: Any,
    first_bin: int,
    values: Any,
    choice: Any,
    decision: Any,
    symbols: Any,
) -> None:
    """Code symbols for ``values`` (squares, channels; in quantiser steps, less their means), or decode them.

    ``bins``: their scale bins; those below ``first_bin`` are zero and not coded. ``symbols`` receives them, and what
    is ``around`` grows by them. ``mixer`` adapts in place. ``decision`` is work space.
    """
    decode = mode(coder) == READ
    by_channel = SETS
    by_size = by_channel + len(layout.partners) * _FINE_STEPS
    sets = decision.sets
    for i in range(len(squares)):
        square = squares[i]
        parity = (square // around.width + square % around.width) % 2
        for j in range(len(channels)):
            scale_bin = int(bins[i, j])
            symbols[i, j] = 0
            if scale_bin < first_bin:
                continue
            channel = channels[j]
            size_around = _find_places(layout, around, square, channel, scale_bin, decision.places)
            shift = layout.shifts[scale_bin]
            sets[0] = parity * _BIN_SETS + scale_bin // _SET_BINS
            sets[1] = by_channel + channel * _FINE_STEPS
            sets[2] = by_size + size_around * _FINE_STEPS
            symbol = size = step = 0
            while True:
                probability = predict(mixer, decision)
                if step == 0 and not decode:
                    symbol = _chosen(values[i, j], scale_bin, 1 - probability / ONE, choice)
                    size = abs(symbol)
                more = code(coder, probability, (size >> shift) > step)
                learn(mixer, decision, probability, more)
                if not more:
                    break
                step += 1
                if step == UNARY:
                    step += code_plainly(coder, _DIGITS, (size >> shift) - step)
                    break
                if step < _SET_STEPS:
                    sets[0] += 2 * _BIN_SETS
                if step < _FINE_STEPS:
                    sets[1] += 1
                    sets[2] += 1
                if step < _STEPS:
                    for k in range(INPUTS):
                        decision.places[k] += 1
            size = (step << shift) + code_digits(coder, shift, size)
            negative = size > 0 and code(coder, ONE // 2, symbol < 0)
            symbols[i, j] = -size if negative else size
            around.magnitudes[square, channel] = size
            around.expected[square] += layout.expected[scale_bin]
            around.surprise[square] += min(size, _LARGE) * _UNIT - layout.expected[scale_bin]
