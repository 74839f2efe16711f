"""Loops compiled by Numba and run over rows in as many threads as PyTorch has: what no tensor operation does well.

Loops over samples may differ in the last bit between machines. Those that a decoder's parse depends on (in
:mod:`rqlvc.codec.binary` and what is above it) hold nothing but integers.
"""

import functools
import itertools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

_log = logging.getLogger(__name__)

OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": True, "error_model": "numpy"}
"""For ``numba.njit``. Kernels are compiled at their first call on a machine and kept on disk."""


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "compiled")


@functools.cache
def _explain_the_wait() -> None:
    _log.warning("compiling loops for this machine: only once, it takes some 25 seconds")


def _is_compiled(kernel: Any) -> bool:
    return bool(kernel.signatures) or any(Path(kernel.stats.cache_path).glob(f"*{kernel.__name__}-*.nbi"))


def over_rows(kernel: Callable[..., None], rows: int, *arguments: Any, least: int = 1) -> None:
    """Call ``kernel(begin, end, *arguments)`` so that every row below ``rows`` is done once.

    ``least``: rows that are worth a thread. Waking one takes a good part of a millisecond while PyTorch's own threads
    still wait for work.
    """
    if not _is_compiled(kernel):
        _explain_the_wait()
    threads = max(1, min(torch.get_num_threads(), rows // least))
    (begin, end), *others = itertools.pairwise(rows * i // threads for i in range(threads + 1))
    parts = [_pool(threads).submit(kernel, *span, *arguments) for span in others]
    kernel(begin, end, *arguments)
    for part in parts:
        part.result()
