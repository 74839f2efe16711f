"""The integer networks compute what Python's integers compute, and their accumulators stay within the bounds."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rqlvc.codec.entropy import build_tables
from rqlvc.codec.exactness import accumulator_bounds, check_exactness
from rqlvc.codec.integer import (
    ACTIVATION_LIMIT,
    COMPANDED_LIMIT,
    EXACT_LIMIT,
    WEIGHT_LIMIT,
    IntegerConv,
    compand,
    companding_table,
    linear_input,
    rectify,
    requantise,
    round_half_up,
)
from rqlvc.codec.model import ModelConfig, VideoModel
from rqlvc.codec.prior import SHIFT, checkerboard
from rqlvc.codec.protocol import QUALITY_MAX, QUALITY_STEPS
from rqlvc.codec.quality import ANCHOR_SPACING, ANCHORS, IntegerQualityTable
from rqlvc.codec.weights import read_weights, write_weights
from rqlvc.errors import RqlvcError
from small_streams import CHANGING, encode_stream, moving_frames, neural_codec, untrained, weights_path

accumulators = st.lists(st.integers(1 - EXACT_LIMIT, EXACT_LIMIT - 1), min_size=1, max_size=64)


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return read_weights(weights_path()).model


@given(accumulators, st.integers(1, 12))
def test_requantising_is_the_shift_of_python_integers(values: list[int], shift: int) -> None:
    expected = [(value + 2 ** (shift - 1)) >> shift for value in values]
    accumulator = torch.tensor(values, dtype=torch.float32)
    assert requantise(accumulator, shift).tolist() == expected
    assert rectify(accumulator, shift).tolist() == [min(max(value, 0), ACTIVATION_LIMIT) for value in expected]


@given(accumulators)
def test_float32_and_float64_requantise_alike(values: list[int]) -> None:
    single = requantise(torch.tensor(values, dtype=torch.float32), SHIFT)
    double = requantise(torch.tensor(values, dtype=torch.float64), SHIFT)
    assert single.tolist() == double.tolist()


def test_rounding_lets_the_gradient_through() -> None:
    value = torch.tensor([-1.5, -0.2, 0.5, 2.49], requires_grad=True)
    rounded = round_half_up(value)
    rounded.sum().backward()
    assert rounded.tolist() == [-1.0, 0.0, 1.0, 2.0]
    assert value.grad is not None and value.grad.tolist() == [1.0] * 4


def test_companding_table_holds_growing_integers_up_to_the_limit() -> None:
    table = companding_table()
    assert torch.equal(table, table.round())
    assert table[0] == 0 and table[-1] <= COMPANDED_LIMIT
    assert (table.diff() >= 0).all() and table[16] > table[0]
    # No entry lies so near a rounding boundary that another machine's logarithm could move it.
    exact = 20 * np.log2(1 + np.arange(len(table)) / 16)
    assert np.abs(exact % 1 - 0.5).min() > 1e-9


@given(st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=64))
def test_network_inputs_are_odd_bounded_integers(values: list[int]) -> None:
    latent = torch.tensor(values, dtype=torch.float32)
    table = companding_table()
    companded = compand(latent, table)
    assert torch.equal(companded, -compand(-latent, table))
    for seen in (companded, linear_input(latent)):
        assert torch.equal(seen, seen.round()) and seen.abs().max() <= COMPANDED_LIMIT


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.booleans())
def test_integer_convolution_is_exact(seed: int, kernel: int, signed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    conv = IntegerConv(12, 8, kernel)
    with torch.no_grad():
        conv.weight.normal_(0, 0.5, generator=generator)  # many weights beyond what 8 bits hold
        conv.bias.normal_(0, 5, generator=generator)
    conv.eval()
    low = -COMPANDED_LIMIT if signed else 0
    x = torch.randint(low, ACTIVATION_LIMIT + 1, (1, 12, 6, 7), generator=generator).float()
    weight, bias = conv.integer_weight().detach(), conv.integer_bias().detach()
    assert weight.abs().max() <= WEIGHT_LIMIT and torch.equal(weight, weight.round())
    padded = np.pad(x.numpy().astype(np.int64), ((0, 0), (0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
    expected = np.einsum("nchwij,ocij->nohw", windows, weight.numpy().astype(np.int64))
    expected += bias.numpy().astype(np.int64)[None, :, None, None]
    result = conv(x).detach()
    assert np.array_equal(result.numpy(), expected)
    assert torch.equal(conv.train()(x).detach(), result)  # training sees the same integers
    assert np.abs(expected).max() <= conv.largest_accumulator(ACTIVATION_LIMIT)


def _python_interpolation(entries: list[int], step: int) -> int:
    span = ANCHOR_SPACING * QUALITY_STEPS
    index = min(step // span, ANCHORS - 2)
    fraction = step - index * span
    blend = entries[index] * (span - fraction) + entries[index + 1] * fraction
    return (2 * blend + span) // (2 * span)


def test_integer_quality_table_is_exact_at_every_quality() -> None:
    limit = IntegerQualityTable.LIMIT
    initial = torch.randint(-limit, limit + 1, (ANCHORS, 6), generator=torch.Generator().manual_seed(3)).float()
    initial[:, 0], initial[:, 1] = limit, -limit  # the ends of the range
    initial[::2, 2], initial[1::2, 2] = limit, -limit
    table = IntegerQualityTable(initial)
    steps = range(int(QUALITY_MAX) * QUALITY_STEPS + 1)
    values = table(torch.tensor(steps) / QUALITY_STEPS)[:, :, 0, 0].detach().numpy()
    columns = initial.int().T.tolist()
    expected = [[_python_interpolation(column, step) for column in columns] for step in steps]
    assert len(expected) == 4033 and np.array_equal(values, expected)
    assert np.array_equal(table.double()(torch.tensor(steps) / QUALITY_STEPS)[:, :, 0, 0].detach().numpy(), expected)


@pytest.mark.parametrize("channels", [1, 16, 24, 96])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 3)])
def test_checkerboard_covers_each_latent_once(channels: int, size: tuple[int, int]) -> None:
    like = torch.zeros(2, channels, *size)
    first = checkerboard(like).expand_as(like)
    assert set(first.unique().tolist()) <= {0.0, 1.0}
    rest = 1 - first
    assert torch.equal(first + rest, torch.ones_like(like)) and not (first * rest).any()
    if channels > 1:
        assert torch.equal(first.sum(1), torch.full_like(first.sum(1), channels / 2))  # half of each position first


def test_accumulators_of_the_model_are_exact(model: VideoModel) -> None:
    check_exactness(model)
    assert max(accumulator_bounds(model).values()) < EXACT_LIMIT


def test_every_integer_network_has_a_bound(model: VideoModel) -> None:
    covered = {name.split(" ")[0] for name in accumulator_bounds(model)}
    for name, module in model.named_modules():
        if isinstance(module, IntegerConv):
            # Convolutions that feed a sum are bounded with it.
            parent, _, leaf = name.rpartition(".")
            summed = {"past": "known", "context": "known", "motion_side": "inter.prior.known"}.get(leaf, leaf)
            assert {name, f"{parent}.{summed}", summed} & covered, name


def test_worst_inputs_stay_within_the_bound_of_each_convolution(model: VideoModel) -> None:
    for name, module in model.named_modules():
        if not isinstance(module, IntegerConv):
            continue
        weight, bias = module.integer_weight().detach(), module.integer_bias().detach()
        worst = int((weight.abs().sum((1, 2, 3)) + bias.abs() / COMPANDED_LIMIT).argmax())
        sign = torch.sign(weight[worst]) * (1 if bias[worst] >= 0 else -1)
        reached = module(sign[None] * COMPANDED_LIMIT).abs().max()
        bound = module.largest_accumulator(COMPANDED_LIMIT)
        assert reached == bound, name  # never past it, and the bound is no looser than it has to be


@pytest.mark.parametrize("part", ["intra", "motion", "inter"])
def test_priors_stay_within_their_bounds(model: VideoModel, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents and side information at their limits, at random: every number that is requantised is watched."""
    seen: list[float] = []

    def watched(accumulator: torch.Tensor, shift: int) -> torch.Tensor:
        seen.append(float(accumulator.abs().max()))
        assert torch.equal(accumulator, accumulator.round())
        return requantise(accumulator, shift)

    monkeypatch.setattr("rqlvc.codec.prior.requantise", watched)
    monkeypatch.setattr("rqlvc.codec.integer.requantise", watched)

    class Extremes:
        """Decodes latents at the limits."""

        part = ""

        def latent(
            self, value: torch.Tensor | None, mean: torch.Tensor, bins: torch.Tensor, where: torch.Tensor
        ) -> torch.Tensor:
            assert mean.abs().max() <= 2**14 and bins.min() >= 0 and bins.max() <= 63
            assert torch.equal(bins, bins.round()) and torch.equal(mean, mean.round())
            return (torch.randint(0, 2, mean.shape) * 2 - 1) * 2.0**19 * where

    torch.manual_seed(1)
    codec = getattr(model, part)
    bounds = {name: bound for name, bound in accumulator_bounds(model).items() if name.startswith(f"{part}.")}
    channels, width = (16, 32) if part == "motion" else (96, 64)
    for level in (0.0, 63.0):
        quality = torch.tensor([level])
        side = torch.zeros(1, width, 8, 8)
        if part != "motion":
            hyper = (torch.randint(0, 2, (1, 24, 2, 2)) * 2 - 1) * 2.0**19
            codec.hyper_prior(hyper, quality)
            side = codec.hyper_synthesis(hyper, 8, 8)
        past = (torch.randint(0, 2, (1, channels, 8, 8)) * 2 - 1) * 2.0**19
        codec.prior(Extremes(), None, side, quality, past, quality)
    assert 0 < max(seen) <= max(bounds.values())


def test_inputs_of_integer_networks_are_integers_on_real_frames() -> None:
    codec = neural_codec()
    largest: dict[nn.Module, float] = {}

    def watch(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        (x,) = inputs
        assert torch.equal(x, x.round())
        largest[module] = max(largest.get(module, 0.0), float(x.abs().max()))

    layers = [module for module in codec.model.modules() if isinstance(module, IntegerConv)]
    for layer in layers:
        layer.register_forward_pre_hook(watch)
    encode_stream(codec, moving_frames(64, 48, 4), CHANGING[:4])
    assert len(largest) == len(layers)
    assert max(largest.values()) <= ACTIVATION_LIMIT


@pytest.mark.parametrize("name", ["intra.prior.second", "motion.prior.first", "inter.hyper_synthesis.up"])
def test_a_model_that_may_overflow_is_refused(name: str, tmp_path: Path) -> None:
    model = untrained()
    with torch.no_grad():
        model.get_submodule(name).bias.fill_(EXACT_LIMIT / 2**SHIFT / IntegerConv.BIAS_UNIT)
    path = tmp_path / "overflow.safetensors"
    with pytest.raises(RqlvcError, match=name.replace(".", r"\.")):
        write_weights(path, model, build_tables())
    assert not path.exists()


def test_blown_up_weights_are_refused() -> None:
    model = untrained()
    with torch.no_grad():
        model.inter.prior.first.weight.fill_(math.inf)
    with pytest.raises(RqlvcError, match="2\\^24"):
        check_exactness(model)


@pytest.mark.parametrize("switched_off", ["mask", "motion_prediction", "temporal_prior"])
def test_weights_of_each_configuration_come_back(switched_off: str, tmp_path: Path) -> None:
    model = untrained(ModelConfig(**{switched_off: False}))
    path = tmp_path / "weights.safetensors"
    identity = write_weights(path, model, build_tables())
    weights = read_weights(path)
    assert weights.identity == identity and weights.model.config == model.config
    for layer, read in zip(model.modules(), weights.model.modules(), strict=True):
        if isinstance(layer, IntegerConv):
            assert isinstance(read, IntegerConv) and torch.equal(layer.integer_weight(), read.integer_weight())
