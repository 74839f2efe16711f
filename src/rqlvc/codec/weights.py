"""The weights file: networks, probability tables and configuration in one safetensors file."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rqlvc.codec.entropy import BINS, SYMBOL_LIMIT, Tables
from rqlvc.codec.exactness import check_exactness
from rqlvc.codec.integer import IntegerConv
from rqlvc.codec.model import ModelConfig, VideoModel
from rqlvc.errors import RqlvcError

FORMAT = "rqlvc-codec-3"
DEFAULT_WEIGHTS = Path(__file__).parents[1] / "weights" / "codec.safetensors"
_TABLES = "tables"
_IDENTITY_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Weights:
    model: VideoModel
    tables: Tables
    identity: str


@torch.no_grad()
def write_weights(path: Path, model: VideoModel, frequencies: npt.NDArray[np.int32]) -> str:
    """Write a model for use and return its identity. Raises :class:`RqlvcError` if it is not integer-exact.

    Convolution kernels are stored in half precision (the integer networks' kernels are exact in it), tables,
    biases and the linear transforms in single.
    """
    check_exactness(model)
    integer = {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, IntegerConv)}
    tensors = {}
    for name, value in model.state_dict().items():
        if name in integer:
            value = integer[name].integer_weight() * 2.0 ** -integer[name].shift
        if value.is_floating_point():  # motion's contexts are integers
            value = value.half() if value.dim() == 4 else value.float()
        tensors[name] = value.contiguous().cpu()
    tensors[_TABLES] = torch.from_numpy(frequencies)
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
    frequencies = tensors.pop(_TABLES).numpy()
    if frequencies.shape != (BINS, 2 * SYMBOL_LIMIT + 2):
        raise RqlvcError(f"{path} holds probability tables of another size: it belongs to another version.")
    model = VideoModel(ModelConfig(**json.loads(metadata["config"])))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RqlvcError(f"{path} does not fit this version's networks: {error}") from error
    return Weights(model.eval(), Tables(frequencies), identity)
