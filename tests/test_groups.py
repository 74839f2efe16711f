"""Groups of pictures, several at once: the same results in the same order as one after the other, whatever happens."""

import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CommandLine, make_clip
from rqlvc.errors import RqlvcError
from rqlvc.groups import Divisible, grouped, side_by_side
from toy_codec import ToyCodec


class SharedToyCodec(ToyCodec):
    """A codec that may be called from several threads, and knows how many said that they do."""

    calls_at_once = 4

    def __init__(self) -> None:
        super().__init__()
        self.shares: set[int] = set()

    def share(self, calls: int) -> None:
        self.shares.add(calls)


def numbers(until: int, broken: int | None) -> Iterator[int]:
    for number in range(until):
        if number == broken:
            raise RqlvcError(f"{number} cannot be read.")
        yield number


def outcome(results: Iterable[int]) -> tuple[list[int], str | None]:
    """All results, and the error that ended them."""
    made: list[int] = []
    try:
        made.extend(results)  # keeps what came before an error
    except (RqlvcError, ZeroDivisionError) as error:
        return made, str(error)
    return made, None


@given(
    until=st.integers(0, 40),
    length=st.integers(1, 9),
    unreadable=st.none() | st.integers(0, 40),
    fails=st.none() | st.integers(0, 40),
    at_once=st.integers(1, 4),
    waiting=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_results_are_those_of_one_after_the_other(
    until: int, length: int, unreadable: int | None, fails: int | None, at_once: int, waiting: int
) -> None:
    def square(group: Iterable[int]) -> Generator[int]:
        for number in group:
            yield number**2 + (0 if number != fails else 1 // 0)

    def groups() -> Iterator[Iterable[int]]:
        return grouped(numbers(until, unreadable), lambda number: number % length == 0)

    one_by_one = outcome(square(numbers(until, unreadable)))
    codec = SharedToyCodec()
    assert outcome(side_by_side(groups(), square, codec, at_once=at_once, waiting=waiting)) == one_by_one
    assert outcome(side_by_side(groups(), square, ToyCodec(), at_once=at_once, waiting=waiting)) == one_by_one
    assert codec.shares <= set(range(1, at_once + 1))


def test_groups_are_in_work_at_once_and_bounded_in_number() -> None:
    working, most, read = 0, 0, 0
    both = threading.Barrier(2, timeout=10)  # breaks unless two groups are in work at the same time

    def source() -> Iterator[int]:
        nonlocal read
        for number in range(0, 24):
            read = number
            yield number

    def work(group: Iterable[int]) -> Generator[int]:
        nonlocal working, most
        working += 1
        most = max(most, working)
        for number in group:
            if number < 8:
                both.wait()
            yield number
        working -= 1

    groups = grouped(source(), lambda number: number % 4 == 0)
    with closing(side_by_side(groups, work, SharedToyCodec(), at_once=2, waiting=8)) as results:
        assert next(results) == 0
        assert read <= 12  # two groups in work, one that waits, and the frame that showed that it was whole
        assert list(results) == list(range(1, 24))
    assert most == 2


def test_nothing_goes_on_when_the_results_are_no_longer_wanted() -> None:
    made = 0

    def work(group: Iterable[int]) -> Generator[int]:
        nonlocal made
        for number in group:
            time.sleep(0.002)
            made += 1
            yield number

    groups = grouped(iter(range(10_000)), lambda number: number % 1000 == 0)
    with closing(side_by_side(groups, work, SharedToyCodec(), at_once=3, waiting=1000)) as results:
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    after = made
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("group")]
    time.sleep(0.05)
    assert made == after < 1000


def test_file_is_the_same_with_one_thread_and_with_two(rqlvc: CommandLine, codec_name: str, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mkv", frames=11)
    options = ["--quality", "30", "--keyint", "3", "--codec", codec_name]
    for threads in ("1", "2"):
        coded = tmp_path / f"{threads}.mkv"
        for command in (
            ("encode", clip, "-o", coded, *options),
            ("decode", coded, "-o", coded.with_suffix(".y4m")),
        ):
            finished = rqlvc(*command, "--threads", threads)
            assert finished.returncode == 0, finished.stderr.decode()
    for suffix in (".mkv", ".y4m"):
        assert (tmp_path / f"1{suffix}").read_bytes() == (tmp_path / f"2{suffix}").read_bytes()


def test_our_codec_is_divisible() -> None:
    from rqlvc.codec.neural import load

    codec = load("cpu", threads=2)
    assert isinstance(codec, Divisible) and codec.calls_at_once == 2
