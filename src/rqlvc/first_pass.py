"""The first of two passes: an encode at one quality, or two, of which the bits of each frame are kept."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from rqlvc.codec.protocol import Codec, carried_quality
from rqlvc.control import RateTarget
from rqlvc.errors import RqlvcError
from rqlvc.media.properties import VideoProperties
from rqlvc.media.reader import file_digest, open_reader
from rqlvc.rate.constant import Constant, Hierarchical
from rqlvc.rate.hierarchy import GOP_WEIGHTS, LOOKAHEAD, level_offset
from rqlvc.rate.initial import INTER
from rqlvc.rate.outlook import Outlook
from rqlvc.rate.protocol import FrameInfo, QualityRange
from rqlvc.summary import FrameStats
from rqlvc.transcode import encode_file

FORMAT = "rqlvc-passlog-3"
INTER_SHARE = 0.7
"""Bits of a usual inter frame over the mean of all: the first pass works near the quality of the second."""
NEAR = 8.0
"""Levels that it may be away from that. Where it was farther, it is made again nearer, and the two tell the slopes."""

Settings = Mapping[str, str | int | bool | None]


@dataclass(frozen=True, slots=True)
class Source:
    """What both passes code, and how, but for its rate."""

    path: str
    keyint: int
    scenecut: bool
    lookahead: int = LOOKAHEAD
    start: int = 0
    frames: int | None = None
    size: tuple[int, int] | None = None
    frame_rate: Fraction | None = None

    def settings(self, codec: Codec, target: RateTarget) -> Settings:
        """By the names that users know them by; the content by its digest."""
        return {
            "content": file_digest(Path(self.path)),
            "codec": codec.name,
            "model": codec.identity,
            "keyint": self.keyint,
            "scenecut": self.scenecut,
            "lookahead": self.lookahead,
            "gop-weights": ",".join(f"{weight:g}" for weight in _weights(target)),
            "start": self.start,
            "frames": self.frames,
            "size": None if self.size is None else "x".join(map(str, self.size)),
            "fps": None if self.frame_rate is None else str(self.frame_rate),
        }


def _weights(target: RateTarget) -> tuple[float, ...]:
    return target.gop_weights or GOP_WEIGHTS


class Cost(NamedTuple):
    """What the first pass keeps of a frame."""

    bits: int
    intra: bool
    fading: float | None

    @classmethod
    def of(cls, stats: FrameStats) -> "Cost":
        return cls(stats.bits, stats.type == "I", stats.fading)


Costs = Sequence[Cost]


def look(
    code: Callable[[Constant], Costs],
    bitrate: float,
    properties: VideoProperties,
    keyint: int,
    lookahead: int,
    weights: tuple[float, ...] = GOP_WEIGHTS,
) -> Outlook:
    """What a video tells before it is coded at ``bitrate`` (bits per second); ``code`` codes it at constant levels.

    An intra frame comes every ``keyint`` frames, if not before, and ``lookahead`` frames are seen before one is coded.
    ``weights`` are the relative bits of the inter frames of a miniGOP.
    """
    frame_bits = bitrate / float(properties.frame_rate)
    heaviest = INTER_SHARE * frame_bits * max(weights) * len(weights) / sum(weights)
    first = carried_quality(INTER.in_bits(properties.width * properties.height).quality(heaviest))
    costs = code(Hierarchical(first, weights))
    bits, intra = (tuple(column) for column in list(zip(*costs, strict=True))[:2])
    found = Outlook((first,), _offsets(costs, keyint, lookahead, weights), (bits,), intra)
    nearer = carried_quality(found.base(frame_bits * len(bits), QualityRange()))
    if abs(nearer - first) <= NEAR:
        return found
    again = tuple(cost.bits for cost in code(Hierarchical(nearer, weights)))
    return replace(found, bases=(first, nearer), bits=(bits, again))


def _offsets(costs: Costs, keyint: int, lookahead: int, weights: tuple[float, ...]) -> tuple[float, ...]:
    """Levels from the base to each frame, from what was known of it when it was coded."""
    starts = [index for index, cost in enumerate(costs) if cost.intra]
    offsets = []
    for start, end in pairwise([*starts, len(costs)]):
        for index in range(start, end):
            info = FrameInfo(
                index,
                index == start,
                index - start,
                0,
                frames_to_intra=keyint - (index - start),
                fading=costs[index].fading,
                scene_left=end - index if end - index <= lookahead else None,
            )
            offsets.append(level_offset(info, weights))
    return tuple(offsets)


def make_first_pass(
    source: Source, codec: Codec, target: RateTarget, on_frame: Callable[[FrameStats], None] = lambda stats: None
) -> Outlook:
    """Code ``source`` near the quality that it will have at ``target``; the files are thrown away.

    Raises :class:`RqlvcError` as :func:`rqlvc.transcode.encode_file` does, and KeyboardInterrupt.
    """
    with open_reader(
        source.path, start=source.start, frames=source.frames, size=source.size, frame_rate=source.frame_rate
    ) as reader:
        properties, count = reader.properties, reader.frame_count
    bitrate = target.bits_per_second(float(properties.frame_rate), count)

    def code(control: Constant) -> Costs:
        costs: list[Cost] = []

        def keep(stats: FrameStats) -> None:
            costs.append(Cost.of(stats))
            on_frame(stats)

        with TemporaryDirectory() as folder:
            summary = encode_file(
                source.path,
                str(Path(folder, "first_pass.mkv")),
                codec,
                control,
                keyint=source.keyint,
                scenecut=source.scenecut,
                lookahead=source.lookahead,
                start=source.start,
                frames=source.frames,
                size=source.size,
                frame_rate=source.frame_rate,
                on_frame=keep,
            )
        if summary.interrupted:
            raise KeyboardInterrupt
        return costs

    return look(code, bitrate, properties, source.keyint, source.lookahead, _weights(target))


def write_passlog(path: Path, settings: Settings, outlook: Outlook) -> None:
    """Keep what a first pass found. Raises :class:`RqlvcError` where the file cannot be written."""
    passes = [{"base": base, "bits": list(bits)} for base, bits in zip(outlook.bases, outlook.bits, strict=True)]
    intra = [index for index, intra in enumerate(outlook.intra) if intra]
    fields = {"format": FORMAT, "settings": dict(settings), "passes": passes, "intra": intra}
    fields["offsets"] = list(outlook.offsets)
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
        passes, intra = fields["passes"], set(fields["intra"])
        bits = tuple(tuple(map(int, each["bits"])) for each in passes)
        frames = tuple(index in intra for index in range(len(bits[0])))
        bases = tuple(float(each["base"]) for each in passes)
        outlook = Outlook(bases, tuple(map(float, fields["offsets"])), bits, frames)
        if {len(outlook.offsets), *map(len, bits)} != {len(frames)}:
            raise ValueError
        known: Settings = dict(fields["settings"])
    except OSError as error:
        raise RqlvcError(f"the pass log {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RqlvcError(
            f"{path} is no pass log of this version: remove it, or name another with --passlog."
        ) from error
    different = [name for name, value in settings.items() if known.get(name) != value]
    if different:
        told = ", ".join(
            name if name == "content" else f"{name} {_said(known.get(name))} instead of {_said(settings[name])}"
            for name in different
        )
        raise RqlvcError(
            f"the pass log {path} is of another first pass ({told}): remove it and make it again, or name another with "
            "--passlog."
        )
    return outlook


def _said(value: str | int | None) -> str:
    return "unset" if value is None else str(value)
