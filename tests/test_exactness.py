"""Decoding does not depend on the machine: other threads or precisions, compiled or noisy networks, same symbols."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import SOURCES, TESTS, same_picture
from rqlvc.codec.integer import IntegerConv
from rqlvc.codec.neural import CodecState, NeuralCodec
from rqlvc.codec.prior import HyperPrior, HyperSynthesis, LatentCodec, LatentPrior
from rqlvc.errors import RqlvcError
from rqlvc.media.frame import Frame
from small_streams import (
    CHANGING,
    Stream,
    decode_stream,
    digest,
    encode_stream,
    moving_frames,
    neural_codec,
    psnr,
    symbols_of,
    weights_path,
)

NOISE = 1e-3
PRECISION_LOSS = 0.1  # dB

DECODE_ELSEWHERE = """
import pickle, sys
import torch
from rqlvc.codec.neural import load
from small_streams import decode_stream, digest
packets, weights = pickle.load(sys.stdin.buffer)
codec = load(device="cpu", threads=int(sys.argv[1]), weights=weights, bfloat16=False)
assert torch.get_num_threads() == int(sys.argv[1])
frames, states = decode_stream(codec, packets)
sys.stdout.buffer.write(pickle.dumps((digest(states), frames)))
"""


@pytest.fixture(scope="module")
def stream() -> Stream:
    """An intra and seven inter frames in float32, another quality level each."""
    return encode_stream(neural_codec(), moving_frames(96, 80, len(CHANGING)), CHANGING)


def check_symbols(stream: Stream, states: list[CodecState]) -> None:
    """Every latent is what the encoder coded, to the last (the checksums held, or decoding had failed)."""
    for coded, state in zip(stream.coded, states, strict=True):
        for ours, theirs in zip(symbols_of(coded.state), symbols_of(state), strict=True):
            assert torch.equal(ours.double(), theirs.double())
    assert digest(states) == digest([coded.state for coded in stream.coded])
    assert len(symbols_of(states[-1])) == 3


def check_pictures(stream: Stream, frames: list[Frame]) -> None:
    shown = [coded.reconstruction for coded in stream.coded]
    assert abs(psnr(stream.frames, shown) - psnr(stream.frames, frames)) < PRECISION_LOSS


def differ(stream: Stream, frames: list[Frame]) -> bool:
    """Whether the decoder's floats really were others: else a test of exactness would have tested nothing."""
    return not all(same_picture(a.reconstruction, b) for a, b in zip(stream.coded, frames, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
def test_another_process_with_other_threads_decodes_the_same(stream: Stream, threads: int) -> None:
    decoded = subprocess.run(
        [sys.executable, "-c", DECODE_ELSEWHERE, str(threads)],
        input=pickle.dumps((stream.packets, weights_path())),
        capture_output=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(SOURCES), str(TESTS)])},
    )
    assert decoded.returncode == 0, decoded.stderr.decode()
    symbols, frames = pickle.loads(decoded.stdout)
    assert symbols == digest([coded.state for coded in stream.coded])
    check_pictures(stream, frames)


@pytest.mark.parametrize("encoder_bfloat16", [False, True])
def test_a_stream_decodes_in_another_precision(encoder_bfloat16: bool) -> None:
    frames = moving_frames(96, 80, len(CHANGING))
    stream = encode_stream(neural_codec(bfloat16=encoder_bfloat16), frames, CHANGING)
    decoded, states = decode_stream(neural_codec(bfloat16=not encoder_bfloat16), stream.packets)
    check_symbols(stream, states)
    check_pictures(stream, decoded)
    assert differ(stream, decoded)


@pytest.mark.slow
def test_precision_does_not_drift_over_96_frames() -> None:
    """Three groups of pictures of the usual 32 frames."""
    scene = moving_frames(96, 80, 12)
    frames = [*scene, *scene[::-1]] * 4
    float32, bfloat16 = neural_codec(), neural_codec(bfloat16=True)
    shown: list[Frame] = []
    decoded: list[Frame] = []
    for begin in range(0, 96, 32):
        stream = encode_stream(float32, frames[begin : begin + 32], [32.0] * 32)
        group, states = decode_stream(bfloat16, stream.packets)
        check_symbols(stream, states)
        shown += [coded.reconstruction for coded in stream.coded]
        decoded += group
    assert abs(psnr(frames, shown) - psnr(frames, decoded)) < PRECISION_LOSS


def test_integer_networks_in_float64_decode_the_same(stream: Stream) -> None:
    codec = neural_codec()
    for module in codec.model.modules():
        if isinstance(module, IntegerConv | LatentPrior | HyperPrior | HyperSynthesis):
            module.double()
        elif isinstance(module, LatentCodec):
            module.bands = module.bands.double()
    decoded, states = decode_stream(codec, stream.packets)
    check_symbols(stream, states)
    assert states[-1].state.texture is not None and states[-1].state.texture.latent.dtype == torch.float64
    assert not differ(stream, decoded)  # the float networks were left as they are


def _add_noise(codec: NeuralCodec) -> list[str]:
    """1e-3 relative noise on what every float network's layer gives; the names of those layers."""
    generator = torch.Generator().manual_seed(4)

    def disturb(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        noise = torch.randn(output.shape, generator=generator).to(output.dtype)
        return output * (1 + NOISE * noise)

    disturbed = []
    for name, module in codec.model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(disturb)
            disturbed.append(name)
    return disturbed


def test_noise_in_every_float_network_leaves_the_parse_alone(stream: Stream) -> None:
    codec = neural_codec()
    assert len(_add_noise(codec)) > 20
    decoded, states = decode_stream(codec, stream.packets)
    check_symbols(stream, states)
    check_pictures(stream, decoded)
    assert differ(stream, decoded)


def test_a_noisy_encoder_is_decoded_by_a_clean_one() -> None:
    codec = neural_codec()
    _add_noise(codec)
    stream = encode_stream(codec, moving_frames(64, 48, len(CHANGING)), CHANGING)
    decoded, states = decode_stream(neural_codec(), stream.packets)
    check_symbols(stream, states)
    check_pictures(stream, decoded)


def test_noise_in_the_integer_networks_below_a_half_is_absorbed(stream: Stream) -> None:
    """As of Winograd or TF32 kernels: added before the layer's rounding, it is gone after."""
    codec = neural_codec()
    generator = torch.Generator().manual_seed(6)
    for module in codec.model.modules():
        if isinstance(module, IntegerConv):
            assert module.exact_bias is not None
            module.exact_bias += torch.rand(module.exact_bias.shape, generator=generator) * 0.8 - 0.4
    decoded, states = decode_stream(codec, stream.packets)
    check_symbols(stream, states)
    assert not differ(stream, decoded)


def test_other_integers_are_noticed(stream: Stream) -> None:
    """What the checksum is for: a decoder whose priors differ says so and shows nothing."""
    codec = neural_codec()
    with torch.no_grad():
        for module in codec.model.modules():
            if isinstance(module, LatentPrior):
                module.offset.table += 1 / module.offset.UNIT
    with pytest.raises(RqlvcError, match="damaged"):
        decode_stream(codec, stream.packets)


def _compiled(codec: NeuralCodec, wrap: Callable[[nn.Module], nn.Module]) -> NeuralCodec:
    """The float networks of decoding, compiled."""
    model = codec.model
    model.intra.synthesis = wrap(model.intra.synthesis)
    model.inter.synthesis = wrap(model.inter.synthesis)
    model.prediction = wrap(model.prediction)
    return codec


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("bfloat16", [False, True])
def test_compiled_networks_decode_the_same(
    stream: Stream, bfloat16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    calls = 0

    def wrap(module: nn.Module) -> nn.Module:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            nonlocal calls
            calls += 1

        compiled = torch.compile(module, dynamic=False)
        compiled.register_forward_hook(count)
        return compiled

    decoded, states = decode_stream(_compiled(neural_codec(bfloat16), wrap), stream.packets)
    assert calls > len(stream.packets)
    check_symbols(stream, states)
    check_pictures(stream, decoded)
