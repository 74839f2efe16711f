"""Sub-pixel samples of a reference picture: quarter-pel interpolation and block-wise motion compensation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rqlvc.codec.planes import Planes

# HEVC's luma interpolation filter (ITU-T H.265, table 8-11), phases 0, 1/4, 1/2, 3/4.
_TAPS = (
    torch.tensor(
        [
            [0, 0, 0, 64, 0, 0, 0, 0],
            [-1, 4, -10, 58, 17, -5, 1, 0],
            [-1, 4, -11, 40, 40, -11, 4, -1],
            [0, 1, -5, 17, 58, -10, 4, -1],
        ],
        dtype=torch.float32,
    )
    / 64
)
PEL = 4  # sub-pixel positions per sample


_CHUNK = 8  # samples that one small matrix product interpolates: faster than convolution with a single channel


def _chunk_matrix(like: Tensor) -> Tensor:
    """Interpolation of 8 samples (and 7 around them) to 32, as a matrix (15, 32)."""
    taps = _TAPS.to(like)
    matrix = like.new_zeros(_CHUNK + 7, PEL * _CHUNK)
    for i in range(_CHUNK):
        matrix[i : i + 8, PEL * i : PEL * (i + 1)] = taps.T
    return matrix


def quarter_pel(plane: Tensor) -> Tensor:
    """The plane at four times its size in both directions, shape (N, 1, 4H, 4W); [4i, 4j] is sample (i, j).

    H and W are multiples of 8.
    """
    matrix = _chunk_matrix(plane)
    padded = F.pad(plane, (3, 4, 3, 4), mode="replicate")
    with torch.autocast(plane.device.type, enabled=False):
        # Float32: samples rounded to bfloat16 would drift by decibels from a decoder in another precision.
        wide = (padded.unfold(3, _CHUNK + 7, _CHUNK) @ matrix).flatten(3)
        return (matrix.T @ wide.unfold(2, _CHUNK + 7, _CHUNK).transpose(3, 4)).flatten(2, 3)


def sample(fine: Tensor, motion: Tensor) -> Tensor:
    """Values of a quarter-pel plane (N, C, 4H, 4W) at each sample's place plus ``motion`` (N, 2, H, W; x, y).

    Motion is in samples of the plane; beyond the border the nearest sample counts. Bilinear between quarter-pel
    positions, so it is differentiable in both arguments.
    """
    _, _, height, width = motion.shape
    x = torch.arange(width, device=motion.device, dtype=motion.dtype) + motion[:, 0]
    y = torch.arange(height, device=motion.device, dtype=motion.dtype)[:, None] + motion[:, 1]
    scale_x = 2.0 / (PEL * width - 1) * PEL
    scale_y = 2.0 / (PEL * height - 1) * PEL
    grid = torch.stack([x * scale_x - 1, y * scale_y - 1], dim=-1)
    return F.grid_sample(fine, grid, mode="bilinear", padding_mode="border", align_corners=True)


def upsample_blocks(motion: Tensor, factor: int) -> Tensor:
    """Repeat each vector over its block: motion edges stay sharp."""
    return motion.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def compensate(reference: Planes, luma_fine: Tensor, motion: Tensor) -> Planes:
    """The reference moved by block vectors ``motion`` (N, 2, H / 8, W / 8), in luma samples."""
    n, _, rows, columns = reference.chroma.shape
    chroma_fine = quarter_pel(reference.chroma.reshape(2 * n, 1, rows, columns)).reshape(
        n, 2, PEL * rows, PEL * columns
    )
    return Planes(
        sample(luma_fine, upsample_blocks(motion, 8)),
        sample(chroma_fine, upsample_blocks(motion / 2, 4)),
    )
