"""``rqlvc decode``."""

from dataclasses import asdict
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from rqlvc.cli.console import Progress, print_json, say, warn
from rqlvc.cli.options import (
    EXIT_FAILURE,
    PIPE,
    Device,
    FrameCount,
    Json,
    Model,
    Overwrite,
    Threads,
    check_files,
    parse_seconds,
)

if TYPE_CHECKING:
    from rqlvc.decoder import DecodedFrameStats


def decode(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file that rqlvc encoded, or - for stdin.")],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="OUT", help="A .y4m, .yuv, .mkv, .mp4 or .mov file, or - for y4m.")
    ],
    frames: FrameCount = None,
    start_time: Annotated[
        Fraction | None,
        typer.Option(parser=parse_seconds, metavar="SECONDS", help="Begin with the first frame at or after this time."),
    ] = None,
    model: Model = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Decode a coded file to video with the codec that it names (or our own, with other weights: --model).

    Audio and subtitles are copied when the whole file is decoded to a file that can hold them. A file that is cut or
    damaged decodes up to there, with a warning and exit code 1.
    """
    check_files(source, output, overwrite=overwrite, json=json)

    from rqlvc.codec.registry import load_codec
    from rqlvc.decoder import decode_file

    with Progress("decode") as progress:

        def on_frame(frame: "DecodedFrameStats") -> None:
            total = None if frame.frames_left is None else frame.index + frame.frames_left
            progress.update(frame.time, frame.bits, total=total)

        summary = decode_file(
            source,
            output,
            codec=None if model is None else load_codec(device=device, threads=threads, weights=model),
            device=device,
            threads=threads,
            frames=frames,
            start_time=start_time or Fraction(0),
            overwrite=overwrite,
            on_frame=on_frame,
            on_warning=partial(warn, json=json),
        )
    if json:
        print_json("summary", asdict(summary))
    else:
        say(
            f"{summary.frames} frames of {summary.width}x{summary.height} at {summary.fps:.2f} fps, "
            f"decoded at {summary.decode_fps:.1f} fps"
        )
    if summary.damage is not None:
        held_by = "the stream" if output == PIPE else output
        say(f"warning: {summary.damage.rstrip('.')}; {held_by} holds the {summary.frames} frames before it.")
        raise typer.Exit(EXIT_FAILURE)
