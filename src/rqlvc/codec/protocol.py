"""What every codec is to the rest of the package: two pure functions over values.

A third party plugs a codec in by writing these two methods and registering a factory under the entry point group
``rqlvc.codecs``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rqlvc.errors import RqlvcError
from rqlvc.media.frame import Frame

QUALITY_MIN = 0.0
QUALITY_MAX = 63.0
QUALITY_STEPS = 64  # the packet header carries quality in 1/64 steps; both sides use the carried value

State = Any  # the decoded-picture buffer: a value that is never mutated, opaque outside the codec


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """``payload`` is the whole packet, headers included; ``reconstruction`` is what the decoder will show."""

    payload: bytes
    reconstruction: Frame
    state: State
    parts: Mapping[str, float] = field(default_factory=dict)
    """Information content in bits of each part of the payload, for statistics; a codec may leave it empty."""


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    frame: Frame
    state: State


class Codec(Protocol):
    """A variable-rate codec. ``quality`` is in [0, 63], continuous, and **63 is best**."""

    name: str
    identity: str
    """Digest of the weights (hex): a stream decodes only with the model of the same identity."""

    def encode(self, frame: Frame, quality: float, state: State | None) -> EncodedFrame:
        """Code ``frame`` at ``quality`` given ``state``; ``state=None`` makes an intra frame."""
        ...

    def decode(self, payload: bytes, state: State | None) -> DecodedFrame:
        """Decode one packet. Raises :class:`rqlvc.errors.RqlvcError` when the packet is damaged."""
        ...


def carried_quality(quality: float) -> float:
    """The value of ``quality`` that a packet can carry: clipped to [0, 63] and rounded to 1/64.

    Raises :class:`RqlvcError` for what is no number.
    """
    if math.isnan(quality):
        raise RqlvcError("The quality level is not a number: give one from 0 to 63.")
    clipped = min(max(quality, QUALITY_MIN), QUALITY_MAX)
    return round(clipped * QUALITY_STEPS) / QUALITY_STEPS
