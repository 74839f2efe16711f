"""Whether a stream of packets keeps a decoder's buffer, told from their sizes and time stamps alone.

Shares nothing with the encoder's own books (:mod:`rqlvc.rate.buffer`), which it is there to check.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Violation:
    """A frame of which not all bits had come at its time (seconds): ``missing`` of its ``bits``."""

    index: int
    time: float
    bits: int
    missing: float


@dataclass(frozen=True, slots=True)
class BufferReport:
    """``lowest``: the fewest bits that the buffer held after a frame."""

    lowest: float
    violations: tuple[Violation, ...]


def check_buffer(
    packets: Iterable[tuple[Fraction, int]],
    maxrate: float,
    size: float,
    initial: float,
    schedule: Sequence[tuple[Fraction, float]] = (),
) -> BufferReport:
    """``packets`` are (time in seconds, bits) from time 0 on.

    A channel fills a buffer of ``size`` bits, full to ``initial`` of it at time 0, from which each frame is taken whole
    at its time. It brings ``maxrate`` bits per second, and from each time (seconds) of ``schedule`` on the rate named
    there. After a violation the buffer goes on empty.
    """
    rates = [
        (Fraction(0), Fraction(0)),
        (Fraction(0), Fraction(maxrate)),
        *((time, Fraction(rate)) for time, rate in schedule),
    ]

    def offered(now: Fraction) -> Fraction:
        """Bits that the channel could have brought up to ``now``."""
        steps = (max(now - since, Fraction(0)) * (rate - before) for (_, before), (since, rate) in pairwise(rates))
        return Fraction(size) * Fraction(initial) + sum(steps)

    taken = refused = Fraction(0)  # by the decoder; by the full buffer
    lowest = Fraction(size)
    violations = []
    for index, (time, bits) in enumerate(packets):
        refused = max(refused, offered(time) - taken - Fraction(size))
        held = offered(time) - refused - taken
        if bits > held:
            violations.append(Violation(index, float(time), bits, float(bits - held)))
            refused -= bits - held
        taken += bits
        lowest = min(lowest, max(held - bits, Fraction(0)))
    return BufferReport(float(lowest), tuple(violations))
