"""One function over many items: in this process, in several of this machine, or on a Ray cluster.

Results are the same either way; only their order is not.
"""

import logging
import multiprocessing
import signal
import socket
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from rqlvc.errors import RqlvcError

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 2
"""Times that Ray starts an item again whose worker died."""
QUEUE = 2
"""Items handed out at a time for each worker: one in work, one that waits."""
CONNECT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Processes:
    """Of this machine. One is the calling process itself."""

    count: int


@dataclass(frozen=True, slots=True)
class RayCluster:
    """``address`` as ``ray.init`` takes it: ``auto`` or host:port. Its machines need this package, at this version, and
    the files that items name, at the same paths."""

    address: str = "auto"


Engine = Processes | RayCluster


def spread(
    function: Callable[[Item], Result], items: Iterable[Item], engine: Engine
) -> Generator[tuple[Item, Result | None], None, None]:
    """Items with their results, as they come. ``items`` may have no end: few more are taken than can be worked on.

    ``function`` is one that a module names, both it and the items can be pickled, and it does not return None. A dead
    worker of Ray's costs its own item, which is started again; None is the result of one whose workers died each time.
    Raises what ``function`` raises, and :class:`RqlvcError` where a process of this machine died or there is no
    cluster.
    """
    if isinstance(engine, RayCluster):
        return _on_ray(function, items, engine)
    if engine.count == 1:
        return ((item, function(item)) for item in items)
    return _in_processes(function, items, engine.count)


def _in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Generator[tuple[Item, Result | None], None, None]:
    left = iter(items)
    # Spawned: a fork of a process with PyTorch's threads may hang. Ctrl-C ends workers at once and without a word; else
    # each would finish what it has, and what waits for it, and show a traceback.
    interrupt = (signal.SIGINT, signal.SIG_DFL)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, spawn, initializer=signal.signal, initargs=interrupt) as pool:
        futures: dict[Future[Result], Item] = {}
        try:
            while True:
                for item in islice(left, QUEUE * count - len(futures)):
                    futures[pool.submit(function, item)] = item
                if not futures:
                    return
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    yield futures.pop(future), future.result()
        except BrokenProcessPool:
            raise RqlvcError(
                "a worker process died, perhaps for want of memory: the same command goes on from here; "
                "try fewer --jobs."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _on_ray(
    function: Callable[[Item], Result], items: Iterable[Item], cluster: RayCluster
) -> Generator[tuple[Item, Result | None], None, None]:
    try:
        import ray
    except ImportError:
        raise RqlvcError("a Ray cluster needs the extra 'ray': pip install 'rqlvc[ray]'.") from None
    host, _, port = cluster.address.rpartition(":")
    try:
        if host and port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise RqlvcError(f"there is no Ray cluster at {cluster.address}: start one with 'ray start --head'.") from error
    task: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(function)
    cluster_resources: Any = ray.cluster_resources  # untyped
    left = iter(items)
    waiting: dict[Any, Item] = {}
    try:
        while True:
            workers = max(1, int(cluster_resources().get("CPU", 0)))
            for item in islice(left, max(0, QUEUE * workers - len(waiting))):
                waiting[task.remote(item)] = item
            if not waiting:
                return
            for reference in ray.wait(list(waiting))[0]:
                item = waiting.pop(reference)
                result: Result | None = None
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, Exception) else error) from None
                except ray.exceptions.RayError:  # the worker, its machine or its memory
                    pass
                yield item, result
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
        ray.shutdown()
