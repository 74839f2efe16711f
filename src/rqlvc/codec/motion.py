"""Motion of 8x8 blocks, and what decoded motion says of it, square after square of 16x16.

Vectors are integers in quarter samples: what is decoded is the same on every machine, and a block that does not move
stays exactly where it is. A square has one vector, or one for each of its four blocks; it reaches to the reference (0)
or to a picture before it that was kept (1, 2; the first inter frame of a group has none). A vector is that of a
neighbour or the last frame's at its place (these are its *candidates*), or differs from the median of its neighbours,
of which those that reach to another picture are scaled by how far that is away. :mod:`rqlvc.codec.motion_coding` codes
which it is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rqlvc.codec.references import PICTURES
from rqlvc.compiled import inner_loop

VECTOR_LIMIT = 4095
"""Quarter samples; what a damaged stream may ask for at most."""
LATENTS = 8  # of the four blocks of a square: x of the first, differences of the others from it; then y

CANDIDATES = 5  # left, above, above right, the last frame's, zero
EXPECTED = CANDIDATES  # the row, after the candidates, of what a new vector to picture 0 differs from; then 1, 2
FACTS = EXPECTED + PICTURES  # the row of the candidates' number, their spread, and the context of the picture
NEAR_BLOCKS = 4  # one more than the blocks that tell which picture a new vector reaches to
NEAR = FACTS + 1  # the rows of the vectors to the left, above and above right
ROWS = NEAR + 3
SOURCES = 3  # the column that says, bit by bit, which of left, above, above right, the last frame and zero have it
COLUMNS = SOURCES + 1
SPREADS = 4  # how far the first two candidates are apart: 0, up to 2, up to 4 quarter samples, more or two pictures

Field = npt.NDArray[np.int32]
"""Vectors of 8x8 blocks and which picture they reach to (h, w, 3; x, y, 0 to 2)."""


class Surroundings(NamedTuple):
    """What a vector is predicted from and coded with."""

    field: Field
    """This frame's vectors, as far as they are coded."""
    last: Field
    """The last frame's, to the pictures of this frame; empty after an intra frame."""
    distances: npt.NDArray[np.int32]
    """Frames from this one to each picture there is, the reference first."""
    predicted: bool
    """Whether they predict anything."""
    marks: npt.NDArray[np.int32]
    """(h / 2 + 1, w / 2 + 1, 2): of every square before this one whether it is split, and whether it has a new vector;
    row and column 0 lie outside."""


def surroundings(field: Field, last: Field | None, distances: Sequence[int], predicted: bool) -> Surroundings:
    """As they are before the first square."""
    rows, columns = field.shape[0] // 2, field.shape[1] // 2
    marks = np.zeros((rows + 1, columns + 1, 2), np.int32)
    before = np.zeros((0, 0, 3), np.int32) if last is None else last
    return Surroundings(field, before, np.array(distances, np.int32), predicted, marks)


@inner_loop
def assign(target: Any, source: Any) -> None:
    """Copy a vector (3,; x, y, picture), component by component, as loops that allocate nothing have to."""
    for c in range(3):
        target[c] = source[c]


@inner_loop
def scaled(component: int, source: int, target: int) -> int:
    """What a component over ``source`` frames would be over ``target`` frames, were motion even."""
    if source == target:
        return component
    return min(max((2 * component * target + source) // (2 * source), -VECTOR_LIMIT), VECTOR_LIMIT)


def rescaled(motion: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """``motion`` (N, 3, h, w) to pictures ``before`` frames away as it would be to pictures ``after`` frames away."""
    reach = motion[:, 2:].long()
    source, target = (torch.tensor(frames, device=motion.device)[reach] for frames in (before, after))
    vectors = torch.div(2 * motion[:, :2].long() * target + source, 2 * source, rounding_mode="floor")
    return torch.cat([vectors.clamp(-VECTOR_LIMIT, VECTOR_LIMIT).to(motion), motion[:, 2:]], dim=1)


@inner_loop
def _median(a: int, b: int, c: int) -> int:
    return max(min(a, b), min(max(a, b), c))


@inner_loop
def candidate_of(found: Any, count: int, x: int, y: int, picture: int) -> int:
    """Which of the first ``count`` candidates the vector (x, y) to ``picture`` is; -1 if none."""
    for i in range(count):
        if found[i, 0] == x and found[i, 1] == y and found[i, 2] == picture:
            return i
    return -1


@inner_loop
def find_candidates(around: Any, row: int, column: int, size: int, found: Any) -> None:
    """Fill ``found`` (12, 4) for ``size`` x ``size`` blocks from (row, column) on: each candidate once, a vector, its
    picture and who has it (``SOURCES``); then what a new vector to picture 0, 1 and 2 differs from; then how many
    candidates there are, their spread and how many of the blocks to the left, above and in the last frame reach beyond
    the reference, with ``NEAR_BLOCKS`` times how many reach to picture 2; last, the vectors of the blocks to the left,
    above and above right.

    Looks at nothing that is coded later.
    """
    found[EXPECTED:] = 0
    beyond = farther = 0
    field = around.field
    count = near = 0
    close = found[NEAR:]
    for k in range(CANDIDATES):
        i, j = row - 1, column
        if k == 0:
            i, j = row, column - 1
        elif k == 2:
            later = row % 2 == 1 and column % 2 == 1  # the block above right belongs to the next square
            j = column - 1 if later or column + size >= field.shape[1] else column + size
        x, y, reference = 0, 0, 0
        if k < 3:
            if i < 0 or j < 0:
                continue
            x, y, reference = field[i, j]
            assign(close[near], field[i, j])
            near += 1
        elif k == 3:
            if not len(around.last):
                continue
            x, y, reference = around.last[row, column]
        if k < 2 or k == 3:
            beyond += reference > 0
            farther += reference == PICTURES - 1
        if around.predicted:
            same = candidate_of(found, count, x, y, reference)
            if same < 0:
                same = count
                found[count, 0], found[count, 1], found[count, 2], found[count, SOURCES] = x, y, reference, 0
                count += 1
            found[same, SOURCES] |= 1 << k
    found[FACTS, 0] = count
    found[FACTS, 2] = beyond + NEAR_BLOCKS * farther
    distances = around.distances
    for reference in range(len(distances) if count else 0):
        distance = distances[reference]
        for component in range(2):
            if near == 3:
                found[EXPECTED + reference, component] = _median(
                    scaled(close[0, component], distances[close[0, 2]], distance),
                    scaled(close[1, component], distances[close[1, 2]], distance),
                    scaled(close[2, component], distances[close[2, 2]], distance),
                )
            else:
                found[EXPECTED + reference, component] = scaled(found[0, component], distances[found[0, 2]], distance)
    if count > 1:
        apart = abs(found[0, 0] - found[1, 0]) + abs(found[0, 1] - found[1, 1])
        one_picture = found[0, 2] == found[1, 2]
        found[FACTS, 1] = min((apart + 1) // 2, SPREADS - 1) if one_picture else SPREADS - 1


def as_field(motion: Tensor) -> Field:
    """(3, h, w) to (h, w, 3)."""
    return motion.permute(1, 2, 0).to(torch.int32).contiguous().cpu().numpy()


def as_motion(field: Field) -> Tensor:
    """(h, w, 3) to (3, h, w)."""
    return torch.from_numpy(field).permute(2, 0, 1).float()


def to_latents(vectors: Tensor) -> Tensor:
    """Vectors (N, 2, 2H, 2W) to the first of each square and three differences from it (N, 8, H, W): what the prior of
    the texture sees of motion."""
    n, _, height, width = vectors.shape
    blocks = torch.pixel_unshuffle(vectors, 2).reshape(n, 2, 4, height // 2, width // 2)
    return torch.cat([blocks[:, :, :1], blocks[:, :, 1:] - blocks[:, :, :1]], dim=2).flatten(1, 2)
