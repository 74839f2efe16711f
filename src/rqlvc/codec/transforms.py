"""The linear transform that the networks start from: a block DCT."""

import math

import torch
from torch import Tensor


def dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II, shape (size, size): row k is the k-th basis function."""
    k = torch.arange(size, dtype=torch.float64)[:, None]
    n = torch.arange(size, dtype=torch.float64)[None, :]
    basis = torch.cos(math.pi * (2 * n + 1) * k / (2 * size)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def frequency_order(size: int) -> Tensor:
    """Places u * size + v of a block's coefficients by the sum of both frequencies, (size^2,)."""
    place = torch.arange(size * size)
    return place[torch.argsort(place // size + place % size, stable=True)]


def block_dct(size: int) -> tuple[Tensor, Tensor]:
    """2-D DCT over a block whose samples are channels, in zigzag-like order of frequency.

    Returns the matrix (size^2, size^2), coefficient by sample, and the radial frequency u + v of each coefficient
    in units of the 8x8 transform.
    """
    basis = dct_matrix(size)
    matrix = torch.einsum("ui,vj->uvij", basis, basis).reshape(size * size, size * size)
    order = frequency_order(size)
    return matrix[order], (order // size + order % size).double() * (8 / size)


def picture_dct() -> tuple[Tensor, Tensor]:
    """8x8 luma and 4x4 chroma DCT over ``fold(planes, 8)``: matrix (96, 96) float32 and frequencies (96,)."""
    luma, luma_frequency = block_dct(8)
    chroma, chroma_frequency = block_dct(4)
    matrix = torch.block_diag(luma, chroma, chroma)
    return matrix.float(), torch.cat([luma_frequency, chroma_frequency, chroma_frequency]).float()
