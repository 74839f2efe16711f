"""Which arithmetic a device is fast in. Only pixels depend on it: the entropy networks are integer-exact in all."""

import torch


def fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 convolution beats float32 here: on CUDA, and on CPUs with AMX.

    AVX512-BF16 alone does not: measured at 34 against 53 GMAC/s on one core.
    """
    if torch.device(device).type == "cuda":
        return True
    return bool(torch.cpu._is_amx_tile_supported())
