"""What is new in a picture, seen before it is coded: scene cuts, which the picture before does not help to predict, and
how much there will be to code.

On luma at an eighth of its size, every block of 4x4 is predicted from the picture before, moved as a whole by up to two
samples (16 pixels) either way, and from its own mean. Where the picture before does hardly better, an intra frame costs
about as much as an inter frame, and is of use to all that follow. Brightness that changes as a whole is no cut.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rqlvc.media.frame import Frame

SHRINK, BLOCK, REACH = 8, 4, 2
"""Pixels to a sample; samples to a side of a block; samples that a block may have moved."""
CUT_RATIO = 0.9
"""Of the error of prediction from the reference to that from a block's own mean, beyond which a frame is a cut;
between all cuts and all other pairs of pictures of ``benchmarks/scenecuts.py``."""
MINIMUM_DISTANCE = 4
"""Frames from one intra frame to one that a cut asks for: flashes come in pairs."""
CALM = 1.0
"""Added to both errors, in 8-bit units: differences that cannot be seen decide nothing."""
STILL = 0.01
"""Added to what there is to code, so that its logarithm can be taken of a repeated frame."""

Small = npt.NDArray[np.float32]


def shrunk(frame: Frame) -> Small:
    """Luma at an eighth of its size, in whole blocks: (blocks down * 4, blocks across * 4). Edges are repeated."""
    side = SHRINK * BLOCK
    height, width = (-(-size // side) * side for size in frame.y.shape)
    padded = np.pad(frame.y, ((0, height - frame.height), (0, width - frame.width)), mode="edge")
    small: Small = padded.reshape(height // SHRINK, SHRINK, width // SHRINK, SHRINK).mean((1, 3), dtype=np.float32)
    return small


def cuts(frames: Iterable[Frame]) -> Iterator[tuple[Frame, bool]]:
    """Each frame, and whether another scene than that of the frame before begins with it."""
    before: Small | None = None
    for frame in frames:
        picture = shrunk(frame)
        yield frame, before is not None and novelty(picture, before) > CUT_RATIO
        before = picture


def novelty(picture: Small, reference: Small) -> float:
    """How badly ``reference`` predicts ``picture``, relative to its own detail: near 0 for a still, 1 or more for a
    scene that has nothing to do with it."""
    inter = float(_errors(picture, reference).mean())
    height, width = picture.shape
    blocks = picture.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    intra = float(np.abs(blocks - blocks.mean((1, 3), keepdims=True)).mean())
    return (inter + CALM) / (intra + CALM)


def log_novelty(picture: Small, reference: Small) -> float:
    """How much there is to code of ``picture`` after ``reference``: the mean over the blocks of ln(1 + error), as bits
    are spent. Bits of inter frames are about proportional to it (docs/training.md, thirteenth round)."""
    return STILL + float(np.log1p(_errors(picture, reference)).mean())


def novelty_of(frame: Frame, reference: Frame) -> float:
    """:func:`novelty` of two whole frames of one size."""
    return novelty(shrunk(frame), shrunk(reference))


class Novelties:
    """How much there is to code of each frame in view. Every frame is looked at once."""

    def __init__(self) -> None:
        self._last: Small | None = None  # the frame asked for last
        self._known: dict[int, _Known] = {}  # those that were in view then, by identity

    def of(self, frames: Sequence[Frame]) -> tuple[float, ...]:
        """:func:`log_novelty` of each of ``frames``, which come one after the other, the first after that of the last
        call; 1 for the very first, which nothing predicts."""
        before, known = self._last, {}
        for frame in frames:
            found = self._known.get(id(frame))
            if found is None:
                small = shrunk(frame)
                found = _Known(frame, small, 1.0 if before is None else log_novelty(small, before))
            known[id(frame)] = found
            before = found.small
        self._known, self._last = known, known[id(frames[0])].small
        return tuple(known[id(frame)].novelty for frame in frames)


class _Known(NamedTuple):
    frame: Frame  # held, so that its identity stays its own
    small: Small
    novelty: float


def _errors(picture: Small, reference: Small) -> Small:
    """Mean absolute error of every block of ``picture`` predicted from ``reference``, but for the mean of both."""
    picture, reference = picture - picture.mean(), reference - reference.mean()
    around = np.pad(reference, REACH, mode="edge")
    height, width = picture.shape
    shifts = itertools.product(range(2 * REACH + 1), repeat=2)
    errors = [_per_block(picture - around[down : down + height, across : across + width]) for down, across in shifts]
    least: Small = np.min(errors, axis=0)
    return least


def _per_block(difference: Small) -> Small:
    """Mean absolute value of every block."""
    height, width = difference.shape
    means: Small = np.abs(difference).reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK).mean((1, 3))
    return means
