"""The weights file: networks, contexts that have learnt and configuration in one safetensors file."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rqlvc.codec.entropy import Kind, Mixers, new_mixer
from rqlvc.codec.exactness import check_exactness
from rqlvc.codec.integer import IntegerConv
from rqlvc.codec.mixing import Mixer
from rqlvc.codec.model import ModelConfig, VideoModel
from rqlvc.errors import RqlvcError

FORMAT = "rqlvc-codec-6"
DEFAULT_WEIGHTS = Path(__file__).parents[1] / "weights" / "codec.safetensors"
_MIXERS = "mixers."
_IDENTITY_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Weights:
    model: VideoModel
    mixers: Mixers
    identity: str


@torch.no_grad()
def write_weights(path: Path, model: VideoModel, mixers: Mixers) -> str:
    """Write a model for use and return its identity. Raises :class:`RqlvcError` if it is not integer-exact.

    Convolution kernels are stored in half precision (the integer networks' kernels are exact in it), biases and
    the linear transforms in single, contexts as integers.
    """
    check_exactness(model)
    integer = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, IntegerConv)}
    tensors = {}
    for name, value in model.state_dict().items():
        if name in integer:
            value = integer[name].integer_weight() * 2.0 ** -integer[name].shift
        if name == "motion_contexts":  # 16 bits hold a context
            value = value.to(torch.uint16)
        elif value.is_floating_point():  # motion's weights are integers
            value = value.half() if value.dim() == 4 else value.float()
        tensors[name] = value.contiguous().cpu()
    for kind, mixer in mixers.items():
        tensors[f"{_MIXERS}{kind}.contexts"] = torch.from_numpy(mixer.contexts).to(torch.uint16)
        tensors[f"{_MIXERS}{kind}.weights"] = torch.from_numpy(mixer.weights)
    metadata = {"format": FORMAT, "config": json.dumps(asdict(model.config))}
    data = save(tensors, metadata)
    path.write_bytes(data)
    return _identity(data)


def _identity(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_IDENTITY_DIGITS]


def read_weights(path: Path = DEFAULT_WEIGHTS) -> Weights:
    """Raises :class:`RqlvcError` when the file is missing, broken or of another format."""
    try:
        identity = _identity(path.read_bytes())
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RqlvcError(f"The weights file {path} cannot be read ({error}): get a fresh copy of it.") from error
    if metadata.get("format") != FORMAT:
        raise RqlvcError(f"{path} does not hold weights of this codec ({FORMAT}): give a file that it wrote.")
    try:
        mixers = {kind: _mixer(kind, tensors) for kind in get_args(Kind)}
    except (KeyError, ValueError) as error:
        raise RqlvcError(f"{path} holds other contexts, or broken ones: get a fresh copy of it.") from error
    model = VideoModel(ModelConfig(**json.loads(metadata["config"])))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RqlvcError(f"{path} does not fit this version's networks: {error}") from error
    if not model.motion_mixer.sound():
        raise RqlvcError(f"{path} holds broken contexts of motion: get a fresh copy of it.")
    return Weights(model.eval(), mixers, identity)


def _mixer(kind: Kind, tensors: dict[str, Tensor]) -> Mixer:
    """Take the mixer of ``kind`` out of ``tensors``. Raises KeyError or ValueError if it is not there as it should."""
    contexts = tensors.pop(f"{_MIXERS}{kind}.contexts").to(torch.int32).numpy()
    weights = tensors.pop(f"{_MIXERS}{kind}.weights").numpy()
    wanted = new_mixer(kind)
    mixer = Mixer(contexts, weights)
    if contexts.shape != wanted.contexts.shape or weights.shape != wanted.weights.shape or not mixer.sound():
        raise ValueError(kind)
    return mixer
