"""``rqlvc encode``."""

from contextlib import ExitStack
from dataclasses import asdict, replace
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
    Model,
    Overwrite,
    PictureSize,
    Threads,
    check_files,
    check_output,
    parse_frame_rate,
    parse_size,
)
from rqlvc.cli.rate_options import (
    Bitrate,
    BufInit,
    BufSize,
    ControllerName,
    GopWeights,
    MaxQuality,
    MaxRate,
    MinQuality,
    Quality,
    RateScheduleFile,
    RQNetWeights,
    TargetSize,
    check_one_target,
    check_quality_alone,
    decoder_buffer,
    rate_target,
)
from rqlvc.errors import RqlvcError

if TYPE_CHECKING:
    from rqlvc.codec.protocol import Codec
    from rqlvc.control import RateTarget
    from rqlvc.first_pass import Source
    from rqlvc.rate.outlook import Outlook
    from rqlvc.summary import FrameStats, Summary

MOST_AHEAD = 64
"""Frames of a look-ahead; each is held in memory."""
LOW_LATENCY_SECONDS = 0.25
"""Of the channel, in the buffer of ``--low-latency``."""


def encode(
    source: Annotated[str, typer.Argument(metavar="IN", help="Any video file, y4m, raw 4:2:0, or - for y4m on stdin.")],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="Matroska file, or - for stdout. Not with --pass 1, which writes none.",
        ),
    ] = None,
    quality: Quality = None,
    bitrate: Bitrate = None,
    target_size: TargetSize = None,
    maxrate: MaxRate = None,
    bufsize: BufSize = None,
    bufinit: BufInit = None,
    controller: ControllerName = None,
    min_quality: MinQuality = None,
    max_quality: MaxQuality = None,
    gop_weights: GopWeights = None,
    keyint: Annotated[
        int | None, typer.Option(min=1, help="An intra frame (keyframe) every so many frames.  [default: 32]")
    ] = None,
    no_scenecut: Annotated[
        bool, typer.Option("--no-scenecut", help="No intra frame where a new scene begins, only every --keyint frames.")
    ] = False,
    lookahead: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST_AHEAD,
            metavar="N",
            help="Look at up to N frames before one is coded: they tell what an intra frame is worth, and how costs "
            "will change.  [default: 32; 0 for a pipe and with --low-latency]",
        ),
    ] = None,
    low_latency: Annotated[
        bool,
        typer.Option(
            "--low-latency",
            help="For calls: only the first frame is intra, nothing is saved for later frames, and unless told "
            "otherwise the rate is constant with a buffer of a quarter second.",
        ),
    ] = False,
    rate_schedule: RateScheduleFile = None,
    max_drops: Annotated[
        int, typer.Option(min=0, metavar="N", help="Leave out up to N frames in succession where the buffer is low.")
    ] = 0,
    two_pass: Annotated[
        bool,
        typer.Option(
            "--two-pass",
            help="Code the video twice: first at one quality, to see where its bits go; then at the bitrate or to the "
            "size, steadier and nearer to it.",
        ),
    ] = False,
    pass_number: Annotated[
        int | None,
        typer.Option(
            "--pass",
            min=1,
            max=2,
            metavar="1|2",
            help="One of the two passes alone, in a command of its own: 1 only writes --passlog, 2 needs it.",
        ),
    ] = None,
    passlog: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What the first pass finds. With --two-pass it is kept here; where it is there, it is the first pass.",
        ),
    ] = None,
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
    model: Model = None,
    rqnet: RQNetWeights = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Code a video into a Matroska file, at a bitrate, to a size or at a quality level.

    Exactly one of --quality, --bitrate and --target-size is needed. With --maxrate and --bufsize no frame comes late
    through a channel of that rate: at a bitrate of just as much the rate is constant, and a quality is capped.

    Audio and subtitles are copied. Ctrl-C keeps the frames coded so far, in OUT.part.mkv for OUT.mkv.
    """
    check_one_target(quality, bitrate, target_size)
    if pass_number is not None and two_pass:
        raise typer.BadParameter("--two-pass makes both passes: leave out --pass.")
    if pass_number is not None and passlog is None:
        raise typer.BadParameter("--pass needs --passlog FILE, which the first pass writes and the second reads.")
    two_pass = two_pass or pass_number is not None or controller == "two-pass"
    if two_pass and controller not in (None, "two-pass"):
        raise typer.BadParameter(f"two passes have a controller of their own: leave out --controller {controller}.")
    controller = "two-pass" if two_pass else controller
    if low_latency:
        if bitrate is None or keyint is not None or lookahead:
            raise typer.BadParameter("--low-latency needs --bitrate, and has no --keyint or --lookahead.")
        if maxrate is None and bufsize is None:
            maxrate, bufsize = bitrate, LOW_LATENCY_SECONDS * bitrate
    buffer = decoder_buffer(maxrate, bufsize, bufinit)
    if quality is not None and buffer is None:
        rate_options: dict[str, object] = {"--rate-schedule": rate_schedule, "--max-drops": max_drops or None}
        rate_options |= {"--min-quality": min_quality, "--max-quality": max_quality, "--gop-weights": gop_weights}
        check_quality_alone(controller, rate_options | {"--rqnet": rqnet})
    if pass_number == 1:
        output = str(passlog)
    elif output is None:
        raise typer.BadParameter("say where the coded file goes: -o OUT.mkv, or -o - for stdout.")
    elif Path(output).suffix.lower() not in ("", ".mkv"):
        raise typer.BadParameter(f"the coded file is Matroska: give it a name that ends in .mkv, not {output}.")
    target = None
    if quality is None or buffer is not None:
        target = rate_target(
            bitrate,
            target_size,
            quality,
            buffer,
            rate_schedule,
            max_drops,
            controller,
            min_quality,
            max_quality,
            gop_weights,
            rqnet,
        )
    live = low_latency or rate_schedule is not None or max_drops
    if two_pass and (target is None or quality is not None or live or source == PIPE or rqnet is not None):
        raise typer.BadParameter(
            "two passes read a file twice, to meet one --bitrate or --target-size: no pipe, no --quality, "
            "--low-latency, --rate-schedule, --max-drops or --rqnet."
        )
    if passlog is not None and not two_pass:
        raise typer.BadParameter("--passlog goes with --two-pass, --pass 1 or --pass 2.")
    check_files(source, output, overwrite=overwrite, json=json)
    if passlog is not None and pass_number != 1:
        if pass_number == 2 and not passlog.exists():
            raise RqlvcError(f"there is no pass log {passlog}: make it with --pass 1.")
        check_output(str(passlog), overwrite=True, inputs=(source, output))
    if stats is not None:
        check_output(stats, overwrite=overwrite, inputs=(source, output))

    from rqlvc.codec.registry import load_codec
    from rqlvc.encoder import DEFAULT_KEYINT
    from rqlvc.rate.constant import Constant, Hierarchical
    from rqlvc.rate.hierarchy import LOOKAHEAD
    from rqlvc.transcode import encode_file

    steady = Constant if controller == "constant" else Hierarchical
    if lookahead is None:
        lookahead = 0 if low_latency or source == PIPE else LOOKAHEAD
    loaded = load_codec(codec, device=device, threads=threads, weights=model)
    if two_pass and target is not None:
        from rqlvc.first_pass import Source

        whole = Source(source, keyint or DEFAULT_KEYINT, not no_scenecut, lookahead, start, frames, size, frame_rate)
        outlook = _outlook(whole, loaded, target, passlog, reuse=pass_number != 1)
        if pass_number == 1:
            say(f"what {len(outlook)} frames cost is noted in {passlog}, for --pass 2.")
            return
        target = replace(target, outlook=outlook)
    with ExitStack() as stack:
        stats_file = None if stats is None else stack.enter_context(open(stats, "w", encoding="utf-8", buffering=1))
        progress = stack.enter_context(Progress("encode"))

        def on_target(bits_per_second: float) -> None:
            progress.target = bits_per_second

        def on_frame(frame: "FrameStats") -> None:
            _show(progress, frame)
            if stats_file is not None:
                print(json_line("frame", frame_fields(frame)), file=stats_file)
            if json:
                print_json("frame", frame_fields(frame))

        summary = encode_file(
            source,
            output,
            loaded,
            target or steady(quality or 0.0),
            keyint=None if low_latency else keyint or DEFAULT_KEYINT,
            scenecut=not no_scenecut,
            lookahead=lookahead,
            start=start,
            frames=frames,
            size=size,
            frame_rate=frame_rate,
            overwrite=overwrite,
            on_target=on_target,
            on_frame=on_frame,
            on_rehearsed=progress.rehearsed,
            on_warning=partial(warn, json=json),
        )
        if stats_file is not None:
            print(json_line("summary", asdict(summary)), file=stats_file)
    if json:
        print_json("summary", asdict(summary))
    else:
        say(_sentence(summary, target_size))
    if summary.interrupted:
        held_by = "the stream" if output == PIPE else summary.output
        say(f"interrupted: {held_by} holds the first {summary.frames} frames.")
        raise typer.Exit(EXIT_INTERRUPTED)


def _outlook(source: "Source", codec: "Codec", target: "RateTarget", passlog: Path | None, *, reuse: bool) -> "Outlook":
    """The first pass: from its log where that is there and may be reused, else made and kept there."""
    from rqlvc.first_pass import make_first_pass, read_passlog, write_passlog

    settings = source.settings(codec, target)
    if reuse and passlog is not None and passlog.exists():
        return read_passlog(passlog, settings)
    with Progress("first pass") as progress:
        outlook = make_first_pass(source, codec, target, partial(_show, progress))
    if passlog is not None:
        write_passlog(passlog, settings, outlook)
    return outlook


def _show(progress: Progress, frame: "FrameStats") -> None:
    total = None if frame.frames_left is None else frame.index + frame.frames_left
    progress.update(frame.time, frame.bits, total=total, quality=frame.quality)


def _sentence(summary: "Summary", target_size: int | None) -> str:
    parts = [
        f"{summary.frames} frames of {summary.width}x{summary.height} at {summary.fps:.2f} fps: {summary.bits} bits",
        f"{summary.bitrate / 1000:.1f} kbit/s",
    ]
    if summary.target_bitrate is not None and summary.error_percent is not None:
        of_bytes = "" if target_size is None else f" ({summary.bits // 8} of {target_size} bytes)"
        parts.append(
            f"target {summary.target_bitrate / 1000:.1f} kbit/s{of_bytes}, error {summary.error_percent:+.2f} %"
        )
    if summary.buffer_lowest is not None:
        parts.append(f"buffer never below {summary.buffer_lowest / 1000:.1f} kbit")
    if summary.dropped_frames:
        parts.append(f"{summary.dropped_frames} frames dropped")
    if summary.skipped_frames:
        parts.append(f"{summary.skipped_frames} frames skipped")
    parts += [
        f"{summary.bits_per_pixel:.4f} bpp",
        f"PSNR-Y {summary.psnr_y:.2f} dB",
        f"PSNR-YUV {summary.psnr_yuv:.2f} dB",
        f"coded at {summary.encode_fps:.1f} fps",
    ]
    return ", ".join(parts)


def frame_fields(frame: "FrameStats") -> dict[str, Any]:
    """``frame`` for a JSON line, where ``type`` names the line and the picture's own type is ``frame_type``."""
    fields = asdict(frame)
    return {"frame_type": fields.pop("type")} | fields
