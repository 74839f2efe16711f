"""The codec as callers see it: pure functions from frames to packets and back, at any size and quality."""

from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import same_picture
from rqlvc.codec.entropy import MotionContext
from rqlvc.codec.interpolation import MARGIN, PEL, compensate, extend, follow, quarter_pel, towards_reference
from rqlvc.codec.model import ModelConfig, Prediction
from rqlvc.codec.neural import NeuralCodec, load
from rqlvc.codec.planes import Planes, fold, from_frame, to_bytes, to_frame, unfold
from rqlvc.codec.references import Kept
from rqlvc.codec.residual_price import (
    CODED_BITS,
    CODED_BITS_PER_STEP,
    ERROR_BITS,
    block_coefficients,
    price_scale,
    residual_price,
)
from rqlvc.codec.search import block_search
from rqlvc.codec.transforms import dct_matrix, picture_dct
from rqlvc.codec.weights import write_weights
from rqlvc.errors import RqlvcError
from rqlvc.media.frame import Frame
from small_streams import (
    CHANGING,
    SHIPPED,
    decode_stream,
    encode_stream,
    moving_frames,
    neural_codec,
    new_mixers,
    psnr,
    symbols_of,
    untrained,
    weights_path,
)


@pytest.fixture(scope="module")
def codec() -> NeuralCodec:
    return neural_codec()


def content(value: Any) -> Any:
    """A deep copy of a state, to compare with; of what both sides know."""
    if isinstance(value, Kept):
        value = value._replace(fine=None)
    if isinstance(value, Tensor):
        return value.clone().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: content(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(content(item) for item in value)
    if is_dataclass(value):
        return tuple(content(getattr(value, field.name)) for field in fields(value))
    return value


# --- what the decoder shows is what the encoder said ---------------------------------------------------------------


@pytest.mark.parametrize("qualities", [(0.0,) * 8, (37.5,) * 8, (63.0,) * 8, CHANGING])
def test_the_decoder_shows_the_reconstruction(codec: NeuralCodec, qualities: tuple[float, ...]) -> None:
    stream = encode_stream(codec, moving_frames(96, 80, len(qualities)), qualities)
    frames, states = decode_stream(codec, stream.packets)
    for coded, frame, state in zip(stream.coded, frames, states, strict=True):
        assert same_picture(coded.reconstruction, frame)
        assert content(coded.state) == content(state)


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (33, 17), (64, 48), (130, 98), (16, 200)])
def test_any_size(codec: NeuralCodec, size: tuple[int, int]) -> None:
    originals = moving_frames(*size, 3)
    stream = encode_stream(codec, originals, (45.0, 20.0, 63.0))
    frames, _ = decode_stream(codec, stream.packets)
    for original, coded, frame in zip(originals, stream.coded, frames, strict=True):
        assert (frame.y.shape, frame.u.shape, frame.v.shape) == (original.y.shape, original.u.shape, original.v.shape)
        assert same_picture(coded.reconstruction, frame)
    assert psnr(originals[2:], frames[2:]) > 30  # and it is the picture, not noise, borders included


@pytest.mark.parametrize("size", [(15, 64), (64, 15), (2, 2), (8193, 16)])
def test_sizes_that_are_not_coded_say_so(codec: NeuralCodec, size: tuple[int, int]) -> None:
    (frame,) = moving_frames(*size, 1)
    with pytest.raises(RqlvcError, match=rf"{size[0]}x{size[1]}.*16 to 8192"):
        codec.encode(frame, 30, None)


def test_a_change_of_size_within_a_group_of_pictures_says_so(codec: NeuralCodec) -> None:
    state = codec.encode(moving_frames(64, 48, 1)[0], 30, None).state
    for size in ((48, 64), (63, 48), (64, 47)):
        with pytest.raises(RqlvcError, match="size changed"):
            codec.encode(moving_frames(*size, 1)[0], 30, state)


def test_an_inter_frame_without_a_state_says_so(codec: NeuralCodec) -> None:
    stream = encode_stream(codec, moving_frames(32, 32, 2), (30.0, 30.0))
    with pytest.raises(RqlvcError, match="intra"):
        codec.decode(stream.packets[1], None)


def test_a_group_of_pictures_starts_anywhere(codec: NeuralCodec) -> None:
    """An intra packet ignores whatever state it is given."""
    stream = encode_stream(codec, moving_frames(48, 32, 3), (30.0, 30.0, 30.0))
    other = codec.encode(moving_frames(96, 80, 1)[0], 50, None)
    assert same_picture(codec.decode(stream.packets[0], other.state).frame, stream.coded[0].reconstruction)


# --- pure functions ------------------------------------------------------------------------------------------------


def test_the_same_call_gives_the_same_packet_and_leaves_its_arguments_alone(codec: NeuralCodec) -> None:
    frames = moving_frames(64, 48, 4)
    stream = encode_stream(codec, frames[:3], (40.0, 30.0, 50.0))
    state = stream.coded[-1].state
    before, picture = content(state), frames[3].y.copy()
    first = codec.encode(frames[3], 33.0, state)
    other = codec.encode(frames[3], 5.0, state)  # another try of the same frame in between
    again = codec.encode(frames[3], 33.0, state)
    assert first.payload == again.payload and first.parts == again.parts and first.payload != other.payload
    assert content(first.state) == content(again.state)
    shown = codec.decode(first.payload, state)
    assert same_picture(shown.frame, codec.decode(first.payload, state).frame)
    assert content(state) == before and np.array_equal(frames[3].y, picture)


def test_a_state_survives_a_change_of_the_picture_that_was_shown(codec: NeuralCodec) -> None:
    """Whoever paints on a decoded frame does not disturb the decoder."""
    stream = encode_stream(codec, moving_frames(64, 48, 2), (40.0, 40.0))
    shown = codec.decode(stream.packets[0], None)
    shown.frame.y[:] = 0
    assert same_picture(codec.decode(stream.packets[1], shown.state).frame, stream.coded[1].reconstruction)


def test_quality_is_carried_in_64ths(codec: NeuralCodec) -> None:
    (frame,) = moving_frames(32, 32, 1)
    assert codec.encode(frame, 30.001, None).payload == codec.encode(frame, 30.0, None).payload
    assert codec.encode(frame, 99.0, None).payload == codec.encode(frame, 63.0, None).payload
    assert codec.encode(frame, -1.0, None).payload == codec.encode(frame, 0.0, None).payload


def test_a_still_scene_costs_little(codec: NeuralCodec) -> None:
    (frame,) = moving_frames(96, 80, 1)
    stream = encode_stream(codec, [frame] * 4, [30.0] * 4)
    assert len(stream.packets[3]) < len(stream.packets[0]) * (0.5 if SHIPPED else 0.8)


# --- range ---------------------------------------------------------------------------------------------------------


def test_bits_and_pictures_grow_with_quality(codec: NeuralCodec) -> None:
    frames = moving_frames(80, 64, 3)
    lowest = 0 if SHIPPED else 8  # below, an untrained prior spends most on hyper-latents
    qualities = [*range(lowest, 64, 4), 63]
    streams = [encode_stream(codec, frames, [float(quality)] * len(frames)) for quality in qualities]
    bits = [stream.bits for stream in streams]
    assert all(low < high for low, high in pairwise(bits)), bits
    quality = [psnr(frames, [coded.reconstruction for coded in stream.coded]) for stream in streams[::4]]
    assert all(low < high for low, high in pairwise(quality)), quality


@pytest.mark.skipif(not SHIPPED, reason="an untrained prior spends most bits of low rates on hyper-latents")
def test_the_range_of_rates_is_wide(codec: NeuralCodec) -> None:
    frames = moving_frames(192, 128, 6)
    low, high = (encode_stream(codec, frames, [quality] * len(frames)).bits for quality in (0.0, 63.0))
    assert high >= 15 * low


# --- configurations, devices, weights files ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(mask=True),
        ModelConfig(attention=True),
        ModelConfig(motion_prediction=False),
        ModelConfig(temporal_prior=False),
    ],
    ids=["mask", "attention", "no motion prediction", "no temporal prior"],
)
def test_each_part_can_be_switched(config: ModelConfig, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    identity = write_weights(path, untrained(config), new_mixers())
    codec = load(device="cpu", weights=path, bfloat16=False)
    assert codec.identity == identity and codec.model.config == config
    stream = encode_stream(codec, moving_frames(48, 64, 4), (40.0, 10.0, 60.0, 30.0))
    frames, states = decode_stream(codec, stream.packets)
    assert all(same_picture(a.reconstruction, b) for a, b in zip(stream.coded, frames, strict=True))
    assert len(symbols_of(states[-1])) == 3


@pytest.mark.parametrize(("column", "number"), [(0, 0), (1, 2**15)])
def test_broken_contexts_are_refused(column: int, number: int, tmp_path: Path) -> None:
    """A probability of zero, or more decisions seen than are ever counted: learning would leave its tables."""
    mixers = new_mixers()
    mixers["inter"].contexts[7, column] = number
    path = tmp_path / "codec.safetensors"
    write_weights(path, untrained(), mixers)
    with pytest.raises(RqlvcError, match="contexts"):
        load(device="cpu", weights=path)
    model = untrained()
    model.motion_contexts[7, column] = number
    write_weights(path, model, new_mixers())
    with pytest.raises(RqlvcError, match="contexts"):
        load(device="cpu", weights=path)


def test_the_identity_is_a_digest_of_the_weights(codec: NeuralCodec, tmp_path: Path) -> None:
    assert codec.identity == neural_codec().identity
    altered = bytearray(weights_path().read_bytes())
    altered[-4] ^= 1  # the lowest bit of the last number: what is read is still sound
    path = tmp_path / "altered.safetensors"
    path.write_bytes(altered)
    assert load(device="cpu", weights=path).identity != codec.identity


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "header", "text"])
def test_a_broken_weights_file_says_so(damage: str, tmp_path: Path) -> None:
    whole = weights_path().read_bytes()
    data = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "header": b"\xff" * 64 + whole[64:],
        "text": b"not weights\n" * 9,
    }
    path = tmp_path / "codec.safetensors"
    if damage != "missing":
        path.write_bytes(data[damage])
    with pytest.raises(RqlvcError, match=r"codec\.safetensors"):
        load(device="cpu", weights=path)


@pytest.mark.parametrize("device", ["nonsense", "cuda:77"])
def test_a_device_that_is_not_there_says_so(device: str) -> None:
    with pytest.raises(RqlvcError, match=device):
        load(device=device, weights=weights_path())


# --- planes, transforms, motion ------------------------------------------------------------------------------------


@given(st.integers(16, 70), st.integers(16, 70), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_frames_survive_the_way_to_planes_and_back(width: int, height: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chroma = (-(-height // 2), -(-width // 2))
    frame = Frame(*(rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((height, width), chroma, chroma)))
    planes = from_frame(frame, torch.device("cpu"))
    assert planes.luma.shape[-1] % 16 == planes.luma.shape[-2] % 16 == 0
    assert same_picture(to_frame(to_bytes(planes), height, width), frame)
    for scale in (4, 8):
        back = unfold(fold(planes, scale), scale)
        assert torch.equal(back.luma, planes.luma) and torch.equal(back.chroma, planes.chroma)


def test_the_linear_transform_is_orthonormal() -> None:
    matrix, _ = picture_dct()
    assert torch.allclose(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5)


def texture(height: int, width: int) -> Tensor:
    """Smooth noise on [0, 1] that no two places share: (1, 1, H, W)."""
    noise = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(2))
    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    for shape in ((1, 1, 5, 1), (1, 1, 1, 5)):
        pad = (0, 0, 2, 2) if shape[2] == 5 else (2, 2, 0, 0)
        noise = torch.nn.functional.conv2d(torch.nn.functional.pad(noise, pad, mode="circular"), kernel.reshape(shape))
    return (noise - noise.min()) / (noise.max() - noise.min())


def vectors_of(x: float, y: float, rows: int, columns: int, batch: int = 1) -> Tensor:
    """The same vector, in quarter samples, for every block."""
    return torch.tensor([float(x), float(y)]).reshape(1, 2, 1, 1).expand(batch, 2, rows, columns)


def moved(planes: Planes, vectors: Tensor, overlapped: bool = False) -> Planes:
    """``planes`` by ``vectors`` (N, 2, h, w)."""
    return compensate(extend([planes]), torch.nn.functional.pad(vectors, (0, 0, 0, 0, 0, 1)), overlapped)


def moved_luma(plane: Tensor, vectors: Tensor) -> Tensor:
    n, _, height, width = plane.shape
    return moved(Planes(plane, plane.new_zeros(n, 2, height // 2, width // 2)), vectors).luma


HALF_STEP = 0.501 / 255  # of 8 bits


def test_quarter_pel_keeps_the_samples_and_interpolates_waves_between_them() -> None:
    plane = texture(32, 48)
    fine = quarter_pel(plane, 0)
    assert fine.shape == (1, 4, 4, 32, 48) and fine.dtype == torch.uint8
    assert torch.allclose(fine[:, :1, 0] / 255, plane, atol=HALF_STEP)
    assert torch.allclose(quarter_pel(plane.mT, 0) / 255, fine.transpose(1, 2).mT / 255, atol=2 * HALF_STEP)
    x = torch.arange(48)
    wave = 0.5 + 0.4 * torch.sin(x * 0.5).expand(1, 1, 32, -1)
    inner = slice(4, -5)  # away from the repeated border
    between = 0.5 + 0.4 * torch.sin((x + torch.arange(PEL)[:, None] / PEL) * 0.5)
    # The filter's quarter phase lies at 15/64, which alone makes an error of 0.003; linear interpolation's is 0.012.
    assert torch.allclose(quarter_pel(wave, 0)[0, 0, :, 0, inner] / 255, between[:, inner], atol=0.008)


def test_the_margin_of_quarter_pel_repeats_the_border() -> None:
    plane = texture(32, 48)
    fine = quarter_pel(plane, 16)
    assert fine.shape == (1, 4, 4, 32 + 32, 48 + 32)
    assert torch.equal(fine[..., 16:-16, 16:-16], quarter_pel(plane, 0))
    assert torch.allclose(fine[..., -8:, -8:] / 255, plane[0, 0, -1, -1], atol=HALF_STEP)
    assert torch.allclose(fine[:, 0, 0, :16, 16:-16] / 255, plane[0, 0, 0], atol=HALF_STEP)


def scene(height: int, width: int) -> Planes:
    """A batch of two different pictures."""
    luma, chroma = texture(height, 2 * width), texture(height // 2, 2 * width)
    return Planes(torch.cat(luma.chunk(2, dim=3)), torch.cat(chroma.chunk(4, dim=3)).reshape(2, 2, height // 2, -1))


def test_without_motion_the_reference_is_repeated_exactly() -> None:
    planes = scene(32, 48)
    still = moved(planes, vectors_of(0, 0, 4, 6, batch=2), overlapped=True)
    assert torch.equal(still.luma, planes.luma) and torch.equal(still.chroma, planes.chroma)


def test_whole_motion_shifts_and_borders_repeat() -> None:
    planes = scene(32, 48)
    shifted = moved(planes, vectors_of(4 * PEL, -2 * PEL, 4, 6, batch=2), overlapped=True)
    assert torch.allclose(shifted.luma[:, :, 2:, :-4], planes.luma[:, :, :-2, 4:], atol=1e-4)
    assert torch.allclose(shifted.chroma[:, :, 1:, :-2], planes.chroma[:, :, :-1, 2:], atol=1e-4)
    for distance, corner in ((-1e4, slice(0, 1)), (1e4, slice(-1, None))):
        far = moved(planes, vectors_of(distance, distance, 4, 6, batch=2), overlapped=True)
        for plane, there in zip(planes, far, strict=True):
            assert torch.allclose(there, plane[..., corner, corner].expand_as(there), atol=1e-5)


def test_each_block_of_each_picture_moves_by_its_own_vector() -> None:
    """Luma as the search sees it, block by block."""
    planes = scene(32, 48)
    vectors = torch.randint(-60, 61, (2, 2, 4, 6), generator=torch.Generator().manual_seed(5))
    luma = moved(planes, vectors.float()).luma[:, 0]
    fine = quarter_pel(planes.luma, MARGIN)
    for n, i, j in np.ndindex(2, 4, 6):
        x, y = vectors[n, :, i, j].tolist()
        top, left = 8 * i + y // PEL + MARGIN, 8 * j + x // PEL + MARGIN
        expected = fine[n, y % PEL, x % PEL, top : top + 8, left : left + 8]
        block = luma[n, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].clamp(0, 1)
        assert torch.allclose(block, expected / 255, atol=HALF_STEP)


@pytest.mark.parametrize("overlapped", [False, True])
def test_compiled_compensation_and_its_gradient_are_those_of_tensors(overlapped: bool) -> None:
    generator = torch.Generator().manual_seed(6)
    pictures = [scene(32, 48), Planes(*(plane.flip(0) for plane in scene(32, 48)))]
    samples = [plane.clone().requires_grad_() for planes in pictures for plane in planes]
    pictures = [Planes(*samples[:2]), Planes(*samples[2:])]
    vectors = torch.randint(-200, 201, (2, 2, 4, 6), generator=generator).float()
    vectors[:, :, 2:, :3] = vectors[:, :, 2:3, :1]  # some blocks move as their neighbours do
    motion = torch.cat([vectors, torch.randint(0, 2, (2, 1, 4, 6), generator=generator)], dim=1)
    outcomes = []
    for compiled in (True, False):
        moved = compensate(extend(pictures), motion, overlapped, compiled)
        weighted = sum((plane * torch.linspace(-1, 2, plane.numel()).reshape(plane.shape)).sum() for plane in moved)
        outcomes.append((*moved, *torch.autograd.grad(weighted, samples)))
    for loop, tensors in zip(*outcomes, strict=True):
        assert torch.allclose(loop, tensors, atol=1e-5) and tensors.abs().max() > 0.1


def test_overlapped_blocks_blend_at_edges_of_motion_only() -> None:
    """Two pictures of one shade each: what a sample has of the other is the share of the neighbour's vector."""
    pictures = [Planes(torch.full((1, 1, 32, 32), shade), torch.full((1, 2, 16, 16), shade)) for shade in (0.0, 1.0)]
    motion = torch.zeros(1, 3, 4, 4)
    motion[:, 2, :, 2:] = 1  # the right half
    luma, chroma = compensate(extend(pictures), motion, overlapped=True)
    across = luma[0, 0, 0]
    assert torch.allclose(luma, across.expand_as(luma), atol=1e-6)  # nothing differs from above or below
    assert torch.allclose(across + across.flip(0), torch.ones(32), atol=1e-6)
    assert (across[:11] == 0).all() and (across[11:].diff()[:5] > 0).all() and 0.25 < across[15] < 0.3
    assert torch.allclose(chroma[0, 0, 0], across.reshape(16, 2).mean(dim=1), atol=1e-6)


@pytest.mark.parametrize("vector", range(9))
def test_chroma_moves_by_eighths(vector: int) -> None:
    x = torch.arange(48)
    wave = torch.sin(x * 0.4)
    planes = Planes(torch.zeros(1, 1, 32, 96), wave.expand(1, 2, 16, -1))
    chroma = moved(planes, vectors_of(vector, 0, 4, 12)).chroma
    inner = slice(4, -5)  # away from the repeated border
    expected = torch.sin((x + vector / 8) * 0.4)
    assert torch.allclose(chroma[..., inner], expected[inner].expand(1, 2, 16, -1), atol=0.02)
    planes = Planes(planes.luma.mT, planes.chroma.mT)
    assert torch.allclose(moved(planes, vectors_of(0, vector, 12, 4)).chroma, chroma.mT, atol=1e-5)


def test_vectors_are_followed_to_the_picture_before() -> None:
    last = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6).float()
    still = vectors_of(3, -5, 4, 6)  # less than half a block: the block at the same place
    assert torch.equal(follow(still, last), still + last)
    moving = vectors_of(2 * 8 * PEL, -8 * PEL + 1, 4, 6)  # two blocks right, one up
    expected = last[:, :, [0, 0, 1, 2]][:, :, :, [2, 3, 4, 5, 5, 5]]  # beyond the border the nearest
    assert torch.equal(follow(moving, last) - moving, expected)


def test_vectors_to_older_pictures_pass_the_reference_on_their_way() -> None:
    motion = torch.tensor([[6.0, 7.0, -7.0, 7.0, 14.0], [-2.0, -1.0, 0.0, -1.0, -9.0], [1.0, 1.0, 1.0, 0.0, 2.0]])
    passed = towards_reference(motion.reshape(1, 3, 1, 5), (1, 2, 5))
    assert passed[0, :, 0].tolist() == [[3.0, 4.0, -3.0, 7.0, 3.0], [-1.0, 0.0, 0.0, -1.0, -2.0]]


def test_a_block_is_predicted_from_the_picture_that_its_vector_reaches_to() -> None:
    pictures = [scene(32, 48), *(Planes(*(plane.roll(shift, -1) for plane in scene(32, 48))) for shift in (8, 16))]
    motion = torch.zeros(2, 3, 4, 6)
    motion[:, 2, 1, 2:4], motion[:, 2, 2, 5] = 1, 2
    samples = compensate(extend(pictures), motion, overlapped=False)
    vectors, quality = torch.zeros(2, 2, 4, 6), torch.tensor([20.0, 40.0])
    prediction, _ = Prediction(False, False)(samples, pictures[1], motion, vectors, quality)  # refines nothing yet
    for plane, shown, block, *planes in zip(samples, unfold(prediction, 4), (8, 4), *pictures, strict=True):
        reach = motion[:, 2:].repeat_interleave(block, 2).repeat_interleave(block, 3)
        assert torch.equal(plane, sum(other * (reach == index) for index, other in enumerate(planes)))
        assert torch.equal(plane, shown)


def nothing_known() -> MotionContext:
    return MotionContext(None, (1,), (untrained().motion_mixer,), True)


@numba.njit
def price_at(samples: Any, row: int, column: int, block: Any, scale: Any) -> Any:
    return residual_price(samples, row, column, block, scale)


@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(0, 13), st.sampled_from([0.004, 0.04, 0.4]))
@settings(deadline=None)
def test_a_residual_is_priced_coefficient_by_coefficient(seed: int, row: int, column: int, step: float) -> None:
    """Each is an error, at its square, or is coded, at a rate that grows with it: whichever is cheaper."""
    draw = np.random.default_rng(seed)
    samples = draw.integers(0, 256, (17, 21)).astype(np.uint8)
    block = draw.integers(0, 256, (8, 8)) if seed % 2 else samples[row : row + 8, column : column + 8] // 16 * 16.0
    basis = dct_matrix(8).numpy()
    steps = np.abs(basis @ (samples[row : row + 8, column : column + 8] - block) @ basis.T) / (255 * step)
    expected = np.minimum(ERROR_BITS * steps**2, CODED_BITS + CODED_BITS_PER_STEP * steps).sum()
    coefficients = block_coefficients(torch.from_numpy(block / 255).float()[None, None])[0, 0, 0]
    scale = price_scale(torch.tensor([step]))[0]
    assert price_at(samples, row, column, coefficients, scale) == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("motion", [(0.0, 0.0), (5.0, -3.0), (-17.0, 11.0), (2.25, -0.75), (-6.5, 4.0)])
def test_block_search_finds_a_translation(motion: tuple[float, float]) -> None:
    height, width = 96, 128
    reference = texture(height, width)
    fine = [quarter_pel(reference, MARGIN)]
    field = vectors_of(motion[0] * PEL, motion[1] * PEL, height // 8, width // 8)
    luma = moved_luma(reference, field)
    found = block_search(luma, reference, fine, [], nothing_known(), torch.tensor([0.04]))
    assert torch.equal(found, found.round()) and not found[:, 2].any()
    found = found[:, :2]
    inside = (found == field).all(dim=1)[0, 3:-3, 3:-3]  # blocks whose match lies inside the reference
    assert inside.float().mean() > 0.95
    error = (moved_luma(reference, found) - luma).abs().mean()
    assert error < 0.1 * max((reference - luma).abs().mean(), 0.01)


def test_block_search_follows_the_last_motion_where_nothing_tells() -> None:
    flat = torch.full((1, 1, 64, 64), 0.5)
    last = torch.nn.functional.pad(vectors_of(17, -32, 8, 8), (0, 0, 0, 0, 0, 1))
    for before, expected in ((last, last), (None, torch.zeros_like(last))):
        known = nothing_known()._replace(last=before)
        found = block_search(flat, flat, [quarter_pel(flat, MARGIN)], [], known, torch.tensor([0.1]))
        assert torch.equal(found, expected)


def test_block_search_splits_a_square_only_for_a_reason() -> None:
    """Blocks that move otherwise than their square are found; those that are only noisy follow it."""
    reference = texture(96, 128)
    field = torch.zeros(1, 2, 12, 16)
    field[:, :, :, 7:] = torch.tensor([20.0, -12.0]).reshape(2, 1, 1)  # an edge of motion through squares
    field[:, :, 5, 2] = torch.tensor([2.0, -1.0])  # a block on its own
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(3)) * 0.01
    luma = moved_luma(reference, field) + noise
    fine = [quarter_pel(reference, MARGIN)]
    found = block_search(luma, reference, fine, [], nothing_known(), torch.tensor([0.1]))
    assert torch.equal(found[:, :2], field)


def test_block_search_finds_in_the_picture_before_what_the_reference_lacks() -> None:
    past = texture(96, 128)
    there = torch.cat([vectors_of(4, 2, 12, 16), torch.ones(1, 1, 12, 16)], dim=1)
    luma, reference = moved_luma(past, there[:, :2]), moved_luma(past, vectors_of(2, 1, 12, 16))
    reference[..., 32:64, 48:96] = 0.5  # something passes in front
    fine = [quarter_pel(picture, MARGIN) for picture in (reference, past)]
    for distances in ((1, 2), (1, 2, 7)):  # beside the picture before there may be one that shows nothing of this
        known = nothing_known()._replace(last=torch.zeros(1, 3, 12, 16), distances=distances)
        pictures = [*fine, torch.full_like(fine[0], 128)][: len(distances)]
        through = [vectors_of(2, 1, 12, 16), vectors_of(0, 0, 12, 16)][: len(distances) - 1]
        found = block_search(luma, reference, pictures, through, known, torch.tensor([0.04]))
        assert torch.equal(found[..., 4:8, 6:12], there[..., 4:8, 6:12])
    only = block_search(luma, reference, fine[:1], [], nothing_known(), torch.tensor([0.04]))
    assert not only[:, 2].any()


def test_what_comes_back_is_taken_from_a_picture_that_was_kept(codec: NeuralCodec) -> None:
    """Two scenes take turns; from the third frame on, each is at hand."""
    (first,) = moving_frames(96, 80, 1)
    second = Frame(first.y[::-1].copy(), first.u, first.v)
    stream = encode_stream(codec, [first, second] * 3, [40.0] * 6)
    frames, states = decode_stream(codec, stream.packets)
    assert all(same_picture(a.reconstruction, b) for a, b in zip(stream.coded, frames, strict=True))
    sizes = [len(packet) for packet in stream.packets]
    assert all(4 * size < sizes[1] for size in sizes[2:]), sizes
    pictures = [state.state.motion[:, 2] for state in states[1:] if state.state.motion is not None]
    assert not pictures[0].any()  # an intra frame is all that there is
    assert all(picture.float().mean() > 0.9 for picture in pictures[1:])


def test_what_does_not_change_is_repeated_exactly(codec: NeuralCodec) -> None:
    """Coding a decoded picture again costs a few bytes and changes nothing, however often."""
    first = encode_stream(codec, moving_frames(96, 64, 1), [40.0]).coded[0]
    frame, state = first.reconstruction, first.state
    for _ in range(8):
        coded = codec.encode(frame, 40.0, state)
        assert same_picture(coded.reconstruction, frame) and len(coded.payload) < 40
        state = coded.state
