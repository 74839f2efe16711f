"""Rate control where it is hard: targets that come from no level, hard cuts, long repeats, rates that change midway.

Clips are made from the sequences, in the folder of the run: pictures of one size, whose sequences are cut together
unscaled, four to a clip (again from the first where a size has fewer; a size with a single sequence gives none), and
the first sequence of each of these sizes ten times over. The lengths of their parts avoid multiples of the usual intra
period, so that most cuts hit an inter frame.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean
from typing import Any

from rqlvc.evaluation.paper import Experiment, Results
from rqlvc.evaluation.results import deviation, write_results, write_whole
from rqlvc.evaluation.sweep import Clip, Encode, Job, open_clip, run_jobs
from rqlvc.evaluation.tables import table
from rqlvc.media.reader import open_reader
from rqlvc.media.y4m import FRAME_SIGNATURE, header_bytes
from rqlvc.parallel import Engine
from rqlvc.rate.protocol import QUALITY_MAX, QUALITY_MIN

EXPERIMENT = "stress"
"""Its name in ``results.json``."""
CLIPS = "clips"
"""Folder of the clips that are made."""
RATES = (100, 200, 400, 800)
"""kbit/s."""
MADE_CLIPS_RATE = 400
"""kbit/s, of clips with cuts and repeats."""
STEPS = (400, 200, 800)
"""kbit/s, each for a third of the repeated clip."""
PARTS = 4
REPEATS = 10
PART_SHARE, REPEAT_SHARE = (5, 8), (5, 16)
"""Of the frames asked for, in a part and in a repeat: 60 and 30 of 96."""
NEAR_PERCENT = 10.0
"""A rate within this of its target has recovered."""
HELD_SHARE = 0.5
"""Of the frames, at one end of the quality range: above it a target that is missed beyond is out of reach."""


@dataclass(frozen=True, slots=True)
class Trial:
    """An encode and where in it something happens."""

    kind: str
    """``targets``, ``cuts``, ``repeats`` or ``steps``."""
    job: Job
    events: tuple[int, ...] = ()
    """Frames at which the scene or the rate changes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    delta_r_percent: float
    worst_second_percent: float
    """100 · |bits - target| / target of the worst window of a second, slid frame by frame."""
    recovery_seconds: tuple[float | None, ...]
    """From each event to the first window that is near its target; None where there is none before the next event."""
    out_of_reach: bool
    """Most frames are at the best quality and the whole costs too little, or at the lowest and it costs too much: the
    codec could do no better."""


def trials(experiment: Experiment, frames: int, out: Path) -> list[Trial]:
    """All encodes; makes the clips that they need. ``frames`` of each sequence at most."""
    clips = experiment.clips
    part, repeat = (max(1, frames * over // under) for over, under in (PART_SHARE, REPEAT_SHARE))
    folder = out / CLIPS
    folder.mkdir(parents=True, exist_ok=True)
    planned: list[tuple[str, Clip, tuple[tuple[int, int], ...], tuple[int, ...]]] = [
        ("targets", clip, ((0, rate),), ()) for clip in clips for rate in RATES
    ]
    several = {size: group for size, group in _by_size(clips).items() if len(group) > 1}
    for (width, height), group in several.items():
        parts = [(clip, min(part, clip.frames)) for clip in islice(cycle(group), PARTS)]
        glued = _glue(parts, folder / f"cuts_{width}x{height}.y4m")
        planned.append(("cuts", glued, ((0, MADE_CLIPS_RATE),), _starts(parts)))
    for clip in [group[0] for group in several.values()] or clips[:1]:
        repeated = _glue([(clip, min(repeat, clip.frames))] * REPEATS, folder / f"{clip.name}_{REPEATS}_times.y4m")
        planned.append(("repeats", repeated, ((0, MADE_CLIPS_RATE),), ()))
        third = repeated.frames // len(STEPS)
        steps = tuple((index * third, rate) for index, rate in enumerate(STEPS))
        planned.append(("steps", repeated, steps, tuple(frame for frame, _ in steps[1:])))
    return [
        Trial(kind, _job(experiment, clip, controller, rates), events)
        for controller in experiment.controllers
        for kind, clip, rates, events in planned
    ]


def _job(experiment: Experiment, clip: Clip, controller: str, rates: tuple[tuple[int, int], ...]) -> Job:
    in_bits = tuple((frame, 1000 * rate) for frame, rate in rates)
    target = round(sum(_frame_targets(clip, in_bits, clip.frames)))
    job = experiment.job(clip, controller, None, target)
    return replace(job, rates=in_bits)


def _frame_targets(clip: Clip, rates: Sequence[tuple[int, int]], frames: int) -> list[float]:
    """Bits that each frame may cost on average."""
    rate_at = dict(rates)
    rate, targets = rates[0][1], []
    for index in range(frames):
        rate = rate_at.get(index, rate)
        targets.append(float(rate / clip.properties.frame_rate))
    return targets


def _by_size(clips: Iterable[Clip]) -> dict[tuple[int, int], list[Clip]]:
    groups: dict[tuple[int, int], list[Clip]] = {}
    for clip in clips:
        groups.setdefault((clip.properties.width, clip.properties.height), []).append(clip)
    return groups


def _starts(parts: Sequence[tuple[Clip, int]]) -> tuple[int, ...]:
    """The first frame of each part but the first."""
    ends = [sum(count for _, count in parts[:index]) for index in range(1, len(parts))]
    return tuple(ends)


def _glue(parts: Sequence[tuple[Clip, int]], path: Path) -> Clip:
    """The first frames of several clips in one file, at the frame rate of the first. Whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(header_bytes(parts[0][0].properties))
        for clip, count in parts:
            with open_reader(clip.path, frames=count) as reader:
                for frame in reader:
                    file.write(FRAME_SIGNATURE + b"\n")
                    file.writelines(plane.tobytes() for plane in (frame.y, frame.u, frame.v))
    partial.replace(path)
    return open_clip(path, sum(count for _, count in parts))


def run(
    found: Sequence[Trial], out: Path, engine: Engine, on_done: Callable[[Job, float], None] = lambda job, left: None
) -> Results:
    """The encodes of the trials, kept in ``out``."""
    return run_jobs([trial.job for trial in found], out, engine, on_done)


def outcome(trial: Trial, encode: Encode) -> Outcome:
    """What became of a trial."""
    job = trial.job
    second = min(max(1, round(job.clip.properties.frame_rate)), len(encode.bits))
    targets = _frame_targets(job.clip, job.rates, len(encode.bits))
    windows = _window_deviations(encode.bits, targets, second)
    # At the other end a controller is at fault, and not the codec.
    end = QUALITY_MAX if sum(encode.bits) < sum(targets) else QUALITY_MIN
    held = sum(quality == end for quality in encode.quality)
    ends = [*trial.events, len(encode.bits)][1:]
    # Windows of a group of pictures: each holds one intra frame, so none is far off only for having one more.
    groups = _window_deviations(encode.bits, targets, job.keyint)
    recovery = tuple(
        _recovery(groups[event : max(event, end - job.keyint + 1)], float(job.clip.properties.frame_rate))
        for event, end in zip(trial.events, ends, strict=True)
    )
    return Outcome(deviation(job, encode), max(windows), recovery, held > HELD_SHARE * len(encode.bits))


def _window_deviations(bits: Sequence[int], targets: Sequence[float], length: int) -> list[float]:
    """100 · |bits - target| / target of the window of ``length`` frames from each frame on."""
    return [
        100 * abs(sum(bits[start : start + length]) / sum(targets[start : start + length]) - 1)
        for start in range(len(bits) - length + 1)
    ]


def _recovery(windows: Sequence[float], frame_rate: float) -> float | None:
    first = next((index for index, value in enumerate(windows) if value <= NEAR_PERCENT), None)
    return None if first is None else first / frame_rate


def _summary(trials: Sequence[Mapping[str, Any]]) -> dict[str, str | float | None]:
    """Of a controller on one kind of trial; those out of reach are counted and left out of the rest."""
    reached = [each for each in trials if not each["out_of_reach"]]
    recoveries = [value for each in reached for value in each["recovery_seconds"]]
    known = [value for value in recoveries if value is not None]
    return {
        "encodes": f"{len(trials)}",
        "out of reach": f"{len(trials) - len(reached)}",
        "average %": fmean([each["delta_r_percent"] for each in reached]) if reached else None,
        "worst encode %": max((each["delta_r_percent"] for each in reached), default=None),
        "worst second %": max((each["worst_second_percent"] for each in reached), default=None),
        "mean recovery, s": fmean(known) if known else None,
        "not recovered": f"{len(recoveries) - len(known)} of {len(recoveries)}",
    }


def markdown(settings: Mapping[str, Any]) -> str:
    """A table for each kind of trial, of the experiment as it stands in ``results.json``."""
    titles = {
        "targets": f"Each sequence at {', '.join(map(str, RATES))} kbit/s",
        "cuts": f"Hard cuts: {PARTS} sequences of one size in one clip, unscaled, at {MADE_CLIPS_RATE} kbit/s",
        "repeats": f"The first sequence of each of these sizes {REPEATS} times over, at {MADE_CLIPS_RATE} kbit/s",
        "steps": f"These at {', then '.join(map(str, STEPS))} kbit/s",
    }
    lines = [
        f"Codec `{settings['codec']}`, model `{settings['model']}`, an intra frame every {settings['keyint']}. "
        "Deviations in percent of the target: of whole encodes, and of the worst window of one second in any of them. "
        "Encodes with most frames at the best quality that still cost too little, or at the lowest that still cost too "
        "much, were out of the codec's reach: they are counted and left out. Recovery is the time from a cut or a step "
        f"to the first stretch of a group of pictures' length that is within {NEAR_PERCENT:g} % of its target; the "
        "mean is of those that came there before the next one.",
    ]
    for kind, title in titles.items():
        own = [trial for trial in settings["trials"] if trial["kind"] == kind]
        if own:
            rows = {
                name: _summary([trial for trial in own if trial["controller"] == name])
                for name in settings["controllers"]
            }
            heads = [head for head in next(iter(rows.values())) if kind in ("cuts", "steps") or "recover" not in head]
            lines += ["", f"**{title}.**", "", *table("controller", heads, rows, "{:.2f}")]
    return "\n".join(lines) + "\n"


def write(experiment: Experiment, found: Sequence[Trial], results: Results, out: Path) -> None:
    """``results.json`` (encodes, outcomes) and ``stress.md`` (tables) in the folder ``out``."""
    listed = []
    for trial in found:
        result = outcome(trial, results[trial.job])
        listed.append(
            {
                "kind": trial.kind,
                "sequence": trial.job.clip.name,
                "controller": trial.job.controller,
                "rates": [list(step) for step in trial.job.rates],
                "events": list(trial.events),
                "delta_r_percent": result.delta_r_percent,
                "worst_second_percent": result.worst_second_percent,
                "recovery_seconds": list(result.recovery_seconds),
                "out_of_reach": result.out_of_reach,
                "frame_file": trial.job.file_name,
            }
        )
    settings = {key: value for key, value in experiment.settings.items() if key != "levels"} | {"trials": listed}
    write_results(out, EXPERIMENT, settings, results.items())
    write_whole(out / "stress.md", markdown(settings))
