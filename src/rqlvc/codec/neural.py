"""Our codec behind the protocol: frames in, packets out."""

import contextlib
import threading
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import torch

from rqlvc.codec.binary import BinaryCoder, reader, writer
from rqlvc.codec.entropy import Mixers, PacketCoder
from rqlvc.codec.model import State
from rqlvc.codec.packet import CHECKSUM_MASK, Packet, check_size, read_packet, write_packet
from rqlvc.codec.planes import Planes, from_bytes, from_frame, padded_size, to_bytes, to_frame
from rqlvc.codec.precision import fast_bfloat16
from rqlvc.codec.protocol import DecodedFrame, EncodedFrame, carried_quality
from rqlvc.codec.references import superfluous
from rqlvc.codec.threads import ThreadCount
from rqlvc.codec.weights import DEFAULT_WEIGHTS, Weights, read_weights
from rqlvc.errors import RqlvcError
from rqlvc.media.frame import Frame

BYTES_PER_PIXEL = 6
LEAST_BYTES = 2**14
"""Room for a packet: four times what the finest quality takes of noise."""


class CodecState(NamedTuple):
    """The decoded-picture buffer; its pictures are the 8-bit ones that are shown."""

    state: State
    mixers: Mixers
    size: tuple[int, int]  # height, width of the picture itself


class NeuralCodec:
    """The learned codec of this package. Any size from 16x16; quality in [0, 63], 63 is best."""

    name = "rqlvc"

    def __init__(self, weights: Weights, device: str, bfloat16: bool) -> None:
        self.identity = weights.identity
        self.device = torch.device(device)
        self.model = weights.model.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._mixers = weights.mixers  # of the first frames of a group
        self.bfloat16 = bfloat16
        self._threads = torch.get_num_threads()
        self._best = ThreadCount(self._threads)  # on another device, the search still runs on the CPU
        self._part = threading.local()  # of the threads, in each thread that calls: ``threads``
        # Two frames on two cores take little more than half the time of one after the other on both.
        self.calls_at_once = self._threads if self.device.type == "cpu" else 1

    def share(self, calls: int) -> None:
        """From now on this thread has its part of PyTorch's threads only: ``calls`` call the codec at once."""
        self._part.threads = max(1, self._threads // calls)

    def encode(self, frame: Frame, quality: float, state: CodecState | None) -> EncodedFrame:
        check_size(frame.width, frame.height)
        if state is not None and state.size != (frame.height, frame.width):
            raise RqlvcError(
                "The picture size changed within a group of pictures: start a new one with an intra frame."
            )
        quality = carried_quality(quality)
        coder = self._coder(writer(BYTES_PER_PIXEL * frame.width * frame.height + LEAST_BYTES), state)
        with self._on_threads(state is not None), self._arithmetic():
            planes = from_frame(frame, self.device)
            shown, after = self._code(coder, quality, planes, state, (frame.height, frame.width))
        size = (frame.height, frame.width)
        dropped = superfluous(after.kept)
        packet = Packet(quality, _checksum(coder, dropped), size if state is None else None, coder.finish(), dropped)
        return EncodedFrame(
            write_packet(packet),
            to_frame(shown, *size),
            CodecState(after.without(dropped), coder.mixers, size),
            coder.bits,
        )

    def decode(self, payload: bytes, state: CodecState | None) -> DecodedFrame:
        packet = read_packet(payload)
        if packet.size is not None:
            size, state = packet.size, None
        elif state is None:
            raise RqlvcError("The stream starts inside a group of pictures: decoding must start at an intra frame.")
        else:
            size = state.size
        coder = self._coder(reader(packet.data), state)
        with self._on_threads(state is not None), self._arithmetic():
            shown, after = self._code(coder, packet.quality, None, state, size)
        if _checksum(coder, packet.dropped) != packet.checksum:
            raise RqlvcError("A packet is damaged: the checksum of its symbols does not match.")
        return DecodedFrame(to_frame(shown, *size), CodecState(after.without(packet.dropped), coder.mixers, size))

    def _coder(self, coder: BinaryCoder, state: CodecState | None) -> PacketCoder:
        return PacketCoder(coder, self._mixers if state is None else state.mixers)

    def _code(
        self,
        coder: PacketCoder,
        quality: float,
        planes: Planes | None,
        state: CodecState | None,
        size: tuple[int, int],
    ) -> tuple[Planes, State]:
        level = torch.tensor([quality], device=self.device)
        if state is None:
            decoded, after = self.model.intra_frame(coder, level, planes, padded_size(*size))
        else:
            before = state.state
            kept = tuple(past._replace(picture=from_bytes(past.picture)) for past in before.kept)
            known = before._replace(reference=from_bytes(before.reference), kept=kept)
            decoded, after = self.model.inter_frame(coder, level, planes, known)
            held = [before.reference, *(past.picture for past in before.kept)]
            kept = tuple(past._replace(picture=picture) for past, picture in zip(after.kept, held, strict=True))
            after = after._replace(kept=kept)
        shown = to_bytes(decoded)
        return shown, after._replace(reference=shown)

    @contextlib.contextmanager
    def _on_threads(self, inter: bool):  # type: ignore[no-untyped-def]
        """With this thread's part of the threads, or of all of them as many as an inter frame is fastest on."""
        part = getattr(self._part, "threads", self._threads)
        torch.set_num_threads(self._best.now if part == self._threads else part)
        started = time.perf_counter()
        yield
        if inter and part == self._threads:
            self._best.observe(time.perf_counter() - started)

    @contextlib.contextmanager
    def _arithmetic(self):  # type: ignore[no-untyped-def]
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            yield


def _checksum(coder: PacketCoder, dropped: int) -> int:
    """Of all that later frames depend on."""
    return zlib.crc32(bytes([dropped]), coder.checksum) & CHECKSUM_MASK


def load(
    device: str = "auto", threads: int | None = None, weights: Path = DEFAULT_WEIGHTS, bfloat16: bool | None = None
) -> NeuralCodec:
    """The codec with its shipped weights, or those of a file that training wrote.

    ``device``: "auto", "cpu", "cuda" or another of PyTorch's. ``threads``: CPU threads at most, None for as many as
    PyTorch has. ``bfloat16``: arithmetic of the float networks, None for what is fast on the device. Raises
    :class:`RqlvcError` when the device or the weights are not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RqlvcError(f"The device {device!r} cannot be used here: take --device cpu.") from error
    if threads is not None:
        torch.set_num_threads(threads)
    return NeuralCodec(read_weights(weights), device, fast_bfloat16(device) if bfloat16 is None else bfloat16)
