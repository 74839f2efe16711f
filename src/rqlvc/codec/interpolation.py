"""Samples of a reference picture between its samples, and block-wise motion compensation.

Vectors (N, 2, h, w; x, y) are whole numbers of quarter luma samples, one for each 8x8 block of luma.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from rqlvc.codec.planes import Planes
from rqlvc.compiled import OPTIONS, over_rows

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
# HEVC's chroma interpolation filter (table 8-12): phases of 1/8 sample.
_CHROMA_TAPS = (
    (0, 64, 0, 0),
    (-2, 58, 10, -2),
    (-4, 54, 16, -2),
    (-6, 46, 28, -4),
    (-4, 36, 36, -4),
    (-4, 28, 46, -6),
    (-2, 16, 54, -4),
    (-2, 10, 58, -2),
)


def _filters(taps: tuple[tuple[int, ...], ...], length: int) -> Tensor:
    """Interpolation of ``length`` samples from them and those around, a matrix for each phase."""
    matrix = torch.zeros(len(taps), length + len(taps[0]) - 1, length)
    for phase, row in enumerate(taps):
        for i in range(length):
            matrix[phase, i : i + len(row), i] = torch.tensor(row) / 64
    return matrix


def _mover(taps: tuple[tuple[int, ...], ...], block: int) -> Callable[..., None]:
    """The compiled loop that moves blocks of ``block`` samples, through filters of ``taps``."""
    phases, length = len(taps), len(taps[0])
    weights = np.array(taps, np.float32) / 64
    reach = block + length - 1
    margin = MARGIN * block // BLOCK

    @njit(**OPTIONS)
    def move(begin: int, end: int, padded: Any, vectors: Any, moved: Any) -> None:
        """Rows of blocks of ``moved`` (N, C, H, W), from a plane with its borders repeated and vectors (N, 2, h, w)."""
        h, w = vectors.shape[2:]
        wide = np.empty((reach, block), np.float32)
        for line in range(begin, end):
            n, row = line // h, line % h
            for column in range(w):
                x, y = vectors[n, 0, row, column], vectors[n, 1, row, column]
                top, left = row * block + margin + y // phases, column * block + margin + x // phases
                across, down = weights[x % phases], weights[y % phases]
                for c in range(padded.shape[1]):
                    for i in range(reach):
                        for j in range(block):
                            value = np.float32(0.0)
                            for k in range(length):
                                value += across[k] * padded[n, c, top + i, left + j + k]
                            wide[i, j] = value
                    for i in range(block):
                        for j in range(block):
                            value = np.float32(0.0)
                            for k in range(length):
                                value += down[k] * wide[i + k, j]
                            moved[n, c, row * block + i, column * block + j] = value

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
_CHROMA = _interpolation(_CHROMA_TAPS, BLOCK // 2)


def clamp_vectors(vectors: Tensor) -> Tensor:
    """The nearest vectors whose blocks lie inside the margin."""
    h, w = vectors.shape[-2:]
    row = torch.arange(h, device=vectors.device)[:, None].expand(h, w) * BLOCK
    column = torch.arange(w, device=vectors.device)[None, :].expand(h, w) * BLOCK
    place = torch.stack([column, row])
    lowest = (-MARGIN - place) * PEL
    highest = lowest + torch.tensor([w - 1, h - 1], device=vectors.device)[:, None, None] * BLOCK * PEL
    highest = highest + 2 * MARGIN * PEL
    return torch.minimum(torch.maximum(vectors, lowest.to(vectors.dtype)), highest.to(vectors.dtype))


def _moved(plane: Tensor, vectors: Tensor, filters: Interpolation) -> Tensor:
    """``plane`` (N, C, H, W) moved block by block; ``vectors`` are in units of one phase of ``filters``."""
    phases, reach, block = filters.matrices.shape
    margin, before = MARGIN * block // BLOCK, (reach - block) // 2
    edge = margin + before
    padded = F.pad(plane.float(), [edge, edge + 1, edge, edge + 1], mode="replicate")
    n, channels, height, width = plane.shape
    h, w = height // block, width // block
    if plane.device.type == "cpu" and not torch.is_grad_enabled():
        moved = torch.empty(plane.shape)
        whole_vectors = vectors.to(torch.int32).numpy()
        over_rows(filters.move, n * h, padded.numpy(), whole_vectors, moved.numpy(), least=64)
        return moved

    stride = padded.shape[-1]
    quarters = vectors.long()
    phase, whole = quarters % phases, torch.div(quarters, phases, rounding_mode="floor") + margin
    row = torch.arange(h, device=plane.device)[:, None] * block + whole[:, 1]
    column = torch.arange(w, device=plane.device) * block + whole[:, 0]
    along = torch.arange(reach, device=plane.device)
    index = (row * stride + column)[..., None, None] + along[:, None] * stride + along  # (N, h, w, reach, reach)
    index = index.reshape(n, 1, -1).expand(-1, channels, -1)
    patches = padded.flatten(2).gather(2, index).reshape(n, channels, h, w, reach, reach)
    matrices = filters.matrices.to(plane.device)
    with torch.autocast(plane.device.type, enabled=False):
        # Float32: samples rounded to bfloat16 would drift by decibels from a decoder in another precision.
        wide = patches @ matrices[phase[:, 0]][:, None]
        blocks = matrices[phase[:, 1]][:, None].transpose(-1, -2) @ wide
    return blocks.transpose(3, 4).reshape(n, channels, height, width)


def compensate(reference: Planes, vectors: Tensor) -> Planes:
    """The reference moved by block vectors (N, 2, H / 8, W / 8), in quarter luma samples; borders are repeated.

    A quarter of a luma sample is an eighth of a chroma sample.
    """
    vectors = clamp_vectors(vectors)
    return Planes(_moved(reference.luma, vectors, _LUMA), _moved(reference.chroma, vectors, _CHROMA))


def towards_reference(motion: Tensor) -> Tensor:
    """Vectors (N, 2, h, w) to the reference: of ``motion`` (N, 3, h, w) that reaches beyond it, half."""
    vectors, references = motion[:, :2], motion[:, 2:]
    return torch.where(references > 0, torch.floor((vectors + 1) / 2), vectors)


def follow(vectors: Tensor, last: Tensor) -> Tensor:
    """Vectors to the picture before the reference: each block's, then what the reference's block there had.

    ``vectors``, ``last`` (N, 2, h, w): from this picture to the reference, and from that to the picture before it.
    """
    h, w = vectors.shape[-2:]
    unit = BLOCK * PEL
    i = torch.arange(h, device=vectors.device)[:, None] + torch.round(vectors[:, 1] / unit)
    j = torch.arange(w, device=vectors.device) + torch.round(vectors[:, 0] / unit)
    index = i.clamp(0, h - 1) * w + j.clamp(0, w - 1)
    there = last.flatten(2).gather(2, index.long().flatten(1)[:, None].expand(-1, 2, -1))
    return vectors + there.reshape(vectors.shape)


_TAPS = np.array(_LUMA_TAPS, np.float32) / 64


@njit(**OPTIONS)
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


@njit(**OPTIONS)
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
