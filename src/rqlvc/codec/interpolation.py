"""Samples of a reference picture between its samples, and block-wise motion compensation.

Vectors (N, 2, h, w; x, y) are whole numbers of quarter luma samples, one for each 8x8 block of luma.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rqlvc.codec.planes import Planes

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


_LUMA = _filters(_LUMA_TAPS, BLOCK)  # (4, 15, 8)
_CHROMA = _filters(_CHROMA_TAPS, BLOCK // 2)  # (8, 7, 4)


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


def _moved(plane: Tensor, vectors: Tensor, filters: Tensor) -> Tensor:
    """``plane`` (N, C, H, W) moved block by block; ``vectors`` are in units of one phase of ``filters``."""
    phases, reach, block = filters.shape
    margin, before = MARGIN * block // BLOCK, (reach - block) // 2
    n, channels, height, width = plane.shape
    h, w = height // block, width // block
    edge = margin + before
    padded = F.pad(plane, [edge, edge + 1, edge, edge + 1], mode="replicate")
    stride = padded.shape[-1]

    quarters = vectors.long()
    phase, whole = quarters % phases, torch.div(quarters, phases, rounding_mode="floor") + margin
    row = torch.arange(h, device=plane.device)[:, None] * block + whole[:, 1]
    column = torch.arange(w, device=plane.device) * block + whole[:, 0]
    along = torch.arange(reach, device=plane.device)
    index = (row * stride + column)[..., None, None] + along[:, None] * stride + along  # (N, h, w, reach, reach)
    index = index.reshape(n, 1, -1).expand(-1, channels, -1)
    patches = padded.flatten(2).gather(2, index).reshape(n, channels, h, w, reach, reach)
    matrices = filters.to(plane)
    with torch.autocast(plane.device.type, enabled=False):
        # Float32: samples rounded to bfloat16 would drift by decibels from a decoder in another precision.
        wide = patches.float() @ matrices[phase[:, 0]][:, None]
        blocks = matrices[phase[:, 1]][:, None].transpose(-1, -2) @ wide
    return blocks.transpose(3, 4).reshape(n, channels, height, width)


def compensate(reference: Planes, vectors: Tensor) -> Planes:
    """The reference moved by block vectors (N, 2, H / 8, W / 8), in quarter luma samples; borders are repeated.

    A quarter of a luma sample is an eighth of a chroma sample.
    """
    vectors = clamp_vectors(vectors)
    return Planes(_moved(reference.luma, vectors, _LUMA), _moved(reference.chroma, vectors, _CHROMA))


def follow(vectors: Tensor, last: Tensor) -> Tensor:
    """Vectors to the picture before the reference: each block's, then what the reference's block there had.

    ``vectors``: from this picture to the reference; ``last``: from the reference to the picture before it.
    """
    h, w = vectors.shape[-2:]
    unit = BLOCK * PEL
    i = torch.arange(h, device=vectors.device)[:, None] + torch.round(vectors[:, 1] / unit)
    j = torch.arange(w, device=vectors.device) + torch.round(vectors[:, 0] / unit)
    index = i.clamp(0, h - 1) * w + j.clamp(0, w - 1)
    there = last.flatten(2).gather(2, index.long().flatten(1)[:, None].expand(-1, 2, -1))
    return vectors + there.reshape(vectors.shape)


_CHUNK = 8  # samples that one small matrix product interpolates: faster than convolution with a single channel


def quarter_pel(plane: Tensor, margin: int) -> Tensor:
    """Samples of a plane (N, 1, H, W) between its samples: (N, 4, 4, H + 2 margin, W + 2 margin).

    ``[:, y, x]`` is the plane moved by x / 4 and y / 4 samples, as :func:`compensate` would. Borders are repeated. H, W
    and the margin are multiples of 8.
    """
    matrix = _LUMA.to(plane).permute(1, 0, 2).flatten(1)  # 8 samples and 7 around them to 4 phases of 8
    padded = F.pad(plane, (3 + margin, 4 + margin, 3 + margin, 4 + margin), mode="replicate")[:, 0]
    n, rows, columns = padded.shape[0], padded.shape[1] - 7, padded.shape[2] - 7
    with torch.autocast(plane.device.type, enabled=False):
        wide = (padded.unfold(2, _CHUNK + 7, _CHUNK) @ matrix).reshape(n, rows + 7, -1, PEL, _CHUNK)
        wide = wide.permute(0, 3, 1, 2, 4).reshape(n, PEL, rows + 7, columns)
        tall = (matrix.T @ wide.unfold(2, _CHUNK + 7, _CHUNK).transpose(3, 4)).reshape(n, PEL, -1, PEL, _CHUNK, columns)
        return tall.permute(0, 3, 1, 2, 4, 5).reshape(n, PEL, PEL, rows, columns)


def upsample_blocks(motion: Tensor, factor: int) -> Tensor:
    """Repeat each vector over its block: motion edges stay sharp."""
    return motion.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
