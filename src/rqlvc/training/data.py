"""Training samples: crops of real clips, and photographs set in motion."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rqlvc.codec.planes import Planes, from_bytes
from rqlvc.errors import RqlvcError
from rqlvc.media.reader import VIDEO_SUFFIXES, open_reader

PHOTO_SUFFIXES = {".webp", ".png", ".jpg", ".jpeg"}
MAX_SHIFT = 6.0  # luma samples a frame, of the synthetic camera
MAX_PATH = 24.0  # luma samples either way: how far it gets
MAX_ZOOM = 0.02
MAX_TURN = 0.02  # radians a frame


class Clip(NamedTuple):
    """Consecutive 8-bit frames: luma (T, 1, H, W), chroma (T, 2, H / 2, W / 2)."""

    luma: npt.NDArray[np.uint8]
    chroma: npt.NDArray[np.uint8]


def _even(clip: Clip) -> Clip:
    height, width = clip.luma.shape[-2] // 2 * 2, clip.luma.shape[-1] // 2 * 2
    return Clip(clip.luma[..., :height, :width], clip.chroma[..., : height // 2, : width // 2])


def read_clip(path: Path) -> Clip:
    with open_reader(str(path)) as reader:
        frames = list(reader)
    luma = np.stack([frame.y for frame in frames])[:, None]
    chroma = np.stack([np.stack([frame.u, frame.v]) for frame in frames])
    return _even(Clip(luma, chroma))


def read_photo(path: Path) -> Clip:
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB"))
    rgb = np.ascontiguousarray(rgb[: rgb.shape[0] // 2 * 2, : rgb.shape[1] // 2 * 2])
    height, width = rgb.shape[:2]
    picture: npt.NDArray[Any] = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p").to_ndarray()
    luma = picture[:height][None, None]
    chroma = picture[height:].reshape(2, height // 2, width // 2)[None]
    return Clip(luma, chroma)


def read_library(folder: Path, suffixes: set[str], smallest: int) -> list[Clip]:
    """Every readable clip (or photograph) of ``folder`` whose sides are at least ``smallest``."""
    if not folder.is_dir():
        raise RqlvcError(f"{folder} is not a folder: give one that holds training material.")
    read = read_clip if suffixes is VIDEO_SUFFIXES else read_photo
    clips = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes:
            clip = read(path)
            if min(clip.luma.shape[-2:]) >= smallest:
                clips.append(clip)
    if not clips:
        raise RqlvcError(f"{folder} holds no material of at least {smallest} samples on each side.")
    return clips


def _crop(clip: Clip, start: int, length: int, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """``length`` frames of a random place, randomly mirrored."""
    height, width = clip.luma.shape[-2:]
    top = int(rng.integers(0, (height - size) // 2 + 1)) * 2
    left = int(rng.integers(0, (width - size) // 2 + 1)) * 2
    half = size // 2
    luma = clip.luma[start : start + length, :, top : top + size, left : left + size]
    chroma = clip.chroma[start : start + length, :, top // 2 : top // 2 + half, left // 2 : left // 2 + half]
    if rng.random() < 0.5:
        luma, chroma = luma[..., ::-1], chroma[..., ::-1]
    return torch.from_numpy(luma.copy()), torch.from_numpy(chroma.copy())


def real_motion(clips: list[Clip], length: int, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A crop of a real clip; now and then backwards or at double speed."""
    long_enough = [clip for clip in clips if len(clip.luma) >= length]
    if not long_enough:
        raise RqlvcError(f"None of the clips has {length} frames, which this stage needs: add longer ones.")
    clip = long_enough[rng.integers(len(long_enough))]
    stride = 2 if len(clip.luma) >= 2 * length and rng.random() < 0.15 else 1
    clip = Clip(clip.luma[::stride], clip.chroma[::stride])
    start = int(rng.integers(0, len(clip.luma) - length + 1))
    luma, chroma = _crop(clip, start, length, size, rng)
    return (luma.flip(0), chroma.flip(0)) if rng.random() < 0.3 else (luma, chroma)


def _camera(length: int, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Affine grids (T, size, size, 2) for luma and chroma: a steady drift, zoom and turn from the centre."""
    fastest = min(MAX_SHIFT, 2 * MAX_PATH / length)
    shift = rng.normal(0, fastest / 2, 2).clip(-fastest, fastest) * 2 / size
    slow = fastest / MAX_SHIFT
    zoom = rng.uniform(-MAX_ZOOM, MAX_ZOOM) * slow * (rng.random() < 0.5)
    turn = rng.uniform(-MAX_TURN, MAX_TURN) * slow * (rng.random() < 0.5)
    matrices = []
    for t in np.arange(length) - (length - 1) / 2:
        scale, angle = 0.7 * (1 + zoom * t), turn * t
        cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
        matrices.append([[cosine, -sine, shift[0] * t], [sine, cosine, shift[1] * t]])
    theta = torch.tensor(np.array(matrices), dtype=torch.float32)
    luma = F.affine_grid(theta, [length, 1, size, size], align_corners=False)
    chroma = F.affine_grid(theta, [length, 1, size // 2, size // 2], align_corners=False)
    return luma, chroma


def _moved(photo: Clip, length: int, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A photograph seen by a moving camera; float samples of 0 to 255."""
    margin = min(size * 3 // 2, *photo.luma.shape[-2:]) // 2 * 2
    luma, chroma = _crop(photo, 0, 1, margin, rng)
    grids = _camera(length, size, rng)
    return (
        F.grid_sample(luma.float().expand(length, -1, -1, -1), grids[0], "bicubic", "border", False),
        F.grid_sample(chroma.float().expand(length, -1, -1, -1), grids[1], "bicubic", "border", False),
    )


def synthetic_motion(photos: list[Clip], length: int, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A moving photograph, with a cut-out of another moving over it in half of the cases."""
    luma, chroma = _moved(photos[rng.integers(len(photos))], length, size, rng)
    if rng.random() < 0.5:
        other_luma, other_chroma = _moved(photos[rng.integers(len(photos))], length, size, rng)
        grid, grid_chroma = _camera(length, size, rng)
        centre = torch.tensor(rng.uniform(-0.6, 0.6, 2), dtype=torch.float32)
        radius = torch.tensor(rng.uniform(0.2, 0.7, 2), dtype=torch.float32)

        def cut(place: Tensor) -> Tensor:
            return ((((place - centre) / radius) ** 2).sum(-1) < 1).float()[:, None]

        luma = torch.lerp(luma, other_luma, cut(grid))
        chroma = torch.lerp(chroma, other_chroma, cut(grid_chroma))
    return luma.round().clamp(0, 255).to(torch.uint8), chroma.round().clamp(0, 255).to(torch.uint8)


def batches(
    videos: list[Clip], photos: list[Clip], batch: int, length: int, size: int, photo_share: float, seed: int
) -> Iterator[list[Planes]]:
    """Endless batches: ``length`` frames, each :class:`Planes` of ``batch`` samples on [0, 1]."""
    rng = np.random.default_rng(seed)
    while True:
        samples = []
        for _ in range(batch):
            if photos and rng.random() < photo_share:
                if length == 1:
                    samples.append(_crop(photos[rng.integers(len(photos))], 0, 1, size, rng))
                else:
                    samples.append(synthetic_motion(photos, length, size, rng))
            else:
                samples.append(real_motion(videos, length, size, rng))
        luma = torch.stack([sample[0] for sample in samples], dim=1)
        chroma = torch.stack([sample[1] for sample in samples], dim=1)
        yield [from_bytes(Planes(luma[t], chroma[t])) for t in range(length)]
