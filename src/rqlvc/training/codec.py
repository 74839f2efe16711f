"""The training loop of the codec: intra first, then pairs, then longer chains of frames."""

import copy
import csv
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rqlvc.codec.entropy import Estimator
from rqlvc.codec.model import ModelConfig, State, VideoModel
from rqlvc.codec.planes import Planes
from rqlvc.codec.precision import fast_bfloat16
from rqlvc.codec.protocol import QUALITY_MAX
from rqlvc.codec.quality import LAMBDA_MAX, LAMBDA_MIN, lagrangian
from rqlvc.errors import RqlvcError
from rqlvc.training.data import PHOTO_SUFFIXES, VIDEO_SUFFIXES, batches, read_library

HIERARCHY = (0.5, 1.2, 0.5, 0.9)
"""Distortion weights along a miniGOP (HyTIP's 0.5 / 1.2 / 0.9 by frame type); a weight w is coded as lambda * w."""
RATE_BALANCE = 0.4
"""Samples are weighted by lambda^-0.4, about the inverse of their rate: BD-rate counts relative bits at all rates."""
EMA_DECAY = 0.998
LINEAR_RATE = 0.1  # learning rate of the DCT matrices, relative to the rest: they start where they should


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training: ``length`` frames a sample, ``learning_rate`` falling as a half cosine to ``final``."""

    name: str
    steps: int
    length: int
    learning_rate: float
    final: float
    batch: int = 8
    size: int = 128
    photo_share: float = 0.25


SCHEDULE = (
    Stage("intra", 1500, 1, 2e-3, 1e-3, photo_share=0.6),
    Stage("pair", 3000, 2, 1.5e-3, 8e-4),
    Stage("chain", 4000, 4, 8e-4, 1e-4, batch=6),
)


def scaled(schedule: tuple[Stage, ...], factor: float) -> tuple[Stage, ...]:
    """The schedule with ``factor`` times the steps."""
    return tuple(Stage(**{**asdict(stage), "steps": max(1, round(stage.steps * factor))}) for stage in schedule)


def sample_qualities(batch: int, length: int, rng: np.random.Generator) -> list[Tensor]:
    """Quality per frame, each (batch,): stratified over the range, with a hierarchy in half of the samples."""
    base = (np.arange(batch) + rng.random(batch)) * (QUALITY_MAX / batch)
    phase = rng.integers(0, len(HIERARCHY), batch)
    hierarchical = rng.random(batch) < 0.5
    per_log = QUALITY_MAX / math.log(LAMBDA_MAX / LAMBDA_MIN)
    qualities = []
    for t in range(length):
        weight = np.array([HIERARCHY[(p + t) % len(HIERARCHY)] for p in phase])
        offset = np.where(hierarchical & (t > 0), per_log * np.log(weight), rng.normal(0, 1.5, batch) * (t > 0))
        quality = np.clip(np.round((base + offset) * 64) / 64, 0, QUALITY_MAX)
        qualities.append(torch.tensor(quality, dtype=torch.float32))
    return qualities


def distortion(decoded: Planes, frame: Planes) -> Tensor:
    """Mean squared error over all 4:2:0 samples of each picture, (N,)."""
    luma = (decoded.luma - frame.luma).square().mean(dim=(1, 2, 3))
    chroma = (decoded.chroma - frame.chroma).square().mean(dim=(1, 2, 3))
    return (2 * luma + chroma) / 3


def code_chain(
    model: VideoModel, frames: list[Planes], qualities: list[Tensor]
) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Code a group of frames; per frame: bits per pixel (N,), distortion (N,), bits per pixel of each part."""
    height, width = frames[0].luma.shape[-2:]
    results = []
    state: State | None = None
    for frame, quality in zip(frames, qualities, strict=True):
        coder = Estimator()
        if state is None:
            decoded, state = model.intra_frame(coder, quality, frame, (height, width))
        else:
            decoded, state = model.inter_frame(coder, quality, frame, state)
        shown = Planes(decoded.luma.clamp(0, 1), decoded.chroma.clamp(0, 1))
        state = state._replace(reference=shown)
        parts = {name: bits / (height * width) for name, bits in coder.bits.items()}
        results.append((sum(parts.values(), torch.zeros_like(quality)), distortion(decoded, frame), parts))
    return results


def loss_of(results: list[tuple[Tensor, Tensor, dict[str, Tensor]]], qualities: list[Tensor]) -> Tensor:
    """Mean of R + lambda D over frames and samples, rates balanced."""
    balance = (lagrangian(qualities[0]) / LAMBDA_MAX) ** -RATE_BALANCE
    losses = [
        balance * (rate + lagrangian(quality) * error)
        for (rate, error, _), quality in zip(results, qualities, strict=True)
    ]
    return torch.stack(losses).mean()


def _optimiser(model: VideoModel) -> torch.optim.Optimizer:
    linear = [p for name, p in model.named_parameters() if name.endswith("_transform")]
    rest = [p for name, p in model.named_parameters() if not name.endswith("_transform")]
    return torch.optim.Adam([{"params": rest, "scale": 1.0}, {"params": linear, "scale": LINEAR_RATE}], betas=(0.9, 0.98))


def _stage_at(schedule: tuple[Stage, ...], step: int) -> tuple[Stage, float]:
    """The stage that ``step`` falls into and the learning rate there."""
    for stage in schedule:
        if step < stage.steps:
            blend = 0.5 + 0.5 * math.cos(math.pi * step / stage.steps)
            return stage, stage.final + (stage.learning_rate - stage.final) * blend
        step -= stage.steps
    return schedule[-1], schedule[-1].final


def train(
    videos: Path,
    photos: Path,
    out: Path,
    *,
    schedule: tuple[Stage, ...] = SCHEDULE,
    config: ModelConfig | None = None,
    resume: bool = False,
    start_from: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    on_step: Callable[[int, int, dict[str, float]], None] = lambda step, total, row: None,
) -> VideoModel:
    """Train a codec and return its moving average; ``out`` gets ``checkpoint.pt`` and ``log.csv``.

    ``resume`` goes on from the checkpoint in ``out``; ``start_from`` takes only the weights of another checkpoint.
    Raises :class:`RqlvcError` when there is nothing to resume or no training material.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise RqlvcError(f"{out} already holds a run: continue it with --resume or choose another folder.")
    if resume and not checkpoint.exists():
        raise RqlvcError(f"{out} holds no checkpoint to resume: start without --resume.")
    largest = max(stage.size for stage in schedule)
    clips = read_library(videos, VIDEO_SUFFIXES, largest)
    pictures = read_library(photos, PHOTO_SUFFIXES, largest)

    torch.manual_seed(seed)
    model = VideoModel(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model)
    optimiser = _optimiser(model)
    step = 0
    if resume or start_from is not None:
        saved = torch.load(checkpoint if resume else start_from, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        if resume:
            optimiser.load_state_dict(saved["optimiser"])
            step = saved["step"]

    total = sum(stage.steps for stage in schedule)
    source = None
    current: Stage | None = None
    while step < total:
        stage, rate = _stage_at(schedule, step)
        if stage is not current or source is None:
            current = stage
            source = batches(clips, pictures, stage.batch, stage.length, stage.size, stage.photo_share, seed + step)
            rng = np.random.default_rng(seed + step)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"] * min(1.0, (step + 1) / 100)

        began = time.perf_counter()
        frames = [Planes(f.luma.to(device), f.chroma.to(device)) for f in next(source)]
        qualities = [q.to(device) for q in sample_qualities(stage.batch, stage.length, rng)]
        with torch.autocast(device, dtype=torch.bfloat16, enabled=fast_bfloat16(device)):
            results = code_chain(model, frames, qualities)
        loss = loss_of(results, qualities)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        if math.isfinite(norm):
            optimiser.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        step += 1

        row = {"step": step, "seconds": time.perf_counter() - began, "lr": rate, "norm": norm}
        row |= {"loss": loss.item(), "frames": stage.length} | _summary(results)
        _append(out / "log.csv", row)
        on_step(step, total, row)
        if step % 100 == 0 or step == total:
            _save(checkpoint, model=model, average=average, optimiser=optimiser, step=step)
    return average


PARTS = ("motion", "hyper", "texture")


def _summary(results: list[tuple[Tensor, Tensor, dict[str, Tensor]]]) -> dict[str, float]:
    """Bits per pixel and PSNR of the intra and the last inter frame, at the low and the high half of the rates."""
    row: dict[str, float] = {}
    for kind, index in (("i", 0), ("p", -1)):
        rate, error, parts = results[index]
        missing = kind == "p" and len(results) == 1
        half = len(rate) // 2
        for name, where in (("low", slice(0, half)), ("high", slice(half, None))):
            psnr = -10 * torch.log10(error[where] + 1e-9).mean().item()
            row[f"{kind}_bpp_{name}"] = math.nan if missing else rate[where].mean().item()
            row[f"{kind}_psnr_{name}"] = math.nan if missing else psnr
        for part in PARTS:
            row[f"{kind}_{part}"] = math.nan if missing or part not in parts else parts[part].mean().item()
    return row


def _append(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row.keys())
        if new:
            writer.writeheader()
        writer.writerow({name: f"{value:.6g}" for name, value in row.items()})


def _save(path: Path, *, model: VideoModel, average: VideoModel, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Whole or not at all: a kill while saving leaves the last checkpoint."""
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "config": asdict(model.config),
    }
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, path)
