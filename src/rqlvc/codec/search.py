"""Motion estimation: a block search with a price on vectors. Encoder only, so free to change.

One vector per 8x8 luma block, quarter-pel. Seeds come from a full search at quarter resolution, the predicted motion
and zero; good vectors spread to their neighbours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rqlvc.codec.interpolation import PEL

BLOCK = 8
COARSE = 4  # the full search runs on luma averaged over 4x4
COARSE_RANGE = 7  # +-28 luma samples
COARSE_PRICE = 3e-3  # sum of differences of 16 averaged samples that 4 luma samples of distance are worth
MARGIN = 24  # luma samples that vectors may point beyond the border
PRICE = 0.4
"""Bits to absolute differences, in quantiser steps: x264 pays 2^((QP - 12) / 6) = 0.4 steps a bit."""

KNEE = 0.144
"""Differences below this many quantiser steps count by their square: there lambda * squared error is the smaller
price."""

_AROUND = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


def _coarse_seed(luma: Tensor, reference: Tensor) -> Tensor:
    """Whole-sample vectors (N, 2, h, w) from a full search at quarter resolution over 16x16 windows."""
    small = F.avg_pool2d(luma, COARSE)
    other = F.pad(F.avg_pool2d(reference, COARSE), [COARSE_RANGE] * 4, mode="replicate")
    height, width = small.shape[-2:]
    span = 2 * COARSE_RANGE + 1
    best_cost = best = None
    for dy in range(span):
        rows = other[:, :, dy : dy + height]
        shifts = torch.cat([rows[:, :, :, dx : dx + width] for dx in range(span)], dim=1)
        # Sums of 4x4 every 2: the 8x8 luma block with a border of 4, which steadies the match.
        padded = F.pad((shifts - small).abs(), [1] * 4, mode="replicate")
        pairs = padded[:, :, 0::2] + padded[:, :, 1::2]
        pairs = pairs[:, :, :, 0::2] + pairs[:, :, :, 1::2]
        pairs = pairs[:, :, 1:] + pairs[:, :, :-1]
        cost = pairs[:, :, :, 1:] + pairs[:, :, :, :-1]
        away = torch.tensor([abs(dx - COARSE_RANGE) + abs(dy - COARSE_RANGE) for dx in range(span)])
        cost = cost + COARSE_PRICE * away.to(cost)[None, :, None, None]
        low, index = cost.min(dim=1)
        vector = torch.stack([index - COARSE_RANGE, torch.full_like(index, dy - COARSE_RANGE)], dim=1)
        if best_cost is None or best is None:
            best_cost, best = low, vector
        else:
            better = low < best_cost
            best_cost = torch.where(better, low, best_cost)
            best = torch.where(better[:, None], vector, best)
    assert best is not None
    return best * COARSE


def _price(vector: Tensor, neighbours: Tensor) -> Tensor:
    """Rough bits of a vector (quarter samples) beside the mean of its neighbours."""
    return torch.log2(1 + (vector - neighbours).abs()).sum(dim=1) * 2


@torch.no_grad()
def block_search(
    luma: Tensor, reference: Tensor, fine: Tensor, predicted: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """Motion (N, 2, H / 8, W / 8; x, y in luma samples) that predicts ``luma`` from ``reference``.

    The second result is the mean absolute difference that is left in each block (N, 1, H / 8, W / 8).

    ``luma``, ``reference``: (N, 1, H, W) on [0, 1]. ``fine``: the reference at quarter-pel (N, 1, 4H, 4W).
    ``predicted``: motion that costs nothing, like the result. ``step``: quantiser step (N,), which sets the price.
    """
    n, _, height, width = luma.shape
    h, w = height // BLOCK, width // BLOCK
    device = luma.device
    # One plane per quarter-pel phase, so that a row of a block is 8 neighbours in memory.
    rows, columns = height + 2 * MARGIN, width + 2 * MARGIN
    knee = (KNEE * step)[:, None, None, None]  # one unit of difference from here on
    padded = F.pad(fine / knee, [MARGIN * PEL] * 4, mode="replicate")
    phases = padded.reshape(n, rows, PEL, columns, PEL).permute(0, 2, 4, 1, 3).reshape(-1)
    windows = phases.unfold(0, BLOCK, 1)
    i = torch.arange(height, device=device) + MARGIN
    j = torch.arange(w, device=device) * BLOCK + MARGIN
    place = (i[:, None] * columns + j).reshape(h, BLOCK, w).permute(0, 2, 1).reshape(1, h * w, BLOCK)
    place = place + torch.arange(n, device=device)[:, None, None] * (PEL * PEL * rows * columns)
    blocks = (luma / knee).reshape(n, h, BLOCK, w, BLOCK).permute(0, 1, 3, 2, 4).reshape(n, h * w, BLOCK**2)

    # Vectors are kept so that their block stays inside the margin.
    margin = MARGIN * PEL
    top = -(torch.arange(h, device=device) * BLOCK * PEL)[:, None] - margin + 2 * PEL
    left = -(torch.arange(w, device=device) * BLOCK * PEL)[None, :] - margin + 2 * PEL
    lowest = torch.stack([left.expand(h, w), top.expand(h, w)])
    span = torch.tensor([width, height], device=device) * PEL + 2 * margin - (BLOCK + 4) * PEL
    highest = lowest + span[:, None, None]

    predicted = torch.round(predicted.float() * PEL)

    def moved(vector: Tensor) -> Tensor:
        quarters = vector.long()
        phase, whole = quarters & (PEL - 1), quarters >> 2
        offset = ((phase[:, 1] * PEL + phase[:, 0]) * rows + whole[:, 1]) * columns + whole[:, 0]
        start = place + offset.reshape(n, h * w, 1)
        return windows.index_select(0, start.reshape(-1)).reshape(blocks.shape)

    def cost(vector: Tensor, neighbours: Tensor) -> Tensor:
        difference = F.smooth_l1_loss(moved(vector), blocks, reduction="none").sum(dim=-1)
        return difference.reshape(n, h, w) * (KNEE / PRICE) + _price(vector - predicted, neighbours)

    def smooth(vector: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(vector - predicted, [1] * 4, mode="replicate"), 3, 1)

    def clamp(vector: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(vector, lowest), highest)

    best = clamp(predicted)
    neighbours = torch.zeros_like(best)
    best_cost = cost(best, neighbours)

    def consider(vector: Tensor) -> None:
        nonlocal best, best_cost
        vector = clamp(vector)
        now = cost(vector, neighbours)
        better = now < best_cost
        best = torch.where(better[:, None], vector, best)
        best_cost = torch.where(better, now, best_cost)

    def refine(distance: int) -> None:
        centre = best
        for dx, dy in _AROUND:
            consider(centre + torch.tensor([dx, dy], device=device).reshape(1, 2, 1, 1) * distance)

    def spread() -> None:
        nonlocal neighbours, best_cost
        neighbours = smooth(best)
        best_cost = cost(best, neighbours)
        padded = F.pad(best, [1] * 4, mode="replicate")
        for dy, dx in ((0, 1), (1, 0), (1, 2), (2, 1)):
            consider(padded[:, :, dy : dy + h, dx : dx + w])

    consider(_coarse_seed(luma, reference).to(best) * PEL)
    consider(torch.zeros_like(best))
    refine(2 * PEL)
    refine(PEL)
    spread()
    refine(PEL // 2)
    refine(1)
    spread()
    error = (moved(best) - blocks).abs().mean(dim=-1).reshape(n, 1, h, w) * knee
    return best / PEL, error
