"""Latents to bits and back: tables, escapes, the three coders side by side, and what their bit counts are worth."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rqlvc.codec.entropy import (
    BINS,
    ESCAPE_LIMIT,
    LOG_STEP,
    SCALE_MIN,
    SKIP_BIN,
    SYMBOL_LIMIT,
    TABLE_TOTAL,
    Counts,
    Estimator,
    Reader,
    Tables,
    Writer,
    build_tables,
    support,
)
from rqlvc.codec.integer import LATENT_UNIT
from rqlvc.codec.neural import NeuralCodec
from rqlvc.codec.planes import from_frame
from rqlvc.errors import RqlvcError
from small_streams import encode_stream, moving_frames, neural_codec

LAPLACE = Tables(build_tables())
HEADER_BITS = 11 * 8
FLUSH_BITS = 64
"""What the range coder may add at the end: the words of its state."""


@pytest.fixture(scope="module")
def codec() -> NeuralCodec:
    return neural_codec()


def halves(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The even columns of all, then the odd ones: what is coded at once need not be all."""
    for start in range(2):
        yield tuple(tensor[..., start::2] for tensor in tensors)


def check_tables(tables: np.ndarray) -> None:
    assert tables.shape == (BINS, 2 * SYMBOL_LIMIT + 2)
    assert (tables.sum(1) == TABLE_TOTAL).all()
    for index, row in enumerate(tables):
        limit = support(index)
        inside = row[SYMBOL_LIMIT - limit : SYMBOL_LIMIT + limit + 1]
        assert inside.min() >= 1 and row[-1] >= 1
        assert inside.sum() + row[-1] == TABLE_TOTAL  # so nothing outside the support


def test_laplace_tables_are_sound() -> None:
    tables = build_tables()
    check_tables(tables)
    zeros = tables[:, SYMBOL_LIMIT]
    assert (np.diff(zeros) < 0).all()  # wider bins put less on zero


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 1000, 10**9]))
@settings(max_examples=20, deadline=None)
def test_measured_tables_are_sound(seed: int, largest: int) -> None:
    histogram = np.random.default_rng(seed).integers(0, largest + 1, (BINS, SYMBOL_LIMIT + 1))
    tables = build_tables(histogram)
    check_tables(tables)
    Tables(tables)


def test_measured_tables_follow_what_was_measured() -> None:
    """Bin 40 holding nothing but +-3 makes +-3 cheap there and leaves the other bins alone."""
    histogram = np.zeros((BINS, SYMBOL_LIMIT + 1), np.int64)
    histogram[40, 3] = 10**6
    tables, plain = build_tables(histogram), build_tables()
    assert tables[40, SYMBOL_LIMIT + 3] + tables[40, SYMBOL_LIMIT - 3] > 0.9 * TABLE_TOTAL
    assert np.array_equal(np.delete(tables, 40, 0), np.delete(plain, 40, 0))


@pytest.mark.parametrize("damage", ["zero", "sum"])
def test_broken_tables_are_refused(damage: str) -> None:
    tables = build_tables()
    tables[20, SYMBOL_LIMIT] += 1
    if damage == "zero":
        tables[20, SYMBOL_LIMIT + 1] = 0
    with pytest.raises(RqlvcError, match="weights file"):
        Tables(tables)


symbols = st.one_of(st.integers(-3, 3), st.integers(-300, 300), st.integers(-ESCAPE_LIMIT, ESCAPE_LIMIT))
shape = (1, 3, 4, 5)


@given(
    arrays.arrays(np.int32, shape, elements=symbols),
    arrays.arrays(np.int32, shape, elements=st.integers(-(2**14), 2**14)),
    arrays.arrays(np.int32, shape, elements=st.integers(0, BINS - 1)),
)
def test_what_is_written_is_read(values: np.ndarray, means: np.ndarray, bin_indices: np.ndarray) -> None:
    """Any symbols, escapes too, around any means, in two steps."""
    mean, bins = torch.from_numpy(means).float(), torch.from_numpy(bin_indices).float()
    value = torch.from_numpy(values).float() + mean / LATENT_UNIT
    writer = Writer(LAPLACE)
    written = [writer.latent(*half) for half in halves(value, mean, bins)]
    reader = Reader(LAPLACE, writer.finish())
    read = [reader.latent(None, *half) for half in halves(mean, bins)]
    assert all(torch.equal(a, b) for a, b in zip(written, read, strict=True))
    assert writer.checksum == reader.checksum
    expected = torch.from_numpy(np.where(bin_indices > SKIP_BIN, values, 0) * LATENT_UNIT + means).float()
    assert all(torch.equal(a, b) for a, (b,) in zip(read, halves(expected), strict=True))


def test_symbols_beyond_the_escape_are_clamped_and_still_decode() -> None:
    mean, bins = torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1, 2), 30.0)
    writer = Writer(LAPLACE)
    written = writer.latent(torch.tensor([[[[1e9, -1e9]]]]), mean, bins)
    read = Reader(LAPLACE, writer.finish()).latent(None, mean, bins)
    assert torch.equal(written, read) and read.abs().max() == ESCAPE_LIMIT * LATENT_UNIT


def test_latents_of_the_skipped_bin_cost_nothing() -> None:
    mean, bins = torch.full((1, 4, 8, 8), 5.0), torch.full((1, 4, 8, 8), float(SKIP_BIN))
    writer = Writer(LAPLACE)
    latent = writer.latent(torch.randn(1, 4, 8, 8), mean, bins)
    assert torch.equal(latent, mean) and sum(writer.bits.values()) == 0
    assert not writer.finish().strip(b"\0")


def test_hyper_latents_are_coded_in_every_bin() -> None:
    """However silent a band is expected to be, the encoder can say that it is not."""
    value, mean = torch.tensor([[0.0, 1.0, -40.0]]), torch.tensor([[16.0, 0.0, -32.0]])
    bins = torch.full_like(mean, SKIP_BIN)
    writer = Writer(LAPLACE)
    writer.part = part = "texture hyper"
    written = writer.latent(value, mean, bins)
    assert torch.equal(written, value * LATENT_UNIT) and writer.bits[part] > 20
    reader = Reader(LAPLACE, writer.finish())
    reader.part = part
    assert torch.equal(reader.latent(None, mean, bins), written)


def _laplace_latents(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    bins = rng.integers(1, BINS, (1, 16, 64, 64))
    value = rng.laplace(0, SCALE_MIN * np.exp(bins * LOG_STEP))
    return torch.from_numpy(value).float(), torch.from_numpy(bins).float()


def test_the_estimate_agrees_with_the_writer_and_the_writer_with_its_bytes() -> None:
    value, bins = _laplace_latents(0)
    mean = torch.zeros_like(value)
    writer, estimator = Writer(LAPLACE), Estimator()
    written = writer.latent(value, mean, bins)
    estimated = estimator.latent(value, mean, bins)
    assert torch.equal(written, estimated)
    content = writer.bits["total"]
    assert float(estimator.bits["total"].sum()) == pytest.approx(content, rel=0.01)
    assert 8 * len(writer.finish()) == pytest.approx(content, rel=0.001)


def test_the_estimator_counts_symbols_by_bin() -> None:
    value, bins = _laplace_latents(1)
    counts = Counts(torch.zeros(BINS, SYMBOL_LIMIT + 1, dtype=torch.int64), np.zeros((0, 2), np.int64))
    estimator = Estimator(counts)
    latents = [estimator.latent(*half) for half in halves(value, torch.zeros_like(value), bins)]
    assert counts.symbols.sum() == value.numel()
    magnitudes = (torch.cat(latents, dim=-1).abs() / LATENT_UNIT).clamp(max=SYMBOL_LIMIT).long()
    places = torch.cat([half for (half,) in halves(bins)], dim=-1)
    for index in (1, 30, 63):
        expected = torch.bincount(magnitudes[places == index], minlength=SYMBOL_LIMIT + 1)
        assert torch.equal(counts.symbols[index], expected)


def test_the_estimate_has_a_gradient_for_values() -> None:
    value = torch.tensor([[[[3.2, -0.1]]]], requires_grad=True)
    estimator = Estimator()
    bins = torch.full((1, 1, 1, 2), 20.0)
    estimator.latent(value, torch.zeros(1, 1, 1, 2), bins)
    estimator.bits["total"].sum().backward()
    assert value.grad is not None and value.grad[0, 0, 0, 0] > 0  # a smaller magnitude would be cheaper


def test_training_passes_on_what_rounding_keeps() -> None:
    """A coded latent moves with its value; one that was rounded away hardly does, but moves with its mean."""
    value = torch.tensor([[3.2, 0.05]], requires_grad=True)
    mean = torch.tensor([[16.0, 0.0]], requires_grad=True)
    latent = Estimator().latent(value, mean, torch.full((1, 2), 20.0))
    assert latent.tolist() == [[48.0, 0.0]]
    latent.sum().backward()
    assert value.grad is not None and mean.grad is not None
    assert value.grad[0, 0] == LATENT_UNIT and 0 < value.grad[0, 1] < 0.01 * LATENT_UNIT
    assert mean.grad[0, 1] > 0.98


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
    """The loss's rate of an intra frame, by the same networks, against the packet (which skips the smallest bin)."""
    (frame,) = moving_frames(192, 128, 1)
    estimator = Estimator()
    with torch.inference_mode():
        planes = from_frame(frame, torch.device("cpu"))
        codec.model.intra_frame(estimator, torch.tensor([50.0]), planes, (128, 192))
    estimate = float(sum(bits.sum() for bits in estimator.bits.values()))
    payload = codec.encode(frame, 50.0, None).payload
    assert estimate == pytest.approx(8 * len(payload) - HEADER_BITS, rel=0.1)
