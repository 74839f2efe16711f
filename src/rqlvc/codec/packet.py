"""Packet syntax: a small header, then range-coded data.

========  =====================================================================================
bytes     meaning
========  =====================================================================================
1         version (high 4 bits), frame type (low 4 bits: 0 inter, 1 intra)
2         quality level in 1/64 steps, little endian
2         checksum of all decoded symbols: CRC-32, low 16 bits, little endian
2, 2, 2   intra frames only: width, height, CRC-32 (low 16 bits) of the nine bytes before
the rest  range coder output; the decoder reads zeros beyond its end
========  =====================================================================================
"""

import struct
import zlib
from dataclasses import dataclass

from rqlvc.codec.protocol import QUALITY_MAX, QUALITY_STEPS
from rqlvc.errors import RqlvcError

VERSION = 3
SIZE_MIN = 16
SIZE_MAX = 8192
_INTER, _INTRA = 0, 1
_HEADER = struct.Struct("<BHH")
_GEOMETRY = struct.Struct("<HH")
_CHECK = struct.Struct("<H")


@dataclass(frozen=True, slots=True)
class Packet:
    """``size`` is (height, width), present in intra packets only; ``checksum`` has 16 bits."""

    quality: float
    checksum: int
    size: tuple[int, int] | None
    data: bytes

    @property
    def intra(self) -> bool:
        return self.size is not None


def _crc16(data: bytes) -> int:
    return zlib.crc32(data) & 0xFFFF


def write_packet(packet: Packet) -> bytes:
    kind = VERSION << 4 | (_INTRA if packet.intra else _INTER)
    header = _HEADER.pack(kind, round(packet.quality * QUALITY_STEPS), packet.checksum)
    if packet.size is not None:
        header += _GEOMETRY.pack(packet.size[1], packet.size[0])
        header += _CHECK.pack(_crc16(header))
    return header + packet.data


def read_packet(payload: bytes) -> Packet:
    """Parse a packet. Raises :class:`RqlvcError` when its header is damaged or of another version."""
    if len(payload) < _HEADER.size:
        raise RqlvcError("A packet is damaged: it is shorter than its header.")
    kind, quality, checksum = _HEADER.unpack_from(payload)
    if kind >> 4 != VERSION:
        raise RqlvcError(f"A packet has version {kind >> 4}, this program reads version {VERSION}: damaged or newer.")
    if kind & 15 not in (_INTER, _INTRA) or quality > QUALITY_MAX * QUALITY_STEPS:
        raise RqlvcError("A packet is damaged: its header holds impossible values.")
    if kind & 15 == _INTER:
        return Packet(quality / QUALITY_STEPS, checksum, None, payload[_HEADER.size :])
    begin = _HEADER.size + _GEOMETRY.size
    if len(payload) < begin + _CHECK.size or _CHECK.unpack_from(payload, begin)[0] != _crc16(payload[:begin]):
        raise RqlvcError("A packet is damaged: the checksum of its header does not match.")
    width, height = _GEOMETRY.unpack_from(payload, _HEADER.size)
    check_size(width, height)
    return Packet(quality / QUALITY_STEPS, checksum, (height, width), payload[begin + _CHECK.size :])


def check_size(width: int, height: int) -> None:
    """Raises :class:`RqlvcError` for a picture that the codec does not code."""
    if not (SIZE_MIN <= width <= SIZE_MAX and SIZE_MIN <= height <= SIZE_MAX):
        raise RqlvcError(
            f"The picture is {width}x{height}: this codec takes {SIZE_MIN} to {SIZE_MAX} samples on each side."
            " Scale or crop the video first."
        )
