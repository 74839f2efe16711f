"""A codec beside libx264, libx265 and libsvtav1: BD-rates from constant qualities, and how well targets are met.

Targets are the bits of the codec's constant levels, as in the paper's tables. Anchors are asked for them to the nearest
kbit/s, the unit of x264 and x265, and judged by what they were asked for. Ours come from the same encodes as the
tables, where these were made into the same folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from statistics import fmean
from typing import Any

from rqlvc.errors import RqlvcError
from rqlvc.evaluation.anchors import AnchorEncoder, anchor_identity
from rqlvc.evaluation.metrics import bd_rate
from rqlvc.evaluation.paper import Experiment, Results, Rows
from rqlvc.evaluation.results import deviation, write_results, write_whole
from rqlvc.evaluation.sweep import CONSTANT, ONE_PASS, TWO_PASS, Clip, Encode, Job, anchor_kilobits, run_jobs
from rqlvc.evaluation.tables import table
from rqlvc.parallel import Engine

EXPERIMENT = "anchors"
"""Its name in ``results.json``."""
CRFS = (47, 43, 39, 35, 31, 27, 23, 19, 15)  # about the distortions of constant QP 49 to 17
INTRA_QPS = (51, 47, 43, 39, 35, 31, 27, 23, 19)  # x264 codes intra frames 3 below the QP that it is given
AV1_QPS = (63, 57, 51, 45, 39, 33, 27, 21, 15)
PASSES: dict[AnchorEncoder, Sequence[str]] = {
    "libx264": (ONE_PASS, TWO_PASS),
    "libx265": (ONE_PASS, TWO_PASS),
    "libsvtav1": (ONE_PASS,),
}
MS_SSIM_CLOSEST = 1e-6
"""Least distance from 1: keeps decibels finite."""


def _ms_ssim_decibels(encode: Encode) -> float | None:
    values = [value for value in encode.ms_ssim if value is not None]
    return -10 * log10(max(1 - fmean(values), MS_SSIM_CLOSEST)) if values else None


METRICS: dict[str, Callable[[Encode], float | None]] = {
    "PSNR-Y": lambda encode: fmean(encode.psnr_y),
    "PSNR-YUV": lambda encode: fmean(encode.psnr_yuv),
    "PSNR-RGB": lambda encode: fmean(encode.psnr_rgb),
    "MS-SSIM": _ms_ssim_decibels,
    "VMAF": lambda encode: fmean(encode.vmaf) if encode.vmaf else None,
}
"""What R-D curves are drawn over; MS-SSIM as -10 lg(1 - x), on which curves are not squeezed against 1."""
MAIN_METRIC = "PSNR-YUV"
"""The one that is told sequence by sequence."""


def quantisers(encoder: AnchorEncoder, keyint: int) -> Sequence[int]:
    if encoder == "libsvtav1":
        return AV1_QPS
    return INTRA_QPS if keyint == 1 else CRFS


def run(
    experiment: Experiment,
    encoders: Sequence[AnchorEncoder],
    out: Path,
    engine: Engine,
    on_done: Callable[[Job, float], None] = lambda job, left: None,
) -> Results:
    """All encodes, kept in ``out``: first those at constant qualities, of which ours set the targets."""

    def anchor(encoder: AnchorEncoder, clip: Clip, controller: str, level: float | None, bits: int | None) -> Job:
        vmaf = experiment.job(clip, CONSTANT, level).vmaf and bits is None
        return Job(clip, encoder, anchor_identity(encoder), controller, level, experiment.keyint, bits, vmaf)

    ours = [experiment.job(clip, CONSTANT, level) for clip in experiment.clips for level in experiment.levels]
    curves = [
        anchor(encoder, clip, CONSTANT, quantiser, None)
        for encoder in encoders
        for clip in experiment.clips
        for quantiser in quantisers(encoder, experiment.keyint)
    ]
    results = run_jobs(ours + curves, out, engine, on_done)
    targeted = [
        experiment.job(job.clip, controller, job.level, sum(results[job].bits))
        for controller in experiment.controllers
        for job in ours
    ]
    targeted += [
        anchor(encoder, job.clip, controller, job.level, _asked_for(sum(results[job].bits), job.clip))
        for encoder in encoders
        for controller in PASSES[encoder]
        for job in ours
    ]
    return results | run_jobs(targeted, out, engine, on_done)


def _asked_for(bits: int, clip: Clip) -> int:
    return round(1000 * anchor_kilobits(bits, clip) * clip.frames / clip.properties.frame_rate)


def bd_rates(
    experiment: Experiment, encoders: Sequence[AnchorEncoder], results: Results
) -> list[dict[str, str | float | None]]:
    """Percent of rate that the codec needs more than each anchor at equal distortion, by sequence and metric.

    None where a metric was not measured or the curves allow no figure.
    """
    return [
        {
            "sequence": clip.name,
            "anchor": encoder,
            "metric": metric,
            "percent": _bd_rate(results, clip, encoder, experiment.codec, measure),
        }
        for clip in experiment.clips
        for encoder in encoders
        for metric, measure in METRICS.items()
    ]


def _bd_rate(
    results: Results, clip: Clip, anchor: str, test: str, measure: Callable[[Encode], float | None]
) -> float | None:
    def points(codec: str) -> list[tuple[float, float]]:
        pairs = [
            (sum(encode.bits), measure(encode))
            for job, encode in results.items()
            if (job.clip, job.codec, job.controller) == (clip, codec, CONSTANT)
        ]
        return [(bits, value) for bits, value in pairs if value is not None]

    try:
        return bd_rate(points(anchor), points(test))
    except RqlvcError:
        return None


def accuracies(results: Results) -> list[dict[str, Any]]:
    """How each codec and controller meets its targets: deviations in percent of all sequences and levels."""
    deviations: dict[tuple[str, str], list[float]] = {}
    for job, encode in results.items():
        if job.target_bits is not None:
            deviations.setdefault((job.codec, job.controller), []).append(deviation(job, encode))
    return [
        {"codec": codec, "controller": controller, "average": fmean(values), "worst": max(values)}
        for (codec, controller), values in deviations.items()
    ]


@dataclass(frozen=True, slots=True)
class MeanRate:
    """BD-rate against an anchor by one metric, in percent: mean of the ``known`` of ``sequences`` that allow one."""

    anchor: str
    metric: str
    percent: float | None
    known: int
    sequences: int


def mean_rates(settings: Mapping[str, Any]) -> list[MeanRate]:
    """Of the experiment as it stands in ``results.json``, by anchor and metric."""
    found: dict[tuple[str, str], list[float | None]] = {}
    for rate in settings["bd_rates"]:
        found.setdefault((rate["anchor"], rate["metric"]), []).append(rate["percent"])
    means = []
    for (anchor, metric), every in found.items():
        known = [value for value in every if value is not None]
        means.append(MeanRate(anchor, metric, fmean(known) if known else None, len(known), len(every)))
    return means


def known_metrics(settings: Mapping[str, Any]) -> list[str]:
    """Those that a BD-rate is known for; ``MAIN_METRIC`` always."""
    known = {rate["metric"] for rate in settings["bd_rates"] if rate["percent"] is not None}
    return [metric for metric in METRICS if metric in known or metric == MAIN_METRIC]


def rates_by_sequence(settings: Mapping[str, Any]) -> Rows:
    """BD-rates on ``MAIN_METRIC`` by sequence and anchor, of the experiment as it stands in ``results.json``."""
    rows: Rows = {}
    for rate in settings["bd_rates"]:
        if rate["metric"] == MAIN_METRIC:
            rows.setdefault(rate["sequence"], {})[rate["anchor"]] = rate["percent"]
    return rows


def markdown(settings: Mapping[str, Any]) -> str:
    """The tables of the experiment as it stands in ``results.json``."""
    encoders = list(settings["anchors"])
    means: dict[str, dict[str, str]] = {encoder: {} for encoder in encoders}
    for mean in mean_rates(settings):
        few = f" ({mean.known} of {mean.sequences})" if mean.known < mean.sequences else ""
        means[mean.anchor][mean.metric] = "-" if mean.percent is None else f"{mean.percent:+.1f}{few}"
    accuracy = {
        f"{row['codec']}, {row['controller']}": {"average": row["average"], "worst encode": row["worst"]}
        for row in settings["accuracies"]
    }
    lines = [
        f"Codec `{settings['codec']}`, model `{settings['model']}`; {len(settings['sequences'])} sequences, at most "
        f"{settings['frames']} frames, an intra frame every {settings['keyint']}, no B frames, psychovisual tuning or "
        "adaptive quantisation.",
        "",
        f"**BD-rate in percent** of `{settings['codec']}` against each encoder (above 0: it needs more bits at equal "
        "quality), mean of the sequences that allow one, with their number where some do not.",
        "",
        *table("encoder", known_metrics(settings), means),
        "",
        f"**BD-rate in percent, {MAIN_METRIC}**, sequence by sequence.",
        "",
        *table("sequence", encoders, rates_by_sequence(settings), "{:+.1f}", "average"),
        "",
        "**Deviation from the target in percent**, |target - actual| / target over all sequences and levels; targets "
        f"are the bits of constant q in {', '.join(f'{level:g}' for level in settings['levels'])}, for conventional "
        "encoders to the nearest kbit/s.",
        "",
        *table("codec, controller", ["average", "worst encode"], accuracy, "{:.2f}"),
    ]
    if "libsvtav1" in encoders:
        lines += [
            "",
            "SVT-AV1's low-delay structure offers no second pass; its one pass is its constant-bitrate mode, with "
            "adaptive quantisation on.",
        ]
    return "\n".join(lines) + "\n"


def write(experiment: Experiment, encoders: Sequence[AnchorEncoder], results: Results, out: Path) -> None:
    """``results.json`` (encodes, BD-rates) and ``anchors.md`` (tables) in the folder ``out``."""
    settings = experiment.settings | {
        "anchors": {encoder: anchor_identity(encoder) for encoder in encoders},
        "bd_rates": bd_rates(experiment, encoders, results),
        "accuracies": accuracies(results),
    }
    write_results(out, EXPERIMENT, settings, results.items())
    write_whole(out / "anchors.md", markdown(settings))
