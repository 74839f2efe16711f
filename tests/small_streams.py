"""The neural codec and small real streams that it wrote, for the tests of the codec's rooms."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from conftest import moving_picture
from rqlvc.codec.entropy import Kind, Mixers, new_mixer
from rqlvc.codec.model import ModelConfig, VideoModel
from rqlvc.codec.neural import CodecState, NeuralCodec, load
from rqlvc.codec.protocol import EncodedFrame
from rqlvc.codec.weights import DEFAULT_WEIGHTS, write_weights
from rqlvc.media.frame import Frame

SHIPPED = DEFAULT_WEIGHTS.exists()

CHANGING = (30.0, 63.0, 0.0, 17.25, 50.5, 5.0, 41.015625, 62.984375)
"""A quality level for each frame of a stream that changes it every time."""

_scratch = tempfile.TemporaryDirectory(prefix="rqlvc-tests-")


def untrained(config: ModelConfig | None = None) -> VideoModel:
    """The warm start, its zero layers stirred a little so that every network has a say."""
    torch.manual_seed(0)
    model = VideoModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 4 and not parameter.any():
                parameter.normal_(0, 2e-3)
    return model


def new_mixers() -> Mixers:
    """That know nothing."""
    return {kind: new_mixer(kind) for kind in get_args(Kind)}


@cache
def weights_path() -> Path:
    """The shipped weights; before they exist, those of an untrained model."""
    if SHIPPED:
        return DEFAULT_WEIGHTS
    path = Path(_scratch.name) / "codec.safetensors"
    write_weights(path, untrained(), new_mixers())
    return path


def neural_codec(bfloat16: bool = False) -> NeuralCodec:
    """A codec of its own: tests may alter its networks."""
    return load(device="cpu", threads=None, weights=weights_path(), bfloat16=bfloat16)


def moving_frames(width: int, height: int, count: int) -> list[Frame]:
    """A textured scene that drifts, of any size."""
    even_width, even_height = width + width % 2, height + height % 2
    frames = []
    for index in range(count):
        picture = moving_picture(even_width, even_height, index)
        u, v = picture[even_height:].reshape(2, even_height // 2, even_width // 2)
        frames.append(Frame(np.ascontiguousarray(picture[:height, :width]), u.copy(), v.copy()))
    return frames


@dataclass(frozen=True)
class Stream:
    """A group of pictures and what the encoder said of each."""

    frames: list[Frame]
    coded: list[EncodedFrame]

    @property
    def packets(self) -> list[bytes]:
        return [frame.payload for frame in self.coded]

    @property
    def bits(self) -> int:
        return 8 * sum(map(len, self.packets))


def encode_stream(codec: NeuralCodec, frames: list[Frame], qualities: Sequence[float]) -> Stream:
    state: CodecState | None = None
    coded = []
    for frame, quality in zip(frames, qualities, strict=True):
        coded.append(codec.encode(frame, quality, state))
        state = coded[-1].state
    return Stream(frames, coded)


def decode_stream(codec: NeuralCodec, packets: Sequence[bytes]) -> tuple[list[Frame], list[CodecState]]:
    """Raises what the codec raises: a checksum that does not match, say."""
    frames, states = [], []
    state: CodecState | None = None
    for packet in packets:
        decoded = codec.decode(packet, state)
        state = decoded.state
        frames.append(decoded.frame)
        states.append(decoded.state)
    return frames, states


def symbols_of(state: CodecState) -> list[Tensor]:
    """All that an inter frame's packet carried: latents in 1/16 steps, and vectors (an intra frame keeps none)."""
    if state.state.texture is None or state.state.motion is None:
        return []
    return [*state.state.texture, state.state.motion]


def digest(states: Sequence[CodecState]) -> str:
    """Of all latents of a stream, whatever type of number holds them."""
    total = hashlib.sha256()
    for state in states:
        for latent in symbols_of(state):
            total.update(latent.to(torch.int32).contiguous().numpy().tobytes())
    return total.hexdigest()


def psnr(a: Sequence[Frame], b: Sequence[Frame]) -> float:
    """Over all luma samples of two clips, dB."""
    error = np.mean([np.mean((p.y.astype(float) - q.y) ** 2) for p, q in zip(a, b, strict=True)])
    return float(10 * np.log10(255**2 / max(error, 1e-12)))
