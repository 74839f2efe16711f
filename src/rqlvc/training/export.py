"""From a trained model to the file that is shipped: measured probability tables, the exactness check, the card."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from rqlvc.codec.binary import contexts_from
from rqlvc.codec.entropy import BINS, SYMBOL_LIMIT, Counts, build_tables
from rqlvc.codec.model import VideoModel
from rqlvc.codec.motion import CONTEXTS
from rqlvc.codec.planes import BLOCK, Planes
from rqlvc.codec.weights import write_weights
from rqlvc.training.codec import code_chain, sample_qualities
from rqlvc.training.data import Clip, batches


@torch.no_grad()
def measure(model: VideoModel, groups: Iterator[list[Planes]], rounds: int, device: str) -> Counts:
    """What ``rounds`` groups of frames are coded with."""
    model.eval()
    symbols = torch.zeros(BINS, SYMBOL_LIMIT + 1, dtype=torch.int64, device=device)
    counts = Counts(symbols, np.zeros((CONTEXTS, 2), np.int64))
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        frames = [Planes(f.luma.to(device), f.chroma.to(device)) for f in next(groups)]
        levels = sample_qualities(len(frames[0].luma), len(frames), rng)
        code_chain(model, frames, [level.to(device) for level in levels], counts=counts)
    return counts


def export(
    model: VideoModel, path: Path, videos: list[Clip], photos: list[Clip], *, rounds: int = 25, device: str = "cpu"
) -> str:
    """Write ``model`` as a weights file, with tables and motion's first contexts measured on training material; returns
    its identity."""
    # As long and large as the material allows; what a stage could train on can also be measured.
    length = min(6, max(len(clip.luma) for clip in videos))
    size = min(192, *(min(clip.luma.shape[-2:]) // BLOCK * BLOCK for clip in [*videos, *photos]))
    for seed in (1, 2):  # what the contexts expect decides what is coded: once to find out, and once with that
        groups = batches(videos, photos, 4, length, size, photo_share=0.2, seed=seed)
        counts = measure(model, groups, -(-rounds // 2), device)
        model.motion_contexts.copy_(torch.from_numpy(contexts_from(counts.decisions)))
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_weights(path, model, build_tables(counts.symbols.cpu().numpy()))
