"""Loops compiled by Numba and run over rows in as many threads as PyTorch has: what no tensor operation does well.

Loops over samples may differ in the last bit between machines. Those that a decoder's parse depends on (in
:mod:`rqlvc.codec.binary` and what is above it) hold nothing but integers.
"""

import functools
import hashlib
import itertools
import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

_log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parent
_RATE = ("activity.py", "motion.py", "rqnet_loops.py")
_SOURCES = (
    *(Path(__file__), _PACKAGE / "lanes.py"),
    *sorted((_PACKAGE / "codec").glob("*.py")),
    *(_PACKAGE / "rate" / name for name in _RATE),
)
"""Whatever loops are compiled from: they call each other, and hold constants of these modules as they are."""
_numba: Any = numba.config


@functools.cache
def _kept_in() -> str:
    """The folder of compiled loops, one for each state of their sources: Numba by itself looks only at the file of a
    loop, and would go on with what it compiled from others as they were.

    It is where Numba is told to keep things (NUMBA_CACHE_DIR), beside the package's bytecode, or where that cannot be
    written, in the user's cache.
    """
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in _SOURCES)).hexdigest()[:16]
    folder = _PACKAGE / "__pycache__"
    if _numba.CACHE_DIR:
        folder = Path(_numba.CACHE_DIR)
    elif not os.access(folder if folder.exists() else _PACKAGE, os.W_OK):
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return str(folder / f"rqlvc-loops-{digest}")


def _compiler(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that compiles with these ``options`` of ``numba.njit``, and those that all loops have."""

    def compiled(function: Callable[..., Any]) -> Any:
        own, _numba.CACHE_DIR = _numba.CACHE_DIR, _kept_in()  # read when a function is decorated, and only then
        try:
            return numba.njit(cache=True, nogil=True, fastmath=True, error_model="numpy", **options)(function)
        finally:
            _numba.CACHE_DIR = own

    return compiled


loop = _compiler()
"""Decorates a loop that Python calls. It is compiled at its first call on a machine and kept on disk."""
inner_loop = _compiler(_nrt=False)
"""The same for what loops call for every block or decision and what allocates nothing: references to arrays are not
counted there. Counting is atomic, for each array at each call, and takes several times as long as a decision does.
Numba does not document the option, so the project says which versions have it."""


TAPS_OF_EIGHTHS = (
    (0, 64, 0, 0),
    (-2, 58, 10, -2),
    (-4, 54, 16, -2),
    (-6, 46, 28, -4),
    (-4, 36, 36, -4),
    (-4, 28, 46, -6),
    (-2, 16, 54, -4),
    (-2, 10, 58, -2),
)
"""What lies so many eighths to the right of a sample, from the one before it on, in parts of 64: HEVC's interpolation
filter of chroma (ITU-T H.265, table 8-12)."""

_C1, _C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(math.cos(k * math.pi / 16) / 2) for k in range(1, 8))


def transform_of_eight(a0: Any, a1: Any, a2: Any, a3: Any, a4: Any, a5: Any, a6: Any, a7: Any) -> Any:
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


dct = inner_loop(transform_of_eight)
"""The same, compiled."""


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "compiled")


@functools.cache
def _explain_the_wait() -> None:
    _log.warning("compiling loops for this machine and version: only once, it takes some 35 seconds")


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
