"""RQNet for one picture, in compiled loops: PyTorch takes five times as long, most of it to call some eighty operations
on tensors as small as these.

It is the same network as :class:`rqlvc.rate.rqnet.RQNet`, which is the one to read, and the one that is trained.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from rqlvc.compiled import inner_loop, loop
from rqlvc.lanes import Lanes, Place, total
from rqlvc.rate.activity import BLOCK, MAPS

Array = npt.NDArray[np.float32]

SCALARS = 7
FINE, COARSE, LEVELS = 32, 48, 4
"""Features of a block and of a square of four blocks; rates."""
STEP_SHARPNESS = 4.0
MINIMUM_STEP = 0.01
"""ln R grows by at least this from level to level: a curve can always be inverted."""
LOG_RATE_RANGE = (-14.0, 5.0)
"""Of bits per pixel: 0.08 bits per 100,000 pixels, and far beyond what 8-bit samples hold."""
BLOCK_LOG_RATE_RANGE = (-20.0, 5.0)
"""The same of a single block."""
_LANES = 8


class Layers(NamedTuple):
    """The weights, those of linear layers (inputs, outputs)."""

    scalar_mean: Array
    scalar_scale: Array
    context: Array
    stem: Array
    stem_bias: Array
    """With the bias of the context."""
    down: Array
    down_bias: Array
    spatial: Array
    """(3, 3, 48)."""
    spatial_bias: Array
    mix: Array
    mix_bias: Array
    up: Array
    up_bias: Array
    out: Array
    out_bias: Array
    look: Array
    look_bias: Array
    correct: Array
    correct_bias: Array
    log_overhead: Array
    """Of no axes."""

    @classmethod
    def of(cls, tensors: Mapping[str, Array]) -> "Layers":
        """``tensors``: the network's own, by name."""
        value = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}

        def linear(name: str) -> tuple[Array, Array]:
            return np.ascontiguousarray(value[f"{name}.weight"].T), value[f"{name}.bias"]

        stem, stem_bias = linear("stem")
        stem /= value["map_scale"][:, None]  # what normalises the maps is linear, too
        context, context_bias = linear("context")
        return cls(
            *(value["scalar_mean"], value["scalar_scale"], context),
            *(stem, stem_bias - value["map_mean"] @ stem + context_bias),
            *linear("down"),
            *(value["coarse.spatial.weight"][:, 0].transpose(1, 2, 0).copy(), value["coarse.spatial.bias"]),
            *(*linear("coarse.mix"), *linear("up"), *linear("out"), *linear("look"), *linear("correct")),
            value["log_overhead"].reshape(()),
        )


def log_rates(layers: Layers, maps: Array, scalars: Array) -> Array:
    """ln(bits per pixel) at the four levels, (4,), for activity maps (h, w, 23) and context scalars (7,)."""
    height, width, _ = maps.shape
    squares, columns = height * width // 4, width // 2
    fine, coarse = np.empty((4 * squares, FINE), np.float32), np.empty((squares, COARSE), np.float32)
    framed = np.zeros(((height // 2 + 2) * (columns + 2), COARSE), np.float32)
    rates, result = np.empty((4 * squares, LEVELS), np.float32), np.empty(LEVELS, np.float32)
    _run(layers, maps.reshape(-1, MAPS), scalars, columns, fine, framed, coarse, rates, result)
    return result


def _dense(inputs: int, outputs: int, rectified: bool) -> Any:
    """Makes an intrinsic, a layer for one position: ``dense(start, i, bias, x, k, weight, y, n)`` makes row ``n`` of
    ``y`` row ``i`` of ``start`` + ``bias`` + row ``k`` of ``x`` times ``weight``; if ``rectified``, without what is
    negative.

    All are float32 and of two axes but ``bias``, of one; ``weight`` is (inputs, outputs).
    """
    lanes = min(_LANES, outputs)

    def layer(typing: Any, start: Any, i: Any, bias: Any, x: Any, k: Any, weight: Any, y: Any, n: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = functools.partial(Place, context, builder, signature, arguments)
            before, shift, samples, matrix, result = place(0, 1), place(2), place(3, 1), place(5), place(6, 1)
            columns = range(0, outputs, lanes)
            sums = [total([Lanes.read(builder, one.at(0, c), lanes) for one in (before, shift)]) for c in columns]
            for row in range(inputs):
                sample = Lanes.repeated(builder, builder.load(samples.at(0, row)), lanes)
                sums = [sums[c // lanes] + sample * Lanes.read(builder, matrix.at(row, c), lanes) for c in columns]
            for c, value in zip(columns, sums, strict=True):
                (value.rectified() if rectified else value).write(result.at(0, c))
            return context.get_dummy_value()

        index = types.intp
        return types.void(start, index, bias, x, index, weight, y, index), generate

    return intrinsic(layer)


_stem = _dense(MAPS, FINE, True)
_down = _dense(4 * FINE, COARSE, True)
_mix = _dense(COARSE, COARSE, False)
_up = _dense(COARSE, 4 * FINE, True)
_out = _dense(FINE, LEVELS, False)


@loop
def _run(
    layers: Layers,
    maps: Array,
    scalars: Array,
    columns: int,
    fine: Array,
    framed: Array,
    coarse: Array,
    rates: Array,
    result: Array,
) -> None:
    """The network on ``maps`` (4 n, 23) of rows of twice ``columns`` blocks; ``result``: (4,).

    What is between, without values yet: features of blocks, four by four, (4 n, 32); of the n squares that they make
    up, inside an edge of one square of zeros, before the coarse layer; after it, (n, 48); and ln(bits per pixel) of
    blocks, (4 n, 4).
    """
    told, context = np.empty(SCALARS, np.float32), np.zeros((1, FINE), np.float32)
    for k in range(SCALARS):
        centred = (scalars[k] - layers.scalar_mean[k]) / layers.scalar_scale[k] * scalars[1]
        told[k] = scalars[k] if k < 3 else centred
        for c in range(FINE):
            context[0, c] += told[k] * layers.context[k, c]
    _to_squares(layers, maps, columns, context, fine, framed)
    _to_rates(layers, columns, framed, fine, coarse, rates)

    overview = np.empty(FINE + COARSE + SCALARS, np.float32)
    _mean(fine, overview[:FINE])
    _mean(coarse, overview[FINE : FINE + COARSE])
    overview[FINE + COARSE :] = told
    hidden = layers.look_bias.copy()
    for k in range(len(overview)):
        for c in range(COARSE):
            hidden[c] += overview[k] * layers.look[k, c]
    pixels = len(rates) * BLOCK * BLOCK
    here = last = 0.0
    for level in range(LEVELS):
        rate, correction = 0.0, layers.correct_bias[level]
        for block in range(len(rates)):
            rate += math.exp(min(max(rates[block, level], BLOCK_LOG_RATE_RANGE[0]), BLOCK_LOG_RATE_RANGE[1]))
        for k in range(COARSE):
            correction += max(hidden[k], np.float32(0)) * layers.correct[k, level]
        own = min(max(math.log(rate / len(rates)) + correction, LOG_RATE_RANGE[0]), LOG_RATE_RANGE[1])
        here = own if level == 0 else here + _softplus(own - last) + MINIMUM_STEP
        last = own
        overhead = layers.log_overhead[()] - math.log(pixels)
        result[level] = max(here, overhead) + math.log1p(math.exp(-abs(here - overhead)))


@inner_loop
def _softplus(step: Any) -> Any:
    return max(step, 0.0) + math.log1p(math.exp(-abs(STEP_SHARPNESS * step))) / STEP_SHARPNESS


@inner_loop
def _mean(rows: Any, result: Any) -> None:
    result[:] = 0
    for i in range(rows.shape[0]):
        for c in range(rows.shape[1]):
            result[c] += rows[i, c]
    for c in range(rows.shape[1]):
        result[c] /= rows.shape[0]


@inner_loop
def _to_squares(layers: Any, maps: Any, columns: int, context: Any, fine: Any, framed: Any) -> None:
    """The features of blocks and, from them, of squares."""
    squares = fine.reshape(-1, 4 * FINE)
    for square in range(len(squares)):
        row, column = square // columns, square % columns
        for k in range(4):
            block = 2 * columns * (2 * row + k // 2) + 2 * column + k % 2
            _stem(context, 0, layers.stem_bias, maps, block, layers.stem, fine, 4 * square + k)
        inside = (row + 1) * (columns + 2) + column + 1
        _down(framed, inside, layers.down_bias, squares, square, layers.down, framed, inside)


@loop
def _to_rates(layers: Any, columns: int, framed: Any, fine: Any, coarse: Any, rates: Any) -> None:
    """The coarse layer, back up to blocks, and their rates."""
    squares, pitch = fine.reshape(-1, 4 * FINE), columns + 2
    around, both = np.empty((1, COARSE), np.float32), np.empty((1, 4 * FINE), np.float32)
    blocks, nothing = both.reshape(4, FINE), np.zeros((1, LEVELS), np.float32)
    for square in range(len(squares)):
        corner = square // columns * pitch + square % columns
        for c in range(COARSE):
            value = layers.spatial_bias[c]
            for i in range(3):
                for j in range(3):
                    value += layers.spatial[i, j, c] * framed[corner + i * pitch + j, c]
            around[0, c] = max(value, np.float32(0))
        _mix(framed, corner + pitch + 1, layers.mix_bias, around, 0, layers.mix, coarse, square)
        _up(squares, square, layers.up_bias, coarse, square, layers.up, both, 0)
        for k in range(4):
            _out(nothing, 0, layers.out_bias, blocks, k, layers.out, rates, 4 * square + k)
