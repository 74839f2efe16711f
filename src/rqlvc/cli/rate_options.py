"""The options of ``rqlvc encode`` that say what a video may cost, and the checks that need no video."""

import math
import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rqlvc.control import RateTarget
    from rqlvc.rate.buffer import Buffer

_AMOUNT = re.compile(r"(\d+\.?\d*|\.\d+)([kKMG]?)", re.ASCII)
_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_LARGEST = 1e15
"""Bits per second, or bytes, that are surely a slip of the keyboard."""


def parse_quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        quality = math.nan
    if not 0 <= quality <= 63:
        raise typer.BadParameter(f"'{text}' is no quality level: it goes from 0 (coarsest) to 63, and 63 is best.")
    return quality


def parse_bitrate(text: str) -> float:
    """``800k``, ``1.5M`` or ``800000`` in bits per second."""
    bitrate = _amount(text)
    if bitrate is None:
        raise typer.BadParameter(
            f"'{text}' is no bitrate: give bits per second above 0, such as 800k, 1.5M or 800000 (k = 1000)."
        )
    return bitrate


def parse_bytes(text: str) -> int:
    """``5M``, ``700k`` or ``123456`` in bytes."""
    size = _amount(text)
    if size is None or size < 1:
        raise typer.BadParameter(f"'{text}' is no size: give bytes from 1 on, such as 5M, 700k or 123456 (k = 1000).")
    return round(size)


def _amount(text: str) -> float | None:
    match = _AMOUNT.fullmatch(text)
    value = float(match[1]) * _DECIMAL[match[2]] if match else 0.0
    return value if 0 < value <= _LARGEST else None


def parse_bits(text: str) -> float:
    """``400k``, ``1.5M`` or ``400000`` in bits."""
    bits = _amount(text)
    if bits is None:
        raise typer.BadParameter(f"'{text}' is no size: give bits above 0, such as 400k, 1.5M or 400000 (k = 1000).")
    return bits


def parse_fullness(text: str) -> float:
    """A part above 0 and up to 1."""
    try:
        part = float(text)
    except ValueError:
        part = math.nan
    if not 0 < part <= 1:
        raise typer.BadParameter(f"'{text}' is no part of a buffer: give a number above 0 and up to 1, such as 0.9.")
    return part


class Schedule(tuple[tuple[Fraction, float], ...]):
    """From each time (seconds) on, a bitrate (bits per second). (Typer would read a plain tuple as arguments.)"""


def parse_schedule(path: str) -> Schedule:
    """The lines ``SECONDS,BITRATE`` of a file, such as ``12.5,800k``; empty lines and ``#`` comments are left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise typer.BadParameter(f"the schedule {path} cannot be read: {reason}.") from error
    entries: list[tuple[Fraction, float]] = []
    for number, line in enumerate(lines, 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        seconds, _, rate = (part.strip() for part in content.partition(","))
        bitrate = _amount(rate)
        try:
            time = Fraction(seconds)
        except (ValueError, ZeroDivisionError):
            time = Fraction(-1)
        if bitrate is None or time < 0:
            raise typer.BadParameter(f"line {number} of {path} is not SECONDS,BITRATE, such as 12.5,800k: {content!r}.")
        if entries and time <= entries[-1][0]:
            raise typer.BadParameter(f"line {number} of {path} is not later than the one before: times must rise.")
        entries.append((time, bitrate))
    if not entries:
        raise typer.BadParameter(f"the schedule {path} is empty: write lines SECONDS,BITRATE, such as 12.5,800k.")
    return Schedule(entries)


class Weights(tuple[float, ...]):
    """Relative bits of the inter frames of a miniGOP. (Typer would read a plain tuple as several arguments.)"""


def parse_weights(text: str) -> Weights:
    """``2,3,2,6``."""
    try:
        weights = Weights(float(part) for part in text.split(","))
    except ValueError:
        weights = Weights()
    if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise typer.BadParameter(f"'{text}' are no weights: give one number above 0 per inter frame, such as 2,3,2,6.")
    return weights


Quality = Annotated[
    float | None,
    typer.Option(
        parser=parse_quality,
        metavar="Q",
        help="Quality level, from 0 to 63; 63 is best. Fractions count. Frames that many others are predicted from "
        "get a little more, the others less; with --controller constant all frames get this very level.",
    ),
]
Bitrate = Annotated[
    float | None,
    typer.Option(
        parser=parse_bitrate,
        metavar="RATE",
        help="Land on this many bits per second, such as 800k or 1.5M, counted over the video packets.",
    ),
]
TargetSize = Annotated[
    int | None,
    typer.Option(
        parser=parse_bytes,
        metavar="SIZE",
        help="Never more than this many bytes of video packets, such as 5M (5,000,000), and nearly all of them. What "
        "Matroska adds (some ten bytes a frame) and copied audio come on top.",
    ),
]
ControllerName = Annotated[
    str | None,
    typer.Option(
        "--controller",
        metavar="NAME",
        help="Who chooses the quality of each frame: a name that 'rqlvc controllers' lists.  "
        "[default: adaptive with --bitrate or --target-size]",
    ),
]
MinQuality = Annotated[
    float | None, typer.Option(parser=parse_quality, metavar="Q", help="Never go below this level.  [default: 0]")
]
MaxQuality = Annotated[
    float | None, typer.Option(parser=parse_quality, metavar="Q", help="Never go above this level.  [default: 63]")
]
GopWeights = Annotated[
    Weights | None,
    typer.Option(
        parser=parse_weights, metavar="W,W,...", help="Relative bits of the inter frames of a miniGOP, such as 2,3,2,6."
    ),
]
MaxRate = Annotated[
    float | None,
    typer.Option(
        "--maxrate",
        parser=parse_bitrate,
        metavar="RATE",
        help="What the channel to the decoder delivers, in bits per second. With --bufsize no frame comes late.",
    ),
]
BufSize = Annotated[
    float | None,
    typer.Option("--bufsize", parser=parse_bits, metavar="BITS", help="Size of the decoder's buffer in bits."),
]
BufInit = Annotated[
    float | None,
    typer.Option(
        "--bufinit",
        parser=parse_fullness,
        metavar="PART",
        help="Part of the buffer that is full when the first frame is taken from it.  [default: 0.9]",
    ),
]
RateScheduleFile = Annotated[
    Schedule | None,
    typer.Option(
        "--rate-schedule",
        parser=parse_schedule,
        metavar="FILE",
        help="Lines SECONDS,BITRATE: from that time of the coded video on, another bitrate, and another channel.",
    ),
]
RQNetWeights = Annotated[
    Path | None,
    typer.Option(
        "--rqnet",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="RQNet's weights, where not those that come with the codec.",
    ),
]


def check_one_target(quality: float | None, bitrate: float | None, size: int | None) -> None:
    """Exactly one of the three says what the video may cost."""
    given = [
        name
        for name, value in (("--quality", quality), ("--bitrate", bitrate), ("--target-size", size))
        if value is not None
    ]
    if not given:
        raise typer.BadParameter("say what the video may cost: one of --quality, --bitrate and --target-size.")
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)} contradict each other: give one of them.")


def decoder_buffer(maxrate: float | None, size: float | None, initial: float | None) -> "Buffer | None":
    """The three options as a value: None without any of them."""
    if maxrate is None and size is None and initial is None:
        return None
    if maxrate is None or size is None:
        raise typer.BadParameter("a buffer needs both --maxrate and --bufsize.")
    from rqlvc.rate.buffer import INITIAL, Buffer

    return Buffer(maxrate, size, INITIAL if initial is None else initial)


def check_quality_alone(controller: str | None, rate_options: dict[str, object]) -> None:
    """With ``--quality`` and no cap there is nothing to control: ``rate_options`` (by name) must not be set."""
    from rqlvc.rate.registry import WITHOUT_BITRATE

    if controller not in (None, *WITHOUT_BITRATE):
        raise typer.BadParameter(f"the controller '{controller}' needs --bitrate or --target-size, not --quality.")
    surplus = [name for name, value in rate_options.items() if value is not None]
    if surplus:
        raise typer.BadParameter(f"{surplus[0]} goes with --bitrate or --target-size: leave it out with --quality.")


def rate_target(
    bitrate: float | None,
    size: int | None,
    quality: float | None,
    buffer: "Buffer | None",
    schedule: Schedule | None,
    max_drops: int,
    controller: str | None,
    min_quality: float | None,
    max_quality: float | None,
    gop_weights: Weights | None,
    rqnet: Path | None,
) -> "RateTarget":
    """The options as a value. What they cannot mean together is wrong usage."""
    from rqlvc.control import RateTarget
    from rqlvc.rate.registry import CONTROLLERS, DEFAULT_CONTROLLER, WITHOUT_BITRATE

    if controller is not None and controller not in CONTROLLERS:
        raise typer.BadParameter(f"there is no controller '{controller}': choose one of {', '.join(CONTROLLERS)}.")
    if controller in WITHOUT_BITRATE:
        raise typer.BadParameter(f"the controller '{controller}' needs --quality, and nothing that limits the rate.")
    lowest, highest = min_quality or 0.0, 63.0 if max_quality is None else max_quality
    if lowest > highest:
        raise typer.BadParameter(
            f"--min-quality {lowest:g} is above --max-quality {highest:g}: the first must be the lower one."
        )
    if quality is not None and max_quality is not None:
        raise typer.BadParameter("--quality is the highest level already: leave out --max-quality.")
    if quality is not None and lowest > quality:
        raise typer.BadParameter(f"--min-quality {lowest:g} is above --quality {quality:g}.")
    if bitrate is not None and buffer is not None and buffer.maxrate < bitrate:
        raise typer.BadParameter(
            f"--maxrate {buffer.maxrate:g} is below --bitrate {bitrate:g}: it must be at least that."
        )
    if schedule and bitrate is None:
        raise typer.BadParameter(
            "--rate-schedule goes on from a bitrate: give --bitrate for the time before its lines."
        )
    if schedule and buffer is not None and buffer.maxrate != bitrate:
        raise typer.BadParameter("with --rate-schedule the channel follows it: give a --maxrate equal to --bitrate.")
    if max_drops and buffer is None:
        raise typer.BadParameter("--max-drops needs a buffer: give --maxrate and --bufsize.")
    return RateTarget(
        bitrate=bitrate,
        size=size,
        quality=quality,
        buffer=buffer,
        schedule=schedule or (),
        max_drops=max_drops,
        controller=controller or DEFAULT_CONTROLLER,
        min_quality=lowest,
        max_quality=highest,
        gop_weights=gop_weights,
        rqnet=rqnet,
    )
