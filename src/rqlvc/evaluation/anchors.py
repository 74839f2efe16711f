"""Conventional encoders to compare with: libx264 and libx265 through PyAV.

The setting is that of a low-delay comparison on PSNR: a preset as it comes, but without B frames, psychovisual tuning
and adaptive quantisation (which all trade PSNR away), one closed group of pictures every ``keyint`` frames, one thread.

Rate control is whatever makes the anchor stronger. With P frames that is CRF with the preset's macroblock tree, which
needs 2.0 % (x264) and 2.5 % (x265) less rate than constant QP in BD-rate on PSNR-YUV at keyint 32; CRF without the tree
needs 1.4 % and 2.8 % less. With every frame intra it is constant QP, by 0.8 % (x264). (Means over eight sequences of
176×144 to 416×240 for x264, four for x265.)

What an anchor costs are the bytes of its packets and its parameter sets, without the text in which it describes
itself; what it shows is decoded from those packets again.
"""

import re
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from statistics import fmean
from typing import Literal, cast

import av
import av.error
import numpy as np
from av.codec.codec import UnknownCodecError
from av.codec.context import Flags
from av.video.frame import PictureType

from rqlvc.errors import RqlvcError
from rqlvc.evaluation.metrics import psnr_y, psnr_yuv
from rqlvc.media.frame import Frame, Plane

AnchorEncoder = Literal["libx264", "libx265"]

QUANTISER_MIN, QUANTISER_MAX = 1, 51  # 0 is lossless in x264 and another profile
ANNEX_B_START_CODE = re.compile(rb"\x00?\x00\x00\x01")


@dataclass(frozen=True, slots=True)
class AnchorResult:
    bits: int
    """Packets and parameter sets, in bits; neither container overhead nor the encoder's description of itself."""
    psnr_y: float
    psnr_yuv: float
    """Means over the frames, in dB, of what the packets decode to."""
    frames: int
    keyframes: int
    picture_types: str
    """One letter for each frame, I or P, as decoded."""
    seconds: float
    """Spent in the encoder, decoding and measuring apart."""


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How to talk to one encoder. ``promises`` are words by which its description of itself shows that it obeyed."""

    decoder: str
    option: str
    settings: str
    promises: str
    promises_crf: str
    promises_qp: str
    description: bytes
    """The first bytes of that description, which sits in an SEI unit."""


_DIALECTS = {
    "libx264": _Dialect(
        decoder="h264",
        option="x264-params",
        settings="psy=0:threads=1",
        promises="psy=0 threads=1",
        promises_crf="mbtree=1 aq=1:0.00",  # the tree acts through AQ, at strength 0
        promises_qp="mbtree=0 aq=0",
        description=b"x264 - core",
    ),
    "libx265": _Dialect(
        decoder="hevc",
        option="x265-params",
        settings="psy-rd=0:psy-rdoq=0:pools=none:frame-threads=1:wpp=0:log-level=none",
        promises="psy-rd=0.00 psy-rdoq=0.00 no-open-gop frame-threads=1 no-wpp aq-strength=0.00",
        promises_crf="cutree",
        promises_qp="no-cutree",
        description=b"x265 (build",
    ),
}


def anchor_parameters(encoder: AnchorEncoder, quantiser: int, keyint: int) -> str:
    """The settings handed to the encoder, in its own words. See :func:`encode_anchor`."""
    dialect = _dialect(encoder)
    return (
        f"{_rate_control(keyint)}={quantiser}:keyint={keyint}:min-keyint={keyint}:scenecut=0:open-gop=0:bframes=0:"
        f"aq-mode=0:{dialect.settings}"
    )


def encode_anchor(
    frames: Iterable[Frame],
    framerate: Fraction,
    encoder: AnchorEncoder,
    quantiser: int,
    keyint: int,
    preset: str = "medium",
) -> AnchorResult:
    """Encode ``frames`` with a conventional encoder, decode its packets, and measure both.

    Frames are pulled one at a time and held only until they come back decoded (the encoder's lookahead). Odd sizes are
    padded to even ones for the encoder and measured without the padding.

    Args:
        framerate: frames per second.
        quantiser: in [1, 51], lower is better: the CRF, or with ``keyint`` 1 the constant QP.
        keyint: frames per closed group of pictures; 1 codes every frame intra.

    Raises:
        RqlvcError: a setting out of range, no frames, frames of changing size, an encoder that this FFmpeg lacks or
            that refuses, or one that did not do as told.
    """
    dialect = _dialect(encoder)
    if not QUANTISER_MIN <= quantiser <= QUANTISER_MAX:
        raise RqlvcError(f"The quantiser is {quantiser}; choose a whole number in {QUANTISER_MIN}..{QUANTISER_MAX}.")
    if keyint < 1:
        raise RqlvcError(f"keyint is {keyint}; choose 1 or more.")
    if framerate <= 0:
        raise RqlvcError(f"The frame rate is {framerate}; it must be above 0.")

    options = {"preset": preset, dialect.option: anchor_parameters(encoder, quantiser, keyint)}
    playback = _Playback(dialect)
    seconds = 0.0
    try:
        context = av.CodecContext.create(encoder, "w")
        for index, frame in enumerate(frames):
            picture = _to_picture(frame, index, framerate)
            if index == 0:
                _configure(context, picture, framerate, options)
            elif (picture.width, picture.height) != (context.width, context.height):
                raise RqlvcError(f"Frame {index} is {frame.width}x{frame.height}, the first is not: sizes must agree.")
            started = time.perf_counter()
            packets = context.encode(picture)
            seconds += time.perf_counter() - started
            playback.sources.append(frame)
            playback.play(packets, context.extradata)
        if not playback.sources and not playback.luma:
            raise RqlvcError("There are no frames to encode: check the input and the number of frames asked for.")
        started = time.perf_counter()
        packets = context.encode(None)
        seconds += time.perf_counter() - started
        playback.play(packets, context.extradata)
        playback.finish()
    except (av.error.FFmpegError, UnknownCodecError) as error:
        raise RqlvcError(
            f"{encoder} with preset {preset!r} failed ({error}): check the preset and the build."
        ) from error

    promises = f"{dialect.promises} keyint={keyint} scenecut=0 bframes=0 " + (
        f"rc=cqp qp={quantiser} {dialect.promises_qp}"
        if _rate_control(keyint) == "qp"
        else f"rc=crf crf={quantiser:.1f} {dialect.promises_crf}"
    )
    broken = set(promises.split()) - set(playback.description.split())
    if broken:
        raise RqlvcError(f"{encoder} did not take {sorted(broken)}; what it used: {playback.description!r}")
    if playback.sources or "B" in playback.picture_types:
        raise RqlvcError(f"{encoder} lost or reordered frames; their types as decoded: {playback.picture_types}")
    return AnchorResult(
        bits=8 * playback.size,
        psnr_y=fmean(playback.luma),
        psnr_yuv=fmean(playback.yuv),
        frames=len(playback.luma),
        keyframes=playback.keyframes,
        picture_types=playback.picture_types,
        seconds=seconds,
    )


def _dialect(encoder: str) -> _Dialect:
    if encoder not in _DIALECTS:
        raise RqlvcError(f"There is no anchor named {encoder!r}; choose one of {', '.join(_DIALECTS)}.")
    return _DIALECTS[encoder]


def _rate_control(keyint: int) -> Literal["crf", "qp"]:
    return "qp" if keyint == 1 else "crf"


class _Playback:
    """Counts the packets of an encoder, decodes them, and compares the pictures with their sources."""

    def __init__(self, dialect: _Dialect) -> None:
        self._marker = dialect.description
        self._decoder = cast(av.VideoCodecContext, av.CodecContext.create(dialect.decoder, "r"))
        self._decoder.thread_count = 1
        self.sources: deque[Frame] = deque()
        """Frames encoded and not yet back."""
        self.luma: list[float] = []
        self.yuv: list[float] = []
        self.picture_types = ""
        self.keyframes = 0
        self.size = 0
        """Bytes."""
        self.description = ""

    def play(self, packets: Iterable["av.Packet[av.VideoStream]"], parameter_sets: bytes | None) -> None:
        for packet in packets:
            if parameter_sets and not self._decoder.extradata:
                self._decoder.extradata = parameter_sets
                self._count(parameter_sets)
            self._count(bytes(packet))
            self.keyframes += packet.is_keyframe
            self._measure(self._decoder.decode(packet))

    def finish(self) -> None:
        self._measure(self._decoder.decode(None))

    def _count(self, stream: bytes) -> None:
        text, size = _without_description(stream, self._marker)
        self.description = self.description or text
        self.size += size

    def _measure(self, pictures: Iterable[av.VideoFrame]) -> None:
        for picture in pictures:
            source = self.sources.popleft()  # in order: there are no B frames
            reconstruction = _from_picture(picture, source)
            self.luma.append(psnr_y(source, reconstruction))
            self.yuv.append(psnr_yuv(source, reconstruction))
            self.picture_types += PictureType(picture.pict_type).name


def _configure(
    context: av.VideoCodecContext, picture: av.VideoFrame, framerate: Fraction, options: dict[str, str]
) -> None:
    context.width, context.height = picture.width, picture.height
    context.pix_fmt = "yuv420p"
    context.framerate = framerate
    context.time_base = 1 / framerate
    context.thread_count = 1
    context.flags |= Flags.global_header  # parameter sets once, not with every intra frame
    context.options = options


def _to_picture(frame: Frame, index: int, framerate: Fraction) -> av.VideoFrame:
    """``frame`` at an even size, which the encoders insist on; its chroma planes have that size already."""
    luma = np.pad(frame.y, ((0, frame.height % 2), (0, frame.width % 2)), mode="edge")
    height, width = luma.shape
    samples = np.concatenate([plane.reshape(-1) for plane in (luma, frame.u, frame.v)])
    picture = av.VideoFrame.from_ndarray(samples.reshape(height * 3 // 2, width), format="yuv420p")
    picture.pts, picture.time_base = index, 1 / framerate
    return picture


def _from_picture(picture: av.VideoFrame, source: Frame) -> Frame:
    """The decoded picture, cropped to the size of its ``source``."""
    samples: Plane = picture.to_ndarray(format="yuv420p").reshape(-1).astype(np.uint8, copy=False)
    luma, u, v = np.split(samples, np.cumsum([picture.width * picture.height, source.u.size]))
    y = luma.reshape(picture.height, picture.width)[: source.height, : source.width]
    return Frame(y, u.reshape(source.u.shape), v.reshape(source.v.shape), source.time)


def _without_description(stream: bytes, marker: bytes) -> tuple[str, int]:
    """The encoder's description of itself in Annex B data ('' if there is none), and the bytes of all other units."""
    starts = [match.start() for match in ANNEX_B_START_CODE.finditer(stream)]
    for start, end in zip(starts, [*starts[1:], len(stream)], strict=True):
        position = stream.find(marker, start, end)
        if position >= 0 and stream.find(b"options:", position, end) >= 0:
            text = stream[position:end].rstrip(b"\x80").rstrip(b"\x00")  # RBSP stop bit, end of string
            return text.decode("ascii", errors="replace"), len(stream) - (end - start)
    return "", len(stream)
