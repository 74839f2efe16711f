"""How many threads a frame is coded on, on machines whose times are known."""

from collections.abc import Callable

import numpy as np
import pytest

from rqlvc.codec.threads import ThreadCount

Machine = Callable[[int, int], float]
"""Seconds that a frame takes on so many threads; and the number of the frame."""


def run(machine: Machine, most: int, frames: int, noise: float = 0.15) -> tuple[list[int], float]:
    """The threads of each frame, and how many times as long all took as each on its best number."""
    draw = np.random.default_rng(1)
    count, chosen, spent, least = ThreadCount(most), [], 0.0, 0.0
    for frame in range(frames):
        chosen.append(count.now)
        content = float(draw.uniform(1 - noise, 1 + noise))
        spent += content * machine(count.now, frame)
        least += content * min(machine(threads, frame) for threads in range(1, most + 1))
        count.observe(content * machine(count.now, frame))
    return chosen, spent / least


def large(threads: int, frame: int) -> float:
    """A large picture on an idle machine."""
    return 0.2 + 0.8 / threads


def small(threads: int, frame: int) -> float:
    """A small picture, which gains by two threads and loses by more."""
    return 0.05 + 0.02 / threads + 0.01 * threads


def loaded(threads: int, frame: int) -> float:
    """Another program is there: whoever waits for a second thread waits long."""
    return large(1, frame) if threads == 1 else 8 * large(threads, frame)


@pytest.mark.parametrize("most", [1, 2, 3, 8])
@pytest.mark.parametrize("machine", [large, small, loaded])
def test_most_frames_are_coded_about_as_fast_as_they_can_be(machine: Machine, most: int) -> None:
    chosen, times = run(machine, most, 600)
    assert all(1 <= threads <= most for threads in chosen)
    assert times < (1.3 if machine is loaded else 1.1)


def test_a_load_that_comes_is_felt_at_once_and_one_that_goes_is_noticed() -> None:
    def machine(threads: int, frame: int) -> float:
        return (loaded if 200 <= frame < 300 else large)(threads, frame)

    chosen, _ = run(machine, 2, 900)
    assert chosen[150:200].count(2) > 45
    assert chosen[204:300].count(1) > 80
    assert chosen[600:].count(2) > 250


def test_without_noise_the_best_is_kept_and_rarely_doubted() -> None:
    chosen, _ = run(large, 4, 1000, noise=0.0)
    assert set(chosen[:1]) == {4} and chosen[10:].count(4) > 950
    assert len(chosen) - chosen.count(4) >= 5
