"""Motion and the binary coder below it: what is written is read, wherever it came from, and costs what it should."""

import os
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rqlvc.codec.binary import ONE, code, code_plainly, counter, finish, reader, writer
from rqlvc.codec.entropy import Estimator, MotionContext, PacketCoder
from rqlvc.codec.mixing import Mixer
from rqlvc.codec.motion import (
    CANDIDATES,
    COLUMNS,
    EXPECTED,
    FACTS,
    NEAR_BLOCKS,
    ROWS,
    SOURCES,
    VECTOR_LIMIT,
    as_field,
    find_candidates,
    rescaled,
    surroundings,
)
from rqlvc.codec.motion_coding import code_field, new_motion_mixer
from rqlvc.codec.references import PICTURES
from small_streams import SHIPPED, neural_codec

unhurried = settings(deadline=None)  # the first call compiles
Field = npt.NDArray[np.int32]


def distances_of(last: Field | None) -> tuple[int, ...]:
    """To the pictures there are: after an intra frame one, otherwise three."""
    return (1,) if last is None else (1, 3, 8)


@st.composite
def fields(draw: st.DrawFn, limit: int = VECTOR_LIMIT) -> tuple[Field, Field | None]:
    """A field of motion, mostly even, and the last frame's; without that all reach to the same picture."""
    h, w = 2 * draw(st.integers(1, 5)), 2 * draw(st.integers(1, 6))
    component = st.integers(-limit, limit)
    last = draw(st.sampled_from(["none", "same", "other"]))
    picture = st.integers(0, 0 if last == "none" else PICTURES - 1)
    field = np.broadcast_to(np.array([draw(component), draw(component), draw(picture)], np.int32), (h, w, 3)).copy()
    changed = draw(arrays.arrays(np.bool_, (h, w), fill=st.just(False)))
    field[changed, :2] = draw(arrays.arrays(np.int32, (int(changed.sum()), 2), elements=component))
    field[changed, 2] = draw(arrays.arrays(np.int32, (int(changed.sum()),), elements=picture))
    if last == "none":
        return field, None
    return field, field.copy() if last == "same" else np.roll(field, 1, axis=0)


def written(field: Field, last: Field | None, mixer: Mixer, predicted: bool = True) -> bytes:
    coder = writer(4 * field.size)
    code_field(coder, mixer, surroundings(field.copy(), last, distances_of(last), predicted))
    return finish(coder)


@given(fields(), st.booleans())
@unhurried
def test_every_field_comes_back(case: tuple[Field, Field | None], predicted: bool) -> None:
    field, last = case
    encoder, decoder = new_motion_mixer(), new_motion_mixer()
    for _ in range(2):  # the second time with contexts that have learnt
        data = written(field, last, encoder, predicted)
        decoded = np.zeros_like(field)
        code_field(reader(data), decoder, surroundings(decoded, last, distances_of(last), predicted))
        assert np.array_equal(decoded, field) and all(map(np.array_equal, encoder, decoder))


@given(fields())
@unhurried
def test_what_is_counted_is_what_is_written(case: tuple[Field, Field | None]) -> None:
    field, last = case
    mixer = new_motion_mixer()
    size = 8 * len(written(field, last, mixer.copy()))
    coder = counter()
    code_field(coder, mixer, surroundings(field.copy(), last, distances_of(last), True))
    assert abs(float(coder.bits[0]) - size) < 12 + 0.02 * size


@given(st.binary(max_size=60), st.booleans(), st.booleans())
@unhurried
def test_any_bytes_decode_to_motion_within_limits(data: bytes, predicted: bool, first: bool) -> None:
    field = np.zeros((4, 6, 3), np.int32)
    last = None if first else np.full((4, 6, 3), (VECTOR_LIMIT, -VECTOR_LIMIT, 0), np.int32)
    code_field(reader(data), new_motion_mixer(), surroundings(field, last, distances_of(last), predicted))
    assert np.abs(field).max() <= VECTOR_LIMIT
    assert set(field[..., 2].flat) <= set(range(1 if first else PICTURES))


PLACES = """
import sys
import numpy as np
from rqlvc.codec import motion_coding
from rqlvc.codec.binary import counter
from rqlvc.codec.motion import VECTOR_LIMIT, surroundings

ends, starts, go_to, seen = motion_coding._ENDS, motion_coding._STARTS, motion_coding._go_to, set()

def checked(decision, kind, weights, *cases):
    go_to(decision, kind, weights, *cases)
    room = motion_coding._COMPONENT if kind == motion_coding._DIFFERENCE else 1
    assert (decision.places >= starts[kind]).all() and (decision.places + room <= ends[kind]).all(), (kind, cases)
    assert 0 <= weights < motion_coding.SETS
    seen.add(kind)

motion_coding._go_to = checked
rng = np.random.default_rng(0)
for case in range(60):
    h, w = 2 * rng.integers(1, 4, 2)
    pictures = int(rng.integers(1, 4))
    distances = (1, int(rng.integers(2, 40)), 90)[:pictures]
    scale = rng.choice([1, 3, 30, VECTOR_LIMIT])
    coarse = rng.random() < 0.5  # whole squares alike, so that candidates coincide

    def field():
        size = (h // 2, w // 2) if coarse else (h, w)
        vectors = rng.integers(-scale, scale + 1, (*size, 2)) * (rng.random((*size, 1)) < 0.6)
        both = np.concatenate([vectors, rng.integers(0, pictures, (*size, 1))], axis=2).astype(np.int32)
        return np.ascontiguousarray(both.repeat(2, 0).repeat(2, 1)) if coarse else both

    last = field() if pictures > 1 else None
    now = last.copy() if last is not None and rng.random() < 0.3 else field()
    around = surroundings(now, last, distances, True)
    motion_coding.code_field(counter(), motion_coding.new_motion_mixer(), around)
assert seen == set(range(7)), seen
"""


def test_no_decision_takes_the_contexts_of_another() -> None:
    """Compiled code would read on beyond an array: so this runs uncompiled, where every place can be looked at."""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", PLACES], check=True, env=environment, timeout=300)


def test_vectors_to_other_pictures_are_scaled_by_distance() -> None:
    """A candidate is what a neighbour has; what a new vector differs from is what it would have to each picture."""
    field = np.zeros((4, 6, 3), np.int32)
    field[0, 2:4] = 9, -5, 0  # above the block (2, 3)
    field[0:2, 4:] = -VECTOR_LIMIT, 4, 0  # above right
    field[1, 2:4] = 9, -5, 0
    field[2:4, 0:2] = 21, -11, 1  # left of the square from (2, 2) on
    found = np.zeros((ROWS, COLUMNS), np.int32)
    last = np.full_like(field, 2)
    find_candidates(surroundings(field, last, (1, 2, 5), True), 2, 2, 2, found)
    expected = [[21, -11, 1], [9, -5, 0], [-VECTOR_LIMIT, 4, 0], [2, 2, 2], [0, 0, 0]]
    assert found[:CANDIDATES, :SOURCES].tolist() == expected
    assert found[:CANDIDATES, SOURCES].tolist() == [1, 2, 4, 8, 16]  # each from another source
    assert found[EXPECTED:FACTS, :2].tolist() == [[9, -5], [18, -10], [45, -25]]  # medians
    # Number, spread; to the left and in the last frame; there.
    assert found[FACTS, :3].tolist() == [5, 3, 2 + NEAR_BLOCKS]
    find_candidates(surroundings(field, None, (1,), True), 2, 2, 2, found)
    assert found[FACTS, :3].tolist() == [4, 3, 1]


def test_motion_is_rescaled_to_other_distances() -> None:
    motion = torch.tensor([[9.0, 9.0, -7.0, VECTOR_LIMIT], [-1.0, 2.0, 3.0, 0.0], [0.0, 1.0, 2.0, 1.0]])
    after = rescaled(motion.reshape(1, 3, 1, 4), (1, 2, 4), (1, 3, 5))[0, :, 0]
    assert after.tolist() == [[9, 14, -9, VECTOR_LIMIT], [-1, 3, 4, 0], [0, 1, 2, 1]]
    with pytest.raises(IndexError):
        rescaled(motion.reshape(1, 3, 1, 4), (1, 2, 4), (1, 2))


@given(st.lists(st.tuples(st.integers(0, ONE), st.booleans()), max_size=3000))
@settings(unhurried, max_examples=50)
def test_every_decision_comes_back(decisions: list[tuple[int, bool]]) -> None:
    coder = writer(10_000)
    for probability, one in decisions:
        code(coder, probability, one)
    decoder = reader(finish(coder))
    assert [code(decoder, probability, False) for probability, _ in decisions] == [one for _, one in decisions]


@given(st.lists(st.integers(0, 2**16 - 2), max_size=500))
@unhurried
def test_every_plain_number_comes_back(numbers: list[int]) -> None:
    coder = writer(10_000)
    for number in numbers:
        code_plainly(coder, 15, number)
    decoder = reader(finish(coder))
    assert [code_plainly(decoder, 15, 0) for _ in numbers] == numbers


def test_carries_reach_bytes_that_wait_for_them() -> None:
    """Long runs of the likelier half push the code to just below a byte's end, again and again."""
    rng = np.random.default_rng(0)
    decisions = [bool(one) for one in np.repeat(rng.random(400) < 0.5, 25)]
    coder = writer(10_000)
    for one in decisions:
        code(coder, ONE // 2, one)
    decoder = reader(finish(coder))
    assert [code(decoder, ONE // 2, False) for _ in decisions] == decisions


@pytest.mark.skipif(not SHIPPED, reason="untrained contexts expect nothing")
def test_still_and_steady_motion_costs_next_to_nothing() -> None:
    mixer = neural_codec().model.motion_mixer
    still = np.zeros((30, 52, 3), np.int32)
    pan = still + np.array([9, -6, 0], np.int32)
    assert 8 * len(written(still, None, mixer.copy())) < 40
    assert 8 * len(written(pan, pan, mixer.copy())) < 80
    assert 8 * len(written(pan, None, mixer.copy())) < 120
    rng = np.random.default_rng(1)
    still[..., :2] = rng.integers(-20, 20, (30, 52, 2))
    assert 8 * len(written(still, None, mixer.copy())) > 10_000


def test_the_three_coders_agree() -> None:
    rng = np.random.default_rng(2)
    last = torch.from_numpy(np.kron(rng.integers(-9, 9, (1, 3, 3, 4)), np.ones((2, 2)))).float()
    last[:, 2] = last[:, 2] > 0
    vectors = last.clone()
    vectors[:, :2, 2:4, 3:5] += 3
    vectors[:, 2, 1:3] = 1
    known = MotionContext(last, (1, 2), (new_motion_mixer(),), True)
    encoder, estimator = PacketCoder(writer(10**4), {}), Estimator()
    coded, after = encoder.motion(vectors, known, (6, 8))
    counted, also_after = estimator.motion(vectors, known, (6, 8))
    decoder = PacketCoder(reader(encoder.finish()), {})
    decoded, last_after = decoder.motion(None, known, (6, 8))
    assert torch.equal(coded, vectors) and torch.equal(counted, vectors) and torch.equal(decoded, vectors)
    for (mixer,) in (also_after, last_after):
        assert all(map(np.array_equal, mixer, after[0]))
    assert encoder.checksum == decoder.checksum
    assert np.array_equal(as_field(decoded[0]), as_field(vectors[0]))
