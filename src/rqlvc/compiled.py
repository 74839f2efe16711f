"""Loops compiled by Numba and run over rows in as many threads as PyTorch has: what no tensor operation does well.

Loops over samples may differ in the last bit between machines. Those that a decoder's parse depends on (in
:mod:`rqlvc.codec.binary` and what is above it) hold nothing but integers.
"""

import functools
import itertools
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit

_log = logging.getLogger(__name__)

OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": True, "error_model": "numpy"}
"""For ``numba.njit``. Kernels are compiled at their first call on a machine and kept on disk."""
INNER: Any = {**OPTIONS, "_nrt": False}
"""The same for what kernels call for every block or decision and what allocates nothing: references to arrays are not
counted there. Counting is atomic, for each array at each call, and takes several times as long as a decision does.
Numba does not document the option, so the project says which versions have it."""


_C1, _C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(math.cos(k * math.pi / 16) / 2) for k in range(1, 8))


@njit(**INNER)
def dct(a0: Any, a1: Any, a2: Any, a3: Any, a4: Any, a5: Any, a6: Any, a7: Any) -> Any:
    """Orthonormal DCT-II of 8 samples, from their sums and differences."""
    s0, s1, s2, s3 = a0 + a7, a1 + a6, a2 + a5, a3 + a4
    d0, d1, d2, d3 = a0 - a7, a1 - a6, a2 - a5, a3 - a4
    p0, p1, m0, m1 = s0 + s3, s1 + s2, s0 - s3, s1 - s2
    return (
        _C4 * (p0 + p1),
        _C1 * d0 + _C3 * d1 + _C5 * d2 + _C7 * d3,
        _C2 * m0 + _C6 * m1,
        _C3 * d0 - _C7 * d1 - _C1 * d2 - _C5 * d3,
        _C4 * (p0 - p1),
        _C5 * d0 - _C1 * d1 + _C7 * d2 + _C3 * d3,
        _C6 * m0 - _C2 * m1,
        _C7 * d0 - _C5 * d1 + _C3 * d2 - _C1 * d3,
    )


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "compiled")


@functools.cache
def _explain_the_wait() -> None:
    _log.warning("compiling loops for this machine: only once, it takes some 35 seconds")


def _is_compiled(kernel: Any) -> bool:
    return bool(kernel.signatures) or any(Path(kernel.stats.cache_path).glob(f"*{kernel.__name__}-*.nbi"))


def announce(kernel: Any) -> None:
    """Say that there is a wait, where ``kernel`` has never been compiled on this machine."""
    if not _is_compiled(kernel):
        _explain_the_wait()


def over_rows(kernel: Callable[..., None], rows: int, *arguments: Any, least: int = 1) -> None:
    """Call ``kernel(begin, end, *arguments)`` so that every row below ``rows`` is done once.

    ``least``: rows that are worth a thread. Waking one takes a good part of a millisecond while PyTorch's own threads
    still wait for work.
    """
    announce(kernel)
    threads = max(1, min(torch.get_num_threads(), rows // least))
    (begin, end), *others = itertools.pairwise(rows * i // threads for i in range(threads + 1))
    parts = [_pool(threads).submit(kernel, *span, *arguments) for span in others]
    kernel(begin, end, *arguments)
    for part in parts:
        part.result()
