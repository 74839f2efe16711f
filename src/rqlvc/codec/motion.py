"""Motion of 8x8 blocks: predicted from decoded motion and coded without loss, square after square of 16x16.

Vectors are integers in quarter samples: what is decoded is the same on every machine, and a block that does not move
stays exactly where it is. A square has one vector, or one for each of its four blocks; it reaches to the reference (0)
or to a picture before it that was kept (1, 2; the first inter frame of a group has none). A vector is that of a
neighbour or the last frame's at its place (these are its *candidates*), or differs from the median of its neighbours,
of which those that reach to another picture are scaled by how far that is away. Every decision is coded by
:mod:`rqlvc.codec.binary` in contexts that learn along the group of pictures.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from rqlvc.codec.binary import BinaryCoder, Contexts, decide, magnitude, magnitude_contexts
from rqlvc.codec.references import PICTURES
from rqlvc.compiled import INNER, OPTIONS

VECTOR_LIMIT = 4095
"""Quarter samples; what a damaged stream may ask for at most."""
DIGITS = 13
"""A component differs from its prediction by less than 2**13 quarter samples."""
LATENTS = 8  # of the four blocks of a square: x of the first, differences of the others from it; then y

CANDIDATES = 5  # left, above, above right, the last frame's, zero
EXPECTED = CANDIDATES  # the row, after the candidates, of what a new vector to picture 0 differs from; then 1, 2
FACTS = EXPECTED + PICTURES  # the row of the candidates' number, their spread, and the context of the picture
NEAR_BLOCKS = 4  # one more than the blocks that tell which picture a new vector reaches to
NEAR = FACTS + 1  # the rows of the vectors to the left, above and above right
ROWS = NEAR + 3
KINDS = 3  # of vectors: a square's, its first block's, another block's
SPREADS = 4  # how far the first two candidates are apart: 0, up to 2, up to 4 quarter samples, more or two pictures

# Where contexts begin.
_SPLIT = 0  # by split squares to the left and above
_PICTURE = _SPLIT + 3  # of new vectors, by how many of the blocks to the left, above and in the last frame are not 0
_FARTHER = _PICTURE + NEAR_BLOCKS  # of those, by how many of these blocks are 2
_MERGE = _FARTHER + NEAR_BLOCKS  # by kind, new vectors to the left and above, spread
_INDEX = _MERGE + KINDS * 3 * SPREADS  # by kind, number of candidates, index
_DIFFERENCE = _INDEX + KINDS * CANDIDATES * CANDIDATES  # of components, by kind (two), spread, component
_COMPONENT = magnitude_contexts(DIGITS)
CONTEXTS = _DIFFERENCE + 2 * SPREADS * 2 * _COMPONENT

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


@njit(**INNER)
def assign(target: Any, source: Any) -> None:
    """Copy a vector (3,; x, y, picture), component by component, as loops that allocate nothing have to."""
    for c in range(3):
        target[c] = source[c]


@njit(**INNER)
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


@njit(**INNER)
def _median(a: int, b: int, c: int) -> int:
    return max(min(a, b), min(max(a, b), c))


@njit(**INNER)
def candidate_of(found: Any, count: int, x: int, y: int, picture: int) -> int:
    """Which of the first ``count`` candidates the vector (x, y) to ``picture`` is; -1 if none."""
    for i in range(count):
        if found[i, 0] == x and found[i, 1] == y and found[i, 2] == picture:
            return i
    return -1


@njit(**INNER)
def find_candidates(around: Any, row: int, column: int, size: int, found: Any) -> None:
    """Fill ``found`` (12, 3) for ``size`` x ``size`` blocks from (row, column) on: each candidate once, a vector and
    its picture; then what a new vector to picture 0, 1 and 2 differs from; then how many candidates there are, their
    spread and how many of the blocks to the left, above and in the last frame reach beyond the reference, with
    ``NEAR_BLOCKS`` times how many reach to picture 2; last, as work space, the vectors of the blocks beside.

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
        if around.predicted and candidate_of(found, count, x, y, reference) < 0:
            found[count, 0], found[count, 1], found[count, 2] = x, y, reference
            count += 1
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
        same = found[0, 2] == found[1, 2]
        found[FACTS, 1] = min((apart + 1) // 2, SPREADS - 1) if same else SPREADS - 1


@njit(**INNER)
def new_around(around: Any, row: int, column: int) -> int:
    """Of the squares to the left and above, how many have a new vector."""
    return around.marks[row, column + 1, 1] + around.marks[row + 1, column, 1]


@njit(**INNER)
def code_vector(coder: Any, contexts: Any, found: Any, pictures: int, kind: int, new: int, vector: Any) -> bool:
    """Code or decode ``vector`` (3,; x, y, picture), whose candidates are ``found``; returns whether it is new.
    ``pictures``: how many there are. ``new``: what :func:`new_around` says."""
    count, spread, reaching = found[FACTS]
    same = candidate_of(found, count, vector[0], vector[1], vector[2])
    if count and decide(coder, contexts, _MERGE + (kind * 3 + new) * SPREADS + spread, same >= 0):
        index = 0
        first = _INDEX + (kind * CANDIDATES + count - 1) * CANDIDATES
        while index < count - 1 and not decide(coder, contexts, first + index, index == same):
            index += 1
        assign(vector, found[index])
        return False
    picture = vector[2]
    beyond = pictures > 1 and decide(coder, contexts, _PICTURE + reaching % NEAR_BLOCKS, picture > 0)
    farther = beyond and pictures > 2 and decide(coder, contexts, _FARTHER + reaching // NEAR_BLOCKS, picture > 1)
    vector[2] = int(beyond) + int(farther)
    expected = found[EXPECTED + vector[2]]
    for component in range(2):
        difference = vector[component] - expected[component]
        first = _DIFFERENCE + ((min(kind, 1) * SPREADS + spread) * 2 + component) * _COMPONENT
        size = magnitude(coder, contexts, first, DIGITS, abs(difference))
        if size and decide(coder, contexts, -1, difference < 0):
            size = -size
        vector[component] = min(max(expected[component] + size, -VECTOR_LIMIT), VECTOR_LIMIT)
    return True


@njit(**INNER)
def code_split(coder: Any, contexts: Any, around: Any, row: int, column: int, split: bool) -> bool:
    """Code or decode whether a square is split."""
    marks = around.marks
    return decide(coder, contexts, _SPLIT + marks[row, column + 1, 0] + marks[row + 1, column, 0], split)


@njit(**INNER)
def code_square(coder: Any, contexts: Any, around: Any, row: int, column: int, found: Any, vector: Any) -> None:
    """Code the square (row, column) of the field of ``around``, or decode it into the field. ``found`` (12, 3) and
    ``vector`` (3,) are work space."""
    field, mark = around.field, around.marks[row + 1, column + 1]
    r, c = 2 * row, 2 * column
    split = False
    for k in range(3):
        first = field[r, c, k]
        split |= field[r, c + 1, k] != first or field[r + 1, c, k] != first or field[r + 1, c + 1, k] != first
    split = code_split(coder, contexts, around, row, column, split)
    mark[0], mark[1] = split, False
    for block in range(4 if split else 1):
        i, j = r + block // 2, c + block % 2
        find_candidates(around, i, j, 1 if split else 2, found)
        assign(vector, field[i, j])
        kind = min(block, 1) + 1 if split else 0
        mark[1] |= code_vector(
            coder, contexts, found, len(around.distances), kind, new_around(around, row, column), vector
        )
        assign(field[i, j], vector)
    if not split:
        for k in range(1, 4):
            assign(field[r + k // 2, c + k % 2], field[r, c])


@njit(**OPTIONS)
def _code_squares(coder: Any, contexts: Any, around: Any) -> None:
    found, vector = np.zeros((ROWS, 3), np.int32), np.empty(3, np.int32)
    for row in range(around.field.shape[0] // 2):
        for column in range(around.field.shape[1] // 2):
            code_square(coder, contexts, around, row, column, found, vector)


def code_field(coder: BinaryCoder, contexts: Contexts, around: Surroundings) -> None:
    """Code the field of ``around``, or decode into it. ``contexts`` adapt in place. h and w are even."""
    _code_squares(coder, contexts, around)


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
