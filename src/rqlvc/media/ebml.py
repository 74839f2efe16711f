"""EBML (RFC 8794), the binary XML under Matroska: variable-length integers, elements, and a bounded reader."""

import io
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

UNKNOWN_SIZE = -1
"""Size of an element that lasts until an element comes that cannot be its child."""
UNKNOWN_SIZE_BYTES = b"\x01\xff\xff\xff\xff\xff\xff\xff"
MAX_SIZE = (1 << 56) - 2
CHUNK = 1 << 20
"""Largest piece that is asked of the system at once: a claimed size alone never allocates memory."""


class DamagedError(Exception):
    """The bytes make no EBML, or end too early. ``args[0]`` says what is wrong, without a full stop."""


# Writing


def encode_size(value: int, length: int = 0) -> bytes:
    """``value`` in 0..2^56-2 as an element size, in ``length`` bytes or as few as hold it."""
    if not 0 <= value <= MAX_SIZE:
        raise ValueError(f"no EBML size: {value}")
    # All ones in the value bits is reserved for "unknown", so each length holds one value less.
    shortest = next(count for count in range(1, 9) if value < (1 << 7 * count) - 1)
    length = max(length, shortest)
    return (value | 1 << 7 * length).to_bytes(length, "big")


def element(identifier: int, payload: bytes) -> bytes:
    """A whole element. ``identifier`` carries its length marker, as the specifications print it."""
    return identifier_bytes(identifier) + encode_size(len(payload)) + payload


def identifier_bytes(identifier: int) -> bytes:
    return identifier.to_bytes((identifier.bit_length() + 7) // 8, "big")


def unsigned(identifier: int, value: int) -> bytes:
    return element(identifier, value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big"))


def signed(identifier: int, value: int) -> bytes:
    return element(identifier, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def double(identifier: int, value: float) -> bytes:
    return element(identifier, struct.pack(">d", value))


def text(identifier: int, value: str) -> bytes:
    return element(identifier, value.encode("utf-8"))


def void(total: int) -> bytes:
    """A Void element of ``total`` bytes (2 to 128), to be overwritten later."""
    return b"\xec" + encode_size(total - 2) + bytes(total - 2)


# Reading


def decode_unsigned(payload: bytes) -> int:
    if len(payload) > 8:
        raise DamagedError("a number is longer than 8 bytes")
    return int.from_bytes(payload, "big")


def decode_float(payload: bytes) -> float:
    if len(payload) not in (0, 4, 8):
        raise DamagedError("a floating-point number has neither 4 nor 8 bytes")
    return 0.0 if not payload else float(struct.unpack(">f" if len(payload) == 4 else ">d", payload)[0])


def decode_text(payload: bytes) -> str:
    return payload.split(b"\0", 1)[0].decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Header:
    """Identifier and payload size of an element, and where it begins and its payload begins in the stream."""

    identifier: int
    size: int
    start: int
    payload: int


class Source:
    """A byte stream that knows its position; works on pipes. ``length`` is None where it is not known."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.position = 0
        self.length = _regular_length(stream)

    @property
    def seekable(self) -> bool:
        return self.length is not None

    def seek(self, position: int) -> None:
        self._stream.seek(position)
        self.position = position

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes. Raises DamagedError when the stream ends before."""
        if self.length is not None and count > self.length - self.position:
            raise DamagedError("the file ends in the middle of an element")
        data = bytearray()
        while len(data) < count:
            piece = self._stream.read(min(CHUNK, count - len(data)))
            if not piece:
                raise DamagedError("the file ends in the middle of an element")
            data += piece
        self.position += count
        return bytes(data)

    def skip(self, count: int) -> None:
        """Past ``count`` bytes. Raises DamagedError when the stream ends before."""
        if self.length is not None:
            if count > self.length - self.position:
                raise DamagedError("the file ends in the middle of an element")
            self.seek(self.position + count)
            return
        while count:
            count -= len(self.read(min(CHUNK, count)))

    def header(self) -> Header | None:
        """Header of the next element; None where the stream ends."""
        start = self.position
        first = self._stream.read(1)
        if not first:
            return None
        self.position += 1
        identifier = int.from_bytes(first + self.read(_vint_length(first[0], 4) - 1), "big")
        lead = self.read(1)
        length = _vint_length(lead[0], 8)
        size = _vint_value(lead + self.read(length - 1))
        return Header(identifier, size, start, self.position)


def children(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """(identifier, payload) of the elements in a master element. Raises DamagedError where they do not fit."""
    source = Source(io.BytesIO(payload))
    source.length = len(payload)
    while (header := source.header()) is not None:
        if header.size == UNKNOWN_SIZE:
            raise DamagedError("an element of unknown size stands where none may")
        yield header.identifier, source.read(header.size)


def decode_vint(data: bytes) -> tuple[int, int]:
    """(value, bytes used) of the variable-length integer at the start of ``data``; UNKNOWN_SIZE for all ones."""
    if not data:
        raise DamagedError("a number is missing")
    length = _vint_length(data[0], 8)
    if length > len(data):
        raise DamagedError("a number is cut")
    return _vint_value(data[:length]), length


def _vint_length(lead: int, longest: int) -> int:
    length = 9 - lead.bit_length()
    if length > longest:
        raise DamagedError("there is no element where one must begin")
    return length


def _vint_value(data: bytes) -> int:
    marker = 1 << 7 * len(data)
    value = int.from_bytes(data, "big") & (marker - 1)
    return UNKNOWN_SIZE if value == marker - 1 else value


def _regular_length(stream: BinaryIO) -> int | None:
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # io.UnsupportedOperation is one: no descriptor behind the stream
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) and stream.seekable() else None
