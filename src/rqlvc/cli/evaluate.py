"""``rqlvc evaluate``."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rqlvc.cli.console import say
from rqlvc.cli.options import EXIT_INTERRUPTED, Address, EngineName, Jobs, open_engine

if TYPE_CHECKING:
    from rqlvc.evaluation.paper import Experiment
    from rqlvc.evaluation.sweep import Job

evaluate_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure codecs and rate controllers on a folder of sequences.",
)


Data = Annotated[Path, typer.Option(metavar="DIR", help="Folder of sequences.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results, and of all encodes.")]
CodecName = Annotated[str, typer.Option("--codec", metavar="NAME", help="A codec that 'rqlvc codecs' lists.")]
Controllers = Annotated[str, typer.Option(metavar="A,B", help="Rate controllers.  [default: all that fit the codec]")]
OurControllers = Annotated[str, typer.Option("--controllers", metavar="A,B", help="Rate controllers beside them.")]
Encoders = Annotated[str, typer.Option(metavar="A,B", help="Conventional encoders.")]
Sequences = Annotated[str, typer.Option(metavar="A,B", help="Names without suffix.  [default: all]")]
Levels = Annotated[str, typer.Option(metavar="Q,Q", help="Constant levels whose bits are targets.")]
Frames = Annotated[int, typer.Option(min=1, help="At most this many of each sequence.")]
Keyint = Annotated[int, typer.Option(min=1, help="Frames from one intra frame to the next.")]
Lookahead = Annotated[int, typer.Option(min=0, metavar="N", help="Frames seen before one is coded.")]

CODEC, LEVELS, FRAMES, KEYINT, LOOKAHEAD = "rqlvc", "10,27,43,60", 96, 32, 32
"""Defaults, the same for all commands so that they share encodes."""


@evaluate_app.command()
def paper(
    data: Data,
    out: Out,
    codec: CodecName = CODEC,
    controllers: Controllers = "",
    sequences: Sequences = "",
    levels: Levels = LEVELS,
    frames: Frames = FRAMES,
    keyint: Keyint = KEYINT,
    lookahead: Lookahead = LOOKAHEAD,
    jobs: Jobs = None,
    engine: EngineName = "processes",
    address: Address = "auto",
) -> None:
    """The tables of the RQ-LVC paper: every controller at the bits of constant levels.

    Writes results.md, results.json and figures.json. Encodes are kept in the folder: a rerun makes only what is new,
    and goes on where a run was stopped.
    """
    from rqlvc.evaluation.paper import run, write

    parallel = open_engine(engine, address, jobs)
    experiment = _experiment(data, out, codec, controllers, sequences, levels, frames, keyint, lookahead)
    with _resumable():
        results = run(experiment, out, parallel, _progress())
    write(experiment, results, out)
    typer.echo((out / "results.md").read_text(encoding="utf-8"), nl=False)


@evaluate_app.command()
def anchors(
    data: Data,
    out: Out,
    codec: CodecName = CODEC,
    encoders: Encoders = "libx264,libx265,libsvtav1",
    controllers: OurControllers = "adaptive",
    sequences: Sequences = "",
    levels: Levels = LEVELS,
    frames: Frames = FRAMES,
    keyint: Keyint = KEYINT,
    lookahead: Lookahead = LOOKAHEAD,
    jobs: Jobs = None,
    engine: EngineName = "processes",
    address: Address = "auto",
) -> None:
    """The same sequences and targets through x264, x265 and SVT-AV1: BD-rates, and how well each meets a bitrate.

    Writes anchors.md and results.json. Encodes are kept in the folder and shared with 'rqlvc evaluate paper'.
    VMAF is measured where the extra 'eval' is installed.
    """
    from rqlvc.evaluation.comparison import run, write
    from rqlvc.evaluation.sweep import ANCHORS

    chosen = [encoder for encoder in ANCHORS if encoder in _names(encoders)]
    unknown = set(_names(encoders)) - set(chosen)
    if unknown or not chosen:
        raise typer.BadParameter(f"'{encoders}' must name encoders of {', '.join(ANCHORS)}.")
    parallel = open_engine(engine, address, jobs)
    experiment = _experiment(data, out, codec, controllers, sequences, levels, frames, keyint, lookahead)
    with _resumable():
        results = run(experiment, chosen, out, parallel, _progress())
    write(experiment, chosen, results, out)
    typer.echo((out / "anchors.md").read_text(encoding="utf-8"), nl=False)


@evaluate_app.command()
def stress(
    data: Data,
    out: Out,
    codec: CodecName = CODEC,
    controllers: Controllers = "",
    sequences: Sequences = "",
    frames: Frames = FRAMES,
    keyint: Keyint = KEYINT,
    lookahead: Lookahead = LOOKAHEAD,
    jobs: Jobs = None,
    engine: EngineName = "processes",
    address: Address = "auto",
) -> None:
    """Rate control where it is hard: targets off the grid, hard cuts, long repeats, and rates that change midway.

    Writes stress.md and results.json, and the clips that it makes from the sequences. Encodes are kept in the folder.
    """
    from rqlvc.evaluation.stress import run, trials, write

    parallel = open_engine(engine, address, jobs)
    experiment = _experiment(data, out, codec, controllers, sequences, None, frames, keyint, lookahead)
    planned = trials(experiment, frames, out)
    with _resumable():
        results = run(planned, out, parallel, _progress())
    write(experiment, planned, results, out)
    typer.echo((out / "stress.md").read_text(encoding="utf-8"), nl=False)


def _experiment(
    data: Path,
    out: Path,
    codec: str,
    controllers: str,
    sequences: str,
    levels: str | None,
    frames: int,
    keyint: int,
    lookahead: int,
) -> "Experiment":
    from rqlvc.codec.registry import load_codec
    from rqlvc.evaluation.paper import RATE_CONTROLLERS, Experiment, choose_controllers
    from rqlvc.evaluation.sweep import find_clips

    named = _names(controllers)
    chosen = choose_controllers(named, codec)
    left_out = [name for name in RATE_CONTROLLERS if name not in chosen]
    if left_out and not named:
        say(f"without {' and '.join(left_out)}: they need RQNet, and none is shipped for the codec '{codec}'")
    clips = find_clips(data, _names(sequences), frames)
    out.mkdir(parents=True, exist_ok=True)
    model = load_codec(codec, device="cpu", threads=1).identity
    return Experiment(clips, codec, model, chosen, () if levels is None else _levels(levels), keyint, lookahead)


def _progress() -> Callable[["Job", float], None]:
    """Says what is done and when the rest will be."""
    started = time.monotonic()
    done = 0.0

    def on_done(job: "Job", left: float) -> None:
        nonlocal done
        done += job.cost
        seconds = (time.monotonic() - started) * left / done
        remaining = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        what = f"{job.clip.name}, {job.codec}, {job.controller}"
        say(f"{what}, {job.goal} done; about {remaining} left of this stage")

    return on_done


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from here")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _names(text: str) -> list[str]:
    """Each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _levels(text: str) -> list[float]:
    try:
        levels = list(dict.fromkeys(float(level) for level in _names(text)))
    except ValueError:
        levels = []
    if not levels or not all(0 <= level <= 63 for level in levels):
        raise typer.BadParameter(f"'{text}' are no quality levels: write them as 10,27,43,60, each from 0 to 63.")
    return levels
