"""The page of a folder that ``rqlvc evaluate`` has filled."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from fractions import Fraction
from html import escape
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from rqlvc.codec.registry import load_codec
from rqlvc.errors import RqlvcError
from rqlvc.evaluation import comparison, paper, stress
from rqlvc.evaluation.figures import curves_of
from rqlvc.evaluation.paper import (
    OVERVIEW_HEADS,
    RATE_CONTROLLERS,
    Experiment,
    Results,
    Rows,
    Tables,
    level_name,
    tables_of,
)
from rqlvc.evaluation.report.html import Cell, page, select, table
from rqlvc.evaluation.report.pictures import Coded, check_model, figures
from rqlvc.evaluation.results import FILE_NAME, SCHEMA, deviation
from rqlvc.evaluation.sweep import (
    CONSTANT,
    CURVE_LEVELS,
    CURVE_STRIDE,
    CURVES,
    HIERARCHICAL,
    Clip,
    Encode,
    Job,
    find_sequences,
)
from rqlvc.evaluation.tables import mean_of_all
from rqlvc.media.properties import VideoProperties
from rqlvc.media.reader import file_digest
from rqlvc.rate.models import FITS, ExponentialModel, LinearModel, LogarithmicModel, r_squared
from rqlvc.rate.protocol import RatePoint
from rqlvc.rate.registry import DEFAULT_CONTROLLER

COLOURS = 11
"""And shapes: as many as page.css and page.js have."""
WORST = 3
"""Frames of each controller in the table of the worst ones."""


METRICS = {"psnr_yuv": "PSNR-YUV", "psnr_y": "PSNR-Y", "psnr_rgb": "PSNR-RGB", "ms_ssim": "MS-SSIM", "vmaf": "VMAF"}


@dataclass(frozen=True, slots=True)
class Run:
    """What a folder holds. ``rows`` are those of results.json; ``anchors`` and ``stress`` are experiments, if there."""

    experiment: Experiment
    results: Results
    rows: Mapping[Job, Mapping[str, Any]]
    anchors: Mapping[str, Any] | None
    anchor_rows: Sequence[Mapping[str, Any]]
    stress: Mapping[str, Any] | None


def run_page(folder: Path, source: Path | None = None, on_picture: Callable[[str], None] = lambda name: None) -> str:
    """HTML of the run in ``folder``, with pictures of the worst frames where ``source`` has the sequences.

    Raises :class:`RqlvcError` for what is no run, is broken or of another version, and for other sequences.
    """
    run = read_run(folder)
    experiment, results = run.experiment, run.results
    slots, tables = _slots(experiment.controllers), tables_of(experiment, results)
    body = [
        *_summary(experiment, results, tables),
        _overview(tables, slots),
        *_bars(tables, slots),
        *_explorer(run),
        *_worst(experiment, results, slots, source, on_picture),
        *(() if run.anchors is None else _anchors(run.anchors)),
        *(() if run.stress is None else _stress(run.stress["trials"], slots)),
        *_tables(experiment, results, tables),
    ]
    title = f"Rate control of {experiment.codec}: {_count(experiment.controllers, 'controller')}"
    return page(title, body, _data(run, slots))


# --- reading ------------------------------------------------------------------------------------------------------


def read_run(folder: Path) -> Run:
    """What ``rqlvc evaluate`` left in ``folder``: the paper's experiment, or ours of the anchors' where it is alone.

    The paths of the clips are names only: a run knows no other. Raises :class:`RqlvcError` as :func:`run_page` does.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise RqlvcError(f"{folder} has no {FILE_NAME}: name a folder that 'rqlvc evaluate' has filled.")
    content = _json(path)
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise RqlvcError(
            f"{path} has the schema {schema!r} and this rqlvc reads {SCHEMA!r}: evaluate again, or use the version of "
            "rqlvc that wrote it."
        )
    try:
        experiments = content["experiments"]
        chosen = paper.EXPERIMENT if paper.EXPERIMENT in experiments else comparison.EXPERIMENT
        settings = experiments.get(chosen, {"codec": None})
        own = [row for row in content["encodes"] if row["experiment"] == chosen and row["codec"] == settings["codec"]]
        if not own:
            raise RqlvcError(f"{path} holds no encode of 'rqlvc evaluate paper': run it with --out {folder}.")
        read = [(*_read(folder, row), row) for row in own]
        clips = list(dict.fromkeys(job.clip for job, _, _ in read))
        experiment = Experiment(
            clips,
            settings["codec"],
            settings["model"],
            settings["controllers"],
            settings["levels"],
            settings["keyint"],
            settings["lookahead"],
        )
        there = {(job.clip, job.controller, job.level) for job, _, _ in read}
        steady = [CONSTANT, HIERARCHICAL] if chosen == paper.EXPERIMENT else [CONSTANT]
        for wanted in product(clips, [*steady, *experiment.controllers], experiment.levels):
            if wanted not in there:
                raise ValueError(f"it lacks {wanted[0].name}, {wanted[1]}, q {wanted[2]:g}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise RqlvcError(f"{path} is broken ({reason}): evaluate again, with the same --out.") from error
    anchors = experiments.get(comparison.EXPERIMENT)
    return Run(
        experiment,
        {job: encode for job, encode, _ in read},
        {job: row for job, _, row in read},
        anchors,
        [row for row in content["encodes"] if anchors and row["codec"] in anchors["anchors"]],
        experiments.get(stress.EXPERIMENT),
    )


def _read(folder: Path, row: Mapping[str, Any]) -> tuple[Job, Encode]:
    side = folder / row["frame_file"]
    if not side.exists():
        raise RqlvcError(f"{side} is missing, which {FILE_NAME} names: evaluate again, with the same --out.")
    content = _json(side)
    properties = VideoProperties(row["width"], row["height"], Fraction(row["frame_rate"]))
    clip = Clip(f"{row['sequence']}.y4m", content["key"]["clip"], properties, row["frames"])
    keys = ("codec", "model", "controller", "level", "keyint", "target_bits")
    job, encode = Job(clip, *(row[key] for key in keys)), Encode(**content["encode"])
    if len(encode.bits) != row["frames"] or sum(encode.bits) != row["actual_bits"]:
        raise RqlvcError(f"{side} and {FILE_NAME} contradict each other: evaluate again, with the same --out.")
    return job, encode


def _json(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"it holds {constant}")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except ValueError as error:
        raise RqlvcError(f"{path} is broken ({error}): evaluate again, with the same --out.") from error


# --- text and tables ----------------------------------------------------------------------------------------------


def _slots(controllers: Iterable[str]) -> dict[str, str]:
    """A colour for each: the same for a known controller in every report."""
    names = [*RATE_CONTROLLERS, *(name for name in controllers if name not in RATE_CONTROLLERS)]
    return {name: f"s{index % COLOURS}" for index, name in enumerate(names)}


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _summary(experiment: Experiment, results: Results, tables: Tables) -> list[str]:
    controlled = [(deviation(job, encode), job) for job, encode in results.items() if job.target_bits is not None]
    frames = sorted({clip.frames for clip in experiment.clips})
    span = f"{frames[0]}" if len(frames) == 1 else f"{frames[0]} to {frames[-1]}"
    levels = ", ".join(f"{level:g}" for level in experiment.levels)
    lines = [
        f"<h1>How well {_count(experiment.controllers, 'rate controller')} hit the target</h1>",
        f'<p class="meta">Codec <code>{escape(experiment.codec)}</code>, model <code>{escape(experiment.model)}</code>'
        f" · {_count(experiment.clips, 'sequence')} of {span} frames · an intra frame every {experiment.keyint} · "
        f"targets are the bits of constant quality {levels}</p>",
    ]
    if controlled:
        averages = {name: row.average for name, row in tables.overview.items()}
        best, *others = sorted(averages, key=lambda name: averages[name])
        worst, job = max((pair for pair in controlled if pair[1].controller == best), key=lambda pair: pair[0])
        text = (
            f"<b>{escape(best)}</b> misses the bits that it was given by {averages[best]:.2f} % on average, and by "
            f"{worst:.2f} % at worst ({escape(job.clip.name)} at q {job.level:g})."
        )
        if others:
            text += f" Next is {escape(others[0])} with {averages[others[0]]:.2f} % on average."
        lines.append(f'<p class="lead">{text}</p>')
    return lines


def _overview(tables: Tables, slots: Mapping[str, str]) -> str:
    rows: list[list[Cell]] = [[name, *astuple(row)] for name, row in tables.overview.items()]
    text = (
        '<p class="soft">In percent. |target − actual| / target of the whole stream: on average, of the worst '
        "sequence (mean of its levels) and of the worst encode; the same of each inter frame; and BD-rate on PSNR-YUV "
        "against a constant quality and against the hierarchy of levels, which is what the control costs: below 0 it "
        "saves. Last, how often a frame was coded on average.</p>"
    )
    forms = ["{}", *["{:.2f}"] * len(OVERVIEW_HEADS)]
    shown = table("controllers", ["controller", *OVERVIEW_HEADS], rows, forms, slots=slots)
    return f'<div class="overview">{shown}{text}</div>'


def _bars(tables: Tables, slots: Mapping[str, str]) -> list[str]:
    groups: Rows = {"average": {name: row.average for name, row in tables.overview.items()}, **tables.deviation}
    most = max((value or 0.0 for group in groups.values() for value in group.values()), default=0.0) or 1.0
    lines = [
        "<h2>Deviation from the target</h2>",
        '<p class="soft">|target − actual| / target in percent, mean of the levels. All bars have one scale.</p>',
        '<div class="bars">',
    ]
    for title, group in groups.items():
        lines.append(f'<section><h3>{escape(title)}</h3><ul data-bars="{escape(title)}">')
        for name, value in group.items():
            assert value is not None
            lines.append(
                f'<li><span class="name" title="{escape(name)}">{escape(name)}</span><span class="track">'
                f'<span class="bar {slots[name]}" style="width:{100 * value / most:.2f}%"></span>'
                f'<span class="value" data-value="{value!r}">{value:.2f}</span></span></li>'
            )
        lines.append("</ul></section>")
    return [*lines, "</div>"]


def _explorer(run: Run) -> list[str]:
    experiment = run.experiment
    sequences = {clip.name: clip.name for clip in experiment.clips}
    levels = {f"{level:g}": level_name(level) for level in experiment.levels}
    known = [*run.rows.values(), *run.anchor_rows]
    metrics = {name: text for name, text in METRICS.items() if any(row.get(name) is not None for row in known)}
    return [
        '<div class="explore"><div class="controls"><div class="selects">',
        select("sequence", "Sequence", sequences),
        select("level", "Bits of", levels),
        '</div><div class="chips" id="chips" role="group" aria-label="Controllers shown"></div></div>',
        "<h2>Rate and distortion</h2>",
        '<p class="soft">The curves lie close together: below is how far each is from a constant quality at the same '
        "rate (interpolated over the logarithm of the rate).</p>",
        select("metric", "Quality measured as", metrics),
        '<figure class="chart" id="rd"></figure>',
        "<h2>Frame by frame</h2>",
        '<p class="soft">A dot is what a frame cost, the line what the controller gave it; rings and dashed verticals '
        "are intra frames. Below is the quality, with that of the constant level as a dashed line.</p>",
        select("below", "Below", {"quality": "quality level", "psnr_yuv": "PSNR-YUV"}),
        '<div class="multiples" id="frames"></div>',
        '<section id="beliefs"><h2>What a controller believes of a frame</h2>',
        f'<p class="soft">Dots are what one frame really costs at {len(CURVE_LEVELS)} levels, coded from the state '
        "that the controller had come to; the line is its curve before it coded the frame, rings are the points it "
        "was given, predicted or really coded.</p>",
        '<div class="multiples" id="truth"></div></section>',
        '<section id="models"><h2>Rate against quality level</h2>',
        f'<p class="soft">One frame in {CURVE_STRIDE} was also coded at {len(CURVE_LEVELS)} levels from the same '
        "state. The lines are the paper's three models, fitted to the points that are drawn full.</p>",
        select("measured", "Fitted to", {"all": "all measured frames"}),
        '<figure class="chart" id="rq"></figure><div class="legend" id="rq-legend"></div></section></div>',
    ]


def _worst(
    experiment: Experiment,
    results: Results,
    slots: Mapping[str, str],
    source: Path | None,
    on_picture: Callable[[str], None],
) -> list[str]:
    """The frames that lost most against the constant level, at most one of each encode."""
    found = [drop for name in experiment.controllers for drop in _drops(results, name)[:WORST]]
    rows: list[list[Cell]] = [
        [
            drop.job.controller,
            drop.job.clip.name,
            drop.job.level,
            drop.index,
            drop.encode.type[drop.index],
            drop.encode.target_bits[drop.index],
            drop.encode.bits[drop.index],
            drop.encode.quality[drop.index],
            drop.encode.psnr_yuv[drop.index],
            -drop.decibels,
        ]
        for drop in found
    ]
    heads = ["controller", "sequence", "q", "frame", "type", "target bits", "bits", "quality"]
    heads += ["PSNR-YUV dB", "against constant dB"]
    forms = ["{}", "{}", "{:g}", "{}", "{}", "{:,.0f}", "{:,.0f}", "{:.2f}", "{:.2f}", "{:+.2f}"]
    lines = [
        "<h2>Worst frames</h2>",
        f'<p class="soft">The {WORST} frames of each controller that lost most PSNR-YUV against the same frame '
        "at the constant quality whose bits were the target; at most one of each encode.</p>",
        table("worst frames", heads, rows, forms, slots=slots),
    ]
    if source is None:
        return lines
    codec = load_codec(experiment.codec, device="cpu", threads=1)
    check_model(codec, experiment.model)
    lines.append('<div class="pictures">')
    for name in experiment.controllers:
        for drop in _drops(results, name)[:1]:
            job, encode, index = drop.job, drop.encode, drop.index
            on_picture(f"{name}, {job.clip.name}")
            path = find_sequences(source, [job.clip.name])[0]
            if file_digest(path) != job.clip.digest:
                raise RqlvcError(f"{path} is not the file that was evaluated: name another --source, or leave it out.")
            quality = [level for level in encode.quality if level is not None]
            coded = Coded(path, quality, [type_ == "I" for type_ in encode.type], encode.psnr_yuv)
            caption = (
                f"{name}: frame {index} of {job.clip.name} at the bits of q {job.level:g}; source, and decoded with "
                f"{encode.psnr_yuv[index]:.2f} dB, {drop.decibels:.2f} below the constant level"
            )
            lines += figures(codec, coded, {index: caption})
    return [*lines, "</div>"]


@dataclass(frozen=True, slots=True)
class _Drop:
    decibels: float
    """PSNR-YUV lost against the constant level."""
    job: Job
    encode: Encode
    index: int


def _drops(results: Results, controller: str) -> list[_Drop]:
    """The frame that lost most of each encode of a controller, the worst first."""
    flat = {(job.clip, job.level): encode for job, encode in results.items() if job.controller == CONSTANT}
    drops = []
    for job, encode in results.items():
        if job.controller == controller and (job.clip, job.level) in flat:
            reference = flat[job.clip, job.level].psnr_yuv
            losses = [before - after for before, after in zip(reference, encode.psnr_yuv, strict=True)]
            index = max(range(len(losses)), key=losses.__getitem__)
            drops.append(_Drop(losses[index], job, encode, index))
    return sorted(drops, key=lambda drop: -drop.decibels)


def _anchors(anchors: Mapping[str, Any]) -> list[str]:
    metrics = comparison.known_metrics(anchors)
    rates: list[list[Cell]] = [
        [rate[key] for key in ("sequence", "anchor", "metric", "percent")]
        for rate in anchors["bd_rates"]
        if rate["metric"] in metrics
    ]
    accuracies: list[list[Cell]] = [
        [row[key] for key in ("codec", "controller", "average", "worst")] for row in anchors["accuracies"]
    ]
    means: list[list[Cell]] = [
        [mean.anchor, mean.metric, mean.percent, f"{mean.known} of {mean.sequences}"]
        for mean in comparison.mean_rates(anchors)
        if mean.metric in metrics
    ]
    inner = table("bd-rates", ["sequence", "encoder", "metric", "BD-rate %"], rates, ["{}", "{}", "{}", "{:+.1f}"])
    return [
        "<h2>Conventional encoders</h2>",
        '<p class="soft">BD-rate in percent: the bits that the codec needs more than the encoder at equal quality, '
        "mean of the sequences that allow a figure; and how far each misses its targets, |target − actual| / target in "
        "percent.</p>",
        '<div class="sides">',
        table("anchors", ["encoder", "metric", "BD-rate %", "sequences"], means, ["{}", "{}", "{:+.1f}", "{}"]),
        table(
            "accuracies", ["codec", "controller", "average %", "worst %"], accuracies, ["{}", "{}", "{:.2f}", "{:.2f}"]
        ),
        f"</div><details><summary>BD-rate of every sequence</summary>{inner}</details>",
    ]


def _stress(trials: Sequence[Mapping[str, Any]], slots: Mapping[str, str]) -> list[str]:
    rows: list[list[Cell]] = []
    for trial in trials:
        recoveries = trial["recovery_seconds"]
        known = [seconds for seconds in recoveries if seconds is not None]
        rows.append(
            [
                trial["controller"],
                trial["kind"],
                trial["sequence"],
                ", ".join(f"{rate / 1000:g}" for _, rate in trial["rates"]),
                trial["delta_r_percent"],
                trial["worst_second_percent"],
                max(known) if known else None,
                f"{len(known)} of {len(recoveries)}" if recoveries else "",
                "yes" if trial["out_of_reach"] else "",
            ]
        )
    heads = ["controller", "trial", "sequence", "kbit/s", "deviation %", "worst second %", "recovery s", "recovered"]
    heads.append("out of reach")
    forms = ["{}", "{}", "{}", "{}", "{:.2f}", "{:.1f}", "{:.2f}", "{}", "{}"]
    return [
        "<h2>Under stress</h2>",
        '<p class="soft">Targets off the grid, hard cuts, long repeats and steps of the rate. |bits − target| / target '
        "in percent of the whole and of the worst window of one second; the longest time after a cut or a step to the "
        f"first group of pictures within {stress.NEAR_PERCENT:g} % of its target, and how many were followed by one; "
        "and whether the target was out of the codec's reach: most frames at the best quality and still too few bits, "
        "or at the lowest and still too many.</p>",
        table("stress", heads, rows, forms, slots=slots),
    ]


def _tables(experiment: Experiment, results: Results, tables: Tables) -> list[str]:
    def folded(title: str, name: str, heads: list[str], by_sequence: Rows, form: str) -> str:
        rows: list[list[Cell]] = [
            [sequence, *(row.get(head) for head in heads)] for sequence, row in by_sequence.items()
        ]
        foot: list[Cell] = ["average", *(mean_of_all(column) for column in list(zip(*rows, strict=True))[1:])]
        inner = table(name, ["sequence", *heads], rows, ["{}"] + [form] * len(heads), foot=foot)
        return f"<details><summary>{escape(title)}</summary>{inner}</details>"

    names = list(experiment.controllers)
    lines = [
        "<h2>All numbers</h2>",
        folded("Deviation from the target in percent", "deviation", names, tables.deviation, "{:.2f}"),
        folded(
            "BD-rate against a constant quality in percent",
            *("bd-rate", [*names, HIERARCHICAL], tables.bd_rate, "{:+.2f}"),
        ),
        folded(
            "BD-rate against the hierarchy of levels in percent",
            *("hierarchical-bd-rate", names, tables.hierarchical_bd_rate, "{:+.2f}"),
        ),
    ]
    if tables.fits:
        lines.append(folded("R² of the rate-quality models", "models", list(FITS), tables.fits, "{:.3f}"))
    if tables.rqnet:
        heads = [*map(level_name, experiment.levels), "mean"]
        lines += [
            folded("RQNet's error at the coded level in percent", "rqnet", heads, tables.rqnet, "{:.1f}"),
            folded(
                f"The same as {DEFAULT_CONTROLLER} hears it, which puts right what lasts",
                *("mended-rqnet", heads, tables.mended_rqnet, "{:.1f}"),
            ),
        ]
    encodes: list[list[Cell]] = [
        [
            job.clip.name,
            job.controller,
            job.level,
            job.target_bits,
            sum(encode.bits),
            None if job.target_bits is None else deviation(job, encode),
            fmean(encode.psnr_y),
            fmean(encode.psnr_yuv),
            encode.seconds,
        ]
        for job, encode in results.items()
    ]
    heads = ["sequence", "controller", "q", "target bits", "bits", "deviation %", "PSNR-Y dB", "PSNR-YUV dB", "seconds"]
    forms = ["{}", "{}", "{:g}", "{:,}", "{:,}", "{:.2f}", "{:.2f}", "{:.2f}", "{:.1f}"]
    inner = table("encodes", heads, encodes, forms)
    return [*lines, f"<details><summary>Every encode ({len(encodes)})</summary>{inner}</details>"]


# --- what the charts are drawn from -------------------------------------------------------------------------------


def _data(run: Run, slots: Mapping[str, str]) -> dict[str, Any]:
    anchors = [] if run.anchors is None else list(run.anchors["anchors"])
    return {
        "kind": "run",
        "controllers": list(run.experiment.controllers),
        "references": [CONSTANT, *anchors],
        "slots": dict(slots),
        "curve_levels": CURVE_LEVELS,
        "encodes": [
            *(
                _point(run.rows[job], job.controller) | {"frames": _frames(encode), "belief": _belief(job, encode)}
                for job, encode in run.results.items()
                if job.controller not in (CURVES, HIERARCHICAL)
            ),
            *(_point(row, row["codec"]) for row in run.anchor_rows if row["controller"] == CONSTANT),
        ],
        "curves": {
            job.clip.name: _fitted(encode)
            for job, encode in run.results.items()
            if job.controller == CURVES and encode.curves
        },
    }


def _point(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    fields = ("sequence", "level", "target_bits", "actual_bits", "delta_r_percent")
    return {
        "name": name,
        "duration": row["frames"] / float(Fraction(row["frame_rate"])),
        **{field: row[field] for field in fields},
        **{metric: row.get(metric) for metric in METRICS},
    }


def _frames(encode: Encode) -> dict[str, Any]:
    return {
        "bits": encode.bits,
        "target_bits": [None if bits is None else round(bits) for bits in encode.target_bits],
        "quality": [None if quality is None else round(quality, 2) for quality in encode.quality],
        "psnr_yuv": [round(value, 2) for value in encode.psnr_yuv],
        "intra": [index for index, type_ in enumerate(encode.type) if type_ == "I"],
    }


def _belief(job: Job, encode: Encode) -> dict[str, Any] | None:
    """The curve that a controller had of the frame whose real one was measured (the paper's Fig. 5)."""
    if job.target_bits is None or not encode.curve_frames:
        return None
    frame = encode.curve_frames[0]
    return {
        "frame": frame,
        "bits": encode.curves[0],
        "alpha": encode.alpha[frame],
        "beta": encode.beta[frame],
        "points": encode.predicted[frame],
    }


def _fitted(encode: Encode) -> dict[str, Any]:
    """Curves, and alpha, beta and R² of each model: first over all points, then of each frame."""
    curves = [points for _, points in curves_of(encode)]
    together = [point for curve in curves for point in curve]
    return {
        "frames": encode.curve_frames,
        "bits": encode.curves,
        "fits": [{name: _fit(name, points) for name in FITS} for points in (together, *curves)],
    }


def _fit(name: str, points: Sequence[RatePoint]) -> tuple[float, float, float]:
    model = FITS[name](points)
    assert isinstance(model, LinearModel | ExponentialModel | LogarithmicModel)  # page.js draws these
    return model.alpha, model.beta, r_squared(model, points)
