"""The tables of the RQ-LVC paper (Tables 2 to 4) from encodes of any sequences with any codec.

Per sequence and level, the bits of the constant level are the target of every controller; the deviation is
|target - actual| / target. BD-rates compare each controller's encodes with the constant ones, and with those that
follow the hierarchy of levels: what the control gains is not what the hierarchy gains.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rqlvc.codec.registry import DEFAULT_CODEC
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.figures import curves_of, write_figures
from rqlvc.evaluation.metrics import bd_rate, vmaf_is_here
from rqlvc.evaluation.results import deviation, write_results, write_whole
from rqlvc.evaluation.sweep import (
    CONSTANT,
    CURVE_LEVELS,
    CURVE_STRIDE,
    CURVES,
    HIERARCHICAL,
    Clip,
    Encode,
    Job,
    run_jobs,
)
from rqlvc.evaluation.tables import mean_of_all, table
from rqlvc.parallel import Engine
from rqlvc.rate.feedback import LastingError
from rqlvc.rate.hierarchy import LOOKAHEAD
from rqlvc.rate.models import FITS, r_squared
from rqlvc.rate.protocol import FrameInfo, FrameResult, RatePoint
from rqlvc.rate.registry import CONTROLLERS

EXPERIMENT = "paper"
"""Its name in ``results.json``."""
LEVELS = (10.0, 27.0, 43.0, 60.0)
FIRST_FRAMES = 8
"""Of a sequence: where controllers still know little."""
CURVES_LEVEL = 32.0
"""The constant quality on whose way the models' fits are measured."""
RATE_CONTROLLERS = tuple(name for name, entry in CONTROLLERS.items() if entry.meets_bitrate)
NEED_RQNET = tuple(name for name in RATE_CONTROLLERS if CONTROLLERS[name].points == "predicted")
"""And it is shipped for one codec only."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is compared on what."""

    clips: Sequence[Clip]
    codec: str
    model: str
    controllers: Sequence[str]
    levels: Sequence[float] = LEVELS
    keyint: int = 32
    lookahead: int = LOOKAHEAD

    def job(self, clip: Clip, controller: str, level: float | None, target_bits: int | None = None) -> Job:
        vmaf = controller == CONSTANT and vmaf_is_here()
        ahead = 0 if controller in (CONSTANT, CURVES) else self.lookahead
        return Job(clip, self.codec, self.model, controller, level, self.keyint, target_bits, vmaf, lookahead=ahead)

    @property
    def frames(self) -> int:
        """Of the longest sequence."""
        return max(clip.frames for clip in self.clips)

    @property
    def settings(self) -> dict[str, Any]:
        """As they stand in ``results.json``."""
        return {
            "codec": self.codec,
            "model": self.model,
            "controllers": list(self.controllers),
            "sequences": [clip.name for clip in self.clips],
            "frames": self.frames,
            "keyint": self.keyint,
            "lookahead": self.lookahead,
            "levels": list(self.levels),
        }


Results = dict[Job, Encode]


def choose_controllers(names: Sequence[str], codec: str) -> tuple[str, ...]:
    """``names``, each once; all that can meet a bitrate with ``codec`` where there are none.

    Raises :class:`RqlvcError` for a name that is not one of these.
    """
    usable = tuple(name for name in RATE_CONTROLLERS if codec == DEFAULT_CODEC or name not in NEED_RQNET)
    for name in names:
        if name not in RATE_CONTROLLERS:
            raise RqlvcError(f"there is no controller {name!r} that meets a bitrate: choose from {', '.join(usable)}.")
        if name not in usable:
            raise RqlvcError(
                f"the controller {name!r} needs RQNet, and none is shipped for the codec {codec!r}: choose from "
                f"{', '.join(usable)}."
            )
    return tuple(dict.fromkeys(names)) or usable


def run(
    experiment: Experiment, out: Path, engine: Engine, on_done: Callable[[Job, float], None] = lambda job, left: None
) -> Results:
    """All encodes of ``experiment``, kept in ``out``: first those at a constant quality, which set the targets."""
    constant = [experiment.job(clip, CONSTANT, level) for clip in experiment.clips for level in experiment.levels]
    hierarchical = [experiment.job(job.clip, HIERARCHICAL, job.level) for job in constant]
    curves = [experiment.job(clip, CURVES, CURVES_LEVEL) for clip in experiment.clips]
    results = run_jobs(constant + hierarchical + curves, out, engine, on_done)
    controlled = [
        experiment.job(job.clip, controller, job.level, sum(results[job].bits))
        for controller in experiment.controllers
        for job in constant
    ]
    return results | run_jobs(controlled, out, engine, on_done)


def frame_deviations(encode: Encode, frames: int | None = None) -> list[float]:
    """|target - actual| / target in percent of each inter frame among the first ``frames``."""
    rows = list(zip(encode.type, encode.bits, encode.target_bits, strict=True))[:frames]
    return [100 * abs(bits - target) / target for kind, bits, target in rows if target and target > 0 and kind == "P"]


def bd_rate_of(results: Results, clip: Clip, controller: str, anchor: str = CONSTANT) -> float | None:
    """Of a controller against the levels of ``anchor``, on PSNR-YUV, in percent; None where the curves allow none."""

    def points(name: str) -> list[tuple[float, float]]:
        return [(sum(encode.bits), fmean(encode.psnr_yuv)) for _, encode in _of(results, name, clip)]

    if not _of(results, anchor, clip) or not _of(results, controller, clip):
        return None
    try:
        return bd_rate(points(anchor), points(controller))
    except RqlvcError:
        return None


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


def prediction_error(job: Job, encode: Encode, *, mended: bool = False) -> float | None:
    """Mean |predicted - actual| / actual in percent of RQNet at the job's level (Eq. 10); None where it has none.

    With ``mended``, of what ``adaptive`` makes of its points, which puts right what the frames before have shown.
    """
    lasting, errors = LastingError(), []
    for index, (kind, points, bits) in enumerate(zip(encode.type, encode.predicted, encode.bits, strict=True)):
        info = FrameInfo(index, kind == "I", index, 1, points=tuple(RatePoint(*point) for point in points))
        for point in lasting.mended(info) if mended else info.points:
            if point.quality == job.level:
                errors.append(100 * abs(point.bits - bits) / bits)
        lasting.observe(FrameResult(info, job.level or 0.0, bits, 0.0))
    return _mean(errors)


# --- tables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Overview:
    """A controller over all sequences and levels, in percent. None where there is nothing to tell it from."""

    average: float
    """Deviation of whole streams: mean of the sequences, each the mean of its levels."""
    worst_sequence: float
    worst_encode: float
    frame: float | None
    """Mean |target - actual| / target of inter frames, of all encodes together."""
    first_frames: float | None
    """The same of those among the first ``FIRST_FRAMES`` of each encode."""
    bd_rate: float | None
    """Mean of the sequences; None unless all have one, for means of different sequences do not compare."""
    hierarchical_bd_rate: float | None
    """The same against the hierarchy of levels."""
    encodes: float
    """Times that a frame was coded on average, not in percent."""


OVERVIEW_HEADS = (
    "average",
    "worst sequence",
    "worst encode",
    "P frame",
    f"P frame, first {FIRST_FRAMES}",
    "BD-rate",
    "to the hierarchy",
    "encodes a frame",
)
"""Titles of the fields of :class:`Overview`."""

Rows = dict[str, dict[str, float | None]]
"""By sequence, then by column."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What the paper's tables say, for whoever writes them down. Tables that nothing was measured for are empty."""

    overview: dict[str, Overview]
    """By controller."""
    deviation: Rows
    """Table 3: percent by controller, mean of the levels."""
    bd_rate: Rows
    """Table 3: percent by controller, on PSNR-YUV against the constant levels; the hierarchy of levels is one more."""
    hierarchical_bd_rate: Rows
    """Percent by controller, on PSNR-YUV against the hierarchy of levels."""
    fits: Rows
    """Table 2: R² by model."""
    rqnet: Rows
    """Table 4: percent by level, and their mean."""
    mended_rqnet: Rows
    """The same of what ``adaptive`` makes of RQNet's points."""


def tables_of(experiment: Experiment, results: Results) -> Tables:
    clips, controllers = experiment.clips, experiment.controllers
    deviations: Rows = {
        clip.name: {
            name: fmean(deviation(job, encode) for job, encode in _of(results, name, clip)) for name in controllers
        }
        for clip in clips
    }
    rates: Rows = {
        clip.name: {name: bd_rate_of(results, clip, name) for name in (*controllers, HIERARCHICAL)} for clip in clips
    }
    hierarchical: Rows = {
        clip.name: {name: bd_rate_of(results, clip, name, HIERARCHICAL) for name in controllers} for clip in clips
    }
    fits: Rows = {clip.name: {**fits_of(encode)} for clip in clips for _, encode in _of(results, CURVES, clip)}
    return Tables(
        {name: _overview(_of(results, name), name, deviations, rates, hierarchical) for name in controllers},
        deviations,
        rates,
        hierarchical,
        fits,
        *(_prediction_errors(experiment, results, mended) for mended in (False, True)),
    )


def _prediction_errors(experiment: Experiment, results: Results, mended: bool) -> Rows:
    rows: Rows = {}
    for clip in experiment.clips:
        constant = _of(results, CONSTANT, clip)
        by_level = {job.level: prediction_error(job, encode, mended=mended) for job, encode in constant}
        errors = {level_name(level): by_level[level] for level in experiment.levels}
        if any(value is not None for value in errors.values()):
            rows[clip.name] = errors | {"mean": mean_of_all(list(errors.values()))}
    return rows


def level_name(level: float) -> str:
    return f"q {level:g}"


def _overview(
    encodes: Sequence[tuple[Job, Encode]], name: str, deviations: Rows, rates: Rows, hierarchical: Rows
) -> Overview:
    by_sequence = [value for row in deviations.values() if (value := row[name]) is not None]
    return Overview(
        average=fmean(by_sequence),
        worst_sequence=max(by_sequence),
        worst_encode=max(deviation(job, encode) for job, encode in encodes),
        frame=_mean(value for _, encode in encodes for value in frame_deviations(encode)),
        first_frames=_mean(value for _, encode in encodes for value in frame_deviations(encode, FIRST_FRAMES)),
        bd_rate=mean_of_all([row[name] for row in rates.values()]),
        hierarchical_bd_rate=mean_of_all([row[name] for row in hierarchical.values()]),
        encodes=sum(encode.encodes for _, encode in encodes) / sum(len(encode.bits) for _, encode in encodes),
    )


def markdown(experiment: Experiment, tables: Tables) -> str:
    """Tables 2, 3 and 4, and what each controller costs in steadiness and in rate."""
    controllers = list(experiment.controllers)
    overview = {name: dict(zip(OVERVIEW_HEADS, astuple(row), strict=True)) for name, row in tables.overview.items()}
    lines = [
        f"Codec `{experiment.codec}`, model `{experiment.model}`; {len(experiment.clips)} sequences, at most "
        f"{experiment.frames} frames, an intra frame every {experiment.keyint}, {experiment.lookahead} frames seen "
        f"before it; targets are the bits of constant q in {', '.join(f'{level:g}' for level in experiment.levels)}.",
        "",
        "**Controllers in percent**: |target - actual| / target of the whole stream on average, of the worst sequence "
        "(mean of its levels) and of the worst encode; the same of inter frames, all and those among the first "
        f"{FIRST_FRAMES} frames, against what the controller gave the frame (`two-pass` and `icassp24`: what they "
        "expect of the quality that they chose); BD-rate on PSNR-YUV against a constant level, and against "
        "the hierarchy of levels that `--quality` gives, '-' where the curves of a sequence allow none; and how often "
        "a frame was coded on average, to see what it costs or until it cost that.",
        "",
        *table("controller", OVERVIEW_HEADS, overview, "{:.2f}"),
        "",
        "**Deviation from the target in percent**, |target - actual| / target, mean of the levels (Table 3).",
        "",
        *table("sequence", controllers, tables.deviation, "{:.2f}", "average"),
        "",
        "**BD-rate in percent** on PSNR-YUV against a constant level; below 0 saves bits (Table 3). Last the hierarchy "
        "of levels without any control.",
        "",
        *table("sequence", [*controllers, HIERARCHICAL], tables.bd_rate, "{:+.2f}", "average"),
        "",
        "**BD-rate in percent against the hierarchy of levels**: what the control alone costs or saves.",
        "",
        *table("sequence", controllers, tables.hierarchical_bd_rate, "{:+.2f}", "average"),
    ]
    if tables.fits:
        lines += [
            "",
            f"**R² of the models**, over {len(CURVE_LEVELS)} levels of one frame in {CURVE_STRIDE}, none of them "
            "intra; mean of the frames (Table 2).",
            "",
            *table("sequence", list(FITS), tables.fits, "{:.3f}", "average"),
        ]
    if tables.rqnet:
        lines += [
            "",
            "**RQNet's error in percent**, |predicted - actual| / actual, at the level that the frame is coded at, "
            "mean of all frames, intra frames too (Table 4).",
            "",
            *table("sequence", [*map(level_name, experiment.levels), "mean"], tables.rqnet, "{:.1f}", "average"),
            "",
            "The same **as `adaptive` hears it**, which puts right what the frames before have shown to be wrong time "
            "and again. `rq-lvc` and `rqnet-only` hear RQNet itself, as published.",
            "",
            *table("sequence", [*map(level_name, experiment.levels), "mean"], tables.mended_rqnet, "{:.1f}", "average"),
        ]
    return "\n".join(lines) + "\n"


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def write(experiment: Experiment, results: Results, out: Path) -> None:
    """``results.json`` (encodes), ``figures.json`` and ``results.md`` (tables) in the folder ``out``."""
    write_results(out, EXPERIMENT, experiment.settings, results.items())
    write_figures(results, out)
    write_whole(out / "results.md", markdown(experiment, tables_of(experiment, results)))
