"""From a trained model to the file that is shipped: contexts that have learnt, the exactness check, the card."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from rqlvc.codec.binary import BinaryCoder, counter
from rqlvc.codec.entropy import Kind, Mixers, PacketCoder, new_mixer
from rqlvc.codec.model import State, VideoModel
from rqlvc.codec.motion_coding import new_motion_mixer
from rqlvc.codec.planes import BLOCK, Planes
from rqlvc.codec.weights import write_weights
from rqlvc.training.codec import code_frame, sample_qualities
from rqlvc.training.data import Clip, batches

ROUNDS = 150
"""Groups that contexts learn from, and four times as many samples: a third of that leaves 0.3 % of bits more."""
TRUSTED, TRUSTED_MOTION = 30, 8
"""Decisions that contexts of latents, and of motion, have seen at the start of a group, at most: the next ones should
still teach them something."""


@torch.no_grad()
def learn_contexts(
    model: VideoModel,
    coder: BinaryCoder,
    mixers: Mixers,
    groups: Iterator[list[Planes]],
    device: str,
    on_group: Callable[[], None] = lambda: None,
) -> Mixers:
    """``mixers`` after ``groups`` of frames, coded one after the other with ``coder``; what ``model`` codes motion with
    learns as well. ``on_group`` is called after each."""
    model.eval()
    rng = np.random.default_rng(0)
    for frames in groups:
        levels = sample_qualities(len(frames[0].luma), len(frames), rng)
        for sample in range(len(frames[0].luma)):
            state: State | None = None
            for frame, level in zip(frames, levels, strict=True):
                packet = PacketCoder(coder, mixers)
                one = Planes(*(samples[sample : sample + 1].to(device) for samples in (frame.luma, frame.chroma)))
                _, state = code_frame(model, packet, one, level[sample : sample + 1].to(device), state)
                mixers = packet.mixers
            if state is not None and state.mixers is not None:
                (model.motion_mixer,) = state.mixers
        on_group()
    return mixers


def export(
    model: VideoModel,
    path: Path,
    videos: list[Clip],
    photos: list[Clip],
    *,
    device: str = "cpu",
    on_round: Callable[[int, int], None] = lambda done, rounds: None,
) -> str:
    """Write ``model`` as a weights file whose contexts have learnt from training material; returns its identity.

    ``on_round`` hears after each of the rounds of learning how many are done, and of how many: as many as there are
    clips and photographs, :data:`ROUNDS` at most.
    """
    # As long and large as the material allows; what a stage could train on can also be coded.
    length = min(6, max(len(clip.luma) for clip in videos))
    size = min(192, *(min(clip.luma.shape[-2:]) // BLOCK * BLOCK for clip in [*videos, *photos]))
    rounds = min(ROUNDS, len(videos) + len(photos))
    done = itertools.count(1)
    mixers: Mixers = {kind: new_mixer(kind) for kind in get_args(Kind)}
    model.motion_mixer = new_motion_mixer()
    for seed, count in enumerate((rounds // 2, rounds - rounds // 2), start=1):
        # What the contexts expect decides what is coded: once to find out, and once with that.
        groups = itertools.islice(batches(videos, photos, 4, length, size, photo_share=0.2, seed=seed), count)
        mixers = learn_contexts(model, counter(), mixers, groups, device, lambda: on_round(next(done), rounds))
        model.motion_mixer = model.motion_mixer.rested(TRUSTED_MOTION)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_weights(path, model, {kind: mixer.rested(TRUSTED) for kind, mixer in mixers.items()})
