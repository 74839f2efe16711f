"""Latents to bits and back: symbols and contexts, the estimate beside the real coder, and what bit counts are worth."""

from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rqlvc.codec.binary import ONE, reader, writer
from rqlvc.codec.coefficients import SYMBOL_LIMIT
from rqlvc.codec.entropy import Estimator, Kind, PacketCoder, Place
from rqlvc.codec.integer import LATENT_UNIT
from rqlvc.codec.laplace import BINS, SKIP_BIN, bin_scales
from rqlvc.codec.mixing import INPUTS, Mixer, blank_decision, fresh_mixer, learn, predict
from rqlvc.codec.neural import NeuralCodec
from rqlvc.codec.planes import from_frame
from small_streams import encode_stream, moving_frames, neural_codec, new_mixers

HEADER_BITS = 11 * 8
FLUSH_BITS = 64
"""What the range coder may add at the end: the bytes of its state."""
FRESH = new_mixers()
unhurried = settings(deadline=None)  # the first call compiles


@pytest.fixture(scope="module")
def codec() -> NeuralCodec:
    return neural_codec()


def place(kind: Kind, height: int, width: int, last: torch.Tensor | None = None) -> Place:
    """All latents of a frame."""
    channels = 24 if kind.endswith("hyper") else 96
    return Place(kind, (height, width), torch.arange(height * width), torch.arange(channels), last)


def halves(where: Place) -> list[Place]:
    """The same in two steps, as on a checkerboard."""
    return [where._replace(squares=where.squares[start::2]) for start in range(2)]


def writing() -> PacketCoder:
    return PacketCoder(writer(10**6), FRESH)


# --- mixing ---------------------------------------------------------------------------------------------------------


@given(
    arrays.arrays(np.int32, INPUTS, elements=st.integers(1, ONE - 1)),
    arrays.arrays(np.int32, INPUTS, elements=st.integers(-(2**20), 2**20)),
    st.lists(st.booleans(), max_size=200),
)
@unhurried
def test_probabilities_and_weights_never_leave_their_range(
    known: npt.NDArray[np.int32], weights: npt.NDArray[np.int32], decisions: list[bool]
) -> None:
    mixer = Mixer(np.stack([known, np.zeros_like(known)], axis=1), weights[None].copy())
    where = blank_decision(1)
    where.places[:] = np.arange(INPUTS)
    for one in decisions:
        probability = predict(mixer, where)
        assert 0 < probability < ONE
        learn(mixer, where, probability, one)
        assert mixer.contexts[:, 0].min() > 0 and mixer.contexts[:, 0].max() < ONE
        assert np.abs(mixer.weights).max() <= 2**20


def test_mixing_finds_out_which_context_knows() -> None:
    """Of six contexts only the first tells when a one comes; soon the mix knows as well as that one alone."""
    rng = np.random.default_rng(0)
    mixer = fresh_mixer(12, 1)
    where = blank_decision(1)
    bits = 0.0
    for index in range(4000):
        hint = rng.integers(2)
        one = bool(rng.random() < (0.95 if hint else 0.05))
        where.places[:] = [hint, *(2 * k + rng.integers(2) for k in range(1, INPUTS))]
        probability = predict(mixer, where)
        if index >= 2000:
            bits -= np.log2((probability if one else ONE - probability) / ONE)
        learn(mixer, where, probability, one)
    entropy = -(0.95 * np.log2(0.95) + 0.05 * np.log2(0.05))
    assert bits / 2000 < entropy + 0.05 and mixer.weights[0, 0] > 2 * np.abs(mixer.weights[0, 1:]).max()


def test_a_further_set_of_weights_learns_where_the_first_cannot() -> None:
    """Which of two contexts knows depends on what only the second set is chosen by."""
    rng = np.random.default_rng(1)
    cost = []
    for sets in (1, 2):
        mixer, where, bits = fresh_mixer(2 * INPUTS, 1, 2), blank_decision(sets), 0.0
        for index in range(12_000):
            kind, hints = int(rng.integers(2)), rng.integers(2, size=INPUTS)
            one = bool(rng.random() < (0.95 if hints[kind] else 0.05))
            where.places[:] = 2 * np.arange(INPUTS) + hints
            where.sets[1:] = 1 + kind
            probability = predict(mixer, where)
            if index >= 9000:
                bits -= np.log2((probability if one else ONE - probability) / ONE)
            learn(mixer, where, probability, one)
        cost.append(bits)
    assert cost[1] < 0.8 * cost[0]


# --- symbols --------------------------------------------------------------------------------------------------------

symbols = st.one_of(st.integers(-3, 3), st.integers(-300, 300), st.integers(-SYMBOL_LIMIT, SYMBOL_LIMIT))
shape = (1, 6, 96)


@given(
    arrays.arrays(np.int32, shape, elements=symbols, fill=st.just(0)),
    arrays.arrays(np.int32, shape, elements=st.integers(-(2**14), 2**14), fill=st.just(0)),
    arrays.arrays(np.int32, shape, elements=st.integers(0, BINS - 1), fill=st.just(9)),
    st.sampled_from(get_args(Kind)),
)
@unhurried
def test_what_is_written_is_read(
    values: npt.NDArray[np.int32], means: npt.NDArray[np.int32], bin_indices: npt.NDArray[np.int32], kind: Kind
) -> None:
    """Any symbols around any means, in two steps and two frames; and both sides learn the same."""
    where = place(kind, 2, 3)
    channels = len(where.channels)
    values, means, bin_indices = values[..., :channels], means[..., :channels], bin_indices[..., :channels]
    mean, bins = torch.from_numpy(means).float(), torch.from_numpy(bin_indices).float()
    value = torch.from_numpy(values).float() + mean / LATENT_UNIT
    sent, got = FRESH, FRESH
    for last in (None, torch.from_numpy(values).float().mT.reshape(1, channels, 2, 3)):
        out = PacketCoder(writer(10**6), sent)
        parts = [half._replace(last=last) for half in halves(where)]
        written = [
            out.latent(value[:, part.squares], mean[:, part.squares], bins[:, part.squares], part) for part in parts
        ]
        back = PacketCoder(reader(out.finish()), got)
        read = [back.latent(None, mean[:, part.squares], bins[:, part.squares], part) for part in parts]
        assert all(torch.equal(a, b) for a, b in zip(written, read, strict=True))
        assert out.checksum == back.checksum
        sent, got = out.mixers, back.mixers
        assert np.array_equal(sent[kind].contexts, got[kind].contexts)
        assert np.array_equal(sent[kind].weights, got[kind].weights)
        if kind.endswith("hyper"):  # these are rounded to nearest
            assert torch.equal(torch.cat(read, dim=1), torch.cat([value[:, part.squares] for part in parts], 1) * 16)


def test_coding_leaves_what_it_started_from() -> None:
    """A frame can be coded again from the same state."""
    before = {kind: mixer.copy() for kind, mixer in FRESH.items()}
    coder = writing()
    coder.latent(torch.randn(1, 6, 96) * 9, torch.zeros(1, 6, 96), torch.full((1, 6, 96), 30.0), place("inter", 2, 3))
    for kind, mixer in before.items():
        assert np.array_equal(mixer.contexts, FRESH[kind].contexts)
        assert np.array_equal(mixer.weights, FRESH[kind].weights)
    assert not np.array_equal(coder.mixers["inter"].contexts, FRESH["inter"].contexts)


def test_symbols_beyond_the_limit_are_clamped_and_still_decode() -> None:
    where = place("inter", 1, 1)._replace(channels=torch.tensor([3, 4]))
    mean, bins = torch.zeros(1, 1, 2), torch.full((1, 1, 2), 30.0)
    coder = writing()
    written = coder.latent(torch.tensor([[[1e9, -1e9]]]), mean, bins, where)
    read = PacketCoder(reader(coder.finish()), FRESH).latent(None, mean, bins, where)
    assert torch.equal(written, read) and read.abs().max() == SYMBOL_LIMIT * LATENT_UNIT


def test_latents_of_the_skipped_bin_cost_nothing() -> None:
    mean, bins = torch.full((1, 12, 96), 5.0), torch.full((1, 12, 96), float(SKIP_BIN))
    coder = writing()
    latent = coder.latent(torch.randn(1, 12, 96), mean, bins, place("intra", 3, 4))
    assert torch.equal(latent, mean) and sum(coder.bits.values()) == 0
    assert not coder.finish().strip(b"\0")


def test_hyper_latents_are_coded_in_every_bin() -> None:
    """However silent a band is expected to be, the encoder can say that it is not."""
    where = place("inter hyper", 1, 1)._replace(channels=torch.arange(3))
    value, mean = torch.tensor([[[0.0, 1.0, -40.0]]]), torch.tensor([[[16.0, 0.0, -32.0]]])
    bins = torch.full_like(mean, SKIP_BIN)
    coder = writing()
    written = coder.latent(value, mean, bins, where)
    assert torch.equal(written, value * LATENT_UNIT) and coder.bits["texture hyper"] > 20
    assert torch.equal(PacketCoder(reader(coder.finish()), FRESH).latent(None, mean, bins, where), written)


def _laplace_latents(seed: int, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    bins = rng.integers(least, BINS, (1, 48 * 64, 96))
    value = rng.laplace(0, bin_scales().double().numpy()[bins])
    return torch.from_numpy(value).float(), torch.from_numpy(bins).float()


def test_the_coder_costs_what_the_estimate_says_where_there_is_nothing_to_learn() -> None:
    """And its bytes hold what it says that it coded."""
    value, bins = _laplace_latents(0, SKIP_BIN + 1)
    mean, where = torch.zeros_like(value), place("inter", 48, 64)
    coder, estimator = writing(), Estimator()
    coder.latent(value, mean, bins, where)
    estimator.latent(value, mean, bins, where)
    content = coder.bits["texture"]
    assert content == pytest.approx(float(estimator.bits["texture"].sum()), rel=0.02)
    assert 8 * len(coder.finish()) == pytest.approx(content, rel=0.001)


def test_what_a_prior_does_not_know_the_contexts_learn() -> None:
    """Blocks that are loud or silent, behind the same bins: the prior cannot tell them apart, a block's first symbols
    can."""
    rng = np.random.default_rng(1)
    loud = rng.random((1, 48 * 64, 1)) < 0.2
    value = torch.from_numpy(rng.laplace(0, 1, (1, 48 * 64, 96)) * loud).float()
    mean, bins, where = torch.zeros_like(value), torch.full_like(value, 15.0), place("inter", 48, 64)
    coder, estimator = writing(), Estimator()
    coder.latent(value, mean, bins, where)
    estimator.latent(value, mean, bins, where)
    assert coder.bits["texture"] < 0.8 * float(estimator.bits["texture"].sum())


def test_the_estimate_has_a_gradient_for_values() -> None:
    where = place("inter", 1, 1)._replace(channels=torch.arange(2))
    value = torch.tensor([[[3.2, -0.1]]], requires_grad=True)
    estimator = Estimator()
    estimator.latent(value, torch.zeros(1, 1, 2), torch.full((1, 1, 2), 20.0), where)
    estimator.bits["texture"].sum().backward()
    assert value.grad is not None and value.grad[0, 0, 0] > 0  # a smaller magnitude would be cheaper


def test_training_passes_on_what_rounding_keeps() -> None:
    """A coded latent moves with its value; one that was rounded away hardly does, but moves with its mean."""
    where = place("inter", 1, 1)._replace(channels=torch.arange(2))
    value = torch.tensor([[[3.2, 0.05]]], requires_grad=True)
    mean = torch.tensor([[[16.0, 0.0]]], requires_grad=True)
    latent = Estimator().latent(value, mean, torch.full((1, 1, 2), 20.0), where)
    assert latent.tolist() == [[[48.0, 0.0]]]
    latent.sum().backward()
    assert value.grad is not None and mean.grad is not None
    assert value.grad[0, 0, 0] == LATENT_UNIT and 0 < value.grad[0, 0, 1] < 0.01 * LATENT_UNIT
    assert mean.grad[0, 0, 1] > 0.98


@pytest.mark.parametrize("quality", [20.0, 45.0, 63.0])
def test_information_content_is_within_a_percent_of_the_payload(codec: NeuralCodec, quality: float) -> None:
    stream = encode_stream(codec, moving_frames(320, 192, 3), [quality] * 3)
    large = [frame for frame in stream.coded if len(frame.payload) > 2000]
    assert large
    for frame in large:
        bits = 8 * len(frame.payload)
        assert abs(bits - sum(frame.parts.values())) < 0.01 * bits + HEADER_BITS + FLUSH_BITS


@pytest.mark.parametrize("quality", [10.0, 35.0, 60.0])
def test_parts_name_where_the_bits_go(codec: NeuralCodec, quality: float) -> None:
    intra, inter = encode_stream(codec, moving_frames(96, 80, 2), [quality] * 2).coded
    texture = {"texture", "texture hyper"}
    assert set(intra.parts) == texture and set(inter.parts) == texture | {"motion"}
    assert all(bits >= 0 for frame in (intra, inter) for bits in frame.parts.values())


def test_training_estimates_what_the_codec_writes(codec: NeuralCodec) -> None:
    """The loss's rate of an intra frame against the packet, whose contexts learn what the networks do not know: in this
    regular picture a good part."""
    (frame,) = moving_frames(192, 128, 1)
    estimator = Estimator()
    with torch.inference_mode():
        planes = from_frame(frame, torch.device("cpu"))
        codec.model.intra_frame(estimator, torch.tensor([50.0]), planes, (128, 192))
    estimate = float(sum(bits.sum() for bits in estimator.bits.values()))
    bits = 8 * len(codec.encode(frame, 50.0, None).payload) - HEADER_BITS
    assert 0.7 * estimate < bits < 1.02 * estimate
