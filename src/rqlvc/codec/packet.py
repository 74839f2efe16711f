"""Packet syntax: a small header, then range-coded data.

========  =====================================================================================
bytes     meaning
========  =====================================================================================
1         version (high 4 bits); which of the kept pictures is given up (2 bits); 0; 1 in an intra frame
3         quality level in 1/64 steps (low 12 bits), checksum of all decoded symbols and of what is given up (high
          12 bits: the low ones of CRC-32), little endian
2, 2, 2   intra frames only: width, height, CRC-32 (low 16 bits) of the eight bytes before; little endian
the rest  range coder output; the decoder reads zeros beyond its end
========  =====================================================================================
"""

import struct
import zlib
from dataclasses import dataclass

from rqlvc.codec.protocol import QUALITY_MAX, QUALITY_STEPS
from rqlvc.codec.references import PICTURES
from rqlvc.errors import RqlvcError

VERSION = 5
SIZE_MIN = 16
SIZE_MAX = 8192
_INTRA, _DROPPED_SHIFT = 1, 2
_LEVEL_BITS, _CHECKSUM_BITS = 12, 12
_LEVEL_MASK = (1 << _LEVEL_BITS) - 1
_WORD = 3
_HEADER = 1 + _WORD
_GEOMETRY = struct.Struct("<HH")
_CHECK = struct.Struct("<H")


@dataclass(frozen=True, slots=True)
class Packet:
    """``size`` is (height, width), present in intra packets only. ``dropped`` counts only where there are more pictures
    than are kept. ``checksum`` has 12 bits (:data:`CHECKSUM_MASK`)."""

    quality: float
    checksum: int
    size: tuple[int, int] | None
    data: bytes
    dropped: int = 0

    @property
    def intra(self) -> bool:
        return self.size is not None


CHECKSUM_MASK = (1 << _CHECKSUM_BITS) - 1


def _crc16(data: bytes) -> int:
    return zlib.crc32(data) & 0xFFFF


def write_packet(packet: Packet) -> bytes:
    kind = VERSION << 4 | packet.dropped << _DROPPED_SHIFT | (_INTRA if packet.intra else 0)
    word = round(packet.quality * QUALITY_STEPS) | packet.checksum << _LEVEL_BITS
    header = bytes([kind]) + word.to_bytes(_WORD, "little")
    if packet.size is not None:
        header += _GEOMETRY.pack(packet.size[1], packet.size[0])
        header += _CHECK.pack(_crc16(header))
    return header + packet.data


def read_packet(payload: bytes) -> Packet:
    """Parse a packet. Raises :class:`RqlvcError` when its header is damaged or of another version."""
    if len(payload) < _HEADER:
        raise RqlvcError("A packet is damaged: it is shorter than its header.")
    kind, word = payload[0], int.from_bytes(payload[1:_HEADER], "little")
    if kind >> 4 != VERSION:
        raise RqlvcError(
            f"A packet has version {kind >> 4}, this program reads version {VERSION}: it is damaged, or decoded by the "
            "version of this program that wrote it."
        )
    dropped, level, checksum = kind >> _DROPPED_SHIFT & 3, word & _LEVEL_MASK, word >> _LEVEL_BITS
    intra = kind & 3 == _INTRA
    if kind & 3 > _INTRA or dropped >= PICTURES or (intra and dropped) or level > QUALITY_MAX * QUALITY_STEPS:
        raise RqlvcError("A packet is damaged: its header holds impossible values.")
    if not intra:
        return Packet(level / QUALITY_STEPS, checksum, None, payload[_HEADER:], dropped)
    begin = _HEADER + _GEOMETRY.size
    if len(payload) < begin + _CHECK.size or _CHECK.unpack_from(payload, begin)[0] != _crc16(payload[:begin]):
        raise RqlvcError("A packet is damaged: the checksum of its header does not match.")
    width, height = _GEOMETRY.unpack_from(payload, _HEADER)
    check_size(width, height)
    return Packet(level / QUALITY_STEPS, checksum, (height, width), payload[begin + _CHECK.size :])


def check_size(width: int, height: int) -> None:
    """Raises :class:`RqlvcError` for a picture that the codec does not code."""
    if not (SIZE_MIN <= width <= SIZE_MAX and SIZE_MIN <= height <= SIZE_MAX):
        raise RqlvcError(
            f"The picture is {width}x{height}: this codec takes {SIZE_MIN} to {SIZE_MAX} samples on each side."
            " Scale or crop the video first."
        )
