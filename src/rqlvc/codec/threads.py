"""On how many threads a frame is coded fastest, found out on the way.

A small picture gains next to nothing by more than one thread, a large one half as much again by a second. But threads
that work on one frame wait for each other after every layer: where another program holds up the core of one of them,
all of them wait, and a frame may take ten times as long as on one thread alone. Nobody but the clock knows.
"""

FASTER = 0.95
"""Part of the time that another number of threads must take to be better."""
MUCH_SLOWER = 2.0
"""Times as long as usual that a frame takes where something has happened to the machine."""
NEWEST = 0.5
"""Part of the newest frame in the mean of their times."""
PATIENCE, LONGEST_PATIENCE = 2, 256
"""Frames after which another number is tried. Each time in vain, it is twice as many."""


class ThreadCount:
    """Chooses for one frame after the other: ``now`` before it, ``observe`` after it. At most ``most`` threads."""

    def __init__(self, most: int) -> None:
        self._others = [2**power for power in range(most.bit_length()) if 2**power < most]
        """Those to try, the next one first."""
        self._best = most
        self._seconds: float | None = None  # mean time of a frame on these
        self._trying = False
        self._patience, self._waited = PATIENCE, 0

    @property
    def now(self) -> int:
        return self._others[0] if self._trying else self._best

    def observe(self, seconds: float) -> None:
        """A frame has taken so long on ``now`` threads."""
        if self._seconds is None:
            self._seconds = seconds
        elif self._trying:
            tried = self._others.pop(0)
            if seconds < FASTER * self._seconds:
                tried, self._best = self._best, tried
                self._seconds, self._patience = seconds, PATIENCE
            else:
                self._patience = min(2 * self._patience, LONGEST_PATIENCE)
            self._others.append(tried)
            self._trying, self._waited = False, 0
        else:
            self._waited += 1
            if seconds > MUCH_SLOWER * self._seconds:
                self._seconds, self._patience = seconds, PATIENCE
                self._others.sort()  # one thread alone is waited for by nobody
                self._waited = PATIENCE
            self._seconds += NEWEST * (seconds - self._seconds)
            self._trying = bool(self._others) and self._waited >= self._patience
