"""The first of two passes: an encode at one quality, of which the bits of each frame are kept."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rqlvc.codec.protocol import Codec, carried_quality
from rqlvc.control import RateTarget
from rqlvc.errors import RqlvcError
from rqlvc.media.properties import VideoProperties
from rqlvc.media.reader import file_digest, open_reader
from rqlvc.rate.constant import Constant
from rqlvc.rate.initial import INTER
from rqlvc.rate.outlook import Outlook
from rqlvc.summary import FrameStats
from rqlvc.transcode import encode_file

FORMAT = "rqlvc-passlog-1"
INTER_SHARE = 0.7
"""Bits of a usual inter frame over the mean of all: the first pass works near the quality of the second."""

Settings = Mapping[str, str | int | bool | None]


@dataclass(frozen=True, slots=True)
class Source:
    """What both passes code, and how, but for its rate."""

    path: str
    keyint: int
    scenecut: bool
    start: int = 0
    frames: int | None = None
    size: tuple[int, int] | None = None
    frame_rate: Fraction | None = None

    def settings(self, codec: Codec) -> Settings:
        """By the names that users know them by; the content by its digest."""
        return {
            "content": file_digest(Path(self.path)),
            "codec": codec.name,
            "model": codec.identity,
            "keyint": self.keyint,
            "scenecut": self.scenecut,
            "start": self.start,
            "frames": self.frames,
            "size": None if self.size is None else "x".join(map(str, self.size)),
            "fps": None if self.frame_rate is None else str(self.frame_rate),
        }


def first_pass_quality(bitrate: float, properties: VideoProperties) -> float:
    """The level that usual content has at ``bitrate`` (bits per second)."""
    usual = INTER_SHARE * bitrate / float(properties.frame_rate)
    return carried_quality(INTER.in_bits(properties.width * properties.height).quality(usual))


def outlook_of(quality: float, frames: Iterable[FrameStats]) -> Outlook:
    """What an encode of ``frames`` at ``quality`` tells."""
    costs = [(stats.bits, stats.type == "I") for stats in frames]
    return Outlook(quality, tuple(bits for bits, _ in costs), tuple(intra for _, intra in costs))


def make_first_pass(
    source: Source, codec: Codec, target: RateTarget, on_frame: Callable[[FrameStats], None] = lambda stats: None
) -> Outlook:
    """Code ``source`` at the quality that usual content has at ``target``; the file is thrown away.

    Raises :class:`RqlvcError` as :func:`rqlvc.transcode.encode_file` does, and KeyboardInterrupt.
    """
    with open_reader(
        source.path, start=source.start, frames=source.frames, size=source.size, frame_rate=source.frame_rate
    ) as reader:
        properties, count = reader.properties, reader.frame_count
    bitrate = target.bits_per_second(float(properties.frame_rate), count)
    quality = first_pass_quality(bitrate, properties)
    frames: list[FrameStats] = []

    def keep(stats: FrameStats) -> None:
        frames.append(stats)
        on_frame(stats)

    with TemporaryDirectory() as folder:
        summary = encode_file(
            source.path,
            str(Path(folder, "first_pass.mkv")),
            codec,
            Constant(quality),
            keyint=source.keyint,
            scenecut=source.scenecut,
            start=source.start,
            frames=source.frames,
            size=source.size,
            frame_rate=source.frame_rate,
            on_frame=keep,
        )
    if summary.interrupted:
        raise KeyboardInterrupt
    return outlook_of(quality, frames)


def write_passlog(path: Path, settings: Settings, outlook: Outlook) -> None:
    """Keep what a first pass found. Raises :class:`RqlvcError` where the file cannot be written."""
    fields = {"format": FORMAT, "settings": dict(settings), "quality": outlook.quality}
    fields |= {"bits": list(outlook.bits), "intra": [index for index, intra in enumerate(outlook.intra) if intra]}
    try:
        path.write_text(json.dumps(fields), encoding="utf-8")
    except OSError as error:
        raise RqlvcError(f"the pass log {path} cannot be written: {error.strerror or error}.") from error


def read_passlog(path: Path, settings: Settings) -> Outlook:
    """What a first pass with the same ``settings`` found. Raises :class:`RqlvcError` that names what is different."""
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if fields["format"] != FORMAT:
            raise ValueError
        intra = set(fields["intra"])
        outlook = Outlook(
            float(fields["quality"]),
            tuple(int(bits) for bits in fields["bits"]),
            tuple(index in intra for index in range(len(fields["bits"]))),
        )
        known: Settings = dict(fields["settings"])
    except OSError as error:
        raise RqlvcError(f"the pass log {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RqlvcError(
            f"{path} is no pass log of this version: remove it, or name another with --passlog."
        ) from error
    different = [name for name, value in settings.items() if known.get(name) != value]
    if different:
        told = ", ".join(
            name if name == "content" else f"{name} {known.get(name)} instead of {settings[name]}" for name in different
        )
        raise RqlvcError(f"the pass log {path} is of another first pass ({told}): remove it, or name another.")
    return outlook
