"""Samples of a reference picture between its samples, and block-wise motion compensation.

Vectors (N, 2, h, w; x, y) are whole numbers of quarter luma samples, one for each 8x8 block of luma.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from rqlvc.codec.planes import Planes
from rqlvc.compiled import TAPS_OF_EIGHTHS, loop, over_rows
from rqlvc.lanes import Lanes, Place, total

PEL = 4  # sub-pixel positions per luma sample
BLOCK = 8
"""Luma samples on each side of a block of motion."""
MARGIN = 24
"""Luma samples that blocks may lie beyond the border."""

# HEVC's luma interpolation filter (ITU-T H.265, table 8-11): phases of 1/4 sample.
_LUMA_TAPS = (
    (0, 0, 0, 64, 0, 0, 0, 0),
    (-1, 4, -10, 58, 17, -5, 1, 0),
    (-1, 4, -11, 40, 40, -11, 4, -1),
    (0, 1, -5, 17, 58, -10, 4, -1),
)
OVERLAP, OVERLAP_REACH = 0.3, 5
"""What a block takes from the vectors of each neighbour at their common edge, and the luma samples over which that
fades: chosen by BD-rate on real sequences (docs/training.md)."""


def _window(block: int) -> npt.NDArray[np.float32]:
    """The share of a neighbour's vector by distance from the edge, for a block of ``block`` samples: a raised cosine of
    luma samples, of which a chroma sample has the mean of two."""
    distance = np.arange(BLOCK) + 0.5
    share = OVERLAP * (0.5 + 0.5 * np.cos(np.pi * distance / OVERLAP_REACH)) * (distance < OVERLAP_REACH)
    return share.reshape(block, -1).mean(axis=1).astype(np.float32)


_SOURCES = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])
"""The blocks whose vectors predict one, rows and columns away: itself, above, below, left, right."""


def _shares(block: int) -> npt.NDArray[np.float32]:
    """The share of each of these at each sample, (5, block, block); what is left is for the block's own vector."""
    above = np.tile(_window(block)[:, None], block)
    return np.stack([np.zeros_like(above), above, above[::-1], above.T, above.T[:, ::-1]])


def _filters(taps: tuple[tuple[int, ...], ...], length: int) -> Tensor:
    """Interpolation of ``length`` samples from them and those around, a matrix for each phase."""
    matrix = torch.zeros(len(taps), length + len(taps[0]) - 1, length)
    for phase, row in enumerate(taps):
        for i in range(length):
            matrix[phase, i : i + len(row), i] = torch.tensor(row) / 64
    return matrix


def _filtered(length: int, block: int) -> Any:
    """Makes an intrinsic: ``filtered(samples, line, column, across, down, result)`` puts into ``result`` (block, block)
    what lies between ``samples`` from there on, through filters of ``length`` taps. All are float32."""

    def filtered(typing: Any, samples: Any, line: Any, column: Any, across: Any, down: Any, result: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = functools.partial(Place, context, builder, signature, arguments)
            there, moved = place(0, 2), place(5)
            first, second = (place(index).repeated(0, length, block) for index in (3, 4))
            wide = [
                total([tap * Lanes.read(builder, there.at(i, k), block) for k, tap in enumerate(first)])
                for i in range(block + length - 1)
            ]
            for i in range(block):
                total([tap * wide[i + k] for k, tap in enumerate(second)]).write(moved.at(i))
            return context.get_dummy_value()

        return types.void(samples, types.intp, types.intp, across, down, result), generate

    return intrinsic(filtered)


# Numba keeps nothing of loops whose closure holds an intrinsic: they are compiled anew in each process.
_filtered_luma = _filtered(len(_LUMA_TAPS[0]), BLOCK)
_filtered_chroma = _filtered(len(TAPS_OF_EIGHTHS[0]), BLOCK // 2)


def _mover(taps: tuple[tuple[int, ...], ...], block: int) -> Callable[..., None]:
    """The compiled loop that predicts blocks of ``block`` samples, through filters of ``taps``."""
    phases, length = len(taps), len(taps[0])
    weights = np.array(taps, np.float32) / 64
    reach = block + length - 1
    margin = MARGIN * block // BLOCK
    shares = _shares(block)
    of_luma = block == BLOCK

    @loop
    def move(begin: int, end: int, padded: Any, motion: Any, overlapped: bool, adjoint: bool, moved: Any) -> None:
        """Rows of blocks of ``moved`` (N, C, H, W), from pictures with their borders repeated (P, N, C, ., .) and
        ``motion`` (N, h, w, 3). The ``adjoint`` adds to ``padded``, sample by sample, what of ``moved`` came from it.
        """
        h, w = motion.shape[1:3]
        channels = padded.shape[2]
        wide = np.empty((reach, block), np.float32)
        own = np.empty((channels, block, block), np.float32)  # what the block's own vector predicts
        other = np.empty((block, block), np.float32)  # what a neighbour's does
        sources = 5 if overlapped else 1  # its own vector, and its neighbours'
        for line in range(begin, end):
            n, row = line // h, line % h
            for column in range(w):
                first = motion[n, row, column]
                if adjoint:
                    own[:] = moved[n, :, row * block : (row + 1) * block, column * block : (column + 1) * block]
                for turn in range(sources):
                    source = (turn + 1) % sources if adjoint else turn  # its own first; or last, for what is left
                    i, j = row + _SOURCES[source, 0], column + _SOURCES[source, 1]
                    if i < 0 or j < 0 or i >= h or j >= w:
                        continue
                    x, y, picture = motion[n, i, j]
                    if source and x == first[0] and y == first[1] and picture == first[2]:
                        continue
                    x = min(max(x, -(MARGIN + column * BLOCK) * PEL), ((w - 1 - column) * BLOCK + MARGIN) * PEL)
                    y = min(max(y, -(MARGIN + row * BLOCK) * PEL), ((h - 1 - row) * BLOCK + MARGIN) * PEL)
                    across, down = weights[x % phases], weights[y % phases]
                    y, x = row * block + margin + y // phases, column * block + margin + x // phases
                    for c in range(channels):
                        samples = padded[picture, n, c]
                        target = moved[n, c, row * block : (row + 1) * block, column * block : (column + 1) * block]
                        if adjoint:
                            wide[:] = 0.0
                            for i in range(block):
                                for j in range(block):
                                    value = shares[source, i, j] * target[i, j] if source else own[c, i, j]
                                    own[c, i, j] -= value
                                    for k in range(length):
                                        wide[i + k, j] += down[k] * value
                            for i in range(reach):
                                for j in range(block):
                                    for k in range(length):
                                        samples[y + i, x + j + k] += across[k] * wide[i, j]
                            continue
                        found = other if source else own[c]
                        if of_luma:
                            _filtered_luma(samples, y, x, across, down, found)
                        else:
                            _filtered_chroma(samples, y, x, across, down, found)
                        if not source:
                            target[:] = found
                            continue
                        for i in range(block):
                            for j in range(block):
                                target[i, j] += shares[source, i, j] * (found[i, j] - own[c, i, j])

    return move


class Interpolation(NamedTuple):
    """A filter of sub-pixel positions, for blocks of one size."""

    matrices: Tensor
    """(phases, reach, block): ``reach`` samples to ``block`` moved ones."""
    move: Callable[..., None]
    """The same as a compiled loop over rows of blocks."""


def _interpolation(taps: tuple[tuple[int, ...], ...], block: int) -> Interpolation:
    return Interpolation(_filters(taps, block), _mover(taps, block))


_LUMA = _interpolation(_LUMA_TAPS, BLOCK)
_CHROMA = _interpolation(TAPS_OF_EIGHTHS, BLOCK // 2)


def _blocks(padded: Tensor, motion: Tensor, places: Tensor, size: tuple[int, int], filters: Interpolation) -> Tensor:
    """Blocks (M, C, block, block) that ``motion`` (M, 3) predicts at ``places`` (M, 3; sample, row, column) of a
    picture of ``size`` (h, w) blocks, from ``padded`` (P, N, C, ., .)."""
    phases, reach, block = filters.matrices.shape
    margin = MARGIN * block // BLOCK
    last = torch.tensor([size[1] - 1, size[0] - 1], device=motion.device)
    place = places[:, [2, 1]]
    lowest = -(MARGIN + place * BLOCK) * PEL
    highest = ((last - place) * BLOCK + MARGIN) * PEL
    vectors = motion[:, :2].long().clamp(lowest, highest)
    phase, start = vectors % phases, torch.div(vectors, phases, rounding_mode="floor") + margin + place * block

    stride = padded.shape[-1]
    along = torch.arange(reach, device=motion.device)
    index = (start[:, 1] * stride + start[:, 0])[:, None, None] + along[:, None] * stride + along
    picture = motion[:, 2].long() * padded.shape[1] + places[:, 0]
    channels = padded.shape[2] * padded.shape[3] * stride
    channel = torch.arange(padded.shape[2], device=motion.device)[:, None, None] * (padded.shape[3] * stride)
    index = picture[:, None, None, None] * channels + channel + index[:, None]
    patches = padded.flatten()[index]
    matrices = filters.matrices.to(motion.device)
    with torch.autocast(motion.device.type, enabled=False):
        # Float32: samples rounded to bfloat16 would drift by decibels from a decoder in another precision.
        wide = patches @ matrices[phase[:, 0]][:, None]
        return matrices[phase[:, 1]][:, None].transpose(-1, -2) @ wide


class Extended(NamedTuple):
    """Pictures with their borders repeated as far as vectors and filters reach."""

    luma: Tensor
    """(pictures, N, 1, ., .)"""
    chroma: Tensor
    """(pictures, N, 2, ., .)"""


def extend(pictures: Sequence[Planes]) -> Extended:
    """What :func:`compensate` reads ``pictures`` from."""

    def stacked(planes: list[Tensor], filters: Interpolation) -> Tensor:
        _, reach, block = filters.matrices.shape
        edge = MARGIN * block // BLOCK + (reach - block) // 2
        sides = [edge, edge + 1, edge, edge + 1]
        # With the samples of a row side by side, which loops count on.
        return torch.stack([F.pad(plane.float(), sides, mode="replicate") for plane in planes]).contiguous()

    luma = stacked([picture.luma for picture in pictures], _LUMA)
    return Extended(luma, stacked([picture.chroma for picture in pictures], _CHROMA))


class _Moved(torch.autograd.Function):
    """One plane of :func:`compensate` by the compiled loop, and its gradient by the loop's adjoint."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, padded: Tensor, whole: Tensor, overlapped: bool, filters: Interpolation
    ) -> Tensor:
        ctx.whole, ctx.overlapped, ctx.filters, ctx.shape = whole, overlapped, filters, padded.shape
        n, h, w, _ = whole.shape
        block = filters.matrices.shape[2]
        moved = torch.empty(n, padded.shape[2], h * block, w * block)
        planes = padded.detach().numpy(), whole.numpy(), overlapped, False, moved.numpy()
        over_rows(filters.move, n * h, *planes, least=64)
        return moved

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        n, h, _, _ = ctx.whole.shape
        padded = torch.zeros(ctx.shape)
        ctx.filters.move(
            0, n * h, padded.numpy(), ctx.whole.numpy(), ctx.overlapped, True, gradient.contiguous().numpy()
        )
        return padded, None, None, None


def _moved_by_tensors(padded: Tensor, whole: Tensor, overlapped: bool, filters: Interpolation) -> Tensor:
    """The same by tensors, on any device. ``padded`` (P, N, C, ., .); ``whole``: motion, (N, h, w, 3), int32."""
    block = filters.matrices.shape[2]
    n, channels = padded.shape[1:3]
    h, w = whole.shape[1:3]
    places = torch.cartesian_prod(*(torch.arange(count, device=whole.device) for count in (n, h, w)))
    own = blocks = _blocks(padded, whole.flatten(0, 2), places, (h, w), filters)
    window = torch.from_numpy(_window(block)).to(whole.device)
    for side in range(4 if overlapped else 0):
        axis, step = 1 + side // 2, 1 if side % 2 == 0 else -1
        beside = whole.roll(step, axis)
        differs = (beside != whole).any(dim=-1)
        differs.select(axis, 0 if step > 0 else -1)[:] = False  # beyond the border there is no neighbour
        at = differs.flatten().nonzero()[:, 0]
        share = window if step > 0 else window.flip(0)
        share = share[:, None] if axis == 1 else share[None, :]
        other = _blocks(padded, beside.flatten(0, 2)[at], places[at], (h, w), filters)
        blocks = blocks.index_add(0, at, share * (other - own[at]))
    return blocks.reshape(n, h, w, channels, block, block).permute(0, 3, 1, 4, 2, 5).reshape(n, channels, h * block, -1)


def compensate(pictures: Extended, motion: Tensor, overlapped: bool, compiled: bool | None = None) -> Planes:
    """What block vectors predict of a frame; borders are repeated (:func:`extend`).

    ``motion`` (N, 3, H / 8, W / 8): in quarter luma samples, which are eighths of chroma samples, and which of
    ``pictures`` a vector reaches to. With ``overlapped``, a block that has other motion than a neighbour takes samples
    near their common edge in part from where the neighbour's vector points (overlapped block motion compensation, as
    in ITU-T H.263, annex F): motion has no edges where blocks have. ``compiled``: by a loop on the CPU, or by tensors
    on any device; None for what the device is fast at.
    """
    whole = motion.permute(0, 2, 3, 1).to(torch.int32).contiguous()
    compiled = motion.device.type == "cpu" if compiled is None else compiled
    move = _Moved.apply if compiled else _moved_by_tensors
    luma = move(pictures.luma, whole, overlapped, _LUMA)
    return Planes(luma, move(pictures.chroma, whole, overlapped, _CHROMA))


def towards_reference(motion: Tensor, distances: Sequence[int]) -> Tensor:
    """Vectors (N, 2, h, w) to the reference, were motion even, of ``motion`` (N, 3, h, w), which reaches to pictures
    that are ``distances`` frames away, the reference first."""
    distance = torch.tensor(distances, dtype=motion.dtype, device=motion.device)[motion[:, 2:].long()]
    return torch.floor(motion[:, :2] / distance + 0.5)


def follow(vectors: Tensor, last: Tensor) -> Tensor:
    """Vectors to a picture before the reference: each block's, then what the reference's block there had.

    ``vectors``, ``last`` (N, 2, h, w): from this picture to the reference, and from that to the other.
    """
    h, w = vectors.shape[-2:]
    unit = BLOCK * PEL
    i = torch.arange(h, device=vectors.device)[:, None] + torch.round(vectors[:, 1] / unit)
    j = torch.arange(w, device=vectors.device) + torch.round(vectors[:, 0] / unit)
    index = i.clamp(0, h - 1) * w + j.clamp(0, w - 1)
    there = last.flatten(2).gather(2, index.long().flatten(1)[:, None].expand(-1, 2, -1))
    return vectors + there.reshape(vectors.shape)


_TAPS = np.array(_LUMA_TAPS, np.float32) / 64


@loop
def _phases_across(begin: int, end: int, padded: Any, wide: Any) -> None:
    """Rows of ``padded`` (N, rows, columns + 7) at each phase between their samples: (N, 4, rows, columns)."""
    rows = padded.shape[1]
    for line in range(begin, end):
        n, i = line // rows, line % rows
        source = padded[n, i]
        for x in range(PEL):
            result = wide[n, x, i]
            t = _TAPS[x]
            for j in range(len(result)):
                result[j] = (
                    (t[0] * source[j] + t[1] * source[j + 1] + t[2] * source[j + 2] + t[3] * source[j + 3])
                    + (t[4] * source[j + 4] + t[5] * source[j + 5] + t[6] * source[j + 6] + t[7] * source[j + 7])
                )  # fmt: skip


@loop
def _phases_down(begin: int, end: int, wide: Any, tall: Any) -> None:
    """As :func:`_phases_across`, between rows, to 8 bits: (N, 4, rows + 7, columns) to (N, 4, 4, rows, columns)."""
    rows = tall.shape[3]
    for line in range(begin, end):
        n, i = line // rows, line % rows
        for y in range(PEL):
            t = _TAPS[y]
            for x in range(PEL):
                result, source = tall[n, y, x, i], wide[n, x]
                s0, s1, s2, s3 = source[i], source[i + 1], source[i + 2], source[i + 3]
                s4, s5, s6, s7 = source[i + 4], source[i + 5], source[i + 6], source[i + 7]
                for j in range(len(result)):
                    value = (
                        (t[0] * s0[j] + t[1] * s1[j] + t[2] * s2[j] + t[3] * s3[j])
                        + (t[4] * s4[j] + t[5] * s5[j] + t[6] * s6[j] + t[7] * s7[j])
                    )  # fmt: skip
                    result[j] = np.uint8(min(max(value * np.float32(255) + np.float32(0.5), 0.0), 255.0))


def quarter_pel(plane: Tensor, margin: int) -> Tensor:
    """Samples of a plane (N, 1, H, W) on [0, 1] between its samples: (N, 4, 4, H + 2 margin, W + 2 margin), uint8.

    ``[:, y, x]`` is the plane moved by x / 4 and y / 4 samples, as :func:`compensate` would, rounded to 8 bits: sixteen
    planes are read from all over, and a quarter of the memory is read in two thirds of the time. Borders are repeated.
    Runs on the CPU.
    """
    plane = plane.detach().cpu().float()
    padded = F.pad(plane, (3 + margin, 4 + margin, 3 + margin, 4 + margin), mode="replicate")[:, 0].numpy()
    n, rows, columns = padded.shape[0], padded.shape[1] - 7, padded.shape[2] - 7
    wide = np.empty((n, PEL, rows + 7, columns), np.float32)
    over_rows(_phases_across, n * (rows + 7), padded, wide, least=512)
    tall = torch.empty(n, PEL, PEL, rows, columns, dtype=torch.uint8)
    over_rows(_phases_down, n * rows, wide, tall.numpy(), least=256)
    return tall


def upsample_blocks(motion: Tensor, factor: int) -> Tensor:
    """Repeat each vector over its block: motion edges stay sharp."""
    return F.interpolate(motion, scale_factor=factor, mode="nearest")
