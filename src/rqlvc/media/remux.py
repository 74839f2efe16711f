"""Audio and subtitles taken over from another file, packet by packet, without coding them anew."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import av.container
from av.packet import Packet

from rqlvc.media import ebml
from rqlvc.media.matroska import AUDIO_TYPE, NANOSECONDS, SUBTITLE_TYPE, VIDEO_TRACK, Block, Track
from rqlvc.media.reader import (
    RAW_SUFFIXES,
    READ_ERRORS,
    STANDARD_INPUT,
    open_container,
    time_stamp,
    video_stream,
)

AUDIO, SAMPLING_FREQUENCY, CHANNELS, BIT_DEPTH = 0xE1, 0xB5, 0x9F, 0x6264
PRIMING = Fraction(1, 5)
"""Seconds before its start that a sound track may reach to prime the decoder: AAC at 8 kHz, the longest, takes .128."""
PEEKED_PACKETS = 256
"""Packets read in search of the first one of every track."""
OPUS_RATE = 48_000
"""Samples per second in which OpusHead counts the samples to skip at the start (RFC 7845, 5.1)."""
MILLISECOND = Fraction(1, 1000)
OPUS_PRE_ROLL = 80_000_000
"""Nanoseconds that an Opus decoder needs to converge after a seek (RFC 9559, CodecID A_OPUS)."""

# FFmpeg's name of a codec -> Matroska's codec identifier (Matroska codec specifications).
AUDIO_CODECS = {
    "aac": "A_AAC",
    "ac3": "A_AC3",
    "alac": "A_ALAC",
    "dts": "A_DTS",
    "eac3": "A_EAC3",
    "flac": "A_FLAC",
    "mp2": "A_MPEG/L2",
    "mp3": "A_MPEG/L3",
    "opus": "A_OPUS",
    "truehd": "A_TRUEHD",
    "vorbis": "A_VORBIS",
    "pcm_f32le": "A_PCM/FLOAT/IEEE",
    "pcm_f64le": "A_PCM/FLOAT/IEEE",
    "pcm_s16be": "A_PCM/INT/BIG",
    "pcm_s16le": "A_PCM/INT/LIT",
    "pcm_s24le": "A_PCM/INT/LIT",
    "pcm_s32le": "A_PCM/INT/LIT",
    "pcm_u8": "A_PCM/INT/LIT",
}
PCM_BITS = {"u8": 8, "s16": 16, "s24": 24, "s32": 32, "f32": 32, "f64": 64}
SUBTITLE_CODECS = {
    "ass": "S_TEXT/ASS",
    "hdmv_pgs_subtitle": "S_HDMV/PGS",
    "mov_text": "S_TEXT/UTF8",
    "subrip": "S_TEXT/UTF8",
    "text": "S_TEXT/UTF8",
}


@dataclass(slots=True)
class _Source:
    """A stream of the other file, FFmpeg's name of its codec, and the track that it becomes."""

    stream: Any
    codec: str
    track: Track
    primes: bool
    """Whether packets before zero may be there to prime the decoder: only where nothing was cut off."""


def first_frame_time(path: str) -> Fraction:
    """When (seconds, in the file's own count) the first presented frame is: where ``Frame.time`` is zero."""
    if _video_only(path):
        return Fraction(0)
    container = open_container(path)
    try:
        stream = video_stream(container)
        if stream is None:
            return Fraction(0)
        first: Any = next(container.demux(stream) if stream.codec_context is None else container.decode(stream), None)
        return (time_stamp(first) if first is not None else None) or Fraction(0)
    except READ_ERRORS:
        return Fraction(0)
    finally:
        container.close()


class TrackCopier:
    """The audio and subtitle tracks of a file as Matroska blocks, in the order of time as far as the file keeps it.

    Times count from ``origin`` (seconds, in the file's own count) and then from ``start``; nothing at or after ``end``
    is taken (both in seconds from ``origin``; ``end=None`` for all). Tracks are numbered after the video track. What
    cannot be copied is named in ``warnings``. Raw video and standard input have nothing to copy.
    """

    def __init__(self, path: str, origin: Fraction, start: Fraction, end: Fraction | None) -> None:
        self.warnings: list[str] = []
        self.tracks: tuple[Track, ...] = ()
        self._sources: dict[int, _Source] = {}
        self._container: av.container.InputContainer | None = None
        self._blocks: Iterator[Block] = iter(())
        self._next: Block | None = None
        if _video_only(path):
            return
        self._origin = origin + start
        self._limit = None if end is None else end - start
        self._container = open_container(path)
        for stream in self._container.streams:
            if stream.type in ("audio", "subtitle"):
                source = _source(stream, VIDEO_TRACK + 1 + len(self._sources), primes=start == 0)
                if isinstance(source, str):
                    self.warnings.append(source)
                else:
                    self._sources[stream.index] = source
                    if source.codec == "mov_text":
                        self.warnings.append(f"subtitle stream {stream.index} is copied as plain text")
        if self._sources:
            self._settle_tracks(self._read_blocks(self._container))

    def until(self, time: Fraction | None) -> Iterator[Block]:
        """The blocks that begin at ``time`` (seconds) or before and were not given yet; all for None."""
        while self._next is not None and (time is None or self._next.time <= time):
            block, self._next = self._next, next(self._blocks, None)
            yield block

    def close(self) -> None:
        if self._container is not None:
            self._container.close()

    def _settle_tracks(self, blocks: Iterator[Block]) -> None:
        """Reads ahead to the first block of each sound track: its delay depends on it, and AAC's set-up may too."""
        missing = {source.track.number for source in self._sources.values() if source.track.kind == AUDIO_TYPE}
        head: list[Block] = []
        while missing and len(head) < PEEKED_PACKETS and (block := next(blocks, None)) is not None:
            head.append(block)
            missing.discard(block.track)
        delays: dict[int, Fraction] = {}
        for block in head:
            delays.setdefault(block.track, self._delay(block))

        def delayed(block: Block) -> Block:
            # Matroska has no time before zero: a track is late by its CodecDelay, which players take off again.
            return replace(block, time=max(Fraction(0), block.time + delays.get(block.track, Fraction(0))))

        self._blocks = map(delayed, itertools.chain(head, blocks))
        self._next = next(self._blocks, None)
        self.tracks = tuple(
            replace(source.track, codec_delay=round(delays.get(source.track.number, Fraction(0)) * NANOSECONDS))
            for source in self._sources.values()
        )

    def _delay(self, first: Block) -> Fraction:
        """Seconds by which a track begins before zero."""
        delay = max(Fraction(0), -first.time)
        source = next(source for source in self._sources.values() if source.track.number == first.track)
        if source.codec == "opus":
            # Exact where the file it comes from rounds to milliseconds.
            skipped = Fraction(int.from_bytes(source.track.codec_private[10:12], "little"), OPUS_RATE)
            return skipped if abs(skipped - delay) < MILLISECOND else delay
        return delay

    def _read_blocks(self, container: av.container.InputContainer) -> Iterator[Block]:
        streams = [source.stream for source in self._sources.values()]
        beyond: set[int] = set()
        try:
            for packet in container.demux(streams):
                if packet.pts is None or packet.size == 0 or packet.stream_index in beyond:
                    continue
                source = self._sources[packet.stream_index]
                time = packet.pts * packet.time_base - self._origin
                duration = (packet.duration or 0) * packet.time_base
                if self._limit is not None and time >= self._limit:
                    beyond.add(packet.stream_index)
                    if len(beyond) == len(self._sources):
                        return
                elif time >= 0 or time + duration > 0 or (source.primes and time >= -PRIMING):
                    yield from _convert(source, packet, time, duration)
        except READ_ERRORS as error:
            self.warnings.append(f"audio and subtitles end early: {error}")


def _video_only(path: str) -> bool:
    return path == STANDARD_INPUT or path.lower().endswith((*RAW_SUFFIXES, ".y4m"))


def _source(stream: Any, number: int, *, primes: bool) -> _Source | str:
    """The track that ``stream`` becomes, or a sentence that says why it cannot be copied."""
    what = f"{stream.type} stream {stream.index}"
    if stream.codec_context is None:
        return f"{what} is left out: its codec is unknown"
    codec = stream.codec_context.codec.canonical_name
    language = (stream.metadata.get("language") or "und").lower()
    track = Track(
        number=number,
        kind=AUDIO_TYPE if stream.type == "audio" else SUBTITLE_TYPE,
        codec_id=(AUDIO_CODECS if stream.type == "audio" else SUBTITLE_CODECS).get(codec, ""),
        language=language if len(language) == 3 and language.isascii() and language.isalpha() else "und",
        name=stream.metadata.get("title", ""),
        seek_pre_roll=OPUS_PRE_ROLL if codec == "opus" else 0,
    )
    private = _codec_private(codec, stream.codec_context.extradata or b"")
    if not track.codec_id or private is None:
        return f"{what} is left out: {codec} cannot be put into this file"
    settings = _audio_settings(codec, stream.codec_context) if track.kind == AUDIO_TYPE else b""
    return _Source(stream, codec, replace(track, codec_private=private, settings=settings), primes)


def _audio_settings(codec: str, context: Any) -> bytes:
    settings = ebml.double(SAMPLING_FREQUENCY, float(context.sample_rate)) + ebml.unsigned(CHANNELS, context.channels)
    bits = PCM_BITS.get(codec.removeprefix("pcm_").removesuffix("le").removesuffix("be"))
    return ebml.element(AUDIO, settings + (ebml.unsigned(BIT_DEPTH, bits) if bits else b""))


def _codec_private(codec: str, extradata: bytes) -> bytes | None:
    """Matroska's CodecPrivate from FFmpeg's extradata; None where that does not hold what is needed."""
    if codec == "flac":
        # FFmpeg keeps the 34 bytes of STREAMINFO; Matroska wants the head of a FLAC file.
        return b"fLaC\x80\x00\x00\x22" + extradata if len(extradata) == 34 else None
    if codec == "alac":
        return extradata[12:] if len(extradata) == 36 else None  # without the header of the MP4 box
    if codec == "opus":
        return extradata if extradata.startswith(b"OpusHead") else None
    if codec == "vorbis":
        return extradata if extradata[:1] == b"\x02" else None  # three headers with Xiph lacing
    return b"" if codec in ("mov_text", "subrip", "text") or codec.startswith("pcm_") else extradata


def _convert(source: _Source, packet: "Packet[Any]", time: Fraction, duration: Fraction) -> Iterator[Block]:
    """The block, if any, that a packet becomes."""
    track, data = source.track, bytes(packet)
    if track.kind == SUBTITLE_TYPE:
        if source.codec == "mov_text":
            data = data[2 : 2 + int.from_bytes(data[:2], "big")]  # the rest is styling
        if data:
            begin = max(time, Fraction(0))
            yield Block(track.number, begin, data, True, time + duration - begin)
        return
    if source.codec == "aac" and data[:1] == b"\xff" and (data[1] if len(data) > 7 else 0) & 0xF6 == 0xF0:
        if not track.codec_private:
            source.track = replace(track, codec_private=_audio_specific_config(data))
        data = data[7 if data[1] & 1 else 9 :]  # without the ADTS header, which ends in a checksum where bit 0 is 0
    padding = _end_padding(packet, source.stream.codec_context.sample_rate)
    yield Block(track.number, time, data, True, discard_padding=padding)


def _audio_specific_config(adts: bytes) -> bytes:
    """MPEG-4's set-up of an AAC decoder from an ADTS header (ISO/IEC 13818-7, 6.2)."""
    profile, rate = adts[2] >> 6, adts[2] >> 2 & 15
    channels = (adts[2] & 1) << 2 | adts[3] >> 6
    return ((profile + 1) << 11 | rate << 7 | channels << 3).to_bytes(2, "big")


def _end_padding(packet: "Packet[Any]", sample_rate: int) -> int:
    """Nanoseconds at the end of a packet that are not to be played."""
    if not packet.has_sidedata("skip_samples"):
        return 0
    skip = bytes(packet.get_sidedata("skip_samples"))
    samples = int.from_bytes(skip[4:8], "little")  # AV_PKT_DATA_SKIP_SAMPLES: u32 at the start, u32 at the end
    return samples * NANOSECONDS // sample_rate if sample_rate else 0
