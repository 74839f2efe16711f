"""What is true of a whole video, apart from its pictures."""

from dataclasses import dataclass
from fractions import Fraction

MAX_DIMENSION = 16384
"""Longest side that is taken for a picture; anything larger is a damaged or hostile header (8K is 7680 wide)."""

UNSPECIFIED = 2
"""The code point of ISO/IEC 23091-2 that says "nobody told"."""


@dataclass(frozen=True, slots=True)
class Colour:
    """Code points of ISO/IEC 23091-2 (H.273), 2 = unspecified. ``full_range``: luma black is 0 and white 255."""

    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    matrix: int = UNSPECIFIED
    full_range: bool = False


@dataclass(frozen=True, slots=True)
class VideoProperties:
    """``width`` and ``height`` are those of the coded picture, before rotation. ``frame_rate`` is nominal, in Hz."""

    width: int
    height: int
    frame_rate: Fraction
    colour: Colour = Colour()
    rotation: int = 0
    """Degrees clockwise to turn the picture for display: 0, 90, 180 or 270."""
    sample_aspect_ratio: Fraction = Fraction(1)
    """Width of a sample divided by its height."""
