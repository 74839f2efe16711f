"""``rqlvc encode``."""

from contextlib import ExitStack
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rqlvc.cli.console import Progress, json_line, print_json, say, warn
from rqlvc.cli.options import (
    EXIT_INTERRUPTED,
    PIPE,
    Device,
    FrameCount,
    Json,
    Overwrite,
    PictureSize,
    Threads,
    check_files,
    check_output,
    parse_frame_rate,
    parse_size,
)

if TYPE_CHECKING:
    from rqlvc.encoder import FrameStats


def parse_quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        quality = float("nan")
    if not 0 <= quality <= 63:
        raise typer.BadParameter(f"'{text}' is no quality level: it goes from 0 (coarsest) to 63, and 63 is best.")
    return quality


def encode(
    source: Annotated[str, typer.Argument(metavar="IN", help="Any video file, y4m, raw 4:2:0, or - for y4m on stdin.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="OUT", help="Matroska file, or - for stdout.")],
    quality: Annotated[
        float,
        typer.Option(
            parser=parse_quality, metavar="Q", help="Quality level from 0 to 63; 63 is best. Fractions count."
        ),
    ],
    keyint: Annotated[int, typer.Option(min=1, help="An intra frame (keyframe) every so many frames.")] = 32,
    frames: FrameCount = None,
    start: Annotated[int, typer.Option(min=0, help="Skip this many frames first.")] = 0,
    size: Annotated[
        PictureSize | None, typer.Option(parser=parse_size, metavar="WxH", help="Picture size of raw input.")
    ] = None,
    frame_rate: Annotated[
        Fraction | None,
        typer.Option(
            "--fps", parser=parse_frame_rate, metavar="R", help="Frame rate of raw input, as 25 or 30000/1001."
        ),
    ] = None,
    stats: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write a JSON line per frame here: what it was given, what it cost."),
    ] = None,
    codec: Annotated[str, typer.Option(metavar="NAME", help="A codec that 'rqlvc codecs' lists.")] = "rqlvc",
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Code a video into a Matroska file at a quality level.

    Audio and subtitles are copied. Ctrl-C keeps the frames coded so far, in OUT.part.mkv for OUT.mkv.
    """
    if Path(output).suffix.lower() not in ("", ".mkv"):
        raise typer.BadParameter(f"the coded file is Matroska: give it a name that ends in .mkv, not {output}.")
    check_files(source, output, overwrite=overwrite, json=json)
    if stats is not None:
        check_output(stats, overwrite=overwrite, inputs=(source, output))

    from rqlvc.codec.registry import load_codec
    from rqlvc.encoder import encode_file
    from rqlvc.rate.constant import Constant

    model = load_codec(codec, device=device, threads=threads)
    with ExitStack() as stack:
        stats_file = None if stats is None else stack.enter_context(open(stats, "w", encoding="utf-8", buffering=1))
        progress = stack.enter_context(Progress("encode"))

        def on_frame(frame: "FrameStats") -> None:
            total = None if frame.frames_left is None else frame.index + frame.frames_left
            progress.update(frame.time, frame.bits, total=total, quality=frame.quality)
            if stats_file is not None:
                print(json_line("frame", frame_fields(frame)), file=stats_file)
            if json:
                print_json("frame", frame_fields(frame))

        summary = encode_file(
            source,
            output,
            model,
            Constant(quality),
            keyint=keyint,
            start=start,
            frames=frames,
            size=size,
            frame_rate=frame_rate,
            overwrite=overwrite,
            on_frame=on_frame,
            on_warning=partial(warn, json=json),
        )
        if stats_file is not None:
            print(json_line("summary", asdict(summary)), file=stats_file)
    if json:
        print_json("summary", asdict(summary))
    else:
        say(
            f"{summary.frames} frames of {summary.width}x{summary.height} at {summary.fps:.2f} fps: "
            f"{summary.bits} bits, {summary.bitrate / 1000:.1f} kbit/s, {summary.bits_per_pixel:.4f} bpp, "
            f"PSNR-Y {summary.psnr_y:.2f} dB, PSNR-YUV {summary.psnr_yuv:.2f} dB, coded at {summary.encode_fps:.1f} fps"
        )
    if summary.interrupted:
        held_by = "the stream" if output == PIPE else summary.output
        say(f"interrupted: {held_by} holds the first {summary.frames} frames.")
        raise typer.Exit(EXIT_INTERRUPTED)


def frame_fields(frame: "FrameStats") -> dict[str, Any]:
    """``frame`` for a JSON line, where ``type`` names the line and the picture's own type is ``frame_type``."""
    fields = asdict(frame)
    return {"frame_type": fields.pop("type")} | fields
