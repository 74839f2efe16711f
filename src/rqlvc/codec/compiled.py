"""Loops compiled by Numba and run over rows in as many threads as PyTorch has: what no tensor operation does well.

Nothing that picks a probability table comes from here: these loops may differ in the last bit between machines.
"""

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": True, "error_model": "numpy"}
"""For ``numba.njit``. Kernels are compiled at their first call on a machine and kept on disk."""


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "compiled")


def over_rows(kernel: Callable[..., None], rows: int, *arguments: Any) -> None:
    """Call ``kernel(begin, end, *arguments)`` so that every row below ``rows`` is done once."""
    threads = torch.get_num_threads()
    if threads == 1:
        kernel(0, rows, *arguments)
        return
    edges = [rows * i // threads for i in range(threads + 1)]
    parts = [_pool(threads).submit(kernel, *span, *arguments) for span in itertools.pairwise(edges)]
    for part in parts:
        part.result()
