"""Options and checks that subcommands share."""

import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from rqlvc.errors import RqlvcError

if TYPE_CHECKING:
    from rqlvc.parallel import Engine

PIPE = "-"
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def parse_frame_rate(text: str) -> Fraction:
    """``25``, ``29.97`` or ``30000/1001`` as a fraction."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise typer.BadParameter(f"'{text}' is no frame rate: write it as 25, 29.97 or 30000/1001.")
    return rate


def parse_seconds(text: str) -> Fraction:
    """A time from 0 on, in seconds."""
    try:
        seconds = Fraction(text)
    except (ValueError, ZeroDivisionError):
        seconds = Fraction(-1)
    if seconds < 0:
        raise typer.BadParameter(f"'{text}' is no time: write it in seconds, such as 12.5.")
    return seconds


class PictureSize(NamedTuple):
    """In luma pixels. (Typer would read a plain tuple as two arguments.)"""

    width: int
    height: int


def parse_size(text: str) -> PictureSize:
    """``WIDTHxHEIGHT`` in luma pixels."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise typer.BadParameter(f"'{text}' is no picture size: write it as WIDTHxHEIGHT, such as 416x240.")
    return PictureSize(int(width), int(height))


Device = Annotated[str, typer.Option(metavar="NAME", help="Where the networks run: auto, cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads, at most.  [default: all cores]")]
Overwrite = Annotated[bool, typer.Option("--overwrite", "-y", help="Replace an output file that exists.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON lines to stdout, one object a line (see docs/json.md).")]
Model = Annotated[
    Path | None,
    typer.Option(
        "--model",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Weights of the codec, where not those that come with it.",
    ),
]
FrameCount = Annotated[int | None, typer.Option("--frames", min=1, help="Stop after this many frames.")]

Jobs = Annotated[int | None, typer.Option(min=1, help="Encodes at a time, of processes.  [default: all cores]")]
EngineName = Annotated[
    str, typer.Option("--engine", metavar="NAME", help="processes of this machine, or ray: all CPUs of a Ray cluster.")
]
Address = Annotated[str, typer.Option(metavar="HOST:PORT", help="Of the Ray cluster; auto: the one running here.")]


def open_engine(name: str, address: str, jobs: int | None) -> "Engine":
    """Where work is done, as ``--engine``, ``--address`` and ``--jobs`` say."""
    from rqlvc.parallel import Processes, RayCluster

    if name == "processes":
        return Processes(jobs or os.cpu_count() or 1)
    if name != "ray":
        raise typer.BadParameter(f"'{name}' is no engine: choose processes or ray.")
    if jobs is not None:
        raise typer.BadParameter("--jobs is for processes of this machine: a Ray cluster uses all its CPUs.")
    return RayCluster(address)


def check_files(source: str, output: str, *, overwrite: bool, json: bool) -> None:
    """Refuse, before any work, what would fail or destroy something at its end."""
    if json and output == PIPE:
        raise typer.BadParameter("--json and -o - both want stdout: leave one of them out.")
    if source != PIPE and not Path(source).exists():
        raise RqlvcError(f"there is no file {source}.")
    check_output(output, overwrite=overwrite, inputs=(source,))


def check_output(output: str, *, overwrite: bool, inputs: tuple[str, ...] = ()) -> None:
    """Refuse an output that is one of ``inputs``, that exists without ``overwrite``, or whose folder does not exist."""
    if output == PIPE:
        return
    path = Path(output)
    if any(source != PIPE and path.resolve() == Path(source).resolve() for source in inputs):
        raise RqlvcError(f"{output} would be written over itself: choose another name for the output.")
    if path.exists():
        if path.is_dir():
            raise RqlvcError(f"{output} is a folder: give the name of a file in it.")
        if not overwrite:
            raise RqlvcError(f"{output} exists: choose another name, or replace it with -y.")
    elif not path.absolute().parent.is_dir():
        raise RqlvcError(f"the folder {path.absolute().parent} does not exist: create it first.")
