"""``rqlvc train``: one command per network."""

from pathlib import Path
from typing import Annotated

import typer

from rqlvc.cli.console import say
from rqlvc.cli.options import EXIT_INTERRUPTED, Device, Threads

train_app = typer.Typer(help="Train the networks on your own material.", no_args_is_help=True, rich_markup_mode=None)

_LOG_EVERY, _ROUNDS_EVERY = 20, 10


@train_app.command("codec")
def train_codec(
    videos: Annotated[Path, typer.Option(help="Folder of video clips.")],
    photos: Annotated[Path, typer.Option(help="Folder of photographs; they are set in motion.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoint, log, curves, weights, card.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the run's folder.")] = False,
    start_from: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Start from a checkpoint or a weights file.")
    ] = None,
    stages: Annotated[str, typer.Option(help="Stages to run, by name, with commas.")] = "intra,pair,chain,group",
    scale: Annotated[float, typer.Option(min=0.0001, help="Times the usual number of steps.")] = 1.0,
    mask: Annotated[bool, typer.Option(help="Soft mask of the prediction.")] = False,
    attention: Annotated[bool, typer.Option(help="Attention over frame and condition at 1/16.")] = False,
    motion_prediction: Annotated[bool, typer.Option(help="Predict motion from decoded motion.")] = True,
    temporal_prior: Annotated[bool, typer.Option(help="The prior looks at the last frame's latents.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of weights and samples.")] = 0,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Train the codec: intra frames, then pairs, then longer chains of frames.

    Writes codec.safetensors, codec.md (its card), log.csv and curves.png into the run's folder. Ctrl-C and kills lose
    at most 100 steps: go on with --resume.
    """
    import torch

    from rqlvc.codec.model import ModelConfig
    from rqlvc.errors import RqlvcError
    from rqlvc.media.reader import VIDEO_SUFFIXES
    from rqlvc.training.codec import LOG, SCHEDULE, scaled, start_run, train
    from rqlvc.training.data import PHOTO_SUFFIXES, read_library
    from rqlvc.training.export import export
    from rqlvc.training.report import model_card, plot_curves

    if threads is not None:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = [name.strip() for name in stages.split(",")]
    unknown = sorted(set(wanted) - {stage.name for stage in SCHEDULE})
    if unknown:
        names = ", ".join(stage.name for stage in SCHEDULE)
        raise RqlvcError(f"There is no stage called {', '.join(unknown)}: choose among {names}.")
    schedule = scaled(tuple(stage for stage in SCHEDULE if stage.name in wanted), scale)
    config = ModelConfig(
        mask=mask, attention=attention, motion_prediction=motion_prediction, temporal_prior=temporal_prior
    )

    run = start_run(
        out, schedule=schedule, config=config, resume=resume, start_from=start_from, device=device, seed=seed
    )
    largest = max(stage.size for stage in run.schedule)
    say("reading the training material")
    clips = read_library(videos, VIDEO_SUFFIXES, largest)
    pictures = read_library(photos, PHOTO_SUFFIXES, largest)
    say(f"{len(clips)} clips, {len(pictures)} photographs")

    def on_step(step: int, total: int, row: dict[str, float]) -> None:
        if step % _LOG_EVERY == 0 or step == total:
            left = (total - step) * run.seconds / step / 60
            say(f"step {step}/{total}, loss {row['loss']:.3f}, {row['seconds']:.2f} s a step, {left:.0f} min left")
        if step % 1000 == 0:
            plot_curves(out / LOG, out / "curves.png")

    try:
        average = train(run, clips, pictures, out, device=device, seed=seed, on_step=on_step)
    except KeyboardInterrupt:
        say(f"interrupted: go on with --resume --out {out}")
        raise typer.Exit(EXIT_INTERRUPTED) from None

    def on_round(done: int, rounds: int) -> None:
        if done % _ROUNDS_EVERY == 0 or done == rounds:
            say(f"letting the contexts learn, {done} of {rounds} rounds")

    identity = export(average, out / "codec.safetensors", clips, pictures, device=device, on_round=on_round)
    plot_curves(out / LOG, out / "curves.png")
    card = model_card(average, identity, [*run.history, run.describe()], clips, pictures, out / LOG, device)
    (out / "codec.md").write_text(card)
    say(f"wrote {out / 'codec.safetensors'}, model {identity}")


@train_app.command("rqnet")
def train_rqnet(
    data: Annotated[Path, typer.Option(help="Folder that 'rqlvc collect' made.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoint, log, weights, card.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the run's folder.")] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the samples; a resumed run keeps its own.")] = 26,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and batches.")] = 0,
    threads: Threads = None,
) -> None:
    """Train RQNet, which tells what a frame will cost, on what 'rqlvc collect' made. Runs on the CPU, in minutes.

    Writes rqnet.safetensors, rqnet.md (its card) and log.csv into the run's folder. Some videos are held out to judge
    it. Ctrl-C and kills lose one epoch at most: go on with --resume.
    """
    import torch

    from rqlvc.training.rqnet import CARD, WEIGHTS, Epoch, train

    if threads is not None:
        torch.set_num_threads(threads)

    def on_epoch(row: Epoch) -> None:
        say(
            f"epoch {row.epoch}, loss {row.loss:.4f}, error {row.error:.1f} % on held-out clips "
            f"(intra {row.error_intra:.1f}, inter {row.error_inter:.1f}), {row.seconds:.1f} s an epoch"
        )

    try:
        errors = train(data, out, epochs=epochs, resume=resume, seed=seed, on_epoch=on_epoch)
    except KeyboardInterrupt:
        say(f"interrupted: go on with --resume --out {out}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    say(f"wrote {out / WEIGHTS} and {out / CARD}; error {errors.mean():.1f} % on held-out clips")
