"""The training loop of the codec: intra first, then pairs, then longer chains of frames."""

import copy
import csv
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rqlvc.codec.entropy import MOTION, Coder, Estimator
from rqlvc.codec.integer import straight_through
from rqlvc.codec.model import ModelConfig, State, VideoModel
from rqlvc.codec.planes import Planes
from rqlvc.codec.precision import fast_bfloat16
from rqlvc.codec.protocol import QUALITY_MAX
from rqlvc.codec.quality import LAMBDA_MAX, LAMBDA_MIN, lagrangian
from rqlvc.codec.references import superfluous
from rqlvc.codec.weights import read_weights
from rqlvc.errors import RqlvcError
from rqlvc.training.data import Clip, batches

HIERARCHY = (0.5, 0.7, 0.5, 0.9, 0.5, 0.7, 0.5, 1.2)
"""Distortion weights along a miniGOP, about as controllers set them (HyTIP has 0.5 / 0.9 / 1.2); a weight w is coded as
lambda * w."""
INTRA_WEIGHT = 8.0
"""Distortion weight of intra frames, on which the rest of the group leans (x264's ipratio of 1.4 is 1.4^2)."""
CHROMA_WEIGHT = 3.0
"""A chroma sample's squared error against a luma sample's. PSNR-YUV (6:1:1) averages decibels, and chroma's error is
several times the smaller: x264 likewise codes chroma up to 9 QP finer at low rates."""
RATE_BALANCE = 0.4
"""Samples are weighted by lambda^-0.4, about the inverse of their rate: BD-rate counts relative bits at all rates."""
EMA_DECAY = 0.998
TABLE_RATE = 3.0  # of the gains, which are logarithms and have far to go
WARM_UP_STEPS = 100
SAVE_EVERY = 100
CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
LINEAR_RATE = 0.1  # learning rate of the DCT matrices, relative to the rest: they start where they should


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training: ``length`` frames a step, ``learning_rate`` falling as a half cosine to ``final``.

    A ``group`` longer than that is trained on piece by piece: the state goes on, the gradient ends with the step. So
    the networks meet references as they are many frames after an intra frame, at the price of short chains.
    """

    name: str
    steps: int
    length: int
    learning_rate: float
    final: float
    batch: int = 8
    size: int = 128
    photo_share: float = 0.25
    group: int | None = None
    """Frames from one intra frame to the next; None: ``length``."""


SCHEDULE = (
    Stage("intra", 6000, 1, 1.2e-3, 1e-4, photo_share=0.5),
    Stage("pair", 1500, 2, 1.2e-3, 8e-4),
    Stage("chain", 4000, 4, 8e-4, 3e-5, batch=6),
    Stage("group", 2500, 6, 4e-4, 2e-5, batch=4, photo_share=0.2, group=30),
)


def scaled(schedule: tuple[Stage, ...], factor: float) -> tuple[Stage, ...]:
    """The schedule with ``factor`` times the steps."""
    return tuple(Stage(**{**asdict(stage), "steps": max(1, round(stage.steps * factor))}) for stage in schedule)


def sample_qualities(batch: int, length: int, rng: np.random.Generator) -> list[Tensor]:
    """Quality per frame, each (batch,): stratified over the range, with a hierarchy in half of the samples, of which
    all have their best frames at once: these are kept."""
    base = (np.arange(batch) + rng.random(batch)) * (QUALITY_MAX / batch)
    phase = int(rng.integers(0, len(HIERARCHY)))
    hierarchical = rng.random(batch) < 0.5
    per_log = QUALITY_MAX / math.log(LAMBDA_MAX / LAMBDA_MIN)
    qualities = []
    for t in range(length):
        lower = per_log * math.log(HIERARCHY[(phase + t) % len(HIERARCHY)])
        offset = np.where(hierarchical & (t > 0), lower, rng.normal(0, 1.5, batch) * (t > 0))
        quality = np.clip(np.round((base + offset) * 64) / 64, 0, QUALITY_MAX)
        qualities.append(torch.tensor(quality, dtype=torch.float32))
    return qualities


def distortion(decoded: Planes, frame: Planes) -> Tensor:
    """Mean squared error of each picture with chroma weighted, (N,); luma counts as in the plain mean over samples."""
    luma = (decoded.luma - frame.luma).square().mean(dim=(1, 2, 3))
    chroma = (decoded.chroma - frame.chroma).square().mean(dim=(1, 2, 3))
    return (2 * luma + CHROMA_WEIGHT * chroma) / 3


class Piece(NamedTuple):
    """What one step trains on: a stretch of a group of pictures."""

    frames: list[Planes]
    qualities: list[Tensor]
    level: Tensor
    """Quality of the group's first frame (N,)."""
    first: bool
    """Whether the stretch opens the group."""


def pieces(videos: list[Clip], photos: list[Clip], stage: Stage, seed: int, device: str) -> Iterator[Piece]:
    """Endless stretches of ``stage.length`` frames, group after group."""
    rng = np.random.default_rng(seed)
    group = stage.group or stage.length
    for frames in batches(videos, photos, stage.batch, group, stage.size, stage.photo_share, seed):
        qualities = [quality.to(device) for quality in sample_qualities(stage.batch, group, rng)]
        for start in range(0, group, stage.length):
            here = slice(start, start + stage.length)
            planes = [Planes(frame.luma.to(device), frame.chroma.to(device)) for frame in frames[here]]
            yield Piece(planes, qualities[here], qualities[0], start == 0)


class Coded(NamedTuple):
    """A frame's bits per pixel (N,), its distortion (N,), and bits per pixel of each part (N,)."""

    rate: Tensor
    distortion: Tensor
    parts: dict[str, Tensor]
    intra: bool


def code_chain(
    model: VideoModel,
    frames: list[Planes],
    qualities: list[Tensor],
    state: State | None = None,
) -> tuple[list[Coded], State]:
    """Code frames from ``state``, the first intra where there is none; the result ends with the state to go on from."""
    height, width = frames[0].luma.shape[-2:]
    results: list[Coded] = []
    for frame, quality in zip(frames, qualities, strict=True):
        coder = Estimator()
        intra = state is None
        decoded, state = code_frame(model, coder, frame, quality, state)
        parts = {name: bits / (height * width) for name, bits in coder.bits.items()}
        rate = sum(parts.values(), torch.zeros_like(quality))
        results.append(Coded(rate, distortion(decoded, frame), parts, intra))
    assert state is not None
    return results, state


def code_frame(
    model: VideoModel, coder: Coder, frame: Planes, quality: Tensor, state: State | None
) -> tuple[Planes, State]:
    """Code a frame, intra where there is no ``state``; the state after it holds the picture as a decoder keeps it."""
    if state is None:
        height, width = frame.luma.shape[-2:]
        decoded, state = model.intra_frame(coder, quality, frame, (height, width))
    else:
        decoded, state = model.inter_frame(coder, quality, frame, state)
    state = state.without(superfluous(state.kept))
    return decoded, state._replace(reference=_eight_bits(decoded))


def _eight_bits(picture: Planes) -> Planes:

    def rounded(samples: Tensor) -> Tensor:
        samples = samples.clamp(0, 1)
        return straight_through(samples, torch.round(samples * 255) / 255)

    return Planes(rounded(picture.luma), rounded(picture.chroma))


def _cut(state: State) -> State:
    """``state`` without what led to it: no gradient flows back."""

    def detached(picture: Planes) -> Planes:
        return Planes(picture.luma.detach(), picture.chroma.detach())

    kept = tuple(past._replace(picture=detached(past.picture)) for past in state.kept)
    return state._replace(reference=detached(state.reference), kept=kept)


def loss_of(results: list[Coded], qualities: list[Tensor], balance: Tensor) -> Tensor:
    """Mean of R + lambda D over frames and samples; ``balance`` (N,) weighs the samples."""
    losses = [
        balance * (coded.rate + (INTRA_WEIGHT if coded.intra else 1.0) * lagrangian(quality) * coded.distortion)
        for coded, quality in zip(results, qualities, strict=True)
    ]
    return torch.stack(losses).mean()


def _optimiser(model: VideoModel) -> torch.optim.Optimizer:
    groups: dict[str, list[nn.Parameter]] = {"rest": [], "linear": [], "table": []}
    for name, parameter in model.named_parameters():
        kind = "linear" if name.endswith("_transform") else "table" if "gain.table" in name else "rest"
        groups[kind].append(parameter)
    kinds = [{"params": group, "kind": kind} for kind, group in groups.items()]
    return torch.optim.Adam(kinds, betas=(0.9, 0.98), fused=True)


def _stage_at(schedule: tuple[Stage, ...], step: int) -> tuple[Stage, float]:
    """The stage that ``step`` falls into and the learning rate there."""
    for stage in schedule:
        if step < stage.steps:
            blend = 0.5 + 0.5 * math.cos(math.pi * step / stage.steps)
            return stage, stage.final + (stage.learning_rate - stage.final) * blend
        step -= stage.steps
    return schedule[-1], schedule[-1].final


@dataclass(slots=True)
class Run:
    """Everything that a checkpoint holds."""

    model: VideoModel
    average: VideoModel
    optimiser: torch.optim.Optimizer
    schedule: tuple[Stage, ...]
    step: int = 0
    seconds: float = 0.0
    history: tuple[str, ...] = ()
    """A line for each earlier run whose weights this one started from."""

    def describe(self) -> str:
        """One line: stages, steps and hours of this run."""
        stages = ", ".join(
            f"{s.name} ({s.steps} steps of {s.batch} x {s.length} frames of {s.size}x{s.size}"
            + (f" in groups of {s.group})" if s.group else ")")
            for s in self.schedule
        )
        return f"{stages}: {self.step} steps in {self.seconds / 3600:.2f} hours"


def start_run(
    out: Path,
    *,
    schedule: tuple[Stage, ...] = SCHEDULE,
    config: ModelConfig | None = None,
    resume: bool = False,
    start_from: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Run:
    """A new run in the folder ``out``, or the one whose checkpoint lies there.

    ``resume`` goes on from the checkpoint in ``out``, with its schedule; ``start_from`` takes only the weights of
    another run's checkpoint or of a weights file; parts that it lacks, or has in another size, start anew. Raises
    :class:`RqlvcError` when there is nothing to resume, or something that would be overwritten.
    """
    checkpoint = out / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise RqlvcError(f"{out} already holds a run: continue it with --resume or choose another folder.")
    if resume and not checkpoint.exists():
        raise RqlvcError(f"{out} holds no checkpoint to resume: start without --resume.")
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        (out / LOG).unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
    torch.manual_seed(seed)
    source = checkpoint if resume else start_from
    saved = None if source is None else _load(source, device)
    if saved is not None and (resume or config is None):
        config = ModelConfig(**saved["config"])
    model = VideoModel(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run(model, copy.deepcopy(model), _optimiser(model), schedule)
    if saved is None:
        return run
    if not resume:
        own = model.state_dict()
        known = {name: value for name, value in saved["average"].items() if name in own}
        fitting = {name: value for name, value in known.items() if value.shape == own[name].shape}
        model.load_state_dict(fitting, strict=False)
        run.average.load_state_dict(fitting, strict=False)
        run.history = (*saved["history"], saved["description"])
        return run
    model.load_state_dict(saved["model"])
    run.average.load_state_dict(saved["average"])
    run.optimiser.load_state_dict(saved["optimiser"])
    run.schedule = tuple(Stage(**stage) for stage in saved["schedule"])
    run.step, run.seconds, run.history = saved["step"], saved["seconds"], tuple(saved["history"])
    _cut_log(out / LOG, run.step)
    return run


def train(
    run: Run,
    videos: list[Clip],
    photos: list[Clip],
    out: Path,
    *,
    device: str = "cpu",
    seed: int = 0,
    on_step: Callable[[int, int, dict[str, float]], None] = lambda step, total, row: None,
) -> VideoModel:
    """Train ``run`` to the end of its schedule and return the moving average of its weights.

    ``out`` gets a checkpoint every 100 steps and a row of ``log.csv`` every step. A kill loses at most 100 steps.
    """
    model, average, optimiser, schedule = run.model, run.average, run.optimiser, run.schedule
    model.train()
    total = sum(stage.steps for stage in schedule)
    source = None
    current: Stage | None = None
    state: State | None = None
    while run.step < total:
        stage, rate = _stage_at(schedule, run.step)
        if stage is not current or source is None:
            current, source = stage, pieces(videos, photos, stage, seed + run.step, device)
        for group in optimiser.param_groups:
            scale = {"rest": 1.0, "linear": LINEAR_RATE, "table": TABLE_RATE}[group["kind"]]
            group["lr"] = rate * scale * min(1.0, (run.step + 1) / WARM_UP_STEPS)

        began = time.perf_counter()
        piece = next(source)
        state = None if piece.first or state is None else _cut(state)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=fast_bfloat16(device)):
            results, state = code_chain(model, piece.frames, piece.qualities, state)
        loss = loss_of(results, piece.qualities, (lagrangian(piece.level) / LAMBDA_MAX) ** -RATE_BALANCE)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        if math.isfinite(norm):
            optimiser.step()
        _follow(average, model, min(EMA_DECAY, (run.step + 1) / (run.step + 10)))
        run.step += 1
        run.seconds += time.perf_counter() - began

        row = {"step": run.step, "seconds": time.perf_counter() - began, "lr": rate, "norm": norm}
        row |= {"loss": loss.item(), "frames": stage.length} | _summary(results)
        _append(out / LOG, row)
        if run.step % SAVE_EVERY == 0 or run.step == total:
            _save(out / CHECKPOINT, run)
        on_step(run.step, total, row)
    return average


@torch.no_grad()
def _follow(average: VideoModel, model: VideoModel, decay: float) -> None:
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


PARTS = (MOTION, "texture", "texture hyper")


def _summary(results: list[Coded]) -> dict[str, float]:
    """Bits per pixel and PSNR of the intra and the last inter frame, at the low and the high half of the rates."""
    row: dict[str, float] = {}
    intra = next((coded for coded in results if coded.intra), None)
    inter = next((coded for coded in reversed(results) if not coded.intra), None)
    for kind, coded in (("i", intra), ("p", inter)):
        for name in ("low", "high"):
            row |= {f"{kind}_bpp_{name}": math.nan, f"{kind}_psnr_{name}": math.nan}
        row |= {f"{kind}_{part.replace(' ', '_')}": math.nan for part in PARTS}
        if coded is None:
            continue
        half = len(coded.rate) // 2
        for name, where in (("low", slice(0, half)), ("high", slice(half, None))):
            row[f"{kind}_bpp_{name}"] = coded.rate[where].mean().item()
            row[f"{kind}_psnr_{name}"] = -10 * torch.log10(coded.distortion[where] + 1e-9).mean().item()
        row |= {f"{kind}_{part.replace(' ', '_')}": bits.mean().item() for part, bits in coded.parts.items()}
    return row


def _append(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row.keys())
        if new:
            writer.writeheader()
        writer.writerow({name: f"{value:.6g}" for name, value in row.items()})


def _cut_log(path: Path, step: int) -> None:
    """Drop rows past ``step``: they were written after the checkpoint that is resumed."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:1] + [line for line in lines[1:] if int(line.split(",", 1)[0]) <= step]))


def _save(path: Path, run: Run) -> None:
    """Whole or not at all: a kill while saving leaves the last checkpoint."""
    state = {
        "model": run.model.state_dict(),
        "average": run.average.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "schedule": [asdict(stage) for stage in run.schedule],
        "config": asdict(run.model.config),
        "step": run.step,
        "seconds": run.seconds,
        "history": list(run.history),
        "description": run.describe(),
    }
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _load(path: Path, device: str) -> dict[str, Any]:
    """A checkpoint, or a weights file in the form of one."""
    if path.suffix == ".safetensors":
        weights = read_weights(path)
        state = weights.model.state_dict()
        line = f"the runs behind the weights {weights.identity}"
        return {
            "model": state,
            "average": state,
            "config": asdict(weights.model.config),
            "history": [],
            "description": line,
        }
    try:
        saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise RqlvcError(f"The checkpoint {path} cannot be read ({error}): start from another.") from error
    return saved
