"""The integer networks compute what Python's integers compute, and their accumulators stay within the bounds."""

import copy
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

from rqlvc.codec.coefficients import SYMBOL_LIMIT
from rqlvc.codec.entropy import Kind, Place
from rqlvc.codec.exactness import accumulator_bounds, check_exactness
from rqlvc.codec.integer import (
    ACTIVATION_LIMIT,
    COMPANDED_LIMIT,
    EXACT_LIMIT,
    LATENT_UNIT,
    WEIGHT_LIMIT,
    IntegerConv,
    compand,
    companding_table,
    linear_input,
    rectify,
    requantise,
    round_half_up,
)
from rqlvc.codec.laplace import BINS
from rqlvc.codec.model import ModelConfig, VideoModel
from rqlvc.codec.motion import LATENTS
from rqlvc.codec.prior import ACROSS, BESIDE, SHIFT, Latents, NeighbourMean
from rqlvc.codec.protocol import QUALITY_MAX, QUALITY_STEPS
from rqlvc.codec.quality import ANCHOR_SPACING, ANCHORS, IntegerQualityTable
from rqlvc.codec.weights import read_weights, write_weights
from rqlvc.errors import RqlvcError
from small_streams import CHANGING, encode_stream, moving_frames, neural_codec, new_mixers, untrained, weights_path

accumulators = st.lists(st.integers(1 - EXACT_LIMIT, EXACT_LIMIT - 1), min_size=1, max_size=64)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """The first call compiles, which takes longer than an example of a property may."""
    compand(torch.zeros(1, 1), companding_table())


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
    middle = len(table) // 2
    assert torch.equal(table, table.round()) and torch.equal(table, -table.flip(0))
    assert table[middle] == 0 and table[-1] <= COMPANDED_LIMIT
    assert (table.diff() >= 0).all() and table[middle + 16] > 0
    # No entry lies so near a rounding boundary that another machine's logarithm could move it.
    exact = 20 * np.log2(1 + np.arange(middle + 1) / 16)
    assert np.abs(exact % 1 - 0.5).min() > 1e-9


@given(st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=64))
def test_network_inputs_are_odd_bounded_integers(values: list[int]) -> None:
    latent = torch.tensor([values], dtype=torch.float32)
    table = companding_table()
    companded = compand(latent, table)
    assert torch.equal(companded, -compand(-latent, table))
    for seen in (companded, linear_input(latent)):
        assert torch.equal(seen, seen.round()) and seen.abs().max() <= COMPANDED_LIMIT


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.booleans())
def test_integer_convolution_is_exact(seed: int, kernel: int, signed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    conv = IntegerConv(12, 8, kernel, signed=signed)
    with torch.no_grad():
        conv.weight.normal_(0, 0.5, generator=generator)  # many weights beyond what 8 bits hold
        conv.bias.normal_(0, 5, generator=generator)
    conv.eval()
    low, high = (-COMPANDED_LIMIT, COMPANDED_LIMIT) if signed else (0, ACTIVATION_LIMIT)
    x = torch.randint(low, high + 1, (1, 12, 6, 7), generator=generator).float()
    weight, bias = conv.integer_weight().detach(), conv.integer_bias().detach()
    assert weight.abs().max() <= WEIGHT_LIMIT and torch.equal(weight, weight.round())
    padded = np.pad(x.numpy().astype(np.int64), ((0, 0), (0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
    expected = np.einsum("nchwij,ocij->nohw", windows, weight.numpy().astype(np.int64))
    expected += bias.numpy().astype(np.int64)[None, :, None, None]
    result = conv(x).detach()
    assert np.array_equal(result.numpy(), expected)
    assert torch.equal(conv.double()(x.double()).float(), result)  # so does what has no 8-bit kernels
    assert torch.equal(conv.float().train()(x).detach(), result)  # training sees the same integers
    assert np.abs(expected).max() <= conv.largest_accumulator(ACTIVATION_LIMIT)


def test_a_copy_of_a_model_in_use_gives_the_same_integers() -> None:
    conv = IntegerConv(4, 8, 3).eval()
    x = torch.randint(0, ACTIVATION_LIMIT + 1, (1, 4, 6, 7), generator=torch.Generator().manual_seed(3)).float()
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(other(x), conv(x)) and torch.equal(other.eval()(x), conv(x))


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


class Probe:
    """Decodes latents at the limits, at random."""

    def latent(self, value: Tensor | None, mean: Tensor, bins: Tensor, place: Place) -> Tensor:
        assert torch.equal(mean, mean.round()) and torch.equal(bins, bins.round())
        assert bins.min() >= 0 and bins.max() < BINS and mean.shape[1:] == (len(place.squares), len(place.channels))
        return extremes(mean.shape)


class Counter(Probe):
    """Gives the latents of each part the numbers 1, 2, 3 and so on, in the order in which they are coded."""

    def __init__(self) -> None:
        self.count: dict[Kind, int] = {}
        self.values: dict[Kind, list[Tensor]] = {}

    def latent(self, value: Tensor | None, mean: Tensor, bins: Tensor, place: Place) -> Tensor:
        super().latent(value, mean, bins, place)
        first = self.count.get(place.kind, 0) + 1
        self.count[place.kind] = first + mean.numel() - 1
        if value is not None:
            self.values.setdefault(place.kind, []).append(value.flatten())
        return torch.arange(first, first + mean.numel(), dtype=mean.dtype).reshape(mean.shape)


def extremes(shape: tuple[int, ...]) -> Tensor:
    """Latents as large as symbols get, of random sign."""
    return (torch.randint(0, 2, shape) * 2.0 - 1) * SYMBOL_LIMIT * LATENT_UNIT


def walk(
    model: VideoModel,
    part: str,
    coder: Probe,
    size: tuple[int, int],
    level: float,
    *,
    temporal: bool,
    latent: Tensor | None = None,
) -> Latents:
    """One walk of ``coder`` through all priors of ``part`` with everything else at its limits."""
    codec = getattr(model, part).latents
    quality = torch.tensor([level])
    channels, width = codec.prior.offset.table.shape[1], codec.prior.level.table.shape[1]
    hyper = codec.hyper_prior.level.table.shape[1]
    coarse = tuple(-(-side // 4) for side in size)
    past = Latents(extremes((1, channels, *size)), extremes((1, hyper, *coarse))) if temporal else None
    side = torch.zeros(1, width, *size)
    if part == "inter":
        side = model.motion_side(compand(extremes((1, LATENTS, *size)), model.companding))
    result: Latents = codec(coder, latent, size, quality, side, past, quality if temporal else None)
    return result


@pytest.mark.parametrize("part", ["intra", "inter"])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (8, 8), (7, 3)])
def test_the_steps_of_the_context_model_cover_each_latent_once(
    model: VideoModel, part: str, size: tuple[int, int]
) -> None:
    """Each is decoded once, and the encoder takes them in the order and from the places in which they are decoded."""
    decoder, encoder = Counter(), Counter()
    with torch.inference_mode():
        decoded = walk(model, part, decoder, size, 30.0, temporal=False)
        again = walk(model, part, encoder, size, 30.0, temporal=False, latent=decoded.latent)
    assert len(decoder.count) == 2 and encoder.count == decoder.count
    for latents in decoded:
        assert torch.equal(latents.flatten().sort().values, torch.arange(1.0, latents.numel() + 1))
    assert all(torch.equal(a, b) for a, b in zip(decoded, again, strict=True))
    (name,) = (name for name in encoder.values if not name.endswith("hyper"))
    assert torch.equal(torch.cat(encoder.values[name]), torch.arange(1.0, decoded.latent.numel() + 1))


def test_accumulators_of_the_model_are_exact(model: VideoModel) -> None:
    check_exactness(model)
    assert max(accumulator_bounds(model).values()) < EXACT_LIMIT


def test_every_integer_network_has_a_bound() -> None:
    """Whichever of them grows, some bound grows with it."""
    model = untrained()
    before = accumulator_bounds(model)
    for name, module in model.named_modules():
        if isinstance(module, IntegerConv):
            with torch.no_grad():
                module.bias.add_(1000)
            after = accumulator_bounds(model)
            assert any(after[bound] > before[bound] for bound in before), name
            with torch.no_grad():
                module.bias.sub_(1000)


def test_worst_inputs_stay_within_the_bound_of_each_convolution(model: VideoModel) -> None:
    for name, module in model.named_modules():
        if not isinstance(module, IntegerConv) or isinstance(module, NeighbourMean):
            continue
        weight, bias = module.integer_weight().detach(), module.integer_bias().detach()
        worst = int((weight.abs().sum((1, 2, 3)) + bias.abs() / COMPANDED_LIMIT).argmax())
        sign = torch.sign(weight[worst]) * (1 if bias[worst] >= 0 else -1)
        x = sign[None] * COMPANDED_LIMIT  # also where rectified inputs, which have no sign, would reach less
        reached = F.conv2d(x, weight, bias, padding=module.padding).abs().max()
        bound = module.largest_accumulator(COMPANDED_LIMIT)
        assert reached == bound, name  # never past it, and the bound is no looser than it has to be


@pytest.mark.parametrize("part", ["intra", "inter"])
def test_priors_stay_within_their_bounds(model: VideoModel, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents at their limits: every number that is requantised is watched."""
    seen: list[float] = []

    def watched(accumulator: Tensor, shift: int) -> Tensor:
        seen.append(float(accumulator.abs().max()))
        assert torch.equal(accumulator, accumulator.round())
        return requantise(accumulator, shift)

    monkeypatch.setattr("rqlvc.codec.prior.requantise", watched)
    monkeypatch.setattr("rqlvc.codec.integer.requantise", watched)
    torch.manual_seed(1)
    bounds = [bound for name, bound in accumulator_bounds(model).items() if name.startswith(f"{part}.")]
    with torch.inference_mode():
        for level in (0.0, 29.3, 63.0):
            for temporal in (False, True):
                walk(model, part, Probe(), (8, 8), level, temporal=temporal)
    assert 0 < max(seen) <= max(bounds)


def test_inputs_of_integer_networks_are_integers_on_real_frames() -> None:
    codec = neural_codec()
    largest: dict[nn.Module, float] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor]) -> None:
        (x,) = inputs
        assert torch.equal(x, x.round())
        largest[module] = max(largest.get(module, 0.0), float(x.abs().max()))

    layers = [module for module in codec.model.modules() if isinstance(module, IntegerConv)]
    # A predictor of neighbours limits its input itself: tested below.
    layers = [layer for layer in layers if not isinstance(layer, NeighbourMean)]
    for layer in layers:
        layer.register_forward_pre_hook(watch)
    encode_stream(codec, moving_frames(64, 48, 4), CHANGING[:4])
    assert len(largest) == len(layers)
    assert max(largest.values()) <= ACTIVATION_LIMIT


@given(
    arrays.arrays(np.int32, (1, 12, 4, 5), elements=st.integers(-(2**20), 2**20)),
    st.sampled_from([ACROSS, BESIDE]),
    st.integers(0, 2**32 - 1),
)
def test_neighbours_predict_the_same_integers_in_float32_and_float64(
    latents: np.ndarray, four: tuple[tuple[float, ...], ...], seed: int
) -> None:
    """For any weights whose bound holds, and any latents, however large."""
    layer = NeighbourMean(12, four)
    with torch.no_grad():
        layer.weight.add_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.1)
    layer.eval()
    with torch.inference_mode():
        single = layer(torch.from_numpy(latents).float())
        double = layer.double()(torch.from_numpy(latents).double())
    assert torch.equal(single.double(), double) and torch.equal(single, single.round())
    assert layer.COARSER * layer.largest_accumulator(layer.LIMIT) < EXACT_LIMIT


@pytest.mark.parametrize(
    ("layer", "bound"),
    [
        ("intra.latents.prior.steps.1.inner", "intra.prior.1.inner"),
        ("inter.latents.prior.past", "inter.prior.0.known"),
        ("inter.latents.hyper_synthesis.up", "inter.hyper_synthesis.up"),
        ("motion_side", "inter.prior.0.known"),
    ],
)
def test_a_model_that_may_overflow_is_refused(layer: str, bound: str, tmp_path: Path) -> None:
    model = untrained()
    with torch.no_grad():
        model.get_submodule(layer).bias.fill_(EXACT_LIMIT / 2**SHIFT / IntegerConv.BIAS_UNIT)
    path = tmp_path / "overflow.safetensors"
    with pytest.raises(RqlvcError, match=re.escape(bound)):
        write_weights(path, model, new_mixers())
    assert not path.exists()


def test_blown_up_weights_are_refused() -> None:
    model = untrained()
    with torch.no_grad():
        model.get_parameter("inter.latents.prior.steps.0.inner.weight").mul_(1000)
    with pytest.raises(RqlvcError, match=r"inter\.prior\.0\.inner"):
        check_exactness(model)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name", ["inter.latents.prior.past.weight", "intra.latents.prior.level.table", "intra.analysis.head.weight"]
)
def test_weights_of_a_failed_training_are_refused(name: str, number: float, tmp_path: Path) -> None:
    model = untrained()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = number
    with pytest.raises(RqlvcError, match="finite"):
        write_weights(tmp_path / "failed.safetensors", model, new_mixers())
    assert not (tmp_path / "failed.safetensors").exists()


@pytest.mark.parametrize("part", ["motion_prediction", "temporal_prior"])
def test_weights_of_each_configuration_come_back(part: str, tmp_path: Path) -> None:
    model = untrained(ModelConfig(**{part: not getattr(ModelConfig(), part)}))
    path = tmp_path / "weights.safetensors"
    identity = write_weights(path, model, new_mixers())
    weights = read_weights(path)
    assert weights.identity == identity and weights.model.config == model.config
    for layer, read in zip(model.modules(), weights.model.modules(), strict=True):
        if isinstance(layer, IntegerConv):
            assert isinstance(read, IntegerConv) and torch.equal(layer.integer_weight(), read.integer_weight())
