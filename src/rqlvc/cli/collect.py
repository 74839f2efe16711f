"""``rqlvc collect``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rqlvc.cli.console import say
from rqlvc.cli.options import EXIT_INTERRUPTED, Address, Device, EngineName, Model, Threads, open_engine

if TYPE_CHECKING:
    from rqlvc.training.collect import Collection


def collect(
    videos: Annotated[Path, typer.Option(metavar="DIR", help="Folder of video clips to train on.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the collection; about 9 kB a sample.")],
    codec: Annotated[str, typer.Option(metavar="NAME", help="A codec that 'rqlvc codecs' lists.")] = "rqlvc",
    model: Model = None,
    samples: Annotated[int, typer.Option(min=1, help="Frames to sample; each is coded five times.")] = 16000,
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop after this time, if not done before.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a collection that was stopped.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all choices.")] = 0,
    device: Device = "auto",
    threads: Threads = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes of this machine.  [default: 1]")] = None,
    engine: EngineName = "processes",
    address: Address = "auto",
) -> None:
    """Collect what frames really cost at four quality levels, for 'rqlvc train rqnet'.

    '--jobs N' and '--engine ray' spread it over processes or a cluster, on CPUs, one thread each, with the results of
    '--device cpu --threads 1'.

    Keep the clips that you measure on out of the folder. Ctrl-C and kills lose seconds: go on with --resume.
    """
    import time

    from rqlvc.codec.registry import load_codec
    from rqlvc.training.collect import Workers
    from rqlvc.training.collect import collect as run

    spread = engine == "ray" or (jobs or 1) > 1
    workers = Workers(open_engine(engine, address, jobs), model) if spread else None
    if spread:
        device, threads = "cpu", 1
    loaded = load_codec(codec, device=device, threads=threads, weights=model)
    started = time.monotonic()

    def on_shard(done: "Collection") -> None:
        if not done.made:
            return
        elapsed = (time.monotonic() - started) / 60
        left = (samples - done.samples) * elapsed / done.made
        if minutes is not None:
            left = min(left, minutes - elapsed)
        say(f"{done.samples}/{samples} samples, {done.bytes / 1e6:.1f} MB, {max(left, 0):.0f} min left")

    try:
        done = run(
            *(videos, out, loaded),
            samples=samples,
            minutes=minutes,
            seed=seed,
            resume=resume,
            workers=workers,
            on_shard=on_shard,
        )
    except KeyboardInterrupt:
        say(f"interrupted: go on with --resume --out {out}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    say(f"{out} holds {done.samples} samples, {done.bytes / 1e6:.1f} MB" + _unfinished(done.samples, samples))


def _unfinished(done: int, wanted: int) -> str:
    return "" if done >= wanted else f" of the {wanted} asked for: go on with --resume"
