"""``rqlvc info``."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from rqlvc.cli.console import print_json, say
from rqlvc.cli.options import EXIT_FAILURE, PIPE, Json
from rqlvc.cli.rate_options import BufInit, BufSize, MaxRate, RateScheduleFile, decoder_buffer
from rqlvc.errors import RqlvcError

if TYPE_CHECKING:
    from rqlvc.evaluation.buffer_check import BufferReport
    from rqlvc.media.container import ContainerReader


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What a coded file says of itself and what its packets cost. ``bits`` are packet bytes × 8."""

    codec: str
    model: str
    width: int
    height: int
    fps: float
    rotation: int
    frames: int
    keyframes: int
    duration: float
    bits: int
    bitrate: float
    bits_per_pixel: float
    bits_per_keyframe: float
    bits_per_inter_frame: float
    largest_frame_bits: int
    damage: str | None


class PacketCost(NamedTuple):
    """Of one frame, its time in seconds."""

    time: Fraction
    bits: int
    keyframe: bool


def info(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file that rqlvc encoded, or - for stdin.")],
    verify_buffer: Annotated[
        bool, typer.Option("--verify-buffer", help="Check that no frame comes late through --maxrate and --bufsize.")
    ] = False,
    maxrate: MaxRate = None,
    bufsize: BufSize = None,
    bufinit: BufInit = None,
    rate_schedule: RateScheduleFile = None,
    json: Json = False,
) -> None:
    """Say what a coded file holds: model, geometry, frames, bits.

    Exit code 1 when the file is cut, and when --verify-buffer finds a frame that comes late.
    """
    buffer = decoder_buffer(maxrate, bufsize, bufinit)
    if verify_buffer != (buffer is not None) or (rate_schedule and not verify_buffer):
        raise typer.BadParameter("--verify-buffer goes with --maxrate and --bufsize: give all of them or none.")

    from pathlib import Path

    if source != PIPE and not Path(source).exists():
        raise RqlvcError(f"there is no file {source}.")

    from rqlvc.evaluation.buffer_check import check_buffer
    from rqlvc.media.container import ContainerReader

    report = None
    with ContainerReader(source) as container:
        packets = [PacketCost(packet.time, 8 * len(packet.payload), packet.keyframe) for packet in container]
        stream = measure(container, packets)
        if buffer is not None:
            costs = [(packet.time, packet.bits) for packet in packets]
            report = check_buffer(costs, buffer.maxrate, buffer.size, buffer.initial, rate_schedule or ())
    if json:
        print_json("info", asdict(stream) | {"buffer": None if report is None else asdict(report)})
    else:
        typer.echo(
            f"codec      {stream.codec}, model {stream.model}\n"
            f"picture    {stream.width}x{stream.height} at {stream.fps:.3f} fps"
            f"{f', rotated by {stream.rotation} degrees' if stream.rotation else ''}\n"
            f"frames     {stream.frames}, of which {stream.keyframes} keyframes, {stream.duration:.3f} s\n"
            f"bits       {stream.bits}, {stream.bitrate / 1000:.1f} kbit/s, {stream.bits_per_pixel:.4f} bpp\n"
            f"per frame  I {stream.bits_per_keyframe:.0f} bits, P {stream.bits_per_inter_frame:.0f} bits, "
            f"largest {stream.largest_frame_bits}"
        )
        if report is not None:
            typer.echo(f"buffer     {_verdict(report)}")
    if stream.damage is not None:
        say(f"warning: {stream.damage.rstrip('.')}; what is before it is counted.")
        raise typer.Exit(EXIT_FAILURE)
    if report is not None and report.violations:
        raise typer.Exit(EXIT_FAILURE)


def _verdict(report: "BufferReport") -> str:
    if not report.violations:
        return f"holds, never below {report.lowest:.0f} bits"
    first = report.violations[0]
    return (
        f"VIOLATED by {len(report.violations)} frames, first by frame {first.index} at {first.time:.3f} s: "
        f"{first.missing:.0f} of its {first.bits} bits come late"
    )


def measure(container: "ContainerReader", packets: Iterable[PacketCost]) -> StreamInfo:
    """What the ``packets`` of ``container`` hold; none is decoded."""
    header = container.header
    frames = keyframes = bits = key_bits = largest = 0
    last_time = 0.0
    for packet in packets:
        frames += 1
        bits += packet.bits
        largest = max(largest, packet.bits)
        last_time = max(last_time, float(packet.time))
        if packet.keyframe:
            keyframes += 1
            key_bits += packet.bits
    frame_rate = header.properties.frame_rate
    duration = last_time + float(1 / frame_rate) if frames else 0.0
    width, height = header.properties.width, header.properties.height
    return StreamInfo(
        codec=header.codec,
        model=header.identity,
        width=width,
        height=height,
        fps=float(frame_rate),
        rotation=header.properties.rotation,
        frames=frames,
        keyframes=keyframes,
        duration=duration,
        bits=bits,
        bitrate=bits / duration if frames else 0.0,
        bits_per_pixel=bits / (frames * width * height) if frames else 0.0,
        bits_per_keyframe=key_bits / max(keyframes, 1),
        bits_per_inter_frame=(bits - key_bits) / max(frames - keyframes, 1),
        largest_frame_bits=largest,
        damage=container.truncated,
    )
