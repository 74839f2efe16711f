"""Frames as tensors: 4:2:0 planes, padding, and the folds that bring them to 1/4 and 1/8 resolution."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rqlvc.media.frame import Frame

BLOCK = 16
"""Frames are padded to multiples of this: the coarsest scale that the networks need whole."""


class Planes(NamedTuple):
    """Samples in [0, 1]: luma (batch, 1, H, W) and chroma (batch, 2, H / 2, W / 2)."""

    luma: Tensor
    chroma: Tensor


def padded_size(height: int, width: int) -> tuple[int, int]:
    return -(-height // BLOCK) * BLOCK, -(-width // BLOCK) * BLOCK


def from_frame(frame: Frame, device: torch.device) -> Planes:
    """A frame as planes, borders repeated up to the padded size."""
    height, width = padded_size(frame.height, frame.width)

    def pad(plane: np.ndarray, rows: int, columns: int) -> np.ndarray:  # type: ignore[type-arg]
        return np.pad(plane, ((0, rows - plane.shape[0]), (0, columns - plane.shape[1])), mode="edge")

    luma = torch.from_numpy(pad(frame.y, height, width))[None, None]
    chroma = torch.from_numpy(np.stack([pad(frame.u, height // 2, width // 2), pad(frame.v, height // 2, width // 2)]))[
        None
    ]
    return Planes(luma.to(device).float() / 255, chroma.to(device).float() / 255)


def to_bytes(planes: Planes) -> Planes:
    """8-bit samples (uint8 tensors), rounded to nearest: what is shown and what is kept as reference."""
    return Planes(
        (planes.luma.float() * 255 + 0.5).clamp(0, 255).to(torch.uint8),
        (planes.chroma.float() * 255 + 0.5).clamp(0, 255).to(torch.uint8),
    )


def from_bytes(planes: Planes) -> Planes:
    return Planes(planes.luma.float() / 255, planes.chroma.float() / 255)


def to_frame(planes: Planes, height: int, width: int) -> Frame:
    """The frame of given size cut out of 8-bit ``planes`` of batch 1: a copy, because the planes stay a reference."""
    luma, chroma = planes.luma.cpu().numpy(), planes.chroma.cpu().numpy()
    rows, columns = -(-height // 2), -(-width // 2)
    return Frame(
        luma[0, 0, :height, :width].copy(),
        chroma[0, 0, :rows, :columns].copy(),
        chroma[0, 1, :rows, :columns].copy(),
    )


def fold(planes: Planes, scale: int) -> Tensor:
    """All samples as channels at 1/scale: (batch, 1.5 scale^2, H / scale, W / scale), luma first."""
    luma, chroma = F.pixel_unshuffle(planes.luma, scale), F.pixel_unshuffle(planes.chroma, scale // 2)
    return torch.cat([luma, chroma], dim=1).contiguous(memory_format=torch.channels_last)  # as convolutions like it


def unfold(folded: Tensor, scale: int) -> Planes:
    """Inverse of :func:`fold`."""
    luma = scale * scale
    return Planes(F.pixel_shuffle(folded[:, :luma], scale), F.pixel_shuffle(folded[:, luma:], scale // 2))


FOLD_4 = 24  # channels of fold(planes, 4)


def unshuffle_order() -> Tensor:
    """The channels of fold(planes, 8) in the order in which ``pixel_unshuffle(fold(planes, 4), 2)`` has them, (96,)."""
    channels = unfold(torch.arange(4.0 * FOLD_4).reshape(1, -1, 1, 1), 8)
    return F.pixel_unshuffle(fold(channels, 4), 2).flatten().long()
