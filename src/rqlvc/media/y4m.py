"""YUV4MPEG2: a one-line header, then for each picture the line ``FRAME`` and its planes. Carries no timestamps.

The format has no standard; this follows what mjpegtools' ``yuv4mpeg(5)`` says, and the ``XCOLORRANGE`` of FFmpeg.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

from rqlvc.errors import RqlvcError
from rqlvc.media.properties import MAX_DIMENSION, Colour, VideoProperties

SIGNATURE = b"YUV4MPEG2"
FRAME_SIGNATURE = b"FRAME"
MAX_LINE = 4096
"""Longest header line that is read: real ones have under 100 bytes."""

PLAIN_420 = frozenset({"420", "420jpeg", "420mpeg2", "420paldv"})
"""8-bit 4:2:0; the variants differ in where chroma was sited, which we do not touch."""


@dataclass(frozen=True, slots=True)
class Y4mHeader:
    properties: VideoProperties
    colour_space: str
    """The ``C`` tag, such as ``420jpeg`` or ``444p10``."""
    interlaced: bool

    @property
    def plain(self) -> bool:
        """True for 8-bit 4:2:0, the only layout that this module's callers read."""
        return self.colour_space in PLAIN_420


def read_line(stream: BinaryIO) -> bytes | None:
    """Next header line without its end, b"" at the end of the stream, None when the line is cut or too long."""
    line = stream.readline(MAX_LINE)
    if not line:
        return b""
    return line[:-1] if line.endswith(b"\n") else None


def read_header(stream: BinaryIO, name: str) -> Y4mHeader:
    """Reads the stream header; ``name`` is for messages. Raises RqlvcError when it is cut or makes no sense."""
    line = read_line(stream)
    if not line or not line.startswith(SIGNATURE):
        raise RqlvcError(f"{name} has no whole YUV4MPEG2 header: the file is cut or is something else.")
    tags: dict[str, str] = {}
    colour_range = ""
    for token in line.decode("ascii", "replace").split(" ")[1:]:
        if token.startswith("XCOLORRANGE="):
            colour_range = token.partition("=")[2]
        elif token:
            tags[token[0]] = token[1:]
    properties = VideoProperties(
        width=_dimension(tags.get("W"), "width", name),
        height=_dimension(tags.get("H"), "height", name),
        frame_rate=_ratio(tags.get("F", ""), name) or Fraction(25),
        colour=Colour(full_range=colour_range == "FULL"),
        sample_aspect_ratio=_ratio(tags.get("A", ""), name) or Fraction(1),
    )
    return Y4mHeader(properties, tags.get("C", "420jpeg"), interlaced=tags.get("I", "p")[:1] in ("t", "b", "m"))


def header_bytes(properties: VideoProperties) -> bytes:
    """The stream header of a progressive 8-bit 4:2:0 stream."""
    rate, aspect = properties.frame_rate, properties.sample_aspect_ratio
    colour_range = "FULL" if properties.colour.full_range else "LIMITED"
    return (
        f"YUV4MPEG2 W{properties.width} H{properties.height} F{rate.numerator}:{rate.denominator} Ip "
        f"A{aspect.numerator}:{aspect.denominator} C420jpeg XCOLORRANGE={colour_range}\n"
    ).encode("ascii")


def _dimension(text: str | None, what: str, name: str) -> int:
    value = int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if not 1 <= value <= MAX_DIMENSION:
        raise RqlvcError(f"{name}: the YUV4MPEG2 header gives no {what} between 1 and {MAX_DIMENSION}.")
    return value


def _ratio(text: str, name: str) -> Fraction | None:
    """``"30000:1001"`` as a fraction; None where the header leaves it open (absent, or 0:0)."""
    if not text:
        return None
    numerator, _, denominator = text.partition(":")
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in (numerator, denominator)):
        raise RqlvcError(f"{name}: the YUV4MPEG2 header has a ratio {text!r} that is no pair of numbers.")
    if int(numerator) == 0 or int(denominator) == 0:
        return None
    return Fraction(int(numerator), int(denominator))
