"""What an encode reports: of each frame, and of the whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rqlvc.codec.protocol import Codec
from rqlvc.media.properties import VideoProperties
from rqlvc.rate.protocol import QUALITY_MAX, QUALITY_MIN, QualityRange, RatePoint

MISSED_PERCENT = 3.0
"""A target missed by more, with the quality at its limit, was out of the codec's reach on this content."""
HELD_SHARE = 0.5
"""Frames that must be at the limit for that: fewer say that the control was late, not that the limit is in the way."""


@dataclass(frozen=True, slots=True)
class FrameStats:
    """Why a frame got its quality and what it then cost. ``quality`` is as carried in the packet (63 is best)."""

    index: int
    time: float
    """Presentation time in seconds in the coded file."""
    type: Literal["I", "P"]
    quality: float
    target_bits: float | None
    bits: int
    psnr_y: float
    psnr_yuv: float
    seconds: float
    """Wall-clock time of the predictor, the controller and the codec."""
    frames_left: int | None
    """Frames still to code when this one was, itself included; None when the end is unknown."""
    alpha: float | None
    beta: float | None
    points: tuple[RatePoint, ...]
    parts: Mapping[str, float]
    """Information content in bits of each part of the packet, where the codec tells."""
    encodes: int = 1
    """Times that the frame was coded until it fitted."""
    cut: bool = False
    """Another scene begins with this frame."""
    fading: float | None = None
    """How little of an intra frame is left in the frames ahead; None of other frames and without a look-ahead."""
    skipped: bool = False
    """Nothing fitted: the packet is empty and repeats the picture before. ``quality`` is the lowest that was tried."""
    buffer_planned: float | None = None
    """Bits that the decoder's buffer was planned to hold after the frame; None without a buffer or a plan."""
    buffer: float | None = None
    """Bits that it holds; None without a buffer."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole encode. ``bits`` are packet bytes × 8; what Matroska adds is ``container_overhead_bits``."""

    frames: int
    keyframes: int
    width: int
    height: int
    fps: float
    duration: float
    """Seconds of video coded."""
    bits: int
    bitrate: float
    target_bitrate: float | None
    """Bits per second that were asked for; None at a constant quality. For a target size: its bits / ``duration``."""
    error_percent: float | None
    """(bitrate - target_bitrate) / target_bitrate: above 0 when more was spent than asked for."""
    bits_per_pixel: float
    container_overhead_bits: int
    psnr_y: float
    """Mean over frames, in dB."""
    psnr_yuv: float
    encode_fps: float
    """Frames per second of wall clock, reading and writing included, loading the model not."""
    codec: str
    model: str
    """Identity of the codec's weights."""
    skipped_frames: int
    """Frames that did not fit at the lowest quality allowed and repeat the picture before."""
    dropped_frames: int
    """Frames of the source that were left out so that the buffer recovers; no other figure counts them."""
    recoded_frames: int
    """Frames that were coded more than once."""
    buffer_lowest: float | None
    """The fewest bits that the decoder's buffer held after a frame; None without a buffer."""
    output: str
    """The file that holds it all."""
    interrupted: bool


@dataclass(slots=True)
class _Cost:
    """Number and bits of some frames."""

    frames: int = 0
    bits: int = 0

    def add(self, bits: int) -> None:
        self.frames += 1
        self.bits += bits


@dataclass(slots=True)
class Totals:
    """Running sums over the frames of an encode: memory does not grow with its length."""

    cost: dict[Literal["I", "P"], _Cost] = field(default_factory=lambda: {"I": _Cost(), "P": _Cost()})
    limits: QualityRange | None = None
    at_limit: dict[tuple[float, Literal["I", "P"]], _Cost] = field(default_factory=dict)
    """Of the frames at the lowest and the highest quality allowed, by that quality."""
    psnr_y: float = 0.0
    psnr_yuv: float = 0.0
    last_time: float = 0.0
    skipped: int = 0
    dropped: int = 0
    recoded: int = 0
    buffer_lowest: float | None = None

    @property
    def frames(self) -> int:
        return self.cost["I"].frames + self.cost["P"].frames

    def duration(self, properties: VideoProperties) -> float:
        """Seconds of video so far."""
        return self.last_time + float(1 / properties.frame_rate)

    def add(self, stats: FrameStats) -> None:
        self.cost[stats.type].add(stats.bits)
        if self.limits is not None and stats.quality in (self.limits.minimum, self.limits.maximum):
            self.at_limit.setdefault((stats.quality, stats.type), _Cost()).add(stats.bits)
        self.psnr_y += stats.psnr_y
        self.psnr_yuv += stats.psnr_yuv
        self.last_time = stats.time
        self.skipped += stats.skipped
        self.recoded += stats.encodes > 1
        if stats.buffer is not None:
            self.buffer_lowest = min(stats.buffer, stats.buffer if self.buffer_lowest is None else self.buffer_lowest)

    def summary(
        self,
        output: str,
        properties: VideoProperties,
        codec: Codec,
        target_bitrate: float | None,
        overhead_bits: int,
        elapsed: float,
        interrupted: bool,
    ) -> Summary:
        duration = self.duration(properties)
        bits = self.cost["I"].bits + self.cost["P"].bits
        bitrate = bits / duration
        return Summary(
            frames=self.frames,
            keyframes=self.cost["I"].frames,
            width=properties.width,
            height=properties.height,
            fps=float(properties.frame_rate),
            duration=duration,
            bits=bits,
            bitrate=bitrate,
            target_bitrate=target_bitrate,
            error_percent=None if target_bitrate is None else 100 * (bitrate - target_bitrate) / target_bitrate,
            bits_per_pixel=bits / (self.frames * properties.width * properties.height),
            container_overhead_bits=overhead_bits,
            psnr_y=self.psnr_y / self.frames,
            psnr_yuv=self.psnr_yuv / self.frames,
            encode_fps=self.frames / elapsed,
            codec=codec.name,
            model=codec.identity,
            skipped_frames=self.skipped,
            dropped_frames=self.dropped,
            recoded_frames=self.recoded,
            buffer_lowest=self.buffer_lowest,
            output=output,
            interrupted=interrupted,
        )

    def out_of_reach(self, summary: Summary) -> str | None:
        """Why the target was missed, when a limit of the quality is the reason; None when it was not."""
        error, target = summary.error_percent, summary.target_bitrate
        if self.limits is None or error is None or target is None or abs(error) <= MISSED_PERCENT:
            return None
        above = error > 0
        limit = self.limits.minimum if above else self.limits.maximum
        held = {type_: self.at_limit.get((limit, type_), _Cost()) for type_ in self.cost}
        held_frames = sum(cost.frames for cost in held.values())
        # The whole stream at the limit. Where no frame of a type was there, those that are not stand in.
        means = {type_: held[type_] if held[type_].frames else self.cost[type_] for type_ in self.cost}
        bits = sum(self.cost[type_].frames * cost.bits / max(cost.frames, 1) for type_, cost in means.items())
        reachable = bits / summary.duration
        if held_frames < HELD_SHARE * self.frames or (reachable > target) != above:
            return None
        begins, end, way_out = ("begins", "lowest", "higher") if above else ("ends", "highest", "lower")
        widen = "" if limit in (QUALITY_MIN, QUALITY_MAX) else f" or a {end} quality beyond {limit:g}"
        return (
            f"{target / 1000:.1f} kbit/s was not reached: as seen here, the range of this content {begins} at about "
            f"{reachable / 1000:.1f} kbit/s, at the {end} quality allowed, {limit:g}, which {held_frames} of "
            f"{self.frames} frames got. Ask for a {way_out} target{widen}."
        )

    def skipping(self, summary: Summary) -> str | None:
        """What skipped frames mean and how to have none; None when there are none."""
        if not self.skipped:
            return None
        lowest = 0.0 if self.limits is None else self.limits.minimum
        lower = f", or a lower quality than {lowest:g}" if lowest else ""
        return (
            f"{self.skipped} of {self.frames} frames did not fit at quality {lowest:g} and repeat the picture before "
            f"them: allow a higher rate or a larger buffer{lower}."
        )
