"""Integer-exact convolution: the arithmetic that every number that picks a probability goes through.

Activations and weights are integers held in floating point. A sum of products of integers is exact in float32 in
any order of addition while it stays below 2^24, so these layers give the same integers on any device, in any number
of threads, in float32 or float64. Training sees the same integers and passes gradients straight through rounding.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqlvc.codec.int8 import Packed, convolve, pack
from rqlvc.compiled import loop, over_rows

WEIGHT_LIMIT = 127
ACTIVATION_LIMIT = 255
EXACT_LIMIT = 2**24
"""Integers up to this are exact in float32."""

LATENT_UNIT = 16
"""Latents and their predicted means are integers in units of 1/16 quantiser step."""
COMPANDING_GAIN = 20.0
COMPANDED_LIMIT = 127
LINEAR_GAIN = 2.0


def straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """``rounded``, with the gradient of ``value``."""
    return value + (rounded - value).detach() if value.requires_grad else rounded


def round_half_up(value: Tensor) -> Tensor:
    return straight_through(value, torch.floor(value + 0.5))


def companding_table() -> Tensor:
    """Integers that compress a latent (in 1/16 steps; index 0 is the lowest): gain * log2(1 + |v|), at most 127.

    A table and not a formula, because a logarithm may differ in its last bit between machines.
    """
    magnitude = torch.arange(16 * 96, dtype=torch.float64) / LATENT_UNIT
    companded = torch.floor(COMPANDING_GAIN * torch.log2(1 + magnitude) + 0.5).clamp(max=COMPANDED_LIMIT).float()
    return torch.cat([-companded[1:].flip(0), companded])


def compand(latent: Tensor, table: Tensor) -> Tensor:
    """Network input from integer latents (N, C, ...; in 1/16 steps): log-compressed magnitude with the sign kept."""
    rows = latent.movedim(1, -1)  # as they lie in memory
    if latent.device.type == "cpu" and latent.dtype == torch.float32:
        values = rows.detach().reshape(-1, rows.shape[-1]).contiguous()
        result = torch.empty_like(values)
        over_rows(_look_up, len(values), values.numpy(), table.numpy(), result.numpy(), least=256)
        return result.reshape(rows.shape).movedim(-1, 1)
    index = (rows + table.numel() // 2).clamp(0, table.numel() - 1).int()
    return table.index_select(0, index.flatten()).to(latent.dtype).reshape(rows.shape).movedim(-1, 1)


@loop
def _look_up(begin: int, end: int, values: Any, table: Any, result: Any) -> None:
    """:func:`compand` of rows of ``values`` (., channels), in one walk: most of them are zero."""
    zero, last = len(table) // 2, len(table) - 1
    for i in range(begin, end):
        for j in range(values.shape[1]):
            value = values[i, j]
            result[i, j] = table[min(max(int(value) + zero, 0), last)] if value else np.float32(0.0)


def linear_input(latent: Tensor) -> Tensor:
    """Network input from integer latents that keeps small differences of large values (for low frequencies)."""
    return torch.floor(latent * (LINEAR_GAIN / LATENT_UNIT) + 0.5).clamp(-COMPANDED_LIMIT, COMPANDED_LIMIT)


class IntegerConv(nn.Module):
    """Convolution with 8-bit weights; returns the integer accumulator, scaled by 2^shift.

    Several accumulators of equal shift may be added before :func:`requantise`.
    """

    BIAS_UNIT = 32.0
    BYTES = True  # inputs fit 8 bits

    exact_weight: Tensor | None
    exact_bias: Tensor | None

    def __init__(
        self, inputs: int, outputs: int, kernel: int, shift: int = 8, gain: float = 1.0, *, signed: bool = False
    ) -> None:
        """``signed``: inputs are from -127 to 127 (companded), and not from 0 to 255 (rectified)."""
        super().__init__()
        self.shift = shift
        self.signed = signed
        self.padding = kernel // 2
        deviation = gain * math.sqrt(2 / (inputs * kernel * kernel))
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) * deviation)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("exact_weight", None, persistent=False)
        self.register_buffer("exact_bias", None, persistent=False)
        self._packed: Packed | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Packed weights cannot be copied: a copy does without until it enters evaluation mode again."""
        return {**self.__dict__, "_packed": None}

    def train(self, mode: bool = True) -> "IntegerConv":
        """Entering evaluation mode rounds the weights once for all."""
        super().train(mode)
        self.exact_weight = None if mode else self.integer_weight().detach()
        self.exact_bias = None if mode else self.integer_bias().detach()
        self._packed = pack(self.exact_weight, self.signed) if self.BYTES and self.exact_weight is not None else None
        return self

    def integer_weight(self) -> Tensor:
        return round_half_up(self.weight * 2.0**self.shift).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)

    def integer_bias(self) -> Tensor:
        return round_half_up(self.bias * (self.BIAS_UNIT * 2.0**self.shift))

    def forward(self, x: Tensor) -> Tensor:
        if self.exact_weight is None:
            return F.conv2d(x, self.integer_weight(), self.integer_bias(), 1, self.padding)
        if self._packed is not None and self.exact_bias is not None and x.is_cpu and x.dtype == torch.float32:
            sums = convolve(x, self._packed, self.exact_bias)
        else:
            sums = F.conv2d(x, self.exact_weight, self.exact_bias, 1, self.padding)
        # Rounding absorbs what Winograd or TF32 kernels add, as long as it stays under 1/2.
        return torch.round(sums)

    def largest_accumulator(self, input_limit: int) -> int:
        """Bound of |accumulator| for |input| <= ``input_limit``, from the weights."""
        weights = self.integer_weight().abs().sum(dim=(1, 2, 3)) * input_limit
        return int((weights + self.integer_bias().abs()).max())


def requantise(accumulator: Tensor, shift: int) -> Tensor:
    """Back to activation units: divide by 2^shift, rounding half up. Exact."""
    value = accumulator * 2.0**-shift
    return round_half_up(value) if value.requires_grad else value.add_(0.5).floor_()


def rectify(accumulator: Tensor, shift: int) -> Tensor:
    """Requantise and clamp to [0, 255]: the activation function of the integer networks."""
    return requantise(accumulator, shift).clamp_(0, ACTIVATION_LIMIT)
