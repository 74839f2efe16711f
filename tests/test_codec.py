"""The codec as callers see it: pure functions from frames to packets and back, at any size and quality."""

from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import same_picture
from rqlvc.codec.entropy import build_tables
from rqlvc.codec.interpolation import PEL, compensate, quarter_pel, sample, upsample_blocks
from rqlvc.codec.model import ModelConfig
from rqlvc.codec.neural import NeuralCodec, load
from rqlvc.codec.planes import Planes, fold, from_frame, to_bytes, to_frame, unfold
from rqlvc.codec.search import block_search
from rqlvc.codec.transforms import haar_matrix, picture_dct
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
    psnr,
    symbols_of,
    untrained,
    weights_path,
)


@pytest.fixture(scope="module")
def codec() -> NeuralCodec:
    return neural_codec()


def content(value: Any) -> Any:
    """A deep copy of a state, to compare with."""
    if isinstance(value, Tensor):
        return value.clone().numpy().tobytes()
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
        ModelConfig(mask=False),
        ModelConfig(attention=True),
        ModelConfig(motion_prediction=False),
        ModelConfig(temporal_prior=False),
    ],
    ids=["no mask", "attention", "no motion prediction", "no temporal prior"],
)
def test_each_part_can_be_switched(config: ModelConfig, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    identity = write_weights(path, untrained(config), build_tables())
    codec = load(device="cpu", weights=path, bfloat16=False)
    assert codec.identity == identity and codec.model.config == config
    stream = encode_stream(codec, moving_frames(48, 64, 4), (40.0, 10.0, 60.0, 30.0))
    frames, states = decode_stream(codec, stream.packets)
    assert all(same_picture(a.reconstruction, b) for a, b in zip(stream.coded, frames, strict=True))
    assert len(symbols_of(states[-1])) == 4


def test_the_identity_is_a_digest_of_the_weights(codec: NeuralCodec, tmp_path: Path) -> None:
    assert codec.identity == neural_codec().identity
    altered = bytearray(weights_path().read_bytes())
    altered[-1] ^= 1
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


def test_linear_transforms_are_orthonormal() -> None:
    for matrix in (picture_dct()[0], haar_matrix()):
        assert torch.allclose(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5)


def texture(height: int, width: int) -> Tensor:
    """Smooth noise on [0, 1] that no two places share: (1, 1, H, W)."""
    noise = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(2))
    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    for shape in ((1, 1, 5, 1), (1, 1, 1, 5)):
        pad = (0, 0, 2, 2) if shape[2] == 5 else (2, 2, 0, 0)
        noise = torch.nn.functional.conv2d(torch.nn.functional.pad(noise, pad, mode="circular"), kernel.reshape(shape))
    return (noise - noise.min()) / (noise.max() - noise.min())


def test_quarter_pel_keeps_the_samples_and_interpolates_waves_between_them() -> None:
    plane = texture(32, 48)
    fine = quarter_pel(plane)
    assert fine.shape == (1, 1, 4 * 32, 4 * 48)
    assert torch.allclose(fine[:, :, ::PEL, ::PEL], plane, atol=1e-6)
    x = torch.arange(4 * 48) / PEL
    wave = torch.sin(x[::PEL] * 0.5).expand(1, 1, 32, -1)
    inner = slice(4 * PEL, -5 * PEL)  # away from the repeated border
    # The filter's quarter phase lies at 15/64, which alone makes an error of 0.008; linear interpolation's is 0.03.
    assert torch.allclose(quarter_pel(wave)[0, 0, 0, inner], torch.sin(x * 0.5)[inner], atol=0.02)


def test_samples_without_motion_are_the_plane() -> None:
    plane = texture(32, 48)
    assert torch.allclose(sample(quarter_pel(plane), torch.zeros(1, 2, 32, 48)), plane, atol=1e-5)
    planes = Planes(plane, torch.cat([texture(16, 24), texture(16, 24)], dim=1))
    still = compensate(planes, quarter_pel(planes.luma), torch.zeros(1, 2, 4, 6))
    assert torch.allclose(still.luma, planes.luma, atol=1e-5)
    assert torch.allclose(still.chroma, planes.chroma, atol=1e-5)


def test_samples_of_whole_motion_are_shifted_and_borders_repeat() -> None:
    plane = texture(32, 48)
    motion = torch.tensor([3.0, -2.0]).reshape(1, 2, 1, 1).expand(1, 2, 32, 48)
    moved = sample(quarter_pel(plane), motion)
    assert torch.allclose(moved[:, :, 2:, :-3], plane[:, :, :-2, 3:], atol=1e-4)
    far = sample(quarter_pel(plane), torch.full((1, 2, 32, 48), 1e4))
    assert torch.allclose(far, quarter_pel(plane)[:, :, -1:, -1:].expand_as(far), atol=1e-5)


@pytest.mark.parametrize("motion", [(0.0, 0.0), (5.0, -3.0), (-17.0, 11.0), (2.25, -0.75), (-6.5, 4.0)])
def test_block_search_finds_a_translation(motion: tuple[float, float]) -> None:
    height, width = 96, 128
    reference = texture(height, width)
    fine = quarter_pel(reference)
    field = torch.tensor(motion).reshape(1, 2, 1, 1).expand(1, 2, height // 8, width // 8)
    luma = sample(fine, upsample_blocks(field, 8))
    found, _ = block_search(luma, reference, fine, torch.zeros_like(field), torch.tensor([0.04]))
    inside = (found == field).all(dim=1)[0, 3:-3, 3:-3]  # blocks whose match lies inside the reference
    assert inside.float().mean() > 0.95
    error = (sample(fine, upsample_blocks(found, 8)) - luma).abs().mean()
    assert error < 0.1 * max((reference - luma).abs().mean(), 0.01)


def test_block_search_follows_the_free_prediction_where_nothing_tells() -> None:
    flat = torch.full((1, 1, 64, 64), 0.5)
    predicted = torch.tensor([4.0, -8.0]).reshape(1, 2, 1, 1).expand(1, 2, 8, 8)
    assert torch.equal(block_search(flat, flat, quarter_pel(flat), predicted, torch.tensor([0.1]))[0], predicted)
