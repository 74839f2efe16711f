"""Motion of 8x8 blocks: predicted from decoded motion and coded without loss, square after square of 16x16.

Vectors are integers in quarter samples: what is decoded is the same on every machine, and a block that does not move
stays exactly where it is. A square has one vector, or one for each of its four blocks; it reaches to the reference (0)
or to a picture before it that was kept (1, 2; the first inter frame of a group has none). A vector is that of a
neighbour or the last frame's at its place (these are its *candidates*), or differs from the median of its neighbours,
of which those that reach to another picture are scaled by how far that is away. Every decision is coded by
:mod:`rqlvc.codec.mixing` in contexts that learn along the group of pictures: each function below that fills places
says which.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from rqlvc.codec.binary import ONE, BinaryCoder, code
from rqlvc.codec.mixing import INPUTS, MixedCoder, Mixer, blank_decision, decide, fresh_mixer
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
SOURCES = 3  # the column that says, bit by bit, which of left, above, above right, the last frame and zero have it
COLUMNS = SOURCES + 1
KINDS = 3  # of vectors: a square's, its first block's, another block's
SLOTS = 5  # the square, its first to fourth block
SPREADS = 4  # how far the first two candidates are apart: 0, up to 2, up to 4 quarter samples, more or two pictures
SPLITS = NEWS = 3  # one more than the squares to the left and above
PASTS = 4  # of the last frame's square: whether its vector is that of no neighbour; twice whether it is split
STEADY = (
    9  # of the blocks to the left and above: whether they move as in the last frame (or there is none; or no block)
)
SETS_OF_SOURCES = 1 << CANDIDATES
SHARES = 4**CANDIDATES  # which of the sources have the candidate in question, the next one, and the one after that
CLASSES = 6  # of a component's magnitude
SIGNS = 3

# Where the contexts of each decision begin: so many for each input.
_COMPONENT = 2 * (DIGITS + 1)
_SIZES = (
    (SPLITS, PASTS * SPLITS, STEADY * SPLITS, SPLITS * NEWS, NEWS * PASTS, 4 * SPLITS),
    (
        KINDS * NEWS * SPREADS,
        KINDS * (CANDIDATES + 1) * SETS_OF_SOURCES * 2,
        KINDS * STEADY * NEWS * PASTS,
        KINDS * NEWS * (CANDIDATES + 1),
        SLOTS * NEWS * SPLITS * SPREADS,
        KINDS * SHARES,
    ),
    (
        KINDS * (CANDIDATES + 1) * CANDIDATES,
        KINDS * SHARES * 2,
        KINDS * STEADY * SETS_OF_SOURCES,
        SHARES,
        SLOTS * SETS_OF_SOURCES,
        KINDS * NEWS * SPLITS * SETS_OF_SOURCES * PASTS,
    ),
    (NEAR_BLOCKS, NEAR_BLOCKS**2 * 2, KINDS * NEAR_BLOCKS, 4 * NEAR_BLOCKS * 2, 16 * NEAR_BLOCKS, PASTS * NEAR_BLOCKS),
    (NEAR_BLOCKS, NEAR_BLOCKS**2 * 2, KINDS * NEAR_BLOCKS, 4 * NEAR_BLOCKS * 2, 16 * NEAR_BLOCKS, PASTS * NEAR_BLOCKS),
    tuple(
        _COMPONENT * size
        for size in (
            2 * SPREADS * 2,
            (CLASSES + 1) * 2 * KINDS,
            2 * KINDS,
            PICTURES * KINDS * 2 * (CLASSES + 1),
            CLASSES**2 * 2 * KINDS,
            (CLASSES + 1) * CLASSES * (CLASSES + 1) * 2,
        )
    ),
    (
        SIGNS**2,
        SIGNS * CLASSES**2,
        SIGNS * (CLASSES + 1) * CLASSES,
        SIGNS * CLASSES,
        SIGNS**3 * CLASSES,
        SIGNS**3,
    ),
)
_STARTS = np.cumsum([0, *(size for sizes in _SIZES for size in sizes)])
CONTEXTS = int(_STARTS[-1])
_STARTS = _STARTS[:-1].reshape(len(_SIZES), INPUTS)
_SPLIT, _MERGE, _INDEX, _PICTURE, _FARTHER, _DIFFERENCE, _SIGN = range(len(_SIZES))
_LONG = 3  # digits of a component's length that have weights of their own

# Where sets of weights begin: a decision takes one.
_SPLIT_SET = 0
_MERGE_SET = _SPLIT_SET + 1  # by kind
_INDEX_SET = _MERGE_SET + KINDS  # by kind and index
_PICTURE_SET = _INDEX_SET + KINDS * (CANDIDATES - 1)
_FARTHER_SET = _PICTURE_SET + 1
_DIFFERENCE_SET = _FARTHER_SET + 1  # by component and digit
_SIGN_SET = _DIFFERENCE_SET + 2 * (_LONG + 2)
SETS = _SIGN_SET + 1
_SHARE_OF = np.array([sum(4**k for k in range(CANDIDATES) if mask >> k & 1) for mask in range(SETS_OF_SOURCES)])

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


def new_motion_mixer() -> Mixer:
    """One that knows nothing."""
    return fresh_mixer(CONTEXTS, SETS)


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


class Known(NamedTuple):
    """Of a square, before it is coded."""

    new: int
    """Of the squares to the left and above, how many have a new vector."""
    splits: int
    """How many of them are split."""
    past: int
    """What the last frame's square was like: see ``PASTS``."""
    steady: int
    """How what is around it moves: see ``STEADY``."""


@njit(**INNER)
def _equal(a: Any, b: Any) -> bool:
    return a[0] == b[0] and a[1] == b[1] and a[2] == b[2]


@njit(**INNER)
def _past(last: Any, row: int, column: int) -> int:
    """What the last frame's square at block (row, column) was like, 0 to 3: see ``PASTS``."""
    if not len(last):
        return 0
    here = last[row, column]
    alone = not (column > 0 and _equal(here, last[row, column - 1]))
    alone &= not (row > 0 and _equal(here, last[row - 1, column]))
    split = False
    for k in range(1, 4):
        split |= not _equal(here, last[row + k // 2, column + k % 2])
    return int(alone) + 2 * int(split)


@njit(**INNER)
def _steady(around: Any, row: int, column: int) -> int:
    """Whether the blocks to the left and above the square at block (row, column) move as in the last frame, 0 to 8."""
    last, field = around.last, around.field
    if not len(last):
        return 0
    left = 1 if column == 0 else 2 if _equal(field[row, column - 1], last[row, column - 1]) else 0
    above = 1 if row == 0 else 2 if _equal(field[row - 1, column], last[row - 1, column]) else 0
    return 3 * left + above


@njit(**INNER)
def known_of(around: Any, row: int, column: int) -> Any:
    """What is known of the square (row, column)."""
    above, left = around.marks[row, column + 1], around.marks[row + 1, column]
    past, steady = _past(around.last, 2 * row, 2 * column), _steady(around, 2 * row, 2 * column)
    return Known(above[1] + left[1], above[0] + left[0], past, steady)


@njit(**INNER)
def _size_class(component: int) -> int:
    size = abs(component)
    return min(size, 2) if size < 4 else 3 if size <= 8 else 4 if size <= 24 else 5


@njit(**INNER)
def _sign(component: int) -> int:
    return 0 if component == 0 else 1 if component > 0 else 2


@njit(**INNER)
def _go_to(decision: Any, kind: int, weights: int, a: int, b: int, c: int, d: int, e: int, f: int) -> None:
    """Place ``decision``, which is of a kind, in these contexts of its inputs, and with this set of weights."""
    places, starts = decision.places, _STARTS[kind]
    places[0], places[1], places[2] = starts[0] + a, starts[1] + b, starts[2] + c
    places[3], places[4], places[5] = starts[3] + d, starts[4] + e, starts[5] + f
    decision.sets[0] = weights


@njit(**INNER)
def code_vector(
    mixed: Any, around: Any, square: Any, row: int, column: int, slot: int, found: Any, vector: Any
) -> bool:
    """Code or decode ``vector`` (3,; x, y, picture) of the ``square`` (:class:`Known`) at block (row, column) or
    (``slot`` from 1 on) of one of its blocks, whose candidates are ``found``; returns whether it is new."""
    kind = min(slot, 2)
    new, splits, past, steady = square
    count, spread = found[FACTS, 0], found[FACTS, 1]
    same = candidate_of(found, count, vector[0], vector[1], vector[2])
    if count:
        sources = found[0, SOURCES]
        _go_to(
            mixed.decision,
            _MERGE,
            _MERGE_SET + kind,
            (kind * NEWS + new) * SPREADS + spread,
            ((kind * (CANDIDATES + 1) + count) * SETS_OF_SOURCES + sources) * 2 + past % 2,
            ((kind * STEADY + steady) * NEWS + new) * PASTS + past,
            (kind * NEWS + new) * (CANDIDATES + 1) + count,
            ((slot * NEWS + new) * SPLITS + splits) * SPREADS + spread,
            kind * SHARES + _SHARE_OF[sources] + (2 * _SHARE_OF[found[1, SOURCES]] if count > 1 else 0),
        )
        if decide(mixed, same >= 0):
            index = 0
            while index < count - 1:
                sources = found[index, SOURCES]
                share = _SHARE_OF[sources] + 2 * _SHARE_OF[found[index + 1, SOURCES]]
                further = index + 2 < count
                _go_to(
                    mixed.decision,
                    _INDEX,
                    _INDEX_SET + kind * (CANDIDATES - 1) + index,
                    (kind * (CANDIDATES + 1) + count) * CANDIDATES + index,
                    (kind * SHARES + share) * 2 + further,
                    (kind * STEADY + steady) * SETS_OF_SOURCES + sources,
                    share + (3 * _SHARE_OF[found[index + 2, SOURCES]] if further else 0),
                    slot * SETS_OF_SOURCES + sources,
                    (((kind * NEWS + new) * SPLITS + splits) * SETS_OF_SOURCES + sources) * PASTS + past,
                )
                if decide(mixed, index == same):
                    break
                index += 1
            assign(vector, found[index])
            return False
    vector[2] = _code_picture(mixed, around, past, row, column, kind, found, vector[2])
    first = 0
    for component in range(2):
        first = _code_component(mixed, around, row, column, kind, component, first, found, vector)
    return True


@njit(**INNER)
def _code_picture(
    mixed: Any, around: Any, past: int, row: int, column: int, kind: int, found: Any, picture: int
) -> int:
    """Code or decode which picture a new vector reaches to, where there are several; returns it."""
    beyond, farther = found[FACTS, 2] % NEAR_BLOCKS, found[FACTS, 2] // NEAR_BLOCKS
    distances = around.distances
    pictures = len(distances)
    before = around.last[row, column, 2] if len(around.last) else PICTURES
    for step in range(pictures - 1):
        near = farther if step else beyond
        _go_to(
            mixed.decision,
            _FARTHER if step else _PICTURE,
            _FARTHER_SET if step else _PICTURE_SET,
            near,
            (beyond * NEAR_BLOCKS + farther) * 2 + (pictures > 2),
            kind * NEAR_BLOCKS + near,
            (before * NEAR_BLOCKS + near) * 2 + (distances[1] > 2),
            min(distances[1], 15) * NEAR_BLOCKS + near,
            past * NEAR_BLOCKS + near,
        )
        if not decide(mixed, picture > step):
            return step
    return pictures - 1


@njit(**INNER)
def _code_component(
    mixed: Any, around: Any, row: int, column: int, kind: int, component: int, first: int, found: Any, vector: Any
) -> int:
    """Code or decode a component of a new ``vector``; returns how it differs from what is expected. ``first``: how
    component 0 does."""
    picture, distances = vector[2], around.distances
    expected = found[EXPECTED + picture, component]
    difference = vector[component] - expected
    low, high, total = VECTOR_LIMIT, -VECTOR_LIMIT, 0
    for k in range(3):
        near = found[NEAR + k]
        there = scaled(near[component], distances[near[2]], distances[picture])
        low, high, total = min(low, there), max(high, there), total + there - expected
    range_class = _size_class(high - low)
    before, before_class = 0, CLASSES
    if len(around.last):
        last = around.last[row, column]
        before = scaled(last[component], distances[last[2]], distances[picture]) - expected
        before_class = _size_class(before)
    own_class = _size_class(expected)
    known = 1 + _size_class(first) if component else 0
    size = abs(difference)
    spread = found[FACTS, 1]

    _go_to(
        mixed.decision,
        _DIFFERENCE,
        _DIFFERENCE_SET + component * (_LONG + 2),
        _COMPONENT * ((min(kind, 1) * SPREADS + spread) * 2 + component),
        _COMPONENT * ((known * 2 + component) * KINDS + kind),
        _COMPONENT * (component * KINDS + kind),
        _COMPONENT * (((picture * KINDS + kind) * 2 + component) * (CLASSES + 1) + known),
        _COMPONENT * (((range_class * CLASSES + own_class) * 2 + component) * KINDS + kind),
        _COMPONENT * (((before_class * CLASSES + range_class) * (CLASSES + 1) + known) * 2 + (picture > 0)),
    )
    length = 0
    while length < DIGITS and decide(mixed, (size + 1) >> (length + 1) > 0):
        length += 1
        _further(mixed.decision, 1)
        mixed.decision.sets[0] += length <= _LONG
    result = 1
    if length:
        _further(mixed.decision, DIGITS + 1)
        mixed.decision.sets[0] = _DIFFERENCE_SET + component * (_LONG + 2) + _LONG + 1
        result = 2 + int(decide(mixed, ((size + 1) >> (length - 1)) & 1 == 1))
    for digit in range(length - 2, -1, -1):
        result = 2 * result + int(code(mixed.coder, ONE // 2, ((size + 1) >> digit) & 1 == 1))
    size = result - 1
    if not size:
        vector[component] = expected
        return 0

    around_sign, before_sign, own_sign, own = _sign(total), _sign(before), _sign(expected), _size_class(size)
    signs = around_sign * SIGNS + before_sign
    _go_to(
        mixed.decision,
        _SIGN,
        _SIGN_SET,
        signs,
        (around_sign * CLASSES + range_class) * CLASSES + own,
        (before_sign * (CLASSES + 1) + before_class) * CLASSES + own,
        own_sign * CLASSES + own_class,
        (signs * SIGNS + own_sign) * CLASSES + own,
        ((_sign(first) if component else 0) * SIGNS + around_sign) * SIGNS + own_sign,
    )
    difference = -size if decide(mixed, difference < 0) else size
    vector[component] = min(max(expected + difference, -VECTOR_LIMIT), VECTOR_LIMIT)
    return difference


@njit(**INNER)
def _further(decision: Any, step: int) -> None:
    for k in range(INPUTS):
        decision.places[k] += step


@njit(**INNER)
def code_split(mixed: Any, square: Any, row: int, column: int, split: bool) -> bool:
    """Code or decode whether the ``square`` (row, column) is split."""
    new, splits, past, steady = square
    _go_to(
        mixed.decision,
        _SPLIT,
        _SPLIT_SET,
        splits,
        past * SPLITS + splits,
        steady * SPLITS + splits,
        splits * NEWS + new,
        new * PASTS + past,
        (min(row, 1) * 2 + min(column, 1)) * SPLITS + splits,
    )
    return decide(mixed, split)


@njit(**INNER)
def code_square(mixed: Any, around: Any, row: int, column: int, found: Any, vector: Any) -> None:
    """Code the square (row, column) of the field of ``around``, or decode it into the field. ``found`` (12, 4) and
    ``vector`` (3,) are work space."""
    field, mark = around.field, around.marks[row + 1, column + 1]
    r, c = 2 * row, 2 * column
    split = False
    for k in range(1, 4):
        split |= not _equal(field[r, c], field[r + k // 2, c + k % 2])
    square = known_of(around, row, column)
    split = code_split(mixed, square, row, column, split)
    mark[0], mark[1] = split, False
    for block in range(4 if split else 1):
        i, j = r + block // 2, c + block % 2
        find_candidates(around, i, j, 1 if split else 2, found)
        assign(vector, field[i, j])
        mark[1] |= code_vector(mixed, around, square, i, j, block + 1 if split else 0, found, vector)
        assign(field[i, j], vector)
    if not split:
        for k in range(1, 4):
            assign(field[r + k // 2, c + k % 2], field[r, c])


@njit(**OPTIONS)
def _code_squares(mixed: Any, around: Any) -> None:
    found, vector = np.zeros((ROWS, COLUMNS), np.int32), np.empty(3, np.int32)
    for row in range(around.field.shape[0] // 2):
        for column in range(around.field.shape[1] // 2):
            code_square(mixed, around, row, column, found, vector)


def code_field(coder: BinaryCoder, mixer: Mixer, around: Surroundings) -> None:
    """Code the field of ``around``, or decode into it. ``mixer`` adapts in place. h and w are even."""
    _code_squares(MixedCoder(coder, mixer, blank_decision(1)), around)


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
