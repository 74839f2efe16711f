"""Conventional encoders to compare with: libx264, libx265 and libsvtav1 through PyAV.

The setting is that of a low-delay comparison on PSNR: a preset as it comes, but without B frames (SVT-AV1: its
low-delay structure), psychovisual tuning and adaptive quantisation (which all trade PSNR away), one closed group of
pictures every ``keyint`` frames, one thread.

At a constant quality, rate control is whatever makes the anchor stronger. With P frames that is CRF with the preset's
macroblock tree, which needs 2.0 % (x264) and 2.5 % (x265) less rate than constant QP in BD-rate on PSNR-YUV at keyint
32; CRF without the tree needs 1.4 % and 2.8 % less. With every frame intra it is constant QP, by 0.8 % (x264). (Means
over eight sequences of 176×144 to 416×240 for x264, four for x265.) SVT-AV1 without adaptive quantisation has constant
QP only.

At a bitrate, x264 and x265 run their average-bitrate mode in one pass or two. SVT-AV1's low-delay structure knows only
its constant-bitrate mode, in one pass, and only with adaptive quantisation.

What an anchor costs are the bytes of its packets and its parameter sets, without the text in which it describes
itself; what it shows is decoded from those packets again.
"""

import os
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from statistics import fmean
from typing import Literal, cast

import av
import av.error
import llvmlite.binding
import numpy as np
from av.codec.codec import UnknownCodecError
from av.codec.context import Flags
from av.video.frame import PictureType

from rqlvc.errors import RqlvcError
from rqlvc.evaluation.metrics import psnr_y, psnr_yuv
from rqlvc.media.frame import Frame, Plane

AnchorEncoder = Literal["libx264", "libx265", "libsvtav1"]

QUANTISER_MIN = 1  # 0 is lossless in x264 and another profile
ANNEX_B_START_CODE = re.compile(rb"\x00?\x00\x00\x01")


@dataclass(frozen=True, slots=True)
class AnchorBitrate:
    """A bitrate to hit in one pass or two. Whole kilobits (1000 bits) per second: x264 and x265 take no others."""

    kilobits: int
    passes: Literal[1, 2] = 1


@dataclass(frozen=True, slots=True)
class AnchorResult:
    bits: int
    """Packets and parameter sets, in bits; neither container overhead nor the encoder's description of itself."""
    frame_bits: tuple[int, ...]
    """The same for each frame; parameter sets go with the first."""
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
    preset: str
    quantiser_max: int
    settings: str
    promises: str = ""
    promises_crf: str = ""
    promises_qp: str = ""
    description: bytes | None = None
    """The first bytes of that description, which sits in an SEI unit; None for an encoder that writes none."""


_H26X = "scenecut=0:open-gop=0:bframes=0:aq-mode=0"

_DIALECTS = {
    "libx264": _Dialect(
        decoder="h264",
        option="x264-params",
        preset="medium",
        quantiser_max=51,
        settings=f"{_H26X}:psy=0:threads=1",
        promises="scenecut=0 bframes=0 psy=0 threads=1",
        promises_crf="mbtree=1 aq=1:0.00",  # the tree acts through AQ, at strength 0
        promises_qp="mbtree=0 aq=0",
        description=b"x264 - core",
    ),
    "libx265": _Dialect(
        decoder="hevc",
        option="x265-params",
        preset="medium",
        quantiser_max=51,
        settings=f"{_H26X}:psy-rd=0:psy-rdoq=0:pools=none:frame-threads=1:wpp=0:log-level=none",
        promises="scenecut=0 bframes=0 psy-rd=0.00 psy-rdoq=0.00 no-open-gop frame-threads=1 no-wpp aq-strength=0.00",
        promises_crf="cutree",
        promises_qp="no-cutree",
        description=b"x265 (build",
    ),
    "libsvtav1": _Dialect(
        decoder="libdav1d",
        option="svtav1-params",
        preset="6",
        quantiser_max=63,
        settings="pred-struct=1:scd=0:tune=1:enable-tf=0:lp=1",
    ),
}


def anchor_identity(encoder: AnchorEncoder) -> str:
    """What is true of all encodes of this anchor: version, preset and settings, in one line."""
    dialect = _dialect(encoder)
    return f"PyAV {av.__version__} {dialect.preset} {dialect.settings}"


def anchor_parameters(encoder: AnchorEncoder, rate: int | AnchorBitrate, keyint: int) -> str:
    """The settings handed to the encoder, in its own words. See :func:`encode_anchor`."""
    settings = f"keyint={keyint}:{_dialect(encoder).settings}"
    if encoder == "libsvtav1":
        control = f"rc=2:tbr={rate.kilobits}" if isinstance(rate, AnchorBitrate) else f"rc=0:aq-mode=0:qp={rate}"
        return f"{control}:{settings}"
    control = f"bitrate={rate.kilobits}" if isinstance(rate, AnchorBitrate) else f"{_rate_control(keyint)}={rate}"
    return f"{control}:min-keyint={keyint}:{settings}"


def encode_anchor(
    frames: Iterable[Frame],
    framerate: Fraction,
    encoder: AnchorEncoder,
    rate: int | AnchorBitrate,
    keyint: int,
    preset: str | None = None,
    on_frame: Callable[[Frame, Frame], None] = lambda source, shown: None,
) -> AnchorResult:
    """Encode ``frames`` with a conventional encoder, decode its packets, and measure both.

    Frames are pulled one at a time and held only until they come back decoded (the encoder's lookahead). Odd sizes are
    padded to even ones for the encoder and measured without the padding. Two passes read all frames first.

    Args:
        framerate: frames per second.
        rate: a quantiser in [1, 51], lower is better: the CRF, or with ``keyint`` 1 the constant QP (SVT-AV1: the QP,
            in [1, 63]); or a bitrate.
        keyint: frames per closed group of pictures; 1 codes every frame intra.
        preset: speed preset; None for ``medium`` (SVT-AV1: 6).
        on_frame: hears each frame and what it decodes to.

    Raises:
        RqlvcError: a setting out of range, no frames, frames of changing size, an encoder that this FFmpeg lacks or
            that refuses, or one that did not do as told.
    """
    dialect = _dialect(encoder)
    if isinstance(rate, AnchorBitrate):
        if rate.kilobits < 1:
            raise RqlvcError(f"The bitrate is {rate.kilobits} kbit/s; choose 1 or more.")
        if encoder == "libsvtav1" and rate.passes == 2:
            raise RqlvcError("libsvtav1 has no second pass in its low-delay structure; choose one pass.")
    elif not QUANTISER_MIN <= rate <= dialect.quantiser_max:
        raise RqlvcError(f"The quantiser is {rate}; choose a whole number in {QUANTISER_MIN}..{dialect.quantiser_max}.")
    if keyint < 1:
        raise RqlvcError(f"keyint is {keyint}; choose 1 or more.")
    if framerate <= 0:
        raise RqlvcError(f"The frame rate is {framerate}; it must be above 0.")

    parameters = anchor_parameters(encoder, rate, keyint) + _without_avx512(encoder)
    preset = preset or dialect.preset
    playback = _Playback(dialect, on_frame)
    try:
        if isinstance(rate, AnchorBitrate) and rate.passes == 2:
            frames = list(frames)
            with tempfile.TemporaryDirectory() as folder:
                statistics = f"stats={folder}/passes"
                options = {"preset": preset, dialect.option: f"{parameters}:pass=1:{statistics}"}
                seconds = _pass(encoder, frames, framerate, options, None)
                options[dialect.option] = f"{parameters}:pass=2:{statistics}"
                seconds += _pass(encoder, frames, framerate, options, playback)
        else:
            seconds = _pass(encoder, frames, framerate, {"preset": preset, dialect.option: parameters}, playback)
    except (av.error.FFmpegError, UnknownCodecError) as error:
        raise RqlvcError(
            f"{encoder} with preset {preset!r} failed ({error}): check the preset and the build."
        ) from error

    broken = set(_promises(dialect, rate, keyint).split()) - set(playback.description.split())
    if broken:
        raise RqlvcError(f"{encoder} did not take {sorted(broken)}; what it used: {playback.description!r}")
    if playback.sources or "B" in playback.picture_types or len(playback.sizes) != len(playback.luma):
        raise RqlvcError(f"{encoder} lost or reordered frames; their types as decoded: {playback.picture_types}")
    return AnchorResult(
        bits=8 * sum(playback.sizes),
        frame_bits=tuple(8 * size for size in playback.sizes),
        psnr_y=fmean(playback.luma),
        psnr_yuv=fmean(playback.yuv),
        frames=len(playback.luma),
        keyframes=playback.keyframes,
        picture_types=playback.picture_types,
        seconds=seconds,
    )


def _pass(
    encoder: AnchorEncoder,
    frames: Iterable[Frame],
    framerate: Fraction,
    options: dict[str, str],
    playback: "_Playback | None",
) -> float:
    """Encode once, and hand the packets to ``playback`` where there is one. Returns the seconds in the encoder.

    The encoder is closed on return, which is when it writes the statistics of a first pass.
    """
    os.environ.setdefault("SVT_LOG", "1")  # errors only; it would write its settings to stderr
    context = av.CodecContext.create(encoder, "w")
    seconds, index = 0.0, -1
    for index, frame in enumerate(frames):
        picture = _to_picture(frame, index, framerate)
        if index == 0:
            _configure(context, picture, framerate, options)
        elif (picture.width, picture.height) != (context.width, context.height):
            raise RqlvcError(f"Frame {index} is {frame.width}x{frame.height}, the first is not: sizes must agree.")
        started = time.perf_counter()
        packets = context.encode(picture)
        seconds += time.perf_counter() - started
        if playback is not None:
            playback.sources.append(frame)
            playback.play(packets, context.extradata)
    if index < 0:
        raise RqlvcError("There are no frames to encode: check the input and the number of frames asked for.")
    started = time.perf_counter()
    packets = context.encode(None)
    seconds += time.perf_counter() - started
    if playback is not None:
        playback.play(packets, context.extradata)
        playback.finish()
    return seconds


def _without_avx512(encoder: AnchorEncoder) -> str:
    """A setting that makes x264 repeatable where the processor has AVX-512; '' elsewhere.

    Its AVX-512 functions (build 165) depend on what the process did before: up to two thirds of the encodes of a
    clip of 96×64, made after encodes with SVT-AV1 on a busy machine, differed by 0.1 to 1 %. None did with AVX2; larger
    clips gave the same bytes with either, at the same speed.
    """
    avx512 = encoder == "libx264" and llvmlite.binding.get_host_cpu_features().get("avx512f", False)
    return ":asm=AVX2" if avx512 else ""


def _promises(dialect: _Dialect, rate: int | AnchorBitrate, keyint: int) -> str:
    if dialect.description is None:
        return ""
    if isinstance(rate, AnchorBitrate):
        # x265 writes whether it reads statistics, x264 names the mode.
        two = "rc=2pass" if dialect.decoder == "h264" else "stats-read=2"
        control = f"bitrate={rate.kilobits} {two if rate.passes == 2 else 'rc=abr'}"
    elif _rate_control(keyint) == "qp":
        control = f"rc=cqp qp={rate} {dialect.promises_qp}"
    else:
        control = f"rc=crf crf={rate:.1f} {dialect.promises_crf}"
    return f"{dialect.promises} keyint={keyint} {control}"


def _dialect(encoder: str) -> _Dialect:
    if encoder not in _DIALECTS:
        raise RqlvcError(f"There is no anchor named {encoder!r}; choose one of {', '.join(_DIALECTS)}.")
    return _DIALECTS[encoder]


def _rate_control(keyint: int) -> Literal["crf", "qp"]:
    return "qp" if keyint == 1 else "crf"


class _Playback:
    """Counts the packets of an encoder, decodes them, and compares the pictures with their sources."""

    def __init__(self, dialect: _Dialect, on_frame: Callable[[Frame, Frame], None]) -> None:
        self._marker = dialect.description
        self._on_frame = on_frame
        self._decoder = cast(av.VideoCodecContext, av.CodecContext.create(dialect.decoder, "r"))
        self._decoder.thread_count = 1
        self.sources: deque[Frame] = deque()
        """Frames encoded and not yet back."""
        self.luma: list[float] = []
        self.yuv: list[float] = []
        self.picture_types = ""
        self.keyframes = 0
        self.sizes: list[int] = []
        """Bytes of each packet; parameter sets go with the first."""
        self.description = ""

    def play(self, packets: Iterable["av.Packet[av.VideoStream]"], parameter_sets: bytes | None) -> None:
        for packet in packets:
            size = self._size(bytes(packet))
            # SVT-AV1 repeats its parameter sets in the packets; what it gives here is for containers.
            if self._marker is not None and parameter_sets and not self._decoder.extradata:
                self._decoder.extradata = parameter_sets
                size += self._size(parameter_sets)
            self.sizes.append(size)
            self.keyframes += packet.is_keyframe
            self._measure(self._decoder.decode(packet))

    def finish(self) -> None:
        self._measure(self._decoder.decode(None))

    def _size(self, stream: bytes) -> int:
        if self._marker is None:
            return len(stream)
        text, size = _without_description(stream, self._marker)
        self.description = self.description or text
        return size

    def _measure(self, pictures: Iterable[av.VideoFrame]) -> None:
        for picture in pictures:
            source = self.sources.popleft()  # in order: there are no B frames
            reconstruction = _from_picture(picture, source)
            self.luma.append(psnr_y(source, reconstruction))
            self.yuv.append(psnr_yuv(source, reconstruction))
            self._on_frame(source, reconstruction)
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
