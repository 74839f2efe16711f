"""A small Matroska (RFC 9559) muxer and demuxer.

It exists because FFmpeg's muxer cannot write a codec identifier that it does not know. One Segment, SimpleBlocks
without lacing, BlockGroups where a block has a duration or padding, Cues, and one Tag with the number of frames.

On a seekable output sizes, SeekHead and Duration are filled in at the end; until then, and for ever in a pipe, Segment
and the last Cluster are of unknown size, so that a file is readable up to its last whole block at any moment.
Cues come last of all: a stream that has them is whole.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

from rqlvc.media import ebml
from rqlvc.media.ebml import DamagedError, element, signed, text, unsigned
from rqlvc.media.output import AtomicOutput
from rqlvc.media.properties import VideoProperties

TICK = Fraction(1, 10_000)
"""Seconds. A tenth of the customary millisecond: most frame periods are no whole milliseconds, and it costs nothing."""
NANOSECONDS = 1_000_000_000
RELATIVE_LIMIT = 1 << 15
"""A block's time counts in ticks from its cluster's, in 16 bits with sign: 3.2 seconds."""
MAX_PACKET_BYTES = 64 << 20
MAX_MASTER_BYTES = 16 << 20
"""Bound for the other elements that are read whole: Tracks, Cues, Tags."""
MAX_SECONDS = 1 << 31
"""A time stamp later than this is damage."""
APPLICATION = "rqlvc"

EBML, SEGMENT, SEEK_HEAD, INFO, TRACKS = 0x1A45DFA3, 0x18538067, 0x114D9B74, 0x1549A966, 0x1654AE6B
CLUSTER, CUES, TAGS = 0x1F43B675, 0x1C53BB6B, 0x1254C367
SEEK, SEEK_ID, SEEK_POSITION = 0x4DBB, 0x53AB, 0x53AC
TIMESTAMP_SCALE, DURATION, MUXING_APP, WRITING_APP = 0x2AD7B1, 0x4489, 0x4D80, 0x5741
TRACK_ENTRY, TRACK_NUMBER, TRACK_UID, TRACK_TYPE, FLAG_LACING = 0xAE, 0xD7, 0x73C5, 0x83, 0x9C
DEFAULT_DURATION, CODEC_ID, CODEC_PRIVATE, LANGUAGE, TRACK_NAME = 0x23E383, 0x86, 0x63A2, 0x22B59C, 0x536E
CODEC_DELAY, SEEK_PRE_ROLL = 0x56AA, 0x56BB
TIMESTAMP, SIMPLE_BLOCK, BLOCK_GROUP, BLOCK = 0xE7, 0xA3, 0xA0, 0xA1
BLOCK_DURATION, REFERENCE_BLOCK, DISCARD_PADDING = 0x9B, 0xFB, 0x75A2
CUE_POINT, CUE_TIME, CUE_TRACK_POSITIONS, CUE_TRACK, CUE_CLUSTER_POSITION = 0xBB, 0xB3, 0xB7, 0xF7, 0xF1
TAG, TARGETS, TAG_TRACK_UID, SIMPLE_TAG, TAG_NAME, TAG_STRING = 0x7373, 0x63C0, 0x63C5, 0x67C8, 0x45A3, 0x4487
FRAMES_TAG = "NUMBER_OF_FRAMES"
"""The name that mkvmerge gives the statistic."""

SEEK_HEAD_BYTES = 4 * 21 + 5 + 4
"""Room for four entries of fixed width; see :func:`_seek_head`."""
DURATION_BYTES = 11

VIDEO_TYPE, AUDIO_TYPE, SUBTITLE_TYPE = 1, 2, 17
VIDEO_TRACK = 1
"""Number of the video track in the files that we write; copied tracks follow."""


@dataclass(frozen=True, slots=True)
class Track:
    """One track. ``settings`` is the whole Video or Audio element, b"" for subtitles; times in nanoseconds."""

    number: int
    kind: int
    codec_id: str
    codec_private: bytes = b""
    settings: bytes = b""
    language: str = "und"
    name: str = ""
    default_duration: int = 0
    codec_delay: int = 0
    seek_pre_roll: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """One packet of a track. ``time`` in seconds; ``discard_padding``: nanoseconds to drop at its end."""

    track: int
    time: Fraction
    data: bytes
    keyframe: bool
    duration: Fraction | None = None
    discard_padding: int = 0


def video_track(codec_id: str, private: bytes, properties: VideoProperties) -> Track:
    """The video track, number 1, of 8-bit 4:2:0 pictures with ``properties``."""
    colour = properties.colour
    settings = unsigned(0xB0, properties.width) + unsigned(0xBA, properties.height)
    if properties.sample_aspect_ratio != 1:
        shape = properties.sample_aspect_ratio * Fraction(properties.width, properties.height)
        # DisplayUnit 3: DisplayWidth and DisplayHeight give the shape, which no rounding to pixels bends.
        settings += unsigned(0x54B2, 3) + unsigned(0x54B0, shape.numerator) + unsigned(0x54BA, shape.denominator)
    settings += unsigned(0x9A, 2)  # FlagInterlaced: progressive
    settings += element(
        0x55B0,  # Colour
        unsigned(0x55B1, colour.matrix)
        + unsigned(0x55B2, 8)  # BitsPerChannel
        + unsigned(0x55B3, 1)  # ChromaSubsamplingHorz
        + unsigned(0x55B4, 1)  # ChromaSubsamplingVert
        + unsigned(0x55B9, 2 if colour.full_range else 1)  # Range
        + unsigned(0x55BA, colour.transfer)
        + unsigned(0x55BB, colour.primaries),
    )
    if properties.rotation:
        roll = {90: -90, 180: 180, 270: 90}[properties.rotation]  # ProjectionPoseRoll turns counter-clockwise
        settings += element(0x7670, unsigned(0x7671, 0) + ebml.double(0x7675, float(roll)))
    return Track(
        VIDEO_TRACK,
        VIDEO_TYPE,
        codec_id,
        private,
        element(0xE0, settings),
        default_duration=max(1, round(NANOSECONDS / properties.frame_rate)),
    )


class Muxer:
    """Writes ``tracks`` and then blocks to ``output``; the first track is indexed. Close it with :meth:`finish`."""

    def __init__(self, output: AtomicOutput, tracks: Sequence[Track]) -> None:
        self._output = output
        self._indexed = tracks[0].number
        self._cues: list[tuple[int, int]] = []
        self._frames = 0
        self._end = 0
        self._cluster_start: int | None = None
        self._cluster_tick = 0
        self._write(_ebml_header())
        self._segment_start = output.bytes_written
        self._write(ebml.identifier_bytes(SEGMENT) + ebml.UNKNOWN_SIZE_BYTES)
        self._segment_payload = output.bytes_written
        if output.seekable:
            self._write(ebml.void(SEEK_HEAD_BYTES))
        self._info_position = self._offset()
        information = unsigned(TIMESTAMP_SCALE, int(TICK * NANOSECONDS))
        information += text(MUXING_APP, APPLICATION) + text(WRITING_APP, APPLICATION)
        duration = ebml.void(DURATION_BYTES) if output.seekable else b""
        self._write(element(INFO, information + duration))
        self._duration_start = output.bytes_written - DURATION_BYTES
        self._tracks_position = self._offset()
        self._write(element(TRACKS, b"".join(_track_entry(track) for track in tracks)))

    def write(self, block: Block) -> None:
        """Appends a block. A keyframe of the first track begins a cluster."""
        tick = max(0, round(block.time / TICK))
        begins = block.keyframe and block.track == self._indexed
        relative = tick - self._cluster_tick
        if begins or self._cluster_start is None or not -RELATIVE_LIMIT <= relative < RELATIVE_LIMIT:
            self._begin_cluster(tick)
            relative = 0
            if begins:
                self._cues.append((tick, self._cluster_start_offset()))
        grouped = block.duration is not None or block.discard_padding
        flags = 0x80 if block.keyframe and not grouped else 0
        body = ebml.encode_size(block.track) + struct.pack(">hB", relative, flags) + block.data
        length = 0 if block.duration is None else round(block.duration / TICK)
        if grouped:
            group = element(BLOCK, body)
            group += unsigned(BLOCK_DURATION, length) if block.duration is not None else b""
            group += signed(DISCARD_PADDING, block.discard_padding) if block.discard_padding else b""
            group += b"" if block.keyframe else signed(REFERENCE_BLOCK, -1)
            self._write(element(BLOCK_GROUP, group))
        else:
            self._write(element(SIMPLE_BLOCK, body))
        self._frames += block.track == self._indexed
        self._end = max(self._end, tick + length)

    def finish(self, duration: Fraction) -> None:
        """Writes index and statistics, and fills in what was left open. ``duration`` in seconds."""
        self._end_cluster()
        tags_position = self._offset()
        count = element(SIMPLE_TAG, text(TAG_NAME, FRAMES_TAG) + text(TAG_STRING, str(self._frames)))
        self._write(element(TAGS, element(TAG, element(TARGETS, unsigned(TAG_TRACK_UID, self._indexed)) + count)))
        cues_position = self._offset()
        self._write(element(CUES, b"".join(_cue_point(tick, self._indexed, place) for tick, place in self._cues)))
        if not self._output.seekable:
            return
        information = (INFO, self._info_position)
        positions = (information, (TRACKS, self._tracks_position), (TAGS, tags_position), (CUES, cues_position))
        self._output.patch(self._segment_payload, _seek_head(positions))
        ticks = max(float(duration / TICK), float(self._end))
        self._output.patch(self._duration_start, ebml.double(DURATION, ticks))
        size = ebml.encode_size(self._output.bytes_written - self._segment_payload, 8)
        self._output.patch(self._segment_payload - 8, size)

    def _begin_cluster(self, tick: int) -> None:
        self._end_cluster()
        self._cluster_start = self._output.bytes_written
        self._cluster_tick = tick
        self._write(ebml.identifier_bytes(CLUSTER) + ebml.UNKNOWN_SIZE_BYTES + unsigned(TIMESTAMP, tick))

    def _end_cluster(self) -> None:
        if self._cluster_start is not None and self._output.seekable:
            payload = self._cluster_start + 4 + 8
            self._output.patch(payload - 8, ebml.encode_size(self._output.bytes_written - payload, 8))

    def _cluster_start_offset(self) -> int:
        assert self._cluster_start is not None
        return self._cluster_start - self._segment_payload

    def _offset(self) -> int:
        """Where the next element will be, counted from the Segment's payload, as Matroska counts."""
        return self._output.bytes_written - self._segment_payload

    def _write(self, data: bytes) -> None:
        self._output.write(data)


def _ebml_header() -> bytes:
    return element(
        EBML,
        unsigned(0x4286, 1)  # EBMLVersion
        + unsigned(0x42F7, 1)  # EBMLReadVersion
        + unsigned(0x42F2, 4)  # EBMLMaxIDLength
        + unsigned(0x42F3, 8)  # EBMLMaxSizeLength
        + text(0x4282, "matroska")  # DocType
        + unsigned(0x4287, 4)  # DocTypeVersion
        + unsigned(0x4285, 2),  # DocTypeReadVersion
    )


def _track_entry(track: Track) -> bytes:
    entry = unsigned(TRACK_NUMBER, track.number) + unsigned(TRACK_UID, track.number)
    entry += unsigned(TRACK_TYPE, track.kind) + unsigned(FLAG_LACING, 0)
    entry += text(LANGUAGE, track.language) + text(CODEC_ID, track.codec_id)
    entry += text(TRACK_NAME, track.name) if track.name else b""
    entry += element(CODEC_PRIVATE, track.codec_private) if track.codec_private else b""
    for identifier, value in (
        (DEFAULT_DURATION, track.default_duration),
        (CODEC_DELAY, track.codec_delay),
        (SEEK_PRE_ROLL, track.seek_pre_roll),
    ):
        entry += unsigned(identifier, value) if value else b""
    return element(TRACK_ENTRY, entry + track.settings)


def _cue_point(tick: int, track: int, position: int) -> bytes:
    place = unsigned(CUE_TRACK, track) + unsigned(CUE_CLUSTER_POSITION, position)
    return element(CUE_POINT, unsigned(CUE_TIME, tick) + element(CUE_TRACK_POSITIONS, place))


def _seek_head(positions: Sequence[tuple[int, int]]) -> bytes:
    entries = b"".join(
        element(SEEK, element(SEEK_ID, ebml.identifier_bytes(name)) + element(SEEK_POSITION, place.to_bytes(8, "big")))
        for name, place in positions
    )
    head = element(SEEK_HEAD, entries)
    return head + ebml.void(SEEK_HEAD_BYTES - len(head))


@dataclass(frozen=True, slots=True)
class TrackDescription:
    """What the demuxer needs of a TrackEntry."""

    number: int
    uid: int
    codec_id: str
    codec_private: bytes


@dataclass(frozen=True, slots=True)
class Index:
    """What stands at the end of a whole file: (tick, position of cluster) of keyframes, and frames per track UID."""

    cues: tuple[tuple[int, int], ...] = ()
    frames: tuple[tuple[int, int], ...] = ()


class Demuxer:
    """Reads tracks on opening, then :meth:`blocks`. Raises :class:`DamagedError` for everything that is amiss.

    No element is read into memory because it claims to be large: sizes are checked against bounds and, in a file,
    against what is left of it.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._source = ebml.Source(stream)
        self.tick = Fraction(1, 1000)
        self.duration: Fraction | None = None
        self.tracks: tuple[TrackDescription, ...] = ()
        self.index = Index()
        self._seeks: dict[int, int] = {}
        self._cluster_tick = 0
        self._segment_payload = 0
        self._segment_end: int | None = None
        self.whole = False
        """True once the end of the Segment has been reached in good order."""
        self._read_head()
        self._first_cluster = self._source.position
        self._read_index()

    @property
    def position(self) -> int:
        """Bytes from the start of the stream to the next element."""
        return self._source.position

    @property
    def seekable(self) -> bool:
        return self._source.seekable

    def blocks(self) -> Iterator[Block]:
        """The blocks from here on, of all tracks. Ends where the Segment does, or in DamagedError."""
        last = 0
        while not self._at_end():
            header = self._source.header()
            if header is None:
                if self._segment_end is not None or last != CUES:
                    raise DamagedError("the file ends before its end mark")
                break
            last = header.identifier
            if last == CLUSTER:
                continue  # its children follow in the same stream of elements
            if header.size == ebml.UNKNOWN_SIZE:
                raise DamagedError("an element of unknown size stands where none may")
            if last == TIMESTAMP:
                self._cluster_tick = ebml.decode_unsigned(self._bounded(header, 8))
            elif last in (SIMPLE_BLOCK, BLOCK_GROUP):
                payload = self._bounded(header, MAX_PACKET_BYTES)
                yield self._block(payload) if last == SIMPLE_BLOCK else self._group(payload)
            elif last == TAGS and self._segment_end is None:
                self.index = Index(self.index.cues, _frame_counts(self._bounded(header, MAX_MASTER_BYTES)))
            else:
                self._source.skip(header.size)
        self.whole = True

    def rewind(self) -> None:
        """Back to the first cluster of a seekable file."""
        self._source.seek(self._first_cluster)
        self.whole = False

    def go_to_cluster(self, position: int) -> bool:
        """To the cluster at ``position`` in the Segment; False where none is."""
        place = self._segment_payload + position
        if self._source.length is None or not self._first_cluster <= place < self._source.length:
            return False
        self._source.seek(place)
        try:
            header = self._source.header()
        except DamagedError:
            return False
        self.whole = False
        return header is not None and header.identifier == CLUSTER

    def _read_head(self) -> None:
        try:
            header = self._source.header()
        except DamagedError:
            header = None
        if header is None or header.identifier != EBML:
            raise DamagedError("it is no Matroska file")
        document = dict(ebml.children(self._bounded(header, MAX_MASTER_BYTES)))
        if ebml.decode_text(document.get(0x4282, b"")) not in ("matroska", "webm"):
            raise DamagedError("it is no Matroska file")
        header = self._source.header()
        if header is None or header.identifier != SEGMENT:
            raise DamagedError("it has no Matroska segment")
        self._segment_payload = header.payload
        if header.size != ebml.UNKNOWN_SIZE:
            self._segment_end = header.payload + header.size
        informed = False
        while not (informed and self.tracks):
            header = None if self._at_end() else self._source.header()
            if header is None or header.identifier in (CLUSTER, CUES, TAGS) or header.size == ebml.UNKNOWN_SIZE:
                raise DamagedError("it has no list of tracks before its first pictures")
            if header.identifier == INFO:
                self._read_info(self._bounded(header, MAX_MASTER_BYTES))
                informed = True
            elif header.identifier == TRACKS:
                self.tracks = _tracks(self._bounded(header, MAX_MASTER_BYTES))
            elif header.identifier == SEEK_HEAD:
                self._seeks |= _seek_positions(self._bounded(header, MAX_MASTER_BYTES))
            else:
                self._source.skip(header.size)

    def _read_info(self, payload: bytes) -> None:
        information = dict(ebml.children(payload))
        scale = ebml.decode_unsigned(information.get(TIMESTAMP_SCALE, b"\x0f\x42\x40"))
        if not 1 <= scale <= NANOSECONDS:
            raise DamagedError("its unit of time makes no sense")
        self.tick = Fraction(scale, NANOSECONDS)
        if DURATION in information:
            duration = ebml.decode_float(information[DURATION])
            if 0 <= duration * self.tick < MAX_SECONDS:
                self.duration = Fraction(duration) * self.tick

    def _read_index(self) -> None:
        """Fetches Cues and Tags from the end of a seekable file; damage there only means that there is no index."""
        here = self._source.position
        payloads = {}
        for name in (CUES, TAGS):
            place = self._segment_payload + self._seeks.get(name, 0)
            if self._source.length is None or not here <= place < self._source.length:
                continue
            try:
                self._source.seek(place)
                header = self._source.header()
                if header is not None and header.identifier == name:
                    payloads[name] = self._bounded(header, MAX_MASTER_BYTES)
            except DamagedError:
                pass
        if self._source.seekable:
            self._source.seek(here)
        try:
            self.index = Index(_cue_positions(payloads.get(CUES, b"")), _frame_counts(payloads.get(TAGS, b"")))
        except DamagedError:
            self.index = Index()

    def _at_end(self) -> bool:
        return self._segment_end is not None and self._source.position >= self._segment_end

    def _bounded(self, header: ebml.Header, limit: int) -> bytes:
        if not 0 <= header.size <= limit:
            raise DamagedError("an element claims to be larger than any can be")
        return self._source.read(header.size)

    def _block(self, payload: bytes, *, keyframe: bool | None = None) -> Block:
        number, used = ebml.decode_vint(payload)
        if len(payload) < used + 3:
            raise DamagedError("a block is too short")
        relative, flags = struct.unpack_from(">hB", payload, used)
        if all(track.number != number for track in self.tracks):
            raise DamagedError(f"a block belongs to track {number}, which does not exist")
        if flags & 0x06:
            raise DamagedError("a block is laced")
        time = (self._cluster_tick + relative) * self.tick
        if not 0 <= time < MAX_SECONDS:
            raise DamagedError("a time stamp makes no sense")
        return Block(number, time, payload[used + 3 :], bool(flags & 0x80) if keyframe is None else keyframe)

    def _group(self, payload: bytes) -> Block:
        parts = dict(ebml.children(payload))
        if BLOCK not in parts:
            raise DamagedError("a group of blocks has no block")
        return self._block(parts[BLOCK], keyframe=REFERENCE_BLOCK not in parts)


def _tracks(payload: bytes) -> tuple[TrackDescription, ...]:
    found = []
    for identifier, entry in ebml.children(payload):
        if identifier == TRACK_ENTRY:
            parts = dict(ebml.children(entry))
            number = ebml.decode_unsigned(parts.get(TRACK_NUMBER, b""))
            uid = ebml.decode_unsigned(parts.get(TRACK_UID, b""))
            codec = ebml.decode_text(parts.get(CODEC_ID, b""))
            found.append(TrackDescription(number, uid, codec, parts.get(CODEC_PRIVATE, b"")))
    return tuple(found)


def _seek_positions(payload: bytes) -> dict[int, int]:
    positions = {}
    for identifier, entry in ebml.children(payload):
        if identifier == SEEK:
            parts = dict(ebml.children(entry))
            name = ebml.decode_unsigned(parts.get(SEEK_ID, b""))
            positions[name] = ebml.decode_unsigned(parts.get(SEEK_POSITION, b""))
    return positions


def _cue_positions(payload: bytes) -> tuple[tuple[int, int], ...]:
    cues = []
    for identifier, point in ebml.children(payload):
        if identifier == CUE_POINT:
            parts = dict(ebml.children(point))
            place = dict(ebml.children(parts.get(CUE_TRACK_POSITIONS, b"")))
            tick = ebml.decode_unsigned(parts.get(CUE_TIME, b""))
            cues.append((tick, ebml.decode_unsigned(place.get(CUE_CLUSTER_POSITION, b""))))
    return tuple(sorted(cues))


def _frame_counts(payload: bytes) -> tuple[tuple[int, int], ...]:
    """(track UID, frames) of the statistics tags."""
    counts = []
    for identifier, tag in ebml.children(payload):
        if identifier != TAG:
            continue
        uid = 0
        for name, part in ebml.children(tag):
            if name == TARGETS:
                uid = ebml.decode_unsigned(dict(ebml.children(part)).get(TAG_TRACK_UID, b""))
            elif name == SIMPLE_TAG:
                fields = dict(ebml.children(part))
                value = ebml.decode_text(fields.get(TAG_STRING, b""))
                if ebml.decode_text(fields.get(TAG_NAME, b"")) == FRAMES_TAG and value.isascii() and value.isdecimal():
                    counts.append((uid, int(value[:12])))
    return tuple(counts)
