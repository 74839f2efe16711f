"""What a command says while it works: progress and warnings on stderr, JSON lines on stdout."""

import json
import sys
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

PLAIN_INTERVAL = 5.0  # seconds between progress lines where stderr is no terminal
RATE_WINDOW = 1.0  # seconds of video over which "now" is measured


def say(message: str) -> None:
    print(f"rqlvc: {message}", file=sys.stderr, flush=True)


def json_line(type_: str, fields: dict[str, Any]) -> str:
    """One line of the documented JSON contract: ``type`` first, then ``fields``."""
    return json.dumps({"type": type_} | fields, allow_nan=False)


def print_json(type_: str, fields: dict[str, Any]) -> None:
    print(json_line(type_, fields), flush=True)


def warn(message: str, *, json: bool) -> None:
    say(f"warning: {message}")
    if json:
        print_json("warning", {"message": message})


class Progress:
    """Frame, fps, kbit/s, quality and time left: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.target: float | None = None
        """The bitrate to land on, in bits per second."""
        self._started = time.monotonic()
        self._shown = self._last = self._started
        self._aside = 0.0
        """Seconds that went into frames that were only rehearsed."""
        self._frames = 0
        self._bits = 0
        self._window: deque[tuple[float, int]] = deque()
        self._bar: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[line]}"))
            self._bar = Bar(*columns, TimeRemainingColumn(compact=True), console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self.verb, total=None, line="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, seconds: float, bits: int, *, total: int | None = None, quality: float | None = None) -> None:
        """One more frame, shown at ``seconds`` of video, that cost ``bits``; ``total`` frames are expected."""
        self._frames += 1
        self._bits += bits
        self._window.append((seconds, bits))
        while self._window[0][0] <= seconds - RATE_WINDOW:
            self._window.popleft()
        now = self._last = time.monotonic()
        if self._bar is not None:
            line = self._line(now, seconds, total, quality)
            self._bar.update(self._task, completed=self._frames, total=total, line=line)
        elif now - self._shown >= PLAIN_INTERVAL:
            self._shown = now
            left = "" if total is None else f", {(total - self._frames) * self._spent(now) / self._frames:.0f} s left"
            say(f"{self.verb}: {self._line(now, seconds, total, quality)}{left}")

    def rehearsed(self, done: int, frames: int) -> None:
        """Of ``frames`` frames that are coded to see what they cost, before they are coded for good, so many are."""
        now = time.monotonic()
        self._aside += now - self._last
        self._last = now
        line = f"coding {frames} frames ahead to see what they cost, {done} done"
        if self._bar is not None:
            self._bar.update(self._task, line=line)
        elif now - self._shown >= PLAIN_INTERVAL:
            self._shown = now
            say(f"{self.verb}: {line}")

    def _spent(self, now: float) -> float:
        """Seconds in which the frames up to here were coded for good."""
        return max(now - self._started - self._aside, 1e-9)

    def _line(self, now: float, seconds: float, total: int | None, quality: float | None) -> str:
        gap = seconds / (self._frames - 1) if self._frames > 1 else 0.0  # a frame lasts about as long as those before
        average = self._bits / (seconds + gap) if gap else 0.0
        recent = sum(bits for _, bits in self._window) / min(RATE_WINDOW, seconds + gap) if gap else 0.0
        parts = [
            f"frame {self._frames}" + ("" if total is None else f"/{total}"),
            f"{self._frames / self._spent(now):.1f} fps",
            f"{recent / 1000:.0f} kbit/s now, {average / 1000:.0f} average"
            + ("" if self.target is None else f", {self.target / 1000:.0f} target"),
        ]
        return ", ".join(parts if quality is None else [*parts, f"q {quality:.1f}"])
