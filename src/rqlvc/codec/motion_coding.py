"""How motion is coded: what is decided of each square and vector, and in which contexts.

Every decision falls into six contexts that are mixed (:mod:`rqlvc.codec.mixing`) and learn along the group of pictures.
One description serves encoder, decoder, training and the search, which asks for prices.
"""

from math import prod
from typing import Any, NamedTuple

import numpy as np

from rqlvc.codec.binary import BinaryCoder, code_digits
from rqlvc.codec.mixing import INPUTS, MixedCoder, Mixer, blank_decision, decide, fresh_mixer
from rqlvc.codec.motion import (
    CANDIDATES,
    COLUMNS,
    EXPECTED,
    FACTS,
    NEAR,
    NEAR_BLOCKS,
    ROWS,
    SOURCES,
    SPREADS,
    VECTOR_LIMIT,
    Surroundings,
    assign,
    candidate_of,
    find_candidates,
    scaled,
)
from rqlvc.codec.references import PICTURES
from rqlvc.compiled import inner_loop, loop

DIGITS = 13
"""A component differs from its prediction by less than 2**13 quarter samples."""

# What contexts tell apart: how many cases of each.
KINDS = 3  # a square's vector, its first block's, another block's
SLOTS = 5  # the square, its first to fourth block
SPLITS = NEWS = 3  # one more than the squares to the left and above
PASTS = 4  # of the last frame's square: whether its vector is that of no neighbour; twice whether it is split
STEADY = 9  # 3 * left + above: whether that block moves otherwise than in the last frame (0), is none (1), or moves so
COUNTS = CANDIDATES + 1  # of candidates
HOLDERS = 1 << CANDIDATES  # which sources have a candidate
SHARES = 4**CANDIDATES  # of each source, whether it has the candidate in question, the next one or the one after that
SIZES = 6  # of a component, as _size_of has them
FIRSTS = SIZES + 1  # of the component before it, or there is none
SIGNS = 3
FAR = 16  # frames to the second picture

_SPLIT, _MERGE, _INDEX, _PICTURE, _FARTHER, _DIFFERENCE, _SIGN = range(7)
_COMPONENT = 2 * (DIGITS + 1)  # contexts of a component's length and of its first digit
_REACH = (
    (NEAR_BLOCKS,),
    (NEAR_BLOCKS, NEAR_BLOCKS, 2),
    (KINDS, NEAR_BLOCKS),
    (PICTURES + 1, NEAR_BLOCKS, 2),
    (FAR, NEAR_BLOCKS),
    (PASTS, NEAR_BLOCKS),
)
_CASES = {
    _SPLIT: ((SPLITS,), (PASTS, SPLITS), (STEADY, SPLITS), (SPLITS, NEWS), (NEWS, PASTS), (2, 2, SPLITS)),
    _MERGE: (
        (KINDS, NEWS, SPREADS),
        (KINDS, COUNTS, HOLDERS, 2),
        (KINDS, STEADY, NEWS, PASTS),
        (KINDS, NEWS, COUNTS),
        (SLOTS, NEWS, SPLITS, SPREADS),
        (KINDS, SHARES),
    ),
    _INDEX: (
        (KINDS, COUNTS, CANDIDATES),
        (KINDS, SHARES, 2),
        (KINDS, STEADY, HOLDERS),
        (SHARES,),
        (SLOTS, HOLDERS),
        (KINDS, NEWS, SPLITS, HOLDERS, PASTS),
    ),
    _PICTURE: _REACH,
    _FARTHER: _REACH,
    _DIFFERENCE: (
        (2, SPREADS, 2, _COMPONENT),
        (FIRSTS, 2, KINDS, _COMPONENT),
        (2, KINDS, _COMPONENT),
        (PICTURES, KINDS, 2, FIRSTS, _COMPONENT),
        (SIZES, SIZES, 2, KINDS, _COMPONENT),
        (SIZES + 1, SIZES, FIRSTS, 2, _COMPONENT),
    ),
    _SIGN: (
        (SIGNS, SIGNS),
        (SIGNS, SIZES, SIZES),
        (SIGNS, SIZES + 1, SIZES),
        (SIGNS, SIZES),
        (SIGNS, SIGNS, SIGNS, SIZES),
        (SIGNS, SIGNS, SIGNS),
    ),
}
"""The cases that each of the six contexts of a decision tells apart."""
_ENDS = np.cumsum([prod(cases) for inputs in _CASES.values() for cases in inputs]).reshape(len(_CASES), INPUTS)
_STARTS = np.append(0, _ENDS.flat[:-1]).reshape(_ENDS.shape)
"""Where the contexts of each decision and input begin."""
CONTEXTS = int(_ENDS[-1, -1])

# Where sets of weights begin: a decision takes one.
_SPLIT_SET = 0
_MERGE_SET = _SPLIT_SET + 1  # by kind
_INDEX_SET = _MERGE_SET + KINDS  # by kind and index
_PICTURE_SET = _INDEX_SET + KINDS * (CANDIDATES - 1)
_FARTHER_SET = _PICTURE_SET + 1
_DIFFERENCE_SET = _FARTHER_SET + 1  # by component and digit of its length
_LONG = 3  # digits of a length that have weights of their own
_SIGN_SET = _DIFFERENCE_SET + 2 * (_LONG + 2)
SETS = _SIGN_SET + 1

_SHARE_OF = np.array([sum(4**k for k in range(CANDIDATES) if holders >> k & 1) for holders in range(HOLDERS)])


def new_motion_mixer() -> Mixer:
    """One that knows nothing."""
    return fresh_mixer(CONTEXTS, SETS)


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


@inner_loop
def _equal(a: Any, b: Any) -> bool:
    return a[0] == b[0] and a[1] == b[1] and a[2] == b[2]


@inner_loop
def _is_split(field: Any, row: int, column: int) -> bool:
    """Whether the blocks of the square at block (row, column) have more than one vector."""
    split = False
    for k in range(1, 4):
        split |= not _equal(field[row, column], field[row + k // 2, column + k % 2])
    return split


@inner_loop
def _past(last: Any, row: int, column: int) -> int:
    """What the last frame's square at block (row, column) was like, 0 to 3: see ``PASTS``."""
    if not len(last):
        return 0
    here = last[row, column]
    alone = not (column > 0 and _equal(here, last[row, column - 1]))
    alone &= not (row > 0 and _equal(here, last[row - 1, column]))
    return int(alone) + 2 * int(_is_split(last, row, column))


@inner_loop
def _steady(around: Any, row: int, column: int) -> int:
    """Whether the blocks to the left and above the square at block (row, column) move as in the last frame, 0 to 8."""
    last, field = around.last, around.field
    if not len(last):
        return 0
    left = 1 if column == 0 else 2 if _equal(field[row, column - 1], last[row, column - 1]) else 0
    above = 1 if row == 0 else 2 if _equal(field[row - 1, column], last[row - 1, column]) else 0
    return 3 * left + above


@inner_loop
def known_of(around: Any, row: int, column: int) -> Any:
    """What is known of the square (row, column)."""
    above, left = around.marks[row, column + 1], around.marks[row + 1, column]
    past, steady = _past(around.last, 2 * row, 2 * column), _steady(around, 2 * row, 2 * column)
    return Known(above[1] + left[1], above[0] + left[0], past, steady)


@inner_loop
def _size_of(component: int) -> int:
    size = abs(component)
    return min(size, 2) if size < 4 else 3 if size <= 8 else 4 if size <= 24 else 5


@inner_loop
def _sign(component: int) -> int:
    return 0 if component == 0 else 1 if component > 0 else 2


@inner_loop
def _go_to(decision: Any, kind: int, weights: int, a: int, b: int, c: int, d: int, e: int, f: int) -> None:
    """Place ``decision``, which is of a kind, in these contexts of its inputs, and with this set of weights."""
    places, starts = decision.places, _STARTS[kind]
    places[0], places[1], places[2] = starts[0] + a, starts[1] + b, starts[2] + c
    places[3], places[4], places[5] = starts[3] + d, starts[4] + e, starts[5] + f
    decision.sets[0] = weights


@inner_loop
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
        holders = found[0, SOURCES]
        _go_to(
            mixed.decision,
            _MERGE,
            _MERGE_SET + kind,
            (kind * NEWS + new) * SPREADS + spread,
            ((kind * COUNTS + count) * HOLDERS + holders) * 2 + past % 2,
            ((kind * STEADY + steady) * NEWS + new) * PASTS + past,
            (kind * NEWS + new) * COUNTS + count,
            ((slot * NEWS + new) * SPLITS + splits) * SPREADS + spread,
            kind * SHARES + _SHARE_OF[holders] + (2 * _SHARE_OF[found[1, SOURCES]] if count > 1 else 0),
        )
        if decide(mixed, same >= 0):
            index = 0
            while index < count - 1:
                holders = found[index, SOURCES]
                share = _SHARE_OF[holders] + 2 * _SHARE_OF[found[index + 1, SOURCES]]
                further = index + 2 < count
                _go_to(
                    mixed.decision,
                    _INDEX,
                    _INDEX_SET + kind * (CANDIDATES - 1) + index,
                    (kind * COUNTS + count) * CANDIDATES + index,
                    (kind * SHARES + share) * 2 + further,
                    (kind * STEADY + steady) * HOLDERS + holders,
                    share + (3 * _SHARE_OF[found[index + 2, SOURCES]] if further else 0),
                    slot * HOLDERS + holders,
                    (((kind * NEWS + new) * SPLITS + splits) * HOLDERS + holders) * PASTS + past,
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


@inner_loop
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
            min(distances[1], FAR - 1) * NEAR_BLOCKS + near,
            past * NEAR_BLOCKS + near,
        )
        if not decide(mixed, picture > step):
            return step
    return pictures - 1


@inner_loop
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
    range_size = _size_of(high - low)
    before, before_size = 0, SIZES
    if len(around.last):
        last = around.last[row, column]
        before = scaled(last[component], distances[last[2]], distances[picture]) - expected
        before_size = _size_of(before)
    own_size = _size_of(expected)
    first_size = 1 + _size_of(first) if component else 0
    size = abs(difference)
    spread = found[FACTS, 1]

    _go_to(
        mixed.decision,
        _DIFFERENCE,
        _DIFFERENCE_SET + component * (_LONG + 2),
        _COMPONENT * ((min(kind, 1) * SPREADS + spread) * 2 + component),
        _COMPONENT * ((first_size * 2 + component) * KINDS + kind),
        _COMPONENT * (component * KINDS + kind),
        _COMPONENT * (((picture * KINDS + kind) * 2 + component) * FIRSTS + first_size),
        _COMPONENT * (((range_size * SIZES + own_size) * 2 + component) * KINDS + kind),
        _COMPONENT * (((before_size * SIZES + range_size) * FIRSTS + first_size) * 2 + (picture > 0)),
    )
    length = 0
    while length < DIGITS and decide(mixed, (size + 1) >> (length + 1) > 0):
        length += 1
        _further(mixed.decision, 1)
        mixed.decision.sets[0] += length <= _LONG
    if not length:
        vector[component] = expected
        return 0
    _further(mixed.decision, DIGITS + 1)
    mixed.decision.sets[0] = _DIFFERENCE_SET + component * (_LONG + 2) + _LONG + 1
    leading = 2 + int(decide(mixed, ((size + 1) >> (length - 1)) & 1 == 1))
    size = (leading << (length - 1)) + code_digits(mixed.coder, length - 1, size + 1) - 1

    around_sign, before_sign, own_sign, own = _sign(total), _sign(before), _sign(expected), _size_of(size)
    signs = around_sign * SIGNS + before_sign
    _go_to(
        mixed.decision,
        _SIGN,
        _SIGN_SET,
        signs,
        (around_sign * SIZES + range_size) * SIZES + own,
        (before_sign * (SIZES + 1) + before_size) * SIZES + own,
        own_sign * SIZES + own_size,
        (signs * SIGNS + own_sign) * SIZES + own,
        ((_sign(first) if component else 0) * SIGNS + around_sign) * SIGNS + own_sign,
    )
    difference = -size if decide(mixed, difference < 0) else size
    vector[component] = min(max(expected + difference, -VECTOR_LIMIT), VECTOR_LIMIT)
    return difference


@inner_loop
def _further(decision: Any, step: int) -> None:
    for k in range(INPUTS):
        decision.places[k] += step


@inner_loop
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


@inner_loop
def code_square(mixed: Any, around: Any, row: int, column: int, found: Any, vector: Any) -> None:
    """Code the square (row, column) of the field of ``around``, or decode it into the field. ``found`` (12, 4) and
    ``vector`` (3,) are work space."""
    field, mark = around.field, around.marks[row + 1, column + 1]
    r, c = 2 * row, 2 * column
    square = known_of(around, row, column)
    split = code_split(mixed, square, row, column, _is_split(field, r, c))
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


@loop
def _code_squares(mixed: Any, around: Any) -> None:
    found, vector = np.zeros((ROWS, COLUMNS), np.int32), np.empty(3, np.int32)
    for row in range(around.field.shape[0] // 2):
        for column in range(around.field.shape[1] // 2):
            code_square(mixed, around, row, column, found, vector)


def code_field(coder: BinaryCoder, mixer: Mixer, around: Surroundings) -> None:
    """Code the field of ``around``, or decode into it. ``mixer`` adapts in place. h and w are even."""
    _code_squares(MixedCoder(coder, mixer, blank_decision(1)), around)
