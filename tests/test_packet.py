"""Packet syntax, and what damage does: an error that says so, or a picture; never anything else."""

import resource
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqlvc.codec.neural import CodecState, NeuralCodec
from rqlvc.codec.packet import CHECKSUM_MASK, SIZE_MAX, SIZE_MIN, VERSION, Packet, check_size, read_packet, write_packet
from rqlvc.codec.protocol import QUALITY_MAX, QUALITY_STEPS, carried_quality
from rqlvc.codec.references import PICTURES
from rqlvc.errors import RqlvcError
from small_streams import encode_stream, moving_frames, neural_codec

MEMORY_GROWTH_KIB = 300 * 1024
SECONDS_EACH = 2.0

sides = st.integers(SIZE_MIN, SIZE_MAX)
levels = st.integers(0, int(QUALITY_MAX) * QUALITY_STEPS).map(lambda steps: steps / QUALITY_STEPS)
checksums = st.integers(0, CHECKSUM_MASK)
contents = st.binary(max_size=64)
packets = st.builds(Packet, levels, checksums, st.tuples(sides, sides), contents) | st.builds(
    Packet, levels, checksums, st.none(), contents, st.integers(0, PICTURES - 1)
)
INTRA_HEADER, INTER_HEADER = 10, 4  # bytes


@pytest.fixture(scope="module")
def codec() -> NeuralCodec:
    return neural_codec()


@given(packets)
def test_what_is_written_is_read(packet: Packet) -> None:
    payload = write_packet(packet)
    assert read_packet(payload) == packet
    assert len(payload) == len(packet.data) + (INTRA_HEADER if packet.intra else INTER_HEADER)


@given(packets, st.data())
def test_a_header_cut_anywhere_is_an_error(packet: Packet, data: st.DataObject) -> None:
    header = INTRA_HEADER if packet.intra else INTER_HEADER
    with pytest.raises(RqlvcError, match="damaged"):
        read_packet(write_packet(packet)[: data.draw(st.integers(0, header - 1))])


@given(packets.filter(lambda packet: packet.intra), st.integers(0, INTRA_HEADER * 8 - 1))
def test_a_flipped_bit_in_an_intra_header_is_noticed(packet: Packet, bit: int) -> None:
    damaged = bytearray(write_packet(packet))
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        assert not read_packet(bytes(damaged)).intra  # the frame type itself was hit
        assert bit == 0
    except RqlvcError:
        pass


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_a_packet_or_an_error(data: bytes) -> None:
    try:
        packet = read_packet(data)
    except RqlvcError:
        return
    assert 0 <= packet.quality <= QUALITY_MAX
    if packet.size is not None:
        check_size(packet.size[1], packet.size[0])


def test_another_version_is_named() -> None:
    payload = bytearray(write_packet(Packet(30.0, 1, None, b"data")))
    payload[0] = (VERSION + 1) << 4
    with pytest.raises(RqlvcError, match=f"version {VERSION + 1}"):
        read_packet(bytes(payload))


@given(st.floats(-100, 200))
def test_the_carried_quality_survives_the_header(quality: float) -> None:
    carried = carried_quality(quality)
    assert abs(carried - min(max(quality, 0.0), 63.0)) <= 0.5 / QUALITY_STEPS
    assert read_packet(write_packet(Packet(carried, 0, None, b""))).quality == carried


def _damaged(packet: bytes, rng: np.random.Generator) -> bytes:
    """One of: a few flipped bits, a cut, a stretch of noise, noise after the header, something appended."""
    data = bytearray(packet)
    kind = rng.integers(5)
    if kind == 0:
        for _ in range(rng.integers(1, 9)):
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[rng.integers(len(data)) :]
    elif kind == 2:
        begin = int(rng.integers(len(data)))
        stretch = int(rng.integers(1, 64))
        data[begin : begin + stretch] = rng.bytes(stretch)
    elif kind == 3:
        data[INTRA_HEADER:] = rng.bytes(int(rng.integers(0, 2000)))
    else:
        data += rng.bytes(int(rng.integers(1, 64)))
    return bytes(data)


def _material(codec: NeuralCodec, width: int = 32, height: int = 32) -> Iterator[tuple[bytes, CodecState | None]]:
    """Packets of a real stream, each with the state that it continues."""
    for quality in (0.0, 40.0, 63.0):
        stream = encode_stream(codec, moving_frames(width, height, 3), [quality] * 3)
        states: list[CodecState | None] = [None, *(frame.state for frame in stream.coded)]
        yield from zip(stream.packets, states, strict=False)


@pytest.mark.parametrize(
    ("width", "height", "damaged"), [(16, 16, 300), pytest.param(64, 48, 1000, marks=pytest.mark.slow)]
)
def test_damaged_packets_end_in_an_error_or_a_picture(
    codec: NeuralCodec, width: int, height: int, damaged: int
) -> None:
    material = list(_material(codec, width, height))
    for packet, state in material:
        codec.decode(packet, state)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = np.random.default_rng(5)
    errors = 0
    for index in range(damaged):
        packet, state = material[index % len(material)]
        began = time.perf_counter()
        try:
            frame = codec.decode(_damaged(packet, rng), state).frame
            assert frame.y.shape == (height, width) and frame.u.shape == (height // 2, width // 2)
        except RqlvcError as error:
            assert str(error).endswith(".") or "damaged" in str(error)
            errors += 1
        assert time.perf_counter() - began < SECONDS_EACH
    # What passes was hit in padding, in the quality level, or by a few bytes past the end.
    assert errors > 0.7 * damaged
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEMORY_GROWTH_KIB


def test_a_packet_without_its_data_is_an_error(codec: NeuralCodec) -> None:
    for packet, state in _material(codec):
        with pytest.raises(RqlvcError, match="damaged"):
            codec.decode(packet[: 11 if state is None else 5], state)


def test_a_packet_of_another_stream_is_an_error(codec: NeuralCodec) -> None:
    """Continuing from the wrong picture: the priors differ, so the checksum does."""
    frames = moving_frames(48, 48, 4)
    stream = encode_stream(codec, frames, [50.0] * 4)
    other = encode_stream(codec, frames[::-1], [20.0] * 4)
    with pytest.raises(RqlvcError, match="damaged"):
        codec.decode(stream.packets[2], other.coded[1].state)
