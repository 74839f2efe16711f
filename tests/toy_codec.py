"""A small third-party codec for the tests: real bits, real loss, real state, and the plug-in path for real.

Planes are quantised by a step that falls with the quality, inter frames are differences to the reconstruction of the
frame before, and zlib takes out what is redundant.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from rqlvc.codec.protocol import QUALITY_MAX, QUALITY_STEPS, DecodedFrame, EncodedFrame, carried_quality
from rqlvc.errors import RqlvcError
from rqlvc.media.frame import Frame, Plane

HEADER = struct.Struct("<HHH")  # quality in 1/64 steps, width, height
CHECKSUM = struct.Struct("<I")  # CRC-32 of all that follows
COARSEST_STEP = 48.0  # in 8-bit units, at quality 0; 1 at quality 63


@dataclass
class ToyCodec:
    device: str = "auto"
    threads: int | None = None
    name: str = "toy"
    identity: str = "70c0dec0"

    def encode(self, frame: Frame, quality: float, state: Frame | None) -> EncodedFrame:
        level = round(carried_quality(quality) * QUALITY_STEPS)
        symbols = [
            np.round((plane.astype(np.float64) - reference) / _step(level)).astype(np.int16)
            for plane, reference in zip(_planes(frame), _references(frame.width, frame.height, state), strict=True)
        ]
        body = zlib.compress(b"".join(plane.tobytes() for plane in symbols), 1)
        packet = HEADER.pack(level, frame.width, frame.height) + body
        reconstruction = _reconstruct(symbols, level, state, frame.width, frame.height)
        return EncodedFrame(CHECKSUM.pack(zlib.crc32(packet)) + packet, reconstruction, reconstruction)

    def decode(self, payload: bytes, state: Frame | None) -> DecodedFrame:
        checksum, packet = payload[: CHECKSUM.size], payload[CHECKSUM.size :]
        if checksum != CHECKSUM.pack(zlib.crc32(packet)):
            raise RqlvcError("the packet's checksum does not fit.")
        level, width, height = HEADER.unpack_from(packet)
        values = np.frombuffer(zlib.decompress(packet[HEADER.size :]), np.int16)
        shapes = [plane.shape for plane in _references(width, height, None)]
        symbols = [
            part.reshape(shape)
            for part, shape in zip(np.split(values, np.cumsum([h * w for h, w in shapes])[:-1]), shapes, strict=True)
        ]
        frame = _reconstruct(symbols, level, state, width, height)
        return DecodedFrame(frame, frame)


class StrangerCodec(ToyCodec):
    """The same codec with other weights."""

    def __init__(self, device: str = "auto", threads: int | None = None) -> None:
        super().__init__(device, threads, identity="0ddba110")


def _step(level: int) -> float:
    return float(COARSEST_STEP ** (1 - level / (QUALITY_STEPS * QUALITY_MAX)))


def _planes(frame: Frame) -> list[Plane]:
    return [frame.y, frame.u, frame.v]


def _references(width: int, height: int, state: Frame | None) -> list[Plane]:
    if state is not None:
        return _planes(state)
    chroma = ((height + 1) // 2, (width + 1) // 2)
    return [np.full(shape, 128, np.uint8) for shape in ((height, width), chroma, chroma)]


def _reconstruct(symbols: list[np.ndarray], level: int, state: Frame | None, width: int, height: int) -> Frame:
    y, u, v = (
        np.clip(np.round(reference + plane * _step(level)), 0, 255).astype(np.uint8)
        for plane, reference in zip(symbols, _references(width, height, state), strict=True)
    )
    return Frame(y, u, v)
