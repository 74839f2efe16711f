"""Files that appear under their name only when they are whole."""

import contextlib
import itertools
import os
import stat
import sys
from typing import BinaryIO

from rqlvc.errors import RqlvcError

STANDARD_OUTPUT = "-"


class TemporaryName:
    """Write to ``path``, then :meth:`commit` or :meth:`abandon`.

    ``path`` is in the folder of the wanted file: ``clip.part.mkv`` for ``clip.mkv``, so that what a killed process
    leaves behind can be found and played; ``clip.part2.mkv`` and so on where that exists, which nobody may lose.
    The file is made at once. A device or named pipe is written directly (``atomic`` is false).
    Raises RqlvcError when the wanted file exists and ``overwrite`` is false, or can never be written.
    """

    def __init__(self, wanted: str, *, overwrite: bool) -> None:
        self._target = os.path.realpath(wanted)
        if os.path.isdir(self._target):
            raise RqlvcError(f"{wanted} is a folder: name a file to write.")
        if not os.path.isdir(os.path.dirname(self._target)):
            raise RqlvcError(f"The folder of {wanted} does not exist: create it first.")
        exists = os.path.exists(self._target)
        self.atomic = not exists or stat.S_ISREG(os.stat(self._target).st_mode)
        if exists and self.atomic and not overwrite:
            raise RqlvcError(f"{wanted} exists already: choose another name, or ask for it to be overwritten (-y).")
        self.path = _create_beside(self._target, wanted) if self.atomic else self._target

    def commit(self) -> None:
        """Gives the written file its name."""
        if self.atomic:
            try:
                os.replace(self.path, self._target)
            except OSError as error:
                raise _refusal(self._target, error) from error

    def abandon(self) -> None:
        """Removes the written file."""
        if self.atomic:
            with contextlib.suppress(OSError):
                os.remove(self.path)


class AtomicOutput:
    """A binary file behind a :class:`TemporaryName`, or standard output for ``-``, flushed at every write.

    Raises RqlvcError as :class:`TemporaryName` does, and when the system refuses to open or write.
    """

    def __init__(self, path: str, *, overwrite: bool) -> None:
        self.name = "standard output" if path == STANDARD_OUTPUT else path
        self.bytes_written = 0
        self._temporary = None if path == STANDARD_OUTPUT else TemporaryName(path, overwrite=overwrite)
        try:
            self._file: BinaryIO = (
                sys.stdout.buffer if self._temporary is None else open(self._temporary.path, "wb")  # noqa: SIM115
            )
        except OSError as error:
            raise _refusal(self.name, error) from error

    @property
    def seekable(self) -> bool:
        """True where :meth:`patch` works."""
        return self._temporary is not None and self._temporary.atomic

    @property
    def temporary_path(self) -> str | None:
        return self._temporary.path if self._temporary is not None and self._temporary.atomic else None

    def write(self, data: bytes) -> None:
        """Appends ``data`` and hands it to the system at once: a killed process has lost nothing before it."""
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            if self._temporary is None:
                _silence_standard_output()
            raise _refusal(self.name, error) from error
        self.bytes_written += len(data)

    def patch(self, position: int, data: bytes) -> None:
        """Overwrites bytes that were written before."""
        try:
            self._file.seek(position)
            self._file.write(data)
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise _refusal(self.name, error) from error

    def commit(self) -> None:
        """Closes the file and gives it its name. Call once, instead of :meth:`abandon`."""
        if self._temporary is not None:
            try:
                self._file.close()
            except OSError as error:
                raise _refusal(self.name, error) from error
            self._temporary.commit()

    def abandon(self, *, keep: bool = False) -> None:
        """Closes the file and removes it, or with ``keep`` leaves it under its temporary name."""
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            if not keep:
                self._temporary.abandon()


def _create_beside(target: str, wanted: str) -> str:
    """Makes an empty file under the first free temporary name."""
    stem, suffix = os.path.splitext(target)
    for count in itertools.count(1):
        path = f"{stem}.part{count if count > 1 else ''}{suffix}"
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        except OSError as error:
            raise _refusal(wanted, error) from error
        return path
    raise AssertionError("unreachable: the count has no end")


def _refusal(name: str, error: OSError) -> RqlvcError:
    if isinstance(error, BrokenPipeError):
        return RqlvcError(f"Whoever read {name} closed it before the end.")
    return RqlvcError(f"{name} cannot be written: {error.strerror or error}.")


def _silence_standard_output() -> None:
    """Points a broken standard output at the null device: otherwise Python complains once more when it exits."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
