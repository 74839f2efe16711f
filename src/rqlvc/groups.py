"""Groups of pictures depend on nothing outside themselves: several are worked on at once, results come in order.

This is how a small model fills a processor: two cores on one frame save little, two frames on two cores nearly half.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from rqlvc.codec.protocol import Codec
from rqlvc.errors import RqlvcError

T = TypeVar("T")
R = TypeVar("R")

MEMORY = 2**29
"""Bytes of pictures that may wait for their turn to be coded or to be shown."""
STOP_SECONDS = 0.1
"""How soon work sees that nobody wants its results any more."""


@runtime_checkable
class Divisible(Protocol):
    """What a codec may have beside the methods of :class:`Codec`, so that several threads may call it at once."""

    calls_at_once: int
    """As many as are worth it."""

    def share(self, calls: int) -> None:
        """From now on the calls of this thread share the processor with those of ``calls - 1`` other threads."""
        ...


def pictures_that_fit(width: int, height: int) -> int:
    """How many pictures of 8-bit 4:2:0 fill :data:`MEMORY`."""
    return max(1, MEMORY * 2 // (3 * width * height))


def groups_at_once(codec: Codec) -> int:
    """How many groups ``codec`` should be given at once."""
    return codec.calls_at_once if isinstance(codec, Divisible) else 1


def grouped(items: Iterable[T], starts: Callable[[T], bool]) -> Iterator[Iterable[T]]:
    """``items`` cut before every item that ``starts`` a group. An error between items ends the last group."""
    group: list[T] = []
    try:
        for item in items:
            if group and starts(item):
                yield group
                group = []
            group.append(item)
    except RqlvcError as error:
        yield chain(group, _raising(error))
        return
    if group:
        yield group


def side_by_side(
    groups: Iterator[Iterable[T]],
    work: Callable[[Iterable[T]], Generator[R]],
    codec: Codec,
    *,
    at_once: int,
    waiting: int,
) -> Generator[R]:
    """The results of ``work`` on each of ``groups``, in order, with up to ``at_once`` groups in work.

    At most ``waiting`` results of a group wait for those of the groups before it, and at most one group that is not in
    work is read. What ``work`` raises on a group comes after the results before it.
    """
    if at_once < 2 or not isinstance(codec, Divisible):
        for group in groups:
            yield from work(group)
        return
    line: deque[_Work[R]] = deque()
    unfinished = 0

    def make(group: _Work[R], making: Iterator[R]) -> None:
        """What a thread does. As groups come to their end, those left have the processor to themselves."""
        nonlocal unfinished
        try:
            while not group.unwanted.is_set():
                codec.share(min(unfinished, at_once))
                group.put(next(making))
        except StopIteration:
            group.put(_End(None))
        except BaseException as error:  # whatever it is, the other thread must not wait for ever
            group.put(_End(error))
        finally:
            with lock:
                unfinished -= 1

    lock = threading.Lock()
    with ThreadPoolExecutor(at_once, "group") as pool:
        try:
            for group in groups:
                line.append(_Work(waiting))
                with lock:
                    unfinished += 1
                pool.submit(make, line[-1], work(group))
                if len(line) > at_once:
                    yield from line.popleft().results()
            while line:
                yield from line.popleft().results()
        finally:
            for unwanted in line:
                unwanted.unwanted.set()
            codec.share(1)


class _End(NamedTuple):
    error: BaseException | None


class _Work(Generic[R]):
    """One group's results, from the thread that makes them to the one that wants them."""

    def __init__(self, waiting: int) -> None:
        self._made: queue.Queue[R | _End] = queue.Queue(waiting)
        self.unwanted = threading.Event()

    def put(self, made: R | _End) -> None:
        while not self.unwanted.is_set():
            try:
                return self._made.put(made, timeout=STOP_SECONDS)
            except queue.Full:
                continue

    def results(self) -> Iterator[R]:
        try:
            while not isinstance(made := self._made.get(), _End):
                yield made
            if made.error is not None:
                raise made.error
        finally:
            self.unwanted.set()


def _raising(error: RqlvcError) -> Iterator[T]:
    raise error
    yield
