"""Binary arithmetic coding: decisions whose probabilities somebody else knows.

Integers only, so every machine decodes the same. The coder is a range coder with carries (as in LZMA). One routine,
:func:`code`, serves encoder, decoder and those who only want the price, so that the syntax above it is written once.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rqlvc.compiled import inner_loop, loop
from rqlvc.errors import RqlvcError

ONE = 1 << 16
LEAST = 32
"""Probabilities that are coded with stay this far from 0 and from 1."""

WRITE, READ, COUNT, PRICE = 0, 1, 2, 3
"""What a coder does: code and sum up prices; decode; only sum up prices; the same, while contexts stay as they are."""

_TOP = 1 << 24
_WHOLE = (1 << 32) - 1
_MODE, _LOW, _RANGE, _HELD, _PENDING, _PLACE = range(6)
_PRICE_SHIFT = 5
_PRICES = (16 - np.log2((np.arange(ONE >> _PRICE_SHIFT) + 0.5) * 2**_PRICE_SHIFT)).astype(np.float32)
"""Bits of a decision by the probability of how it fell."""


class BinaryCoder(NamedTuple):
    """What :func:`code` works on."""

    state: npt.NDArray[np.int64]
    data: npt.NDArray[np.uint8]
    bits: npt.NDArray[np.float64]
    """(1,): the sum of prices."""


def writer(capacity: int) -> BinaryCoder:
    """An encoder of at most ``capacity`` bytes, which also sums up prices."""
    return _coder(WRITE, np.zeros(capacity, np.uint8))


def reader(data: bytes) -> BinaryCoder:
    """A decoder of what :func:`finish` gave; beyond its end there are zeros."""
    padded = data + bytes(4)
    coder = _coder(READ, np.frombuffer(padded, np.uint8).copy())
    coder.state[_LOW] = int.from_bytes(padded[:4], "big")
    coder.state[_PLACE] = 4
    return coder


def counter() -> BinaryCoder:
    """Sums up prices while contexts adapt."""
    return _coder(COUNT, np.zeros(0, np.uint8))


def pricer() -> BinaryCoder:
    """Sums up prices in contexts that stay as they are."""
    return _coder(PRICE, np.zeros(0, np.uint8))


def _coder(mode: int, data: npt.NDArray[np.uint8]) -> BinaryCoder:
    return BinaryCoder(np.array([mode, 0, _WHOLE, 0, 0, 0], np.int64), data, np.zeros(1))


@inner_loop
def mode(coder: Any) -> int:
    """What ``coder`` does."""
    return coder.state[_MODE]


@inner_loop
def code(coder: Any, probability: int, one: bool) -> bool:
    """Code or decode a decision that is a one with ``probability``; returns it."""
    state = coder.state
    does = mode(coder)
    probability = min(max(probability, LEAST), ONE - LEAST)
    if does == READ:
        bound = (state[_RANGE] >> 16) * probability
        one = state[_LOW] < bound
        state[_LOW] -= 0 if one else bound
    else:
        coder.bits[0] += _PRICES[(probability if one else ONE - probability) >> _PRICE_SHIFT]
        if does != WRITE:
            return one
        bound = (state[_RANGE] >> 16) * probability
        state[_LOW] += 0 if one else bound
    state[_RANGE] = bound if one else state[_RANGE] - bound
    while state[_RANGE] < _TOP:
        state[_RANGE] <<= 8
        if does == WRITE:
            _shift(coder)
        else:
            place = state[_PLACE]
            state[_LOW] = (state[_LOW] << 8) | (coder.data[place] if place < len(coder.data) else 0)
            state[_PLACE] = place + 1
    return one


@inner_loop
def _shift(coder: Any) -> None:
    """Hand out the top byte of what is known of the code. It is held while a carry could still reach it."""
    state = coder.state
    low = state[_LOW]
    if low < 0xFF000000 or low > _WHOLE:
        carry = low >> 32
        _put(coder, state[_HELD] + carry)
        for _ in range(state[_PENDING]):
            _put(coder, 0xFF + carry)
        state[_PENDING] = 0
        state[_HELD] = (low >> 24) & 0xFF
    else:
        state[_PENDING] += 1
    state[_LOW] = (low & 0x00FFFFFF) << 8


@inner_loop
def _put(coder: Any, byte: int) -> None:
    place = coder.state[_PLACE]
    if place < len(coder.data):
        coder.data[place] = byte & 0xFF
    coder.state[_PLACE] = place + 1


@loop
def _end(coder: Any) -> None:
    """The code in the interval with the most zeros at its end, then all of it."""
    state = coder.state
    low, last = state[_LOW], state[_LOW] + state[_RANGE] - 1
    for zeros in range(32, -1, -1):
        unit = 1 << zeros
        code = (low + unit - 1) // unit * unit
        if code <= last:
            state[_LOW] = code
            break
    for _ in range(5):
        _shift(coder)


def finish(coder: BinaryCoder) -> bytes:
    """All that was written: the fewest bytes that still say which interval it is in."""
    _end(coder)
    length = int(coder.state[_PLACE])
    if length > len(coder.data):
        raise RqlvcError(f"A packet of {length} bytes is more than any picture needs: this is a defect.")
    return coder.data[1:length].tobytes().rstrip(b"\0")  # nothing carries into the first byte: it is 0


@inner_loop
def code_digits(coder: Any, count: int, value: int) -> int:
    """Code or decode the last ``count`` binary digits of ``value``, at even chances; returns them as a number."""
    result = 0
    for digit in range(count - 1, -1, -1):
        result = 2 * result + int(code(coder, ONE // 2, (value >> digit) & 1 == 1))
    return result


@inner_loop
def code_plainly(coder: Any, longest: int, value: int) -> int:
    """Code or decode ``value`` (0 to 2**(longest + 1) - 2), at even chances: its length in binary, then its digits."""
    length = 0
    while length < longest and code(coder, ONE // 2, (value + 1) >> (length + 1) > 0):
        length += 1
    return (1 << length) + code_digits(coder, length, value + 1) - 1
