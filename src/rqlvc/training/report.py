"""What a training run leaves for people: the plot of its curves and the model card."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rqlvc.codec.exactness import accumulator_bounds
from rqlvc.codec.model import VideoModel
from rqlvc.codec.quality import LAMBDA_MAX, LAMBDA_MIN
from rqlvc.training.codec import PARTS
from rqlvc.training.data import Clip

SMOOTHING = 100  # steps that a point of the curves averages over


def read_log(path: Path) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """The columns of a ``log.csv``."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]} if rows else {}


def _smooth(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Mean over blocks of steps; blocks without a value give NaN."""
    blocks = [values[i : i + SMOOTHING] for i in range(0, len(values), SMOOTHING)]
    return np.array([np.nanmean(b) if np.isfinite(b).any() else np.nan for b in blocks])


def plot_curves(log: Path, out: Path) -> None:
    """Loss, rates and PSNR of intra and inter frames over the steps, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = read_log(log)
    if not columns:
        return
    steps = _smooth(columns["step"])
    panels = {
        "loss": [("loss", "loss")],
        "bits per pixel": [(f"{kind}_bpp_{half}", f"{name}, {half} q") for kind, name in _KINDS for half in _HALVES],
        "PSNR, dB": [(f"{kind}_psnr_{half}", f"{name}, {half} q") for kind, name in _KINDS for half in _HALVES],
        "bits per pixel of an inter frame": [(f"p_{part.replace(' ', '_')}", part) for part in PARTS],
    }
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 12), sharex=True)
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for column, label in lines:
            axis.plot(steps, _smooth(columns[column]), label=label)
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        if "PSNR" not in title:
            axis.set_yscale("log")
        if len(lines) > 1:
            axis.legend(fontsize="small")
    axes[-1].set_xlabel("step")
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)


_KINDS = (("i", "intra"), ("p", "inter"))
_HALVES = ("low", "high")


def model_card(
    model: VideoModel,
    identity: str,
    runs: Sequence[str],
    videos: list[Clip],
    photos: list[Clip],
    log: Path,
    device: str,
) -> str:
    """The card of a weights file, in Markdown: what it is, what it was trained on, how far it got."""
    columns = read_log(log)
    last = {name: float(_smooth(values)[-1]) for name, values in columns.items()}
    frames = sum(len(clip.luma) for clip in videos)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    parts = ", ".join(f"{name.replace('_', ' ')} {'on' if on else 'off'}" for name, on in asdict(model.config).items())
    bound = max(accumulator_bounds(model).values())
    lines = [
        f"# Codec `{identity}`",
        "",
        f"Variable-rate video codec, {millions:.2f} M parameters, quality level 0 to 63 (63 is best), lambda "
        f"{LAMBDA_MIN:g} to {LAMBDA_MAX:g} for MSE over all 4:2:0 samples on [0, 1]. Parts: {parts}.",
        "",
        f"Integer networks: largest possible accumulator {bound} (limit {2**24}).",
        "",
        "## Training",
        "",
        f"Material: {len(videos)} video clips ({frames} frames) and {len(photos)} photographs with synthetic motion. "
        f"Device of the last run: {device}. Weights are the moving average.",
        "",
        *[f"{i + 1}. {line}" for i, line in enumerate(runs)],
        "",
        f"Mean over the last {SMOOTHING} steps (training crops, entropy estimate): loss {last['loss']:.3f}.",
        "",
        "| frames | quality | bits per pixel | PSNR (YUV samples), dB |",
        "| --- | --- | --- | --- |",
    ]
    for kind, name in _KINDS:
        for half in _HALVES:
            lines.append(
                f"| {name} | {half} half | {last[f'{kind}_bpp_{half}']:.4f} | {last[f'{kind}_psnr_{half}']:.2f} |"
            )
    return "\n".join(lines) + "\n"
