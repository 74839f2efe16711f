"""The tables of the RQ-LVC paper (Tables 2 to 4) from encodes of any sequences with any codec.

Per sequence and level, the bits of the constant level are the target of every controller; the deviation is
|target - actual| / target. BD-rates compare each controller's four encodes with the four constant ones.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rqlvc.errors import RqlvcError
from rqlvc.evaluation.figures import curves_of, write_figures
from rqlvc.evaluation.metrics import bd_rate, vmaf_is_here
from rqlvc.evaluation.results import deviation, write_results
from rqlvc.evaluation.sweep import CONSTANT, CURVE_LEVELS, CURVES, Clip, Encode, Job, run_jobs
from rqlvc.evaluation.tables import table
from rqlvc.parallel import Engine
from rqlvc.rate.models import FITS, r_squared
from rqlvc.rate.registry import CONTROLLERS

EXPERIMENT = "paper"
"""Its name in ``results.json``."""
LEVELS = (10.0, 27.0, 43.0, 60.0)
FIRST_FRAMES = 8
"""Of a sequence: where controllers still know little."""
CURVES_LEVEL = 32.0
"""The constant quality on whose way the models' fits are measured."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is compared on what."""

    clips: Sequence[Clip]
    codec: str
    model: str
    controllers: Sequence[str]
    levels: Sequence[float] = LEVELS
    keyint: int = 32

    def job(self, clip: Clip, controller: str, level: float | None, target_bits: int | None = None) -> Job:
        vmaf = controller == CONSTANT and vmaf_is_here()
        return Job(clip, self.codec, self.model, controller, level, self.keyint, target_bits, vmaf)

    @property
    def settings(self) -> dict[str, Any]:
        """As they stand in ``results.json``."""
        return {
            "codec": self.codec,
            "model": self.model,
            "controllers": list(self.controllers),
            "keyint": self.keyint,
            "levels": list(self.levels),
        }


Results = dict[Job, Encode]


def check_controllers(names: Sequence[str]) -> None:
    """Raises :class:`RqlvcError` for a name that no controller has, or that meets no target."""
    for name in names:
        if name not in CONTROLLERS or not CONTROLLERS[name].meets_bitrate:
            known = ", ".join(name for name, entry in CONTROLLERS.items() if entry.meets_bitrate)
            raise RqlvcError(f"there is no controller {name!r} that meets a bitrate: choose from {known}.")


def run(
    experiment: Experiment, out: Path, engine: Engine, on_done: Callable[[Job, float], None] = lambda job, left: None
) -> Results:
    """All encodes of ``experiment``, kept in ``out``: first the constant ones, which set the targets."""
    constant = [experiment.job(clip, CONSTANT, level) for clip in experiment.clips for level in experiment.levels]
    curves = [experiment.job(clip, CURVES, CURVES_LEVEL) for clip in experiment.clips]
    results = run_jobs(constant + curves, out, engine, on_done)
    controlled = [
        experiment.job(job.clip, controller, job.level, sum(results[job].bits))
        for controller in experiment.controllers
        for job in constant
    ]
    return results | run_jobs(controlled, out, engine, on_done)


def frame_deviations(encode: Encode, frames: int | None = None) -> list[float]:
    """|target - actual| / target in percent of each inter frame among the first ``frames``."""
    rows = list(zip(encode.type, encode.bits, encode.target_bits, strict=True))[:frames]
    return [100 * abs(bits - target) / target for kind, bits, target in rows if target and kind == "P"]


def bd_rate_of(results: Results, clip: Clip, controller: str) -> float | None:
    """Of a controller against the constant levels, on PSNR-YUV, in percent; None where the curves allow none."""

    def points(name: str) -> list[tuple[float, float]]:
        return [
            (sum(encode.bits), fmean(encode.psnr_yuv))
            for job, encode in results.items()
            if (job.clip, job.controller) == (clip, name)
        ]

    try:
        return bd_rate(points(CONSTANT), points(controller))
    except RqlvcError:
        return None


def deviations_of(results: Results, clip: Clip, controller: str) -> list[float]:
    """A controller's deviation at each level."""
    return [deviation(job, encode) for job, encode in sorted(_of(results, controller, clip), key=_level)]


def _level(item: tuple[Job, Encode]) -> float:
    return item[0].level or 0.0


def _of(results: Results, controller: str, clip: Clip | None = None) -> list[tuple[Job, Encode]]:
    return [
        (job, encode)
        for job, encode in results.items()
        if job.controller == controller and (clip is None or job.clip == clip)
    ]


def fits_of(encode: Encode) -> dict[str, float]:
    """Mean coefficient of determination of each model over the frames whose curve was measured."""
    scores: dict[str, list[float]] = {name: [] for name in FITS}
    for _, points in curves_of(encode):
        for name, fit in FITS.items():
            scores[name].append(r_squared(fit(points), points))
    return {name: fmean(values) for name, values in scores.items() if values}


def prediction_error(job: Job, encode: Encode) -> float | None:
    """Mean |predicted - actual| / actual in percent of RQNet at the job's level (Eq. 10); None where it has none."""
    errors = [
        100 * abs(predicted - bits) / bits
        for points, bits in zip(encode.predicted, encode.bits, strict=True)
        for quality, predicted in points
        if quality == job.level
    ]
    return _mean(errors)


# --- tables -------------------------------------------------------------------------------------------------------


def markdown(experiment: Experiment, results: Results) -> str:
    """Tables 2, 3 and 4, and what each controller costs in steadiness and in rate."""
    clips, controllers = experiment.clips, experiment.controllers
    frames = max(clip.frames for clip in clips)
    lines = [
        f"Codec `{experiment.codec}`, model `{experiment.model}`; {len(clips)} sequences, at most {frames} frames, an "
        f"intra frame every {experiment.keyint}; targets are the bits of constant q in "
        f"{', '.join(f'{level:g}' for level in experiment.levels)}.",
        "",
        "**Deviation from the target in percent**, mean of the levels (the paper's Table 3).",
        "",
    ]
    by_clip = {clip: {name: fmean(deviations_of(results, clip, name)) for name in controllers} for clip in clips}
    lines += table("sequence", controllers, {clip.name: row for clip, row in by_clip.items()}, "{:.2f}", "average")

    overview: dict[str, dict[str, float | None]] = {}
    for name in controllers:
        encodes = _of(results, name)
        worst = max(fmean(deviations_of(results, clip, name)) for clip in clips)
        rates = [bd_rate_of(results, clip, name) for clip in clips]
        known = [rate for rate in rates if rate is not None]
        overview[name] = {
            "average": fmean(row[name] for row in by_clip.values()),
            "worst sequence": worst,
            "worst encode": max(deviation(job, encode) for job, encode in encodes),
            "P frame": _mean(value for _, encode in encodes for value in frame_deviations(encode)),
            "P frame, first 8": _mean(
                value for _, encode in encodes for value in frame_deviations(encode, FIRST_FRAMES)
            ),
            "BD-rate": fmean(known) if len(known) == len(clips) else None,
        }
    heads = list(next(iter(overview.values()), {}))
    lines += [
        "",
        "**Controllers in percent**: deviation of the whole stream on average, of the worst sequence (mean of the "
        "levels) and of the worst encode; |bits - target| / target of inter frames, all and those among the first "
        f"{FIRST_FRAMES} frames; BD-rate on PSNR-YUV against a constant level.",
        "",
    ]
    lines += table("controller", heads, overview, "{:.2f}")

    fits = {clip.name: fits_of(encode) for clip in clips for _, encode in _of(results, CURVES, clip)}
    lines += [
        "",
        f"**R² of the models**, over {len(CURVE_LEVELS)} levels of every eighth inter frame (Table 2).",
        "",
        *table("sequence", list(FITS), fits, "{:.3f}", "average"),
    ]
    errors = {
        clip.name: {f"q {job.level:g}": prediction_error(job, encode) for job, encode in _of(results, CONSTANT, clip)}
        for clip in clips
    }
    if any(value is not None for row in errors.values() for value in row.values()):
        heads = [f"q {level:g}" for level in experiment.levels]
        lines += [
            "",
            "**RQNet's error in percent** at the level that the frame is coded at, mean over frames (Table 4).",
            "",
            *table("sequence", heads, errors, "{:.1f}", "average"),
        ]
    return "\n".join(lines) + "\n"


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def write(experiment: Experiment, results: Results, out: Path) -> None:
    """``results.json`` (encodes), ``figures.json`` and ``results.md`` (tables) in the folder ``out``."""
    write_results(out, EXPERIMENT, experiment.settings, results.items())
    write_figures(results, out)
    (out / "results.md").write_text(markdown(experiment, results))
