"""From a trained model to the file that is shipped: measured probability tables, the exactness check, the card."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rqlvc.codec.entropy import BINS, SYMBOL_LIMIT, Estimator, build_tables
from rqlvc.codec.model import VideoModel
from rqlvc.codec.planes import BLOCK, Planes
from rqlvc.codec.weights import write_weights
from rqlvc.training.codec import sample_qualities
from rqlvc.training.data import Clip, batches


@torch.no_grad()
def measure_symbols(model: VideoModel, groups: Iterator[list[Planes]], rounds: int, device: str) -> Tensor:
    """Count symbols by scale bin and magnitude, shape (64, 256), over ``rounds`` groups of frames."""
    model.eval()
    histogram = torch.zeros(BINS, SYMBOL_LIMIT + 1, dtype=torch.int64, device=device)
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        frames = [Planes(f.luma.to(device), f.chroma.to(device)) for f in next(groups)]
        height, width = frames[0].luma.shape[-2:]
        state = None
        for frame, level in zip(frames, sample_qualities(len(frames[0].luma), len(frames), rng), strict=True):
            quality = level.to(device)
            coder = Estimator()
            coder.histogram = histogram
            if state is None:
                decoded, state = model.intra_frame(coder, quality, frame, (height, width))
            else:
                decoded, state = model.inter_frame(coder, quality, frame, state)
            shown = Planes(decoded.luma.clamp(0, 1), decoded.chroma.clamp(0, 1))
            state = state._replace(reference=shown)
    return histogram.cpu()


def export(
    model: VideoModel, path: Path, videos: list[Clip], photos: list[Clip], *, rounds: int = 25, device: str = "cpu"
) -> str:
    """Write ``model`` as a weights file with tables measured on training material; returns its identity."""
    # As long and large as the material allows; what a stage could train on can also be measured.
    length = min(6, max(len(clip.luma) for clip in videos))
    size = min(192, *(min(clip.luma.shape[-2:]) // BLOCK * BLOCK for clip in [*videos, *photos]))
    groups = batches(videos, photos, 4, length, size, photo_share=0.2, seed=1)
    histogram = measure_symbols(model, groups, rounds, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_weights(path, model, build_tables(histogram.numpy()))
