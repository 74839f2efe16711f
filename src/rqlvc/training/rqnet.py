"""The training loop of RQNet, on what ``rqlvc collect`` made.

The loss is the mean absolute error of ln(bits per pixel), and not of the bits per pixel as in Eq. 5 of the RQ-LVC
paper: rates span three orders of magnitude here, so that Eq. 5 would only see the dear frames, while both what RQNet is
judged by (Eq. 10, in percent) and what it is used for (Eq. 6, a line over ln R) count relative errors.
"""

import copy
import csv
import math
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rqlvc.errors import RqlvcError
from rqlvc.rate.activity import BLOCK
from rqlvc.rate.models import log_bits
from rqlvc.rate.rqnet import QUALITY_LEVELS, RQNet, write_rqnet
from rqlvc.training.collect import MAP_STEPS, Sample, read_manifest, read_samples

EPOCHS = 26
BATCH = 32
LEARNING_RATE, FINAL_LEARNING_RATE = 4e-3, 1e-4
WARM_UP_STEPS = 50
WEIGHT_DECAY = 0.01
EMA_DECAY = 0.995
FORGET_SHARE = 0.1
"""Samples whose last frame is kept from the network, so that it also works without."""
VALIDATION_SHARE = 0.15
"""Of the source videos."""
NORMALISING_SAMPLES = 1000
"""At most, to measure the maps' mean and deviation on."""
CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
WEIGHTS = "rqnet.safetensors"
CARD = "rqnet.md"

_KNOWN, _LAST_INTRA = 1, 2  # columns of the context scalars


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples as columns; ``maps`` differ in size."""

    maps: list[Tensor]
    """Each (h, w, 23), bytes in steps of a tenth."""
    scalars: Tensor
    """(n, 7)."""
    log_rates: Tensor
    """ln(bits per pixel) at the four levels, (n, 4)."""
    cut: Tensor
    """Which frames follow a cut, (n,)."""

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Dataset":
        return cls(
            [torch.from_numpy(sample.maps).permute(1, 2, 0).contiguous() for sample in samples],
            torch.tensor([sample.scalars for sample in samples]),
            torch.tensor([[log_bits(bits) - math.log(s.pixels) for bits in s.bits] for s in samples]),
            torch.tensor([s.clip != s.last_clip and s.scalars[0] == 0 for s in samples]),
        )

    def __len__(self) -> int:
        return len(self.maps)

    def batches(self, rng: np.random.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices and maps (n, h, w, 23) of each batch, every sample once; shuffled where there is ``rng``."""
        order = np.arange(len(self)) if rng is None else rng.permutation(len(self))
        groups: dict[tuple[int, ...], list[int]] = {}
        for index in order:
            groups.setdefault(tuple(self.maps[index].shape), []).append(int(index))
        chunks = [group[i : i + BATCH] for group in groups.values() for i in range(0, len(group), BATCH)]
        for chunk in range(len(chunks)) if rng is None else rng.permutation(len(chunks)):
            indices = chunks[chunk]
            yield torch.tensor(indices), torch.stack([self.maps[i] for i in indices]).float() / MAP_STEPS


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean |predicted - real| / real bits in percent at each level (Eq. 10), (4,) each; NaN without such frames."""

    all: tuple[float, ...]
    intra: tuple[float, ...]
    inter: tuple[float, ...]
    after_intra: tuple[float, ...]
    """Inter frames whose last frame is intra: its rate says least about theirs."""
    after_cut: tuple[float, ...]

    def mean(self) -> float:
        return sum(self.all) / len(self.all)


@dataclass(slots=True)
class Run:
    """Everything that a checkpoint holds."""

    network: RQNet
    average: RQNet
    best: RQNet
    optimiser: torch.optim.Optimizer
    epochs: int
    epoch: int = 0
    best_epoch: int = 0
    best_error: float = math.inf
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Epoch:
    """A row of the log. ``loss`` and the errors (percent, of the moving average) as means over the levels."""

    epoch: int
    seconds: float
    learning_rate: float
    loss: float
    error: float
    error_intra: float
    error_inter: float


def train(
    data: Path,
    out: Path,
    *,
    epochs: int = EPOCHS,
    resume: bool = False,
    seed: int = 0,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Errors:
    """Train on the collection in ``data``; ``out`` gets weights, card, log and a checkpoint every epoch.

    Returns the errors on the clips held out. The weights are the moving average of the epoch that did best on them.
    ``resume`` goes on from the checkpoint in ``out`` and gives what an uninterrupted run would have given. Raises
    :class:`RqlvcError` when there is nothing to train on or to resume, or a run that would be overwritten.
    """
    manifest = read_manifest(data)
    training, validation = split_by_source(read_samples(data), manifest["clips"])
    learn, judge = Dataset.of(training), Dataset.of(validation)
    run = _start(out, learn, epochs, resume, seed)
    steps = sum(1 for _ in learn.batches(np.random.default_rng(0)))
    while run.epoch < run.epochs:
        began = time.perf_counter()
        rate, loss = _train_epoch(run, learn, steps, np.random.default_rng([seed, run.epoch]))
        errors = evaluate(run.average, judge)
        run.epoch += 1
        if errors.mean() < run.best_error:
            run.best_error, run.best_epoch, run.best = errors.mean(), run.epoch, copy.deepcopy(run.average)
        run.seconds += time.perf_counter() - began
        intra, inter = (float(np.mean(part)) for part in (errors.intra, errors.inter))
        row = Epoch(run.epoch, time.perf_counter() - began, rate, loss, errors.mean(), intra, inter)
        _append(out / LOG, row)
        _save(out / CHECKPOINT, run)
        on_epoch(row)
    write_rqnet(out / WEIGHTS, run.best, manifest["codec"], manifest["identity"])
    errors = evaluate(run.best, judge)
    blind = blind_errors(learn, judge)
    (out / CARD).write_text(_card(run, manifest, training, validation, errors, blind))
    return errors


def split_by_source(samples: Sequence[Sample], clips: Sequence[str]) -> tuple[list[Sample], list[Sample]]:
    """Training and validation samples that share no source video.

    Cuts of one video (``name_0``, ``name_80``) are one source. A sample whose reference comes from the other side is
    left out of training. Raises :class:`RqlvcError` when all samples come from one source.
    """
    source = [re.sub(r"(_\d+)+$", "", Path(clip).stem) for clip in clips]
    used = sorted({source[sample.clip] for sample in samples})
    if len(used) < 2:
        raise RqlvcError("the collection comes from a single video: collect from several, some are held out to judge.")
    count = max(1, round(VALIDATION_SHARE * len(used)))
    held_out = set(np.random.default_rng(0).choice(used, count, replace=False))
    training = [s for s in samples if not {source[s.clip], source[s.last_clip]} & held_out]
    validation = [s for s in samples if source[s.clip] in held_out]
    if not training:
        raise RqlvcError("too few samples are left to train on: collect more.")
    return training, validation


@torch.no_grad()
def predict_all(network: RQNet, data: Dataset) -> Tensor:
    """ln(bits per pixel) of every sample, (n, 4)."""
    network.eval()
    predicted = torch.empty_like(data.log_rates)
    for indices, maps in data.batches(None):
        predicted[indices] = network(maps, data.scalars[indices])
    return predicted


def evaluate(network: RQNet, data: Dataset) -> Errors:
    return _errors(predict_all(network, data), data)


def _errors(predicted: Tensor, data: Dataset) -> Errors:
    errors = 100 * ((predicted - data.log_rates).exp() - 1).abs()
    intra, after_intra = data.scalars[:, 0] > 0, data.scalars[:, _LAST_INTRA] > 0

    def mean(members: Tensor) -> tuple[float, ...]:
        return tuple(errors[members].mean(0).tolist())

    everything = torch.ones_like(intra)
    return Errors(mean(everything), mean(intra), mean(~intra), mean(~intra & after_intra & ~data.cut), mean(data.cut))


def blind_errors(learn: Dataset, judge: Dataset) -> Errors:
    """What a line through the last frame's rate, quality and distortion reaches without looking at the picture.

    Least squares of ln R, apart for each combination of the frame's and the last frame's types. RQNet has to beat it.
    """
    predicted = learn.log_rates.mean(0).expand(len(judge), -1).clone()
    kinds = learn.scalars[:, : _LAST_INTRA + 1]
    for kind in kinds.unique(dim=0):
        fit, use = (kinds == kind).all(1), (judge.scalars[:, : _LAST_INTRA + 1] == kind).all(1)
        columns = F.pad(learn.scalars[fit][:, _LAST_INTRA + 1 :], (1, 0), value=1.0)
        solution = torch.linalg.lstsq(columns, learn.log_rates[fit], driver="gelsd").solution
        predicted[use] = F.pad(judge.scalars[use][:, _LAST_INTRA + 1 :], (1, 0), value=1.0) @ solution
    return _errors(predicted, judge)


def _train_epoch(run: Run, data: Dataset, steps: int, rng: np.random.Generator) -> tuple[float, float]:
    """One pass over ``data``; the last learning rate and the mean loss."""
    run.network.train()
    total, rate = 0.0, LEARNING_RATE
    for step, (indices, maps) in enumerate(data.batches(rng), run.epoch * steps):
        blend = 0.5 + 0.5 * math.cos(math.pi * step / (run.epochs * steps))
        rate = FINAL_LEARNING_RATE + (LEARNING_RATE - FINAL_LEARNING_RATE) * blend
        for group in run.optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP_STEPS)
        mirrored = [axis for axis in (1, 2) if rng.random() < 0.5]
        scalars = data.scalars[indices].clone()
        scalars[torch.from_numpy(rng.random(len(indices)) < FORGET_SHARE), _KNOWN:] = 0
        loss = F.l1_loss(run.network(maps.flip(mirrored), scalars), data.log_rates[indices])
        run.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
        run.optimiser.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, (step + 1) / (step + 10))
            for slow, fast in zip(run.average.parameters(), run.network.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        total += loss.item() * len(indices)
    return rate, total / len(data)


def _start(out: Path, data: Dataset, epochs: int, resume: bool, seed: int) -> Run:
    checkpoint = out / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise RqlvcError(f"{out} already holds a run: continue it with --resume or choose another folder.")
    if resume and not checkpoint.exists():
        raise RqlvcError(f"{out} holds no checkpoint to resume: start without --resume.")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = RQNet()
    some = data.maps[:: 1 + len(data) // NORMALISING_SAMPLES]
    positions = torch.cat([maps.flatten(0, 1) for maps in some]).float() / MAP_STEPS
    network.normalise(positions.mean(0), positions.std(0))
    with torch.no_grad():
        network.out.bias.copy_(data.log_rates.mean(0))
    optimiser = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    run = Run(network, copy.deepcopy(network), copy.deepcopy(network), optimiser, epochs)
    if resume:
        _load(checkpoint, run)
        _cut_log(out / LOG, run.epoch)
    return run


_NETWORKS = ("network", "average", "best")
_NUMBERS = ("epochs", "epoch", "best_epoch", "best_error", "seconds")


def _save(path: Path, run: Run) -> None:
    """Whole or not at all."""
    state: dict[str, Any] = {name: getattr(run, name).state_dict() for name in (*_NETWORKS, "optimiser")}
    state |= {name: getattr(run, name) for name in _NUMBERS}
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _load(path: Path, run: Run) -> None:
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True)
        for name in (*_NETWORKS, "optimiser"):
            getattr(run, name).load_state_dict(saved[name])
        for name in _NUMBERS:
            setattr(run, name, saved[name])
    except (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise RqlvcError(f"the checkpoint {path} cannot be read ({error}): start a new run.") from error


def _append(path: Path, row: Epoch) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(field.name for field in fields(row))
        writer.writerow(f"{getattr(row, field.name):.6g}" for field in fields(row))


def _cut_log(path: Path, epoch: int) -> None:
    """Drop rows past ``epoch``: they were written after the checkpoint that is resumed."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[: epoch + 1]))


def _kilo_macs_per_pixel(network: RQNet) -> float:
    """Of the network alone, on a picture of 512x512."""
    side = 512 // BLOCK
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, side, side, len(network.map_mean)), torch.zeros(1, len(network.scalar_mean)))
    return counter.get_total_flops() / 2 / 512**2 / 1000


def _card(
    run: Run,
    manifest: dict[str, Any],
    training: Sequence[Sample],
    validation: Sequence[Sample],
    errors: Errors,
    blind: Errors,
) -> str:
    """The card of the weights, in Markdown: what they are, what they were trained on, how far they got."""
    parameters = sum(parameter.numel() for parameter in run.best.parameters())
    clips = [len({sample.clip for sample in samples}) for samples in (training, validation)]
    rows = {
        "all frames": errors.all,
        "intra": errors.intra,
        "inter": errors.inter,
        "inter, after an intra frame": errors.after_intra,
        "inter, after a cut": errors.after_cut,
        "all frames, without looking at the picture": blind.all,
    }
    return "\n".join(
        [
            f"# RQNet for the codec `{manifest['codec']}`, model `{manifest['identity']}`",
            "",
            "Predicts what a frame costs at the quality levels "
            f"{', '.join(f'{level:g}' for level in QUALITY_LEVELS)} (63 is best) before it is coded. "
            f"{parameters} parameters, {_kilo_macs_per_pixel(run.best):.3f} kMAC a pixel.",
            "",
            "## Training",
            "",
            f"{len(training)} frames of {clips[0]} clips, coded at the four levels from the same decoded picture; "
            f"{len(validation)} frames of {clips[1]} clips from other videos held out. Loss: mean absolute error of "
            f"ln(bits per pixel). Moving average after epoch {run.best_epoch}, the best on the held-out clips, of "
            f"{run.epoch}, in {run.seconds / 60:.1f} minutes.",
            "",
            "## Error on the held-out clips",
            "",
            "Mean of |predicted - real| / real bits, in percent.",
            "",
            f"| frames | {' | '.join(f'q = {level:g}' for level in QUALITY_LEVELS)} |",
            f"| --- |{' --- |' * len(QUALITY_LEVELS)}",
            *(
                f"| {name} | {' | '.join('-' if math.isnan(value) else f'{value:.1f}' for value in row)} |"
                for name, row in rows.items()
            ),
            "",
            "The last row is a least-squares line through the last frame's rate, quality and distortion.",
            "",
        ]
    )
