"""Convolution of 8-bit integers by the processor's own instructions (VNNI, AMX): much faster than in float32.

These are oneDNN's kernels for quantised networks, with all scales 1: bytes times 8-bit weights, summed up in 32 bits,
handed out as float32, which is exact below 2^24. Processors without such instructions add up pairs of products in 16
bits, which saturate; whether this one does is tried out. PyTorch's calls are its own affair and may change; where they
have, float32 does the work.
"""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LIFT = 128
"""Added to inputs that may be negative, for bytes are not."""


class Packed(NamedTuple):
    """Weights as the kernels want them."""

    weight: Tensor
    ones: Tensor
    zeros: Tensor
    padding: int
    lift: int


def pack(weight: Tensor, signed: bool) -> Packed | None:
    """``weight``: integers from -127 to 127 (outputs, inputs, kernel, kernel) on the CPU; ``signed``: inputs are -128
    to 127 and not 0 to 255. None where this processor or PyTorch has no exact kernels."""
    return _packed(weight, signed) if weight.device.type == "cpu" and _exact() else None


def convolve(x: Tensor, packed: Packed, bias: Tensor) -> Tensor:
    """Sums of products (N, outputs, H, W), float32, of integers ``x`` (N, inputs, H, W) in floating point; padded with
    zeros as far as the kernel reaches."""
    ones, zeros, around = packed.ones, packed.zeros, [packed.padding, packed.padding]
    result: Tensor = torch.ops.onednn.qconv2d_pointwise(
        (x + packed.lift if packed.lift else x).to(torch.uint8),
        *(1.0, packed.lift, packed.weight, ones, zeros, bias.contiguous()),
        *([1, 1], around, [1, 1], 1),  # stride, padding, dilation, groups
        *(1.0, 0, torch.float32, "none", [None], ""),  # of the output
    )
    return result


def _packed(weight: Tensor, signed: bool) -> Packed:
    outputs, padding, lift = weight.shape[0], weight.shape[-1] // 2, LIFT if signed else 0
    ones, around = torch.ones(outputs), [padding, padding]
    packed = torch.ops.onednn.qconv_prepack(weight.to(torch.int8), ones, 1.0, lift, [1, 1], around, [1, 1], 1, None)
    return Packed(packed, ones, torch.zeros(outputs, dtype=torch.int32), padding, lift)


@cache
def _exact() -> bool:
    """Whether sums come out right, also where products are largest."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randint(-127, 128, shape, generator=generator).float() for shape in ((32, 32, 3, 3), (32,)))
    try:
        for signed, low, high in ((True, -127, 127), (False, 0, 255)):
            x = torch.randint(low, high + 1, (1, 32, 9, 11), generator=generator).float()
            for weights, inputs in ((weight, x), (127 * weight.sign(), torch.full_like(x, high))):
                expected = F.conv2d(inputs.double(), weights.double(), bias.double(), 1, 1)
                if not torch.equal(convolve(inputs, _packed(weights, signed), bias).double(), expected):
                    return False
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    return True
