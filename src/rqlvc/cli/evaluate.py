"""``rqlvc evaluate``."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rqlvc.cli.console import say
from rqlvc.cli.options import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from rqlvc.evaluation.sweep import Job

evaluate_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure codecs and rate controllers on a folder of sequences.",
)


@evaluate_app.callback()
def _evaluate() -> None:
    """Keeps ``paper`` a subcommand while it is the only one."""


@evaluate_app.command()
def paper(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder of sequences.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results, and of all encodes.")],
    codec: Annotated[str, typer.Option(metavar="NAME", help="A codec that 'rqlvc codecs' lists.")] = "rqlvc",
    controllers: Annotated[str, typer.Option(metavar="A,B", help="Default: all that meet a bitrate.")] = "",
    sequences: Annotated[str, typer.Option(metavar="A,B", help="Names without suffix.  [default: all]")] = "",
    levels: Annotated[str, typer.Option(metavar="Q,Q", help="Constant levels whose bits are targets.")] = "10,27,43,60",
    frames: Annotated[int, typer.Option(min=1, help="At most this many of each sequence.")] = 96,
    keyint: Annotated[int, typer.Option(min=1, help="Frames from one intra frame to the next.")] = 32,
    jobs: Annotated[int | None, typer.Option(min=1, help="Encodes at a time.  [default: all cores]")] = None,
) -> None:
    """The tables of the RQ-LVC paper: every controller at the bits of constant levels.

    Writes results.md, results.json and figures.json. Encodes are kept in the folder: a rerun makes only what is new,
    and goes on where a run was stopped.
    """
    from rqlvc.codec.registry import load_codec
    from rqlvc.evaluation.paper import Experiment, check_controllers, run, write
    from rqlvc.evaluation.sweep import find_clips
    from rqlvc.rate.registry import CONTROLLERS

    names = _names(controllers) or [name for name, entry in CONTROLLERS.items() if entry.factory]
    check_controllers(names)
    clips = find_clips(data, _names(sequences), frames)
    out.mkdir(parents=True, exist_ok=True)
    model = load_codec(codec, device="cpu", threads=1).identity
    experiment = Experiment(clips, codec, model, names, _levels(levels), keyint)
    started = time.monotonic()
    done = 0.0

    def on_done(job: "Job", left: float) -> None:
        nonlocal done
        done += job.cost
        minutes = (time.monotonic() - started) / 60 * left / done
        say(f"{job.clip.name}, {job.controller}, q {job.level:g} done; about {minutes:.0f} min left of this stage")

    try:
        results = run(experiment, out, jobs or os.cpu_count() or 1, on_done)
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from here")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    write(experiment, results, out)
    typer.echo((out / "results.md").read_text(), nl=False)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _levels(text: str) -> list[float]:
    try:
        levels = [float(level) for level in _names(text)]
    except ValueError:
        levels = []
    if not levels or not all(0 <= level <= 63 for level in levels):
        raise typer.BadParameter(f"'{text}' are no quality levels: write them as 10,27,43,60, each from 0 to 63.")
    return levels
