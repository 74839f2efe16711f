"""Rate-distortion of our codec against libx264 and libx265, by real encodes and real decodes.

    python benchmarks/rd.py --data DIR --out RUN [--sequences a,b] [--frames N] [--keyint 32] [--intra] [--flat]
        [--preset slow]

Writes RUN/rd.md (also on stdout), RUN/rd.json and RUN/rd.png. Every result is kept in the cache folder under a digest
of the sequence file and of all settings, so a rerun pays only for what is new: anchors once, ours again when the
weights or the codec's sources change.
"""

import argparse
import functools
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import av
import numpy as np
from matplotlib.figure import Figure

from rqlvc.codec.protocol import Codec, State, carried_quality
from rqlvc.codec.registry import load_codec
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.anchors import AnchorEncoder, anchor_parameters, encode_anchor
from rqlvc.evaluation.digests import codec_digest
from rqlvc.evaluation.metrics import bd_rate, psnr_y, psnr_yuv
from rqlvc.evaluation.sweep import file_digest, find_sequences
from rqlvc.media.frame import Frame
from rqlvc.media.properties import VideoProperties
from rqlvc.media.reader import open_reader
from rqlvc.rate.constant import Constant, Hierarchical
from rqlvc.rate.hierarchy import FADING_VIEW, LOOKAHEAD, fading
from rqlvc.rate.protocol import FrameInfo
from rqlvc.scenecut import novelty_of

OURS = "rqlvc"
ANCHORS: tuple[AnchorEncoder, ...] = ("libx264", "libx265")
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
CRFS = (47, 43, 39, 35, 31, 27, 23, 19, 15)  # about the distortions of constant QP 49 to 17
INTRA_QPS = (51, 47, 43, 39, 35, 31, 27, 23, 19)  # x264 codes intra frames 3 below the QP that it is given
QUALITIES = "0,10,21,32,42,53,63"
METRICS = {"psnr_yuv": "PSNR-YUV", "psnr_y": "PSNR-Y"}
COLOURS = {OURS: "tab:red", "libx264": "tab:blue", "libx265": "tab:green"}


@dataclass(frozen=True, slots=True)
class Clip:
    """The first ``frames`` frames of a file, or all of them."""

    path: Path
    digest: str
    properties: VideoProperties
    frames: int | None

    @property
    def name(self) -> str:
        return self.path.stem

    def read(self) -> Iterator[Frame]:
        with open_reader(str(self.path), frames=self.frames) as reader:
            yield from reader
            for warning in reader.warnings:
                warn(f"{self.name}: {warning}")


@functools.cache
def warn(message: str) -> None:
    """Say it on stderr, once: a clip is read for every point."""
    print(message, file=sys.stderr)


@dataclass(frozen=True, slots=True)
class Point:
    """One encode. ``quantiser`` is our quality level (more is better), or an anchor's CRF or QP (less is better)."""

    quantiser: float
    bits: int
    frames: int
    psnr_y: float
    psnr_yuv: float
    encode_seconds: float
    decode_seconds: float | None = None


class Cache:
    """Points in small JSON files, each named by a digest of everything that its result depends on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, key: dict[str, Any]) -> Point | None:
        path = self._path(key)
        return Point(**json.loads(path.read_text())["point"]) if path.exists() else None

    def store(self, key: dict[str, Any], point: Point) -> None:
        partial = self._path(key).with_suffix(".partial")
        partial.write_text(json.dumps({"key": key, "point": asdict(point)}, indent=1))
        partial.replace(self._path(key))  # a killed run leaves no half-written result

    def _path(self, key: dict[str, Any]) -> Path:
        return self._folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.json"


def levels_of(frames: Sequence[Frame], control: Constant, keyint: int) -> list[float]:
    """The level of every frame, as packets carry it, with the usual look-ahead."""
    levels = []
    for index, frame in enumerate(frames):
        place = index % keyint
        ahead = frames[index + 1 : index + 1 + FADING_VIEW] if not place else ()
        faded = fading(novelty_of(ahead[-1], frame), len(ahead)) if ahead else None
        left = len(frames) - index
        info = FrameInfo(
            index,
            not place,
            place,
            1,
            frames_to_intra=keyint - place,
            fading=faded,
            scene_left=left if left <= LOOKAHEAD else None,
        )
        levels.append(carried_quality(control.decide(info).quality))
    return levels


def our_point(clip: Clip, codec: Codec, quantiser: float, levels: Sequence[float], keyint: int) -> Point:
    """Encode at ``levels`` and decode the packets; fails if the decoder shows another picture."""
    encoder_state: State | None = None
    decoder_state: State | None = None
    bits, encode_seconds, decode_seconds = 0, 0.0, 0.0
    luma: list[float] = []
    yuv: list[float] = []
    for index, (frame, quality) in enumerate(zip(clip.read(), levels, strict=True)):
        if index % keyint == 0:
            encoder_state = decoder_state = None
        started = time.perf_counter()
        encoded = codec.encode(frame, quality, encoder_state)
        middle = time.perf_counter()
        decoded = codec.decode(encoded.payload, decoder_state)
        decode_seconds += time.perf_counter() - middle
        encode_seconds += middle - started
        encoder_state, decoder_state = encoded.state, decoded.state
        promised, shown = encoded.reconstruction, decoded.frame
        if not all(np.array_equal(getattr(promised, plane), getattr(shown, plane)) for plane in "yuv"):
            raise RqlvcError(f"{clip.name}, quality {quality}: frame {index} decodes to another picture than promised.")
        bits += 8 * len(encoded.payload)
        luma.append(psnr_y(frame, shown))
        yuv.append(psnr_yuv(frame, shown))
    return Point(quantiser, bits, len(luma), fmean(luma), fmean(yuv), encode_seconds, decode_seconds)


def our_curve(clip: Clip, codec: Codec, controls: Sequence[Constant], keyint: int, cache: Cache) -> list[Point]:
    points = []
    frames = list(clip.read())
    for control in controls:
        levels = levels_of(frames, control, keyint)
        key = {
            "clip": clip.digest,
            "frames": clip.frames,
            "codec": f"{codec.name} {codec.identity} {codec_digest()} torch {version('torch')}",
            "levels": levels,
        }
        point = cache.load(key)
        if point is None:
            point = our_point(clip, codec, control.quality, levels, keyint)
            cache.store(key, point)
        report_progress(clip, OURS, point)
        points.append(point)
    return points


def anchor_curve(clip: Clip, encoder: AnchorEncoder, preset: str, keyint: int, cache: Cache) -> list[Point]:
    points = []
    for quantiser in INTRA_QPS if keyint == 1 else CRFS:
        key = {
            "clip": clip.digest,
            "frames": clip.frames,
            "codec": f"{encoder} PyAV {av.__version__} {preset} {anchor_parameters(encoder, quantiser, keyint)}",
        }
        point = cache.load(key)
        if point is None:
            result = encode_anchor(clip.read(), clip.properties.frame_rate, encoder, quantiser, keyint, preset)
            point = Point(quantiser, result.bits, result.frames, result.psnr_y, result.psnr_yuv, result.seconds)
            cache.store(key, point)
        report_progress(clip, encoder, point)
        points.append(point)
    return points


def report_progress(clip: Clip, codec: str, point: Point) -> None:
    print(
        f"{clip.name} {codec} {point.quantiser:g}: {kilobits_per_second(clip, point):.1f} kbit/s, "
        f"PSNR-Y {point.psnr_y:.2f} dB, PSNR-YUV {point.psnr_yuv:.2f} dB, "
        f"{point.frames / max(point.encode_seconds, 1e-9):.1f} fps",
        file=sys.stderr,
        flush=True,
    )


def bits_per_pixel(clip: Clip, point: Point) -> float:
    return point.bits / (point.frames * clip.properties.width * clip.properties.height)


def kilobits_per_second(clip: Clip, point: Point) -> float:
    return float(point.bits * clip.properties.frame_rate / point.frames / 1000)


def open_clip(path: Path, frames: int | None) -> Clip:
    with open_reader(str(path), frames=1) as reader:
        return Clip(path, file_digest(path), reader.properties, frames)


Curves = dict[str, list[Point]]
"""By codec."""
Deltas = dict[tuple[str, str], dict[str, float | None]]
"""BD-rates in percent by (test, anchor) and metric; None where the curves allow none."""


def compare(name: str, curves: Curves) -> Deltas:
    """BD-rate of every codec against every anchor that comes after it in the list: ours, then newest to oldest."""
    order = [codec for codec in (OURS, "libx265", "libx264") if codec in curves]
    pairs = [(test, anchor) for index, test in enumerate(order) for anchor in order[index + 1 :]]
    return {pair: {metric: try_bd_rate(name, curves, pair, metric) for metric in METRICS} for pair in pairs}


def try_bd_rate(name: str, curves: Curves, pair: tuple[str, str], metric: str) -> float | None:
    test, anchor = ([(point.bits, getattr(point, metric)) for point in curves[codec]] for codec in pair)
    try:
        return bd_rate(anchor, test)
    except RqlvcError as error:
        print(f"{name}, {pair[0]} against {pair[1]}: no BD-rate. {error}", file=sys.stderr)
        return None


def average(deltas: Sequence[Deltas]) -> Deltas:
    """Means over the sequences; None as soon as one sequence has none, so that no average hides a failure."""

    def mean(pair: tuple[str, str], metric: str) -> float | None:
        values = [each[pair][metric] for each in deltas]
        known = [value for value in values if value is not None]
        return fmean(known) if len(known) == len(values) else None

    return {pair: {metric: mean(pair, metric) for metric in METRICS} for pair in deltas[0]}


def markdown(title: str, clips: Sequence[Clip], curves: Sequence[Curves], deltas: Sequence[Deltas]) -> str:
    columns = [(pair, metric) for pair in deltas[0] for metric in METRICS]
    heads = [f"{test} vs {anchor}, {METRICS[metric]}" for (test, anchor), metric in columns]
    rows = [*zip([clip.name for clip in clips], deltas, strict=True), ("**average**", average(deltas))]
    lines = [f"# {title}", "", "BD-rate in percent (negative: the first needs less rate at equal PSNR).", ""]
    lines += table_head(["sequence", *heads])
    for name, row in rows:
        values = [row[pair][metric] for pair, metric in columns]
        lines.append(table_row([name, *("no overlap" if value is None else f"{value:+.1f}" for value in values)]))
    if OURS in curves[0]:
        lines += [
            "",
            "Our range: bits at the best level over bits at the coarsest, and whether each step up takes more.",
            "",
        ]
        lines += table_head(["sequence", "times", "grows at each step"])
        lines += [table_row([clip.name, *range_cells(each[OURS])]) for clip, each in zip(clips, curves, strict=True)]
    lines += ["", "Points: real payload bits, PSNR of what they decode to, mean over frames.", ""]
    lines += table_head(["sequence", "codec", "q / CRF / QP", "frames", "kbit/s", "bpp", *METRICS.values(), "fps"])
    for clip, each in zip(clips, curves, strict=True):
        for codec, points in each.items():
            lines += [table_row([clip.name, codec, *point_cells(clip, point)]) for point in points]
    return "\n".join(lines) + "\n"


def range_cells(points: Sequence[Point]) -> list[str]:
    bits = [point.bits for point in sorted(points, key=lambda point: point.quantiser)]
    return [f"{bits[-1] / bits[0]:.1f}", "yes" if all(low < high for low, high in pairwise(bits)) else "no"]


def point_cells(clip: Clip, point: Point) -> list[str]:
    return [
        f"{point.quantiser:g}",
        str(point.frames),
        f"{kilobits_per_second(clip, point):.1f}",
        f"{bits_per_pixel(clip, point):.4f}",
        f"{point.psnr_yuv:.2f}",
        f"{point.psnr_y:.2f}",
        f"{point.frames / max(point.encode_seconds, 1e-9):.1f}",
    ]


def table_head(cells: Sequence[str]) -> list[str]:
    return [table_row(cells), table_row(["---", *["---:"] * (len(cells) - 1)])]


def table_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def summary(title: str, clips: Sequence[Clip], curves: Sequence[Curves], deltas: Sequence[Deltas]) -> dict[str, Any]:
    def named(each: Deltas) -> dict[str, dict[str, float | None]]:
        return {f"{test} vs {anchor}": values for (test, anchor), values in each.items()}

    return {
        "title": title,
        "bd_rate_average": named(average(deltas)),
        "sequences": {
            clip.name: {
                "width": clip.properties.width,
                "height": clip.properties.height,
                "frame_rate": str(clip.properties.frame_rate),
                "bd_rate": named(delta),
                "curves": {codec: [asdict(point) for point in points] for codec, points in each.items()},
            }
            for clip, each, delta in zip(clips, curves, deltas, strict=True)
        },
    }


def plot(title: str, clips: Sequence[Clip], curves: Sequence[Curves]) -> Figure:
    columns = min(4, len(clips))
    rows = -(-len(clips) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows + 0.6), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[len(clips) :]:
        panel.set_axis_off()
    for panel, clip, each in zip(panels, clips, curves, strict=False):
        for codec, points in each.items():
            ordered = sorted(points, key=lambda point: point.bits)
            rates = [bits_per_pixel(clip, point) for point in ordered]
            psnrs = [point.psnr_yuv for point in ordered]
            panel.plot(rates, psnrs, "o-", markersize=3, linewidth=1.2, color=COLOURS[codec], label=codec)
        panel.set_xscale("log")
        panel.set_title(f"{clip.name} ({clip.properties.width}×{clip.properties.height})", fontsize=9)
        panel.set_xlabel("bits per pixel", fontsize=8)
        panel.set_ylabel("PSNR-YUV 6:1:1 (dB)", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3, which="both", linewidth=0.5)
        panel.legend(fontsize=7, loc="lower right")
    figure.suptitle(title, fontsize=10)
    return figure


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of sequences")
    parser.add_argument("--out", type=Path, required=True, help="folder for rd.md, rd.json and rd.png")
    parser.add_argument("--sequences", default="", help="names without suffix, comma-separated; default: all")
    parser.add_argument("--frames", type=int, help="at most this many frames of each; default: all")
    parser.add_argument("--keyint", type=int, default=32, help="frames per group of pictures; default: %(default)s")
    parser.add_argument("--intra", action="store_true", help="code every frame intra, the same as --keyint 1")
    parser.add_argument("--flat", action="store_true", help="ours at one level for all frames, not as --quality has it")
    parser.add_argument("--qualities", default=QUALITIES, help="our quality levels, 63 is best; default: %(default)s")
    parser.add_argument("--anchors-only", action="store_true", help="leave our codec out")
    parser.add_argument("--preset", choices=PRESETS, default="medium", help="of the anchors; default: %(default)s")
    parser.add_argument("--cache", type=Path, default=Path("runs/anchors"), help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads of our codec; default: its choice")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    keyint = 1 if arguments.intra else arguments.keyint
    if keyint < 1:
        raise RqlvcError(f"--keyint is {keyint}; choose 1 or more.")
    try:
        steady = Constant if arguments.flat else Hierarchical
        controls = [steady(float(text)) for text in arguments.qualities.split(",")]
    except ValueError as error:
        raise RqlvcError(f"--qualities is {arguments.qualities!r}; give numbers like {QUALITIES}.") from error
    names = [name for name in arguments.sequences.split(",") if name]
    clips = [open_clip(path, arguments.frames) for path in find_sequences(arguments.data, names)]
    cache = Cache(arguments.cache)
    codec_digest()
    codec = None if arguments.anchors_only else load_codec(device="cpu", threads=arguments.threads)

    curves: list[Curves] = []
    for clip in clips:
        ours = {} if codec is None else {OURS: our_curve(clip, codec, controls, keyint, cache)}
        anchors = {each: anchor_curve(clip, each, arguments.preset, keyint, cache) for each in ANCHORS}
        curves.append(ours | anchors)
    deltas = [compare(clip.name, each) for clip, each in zip(clips, curves, strict=True)]

    model = "anchors only" if codec is None else f"{codec.name} {codec.identity[:12]}"
    along = "one level" if arguments.flat else "levels as --quality has them"
    setting = f"anchors {arguments.preset} without B frames, psy and AQ"
    title = f"Rate-distortion: {model}, {along}, keyint {keyint}, {setting}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = markdown(title, clips, curves, deltas)
    (arguments.out / "rd.md").write_text(text)
    (arguments.out / "rd.json").write_text(json.dumps(summary(title, clips, curves, deltas), indent=1))
    plot(title, clips, curves).savefig(arguments.out / "rd.png", dpi=130)
    print(text)


if __name__ == "__main__":
    try:
        run(parse_arguments())
    except RqlvcError as error:
        sys.exit(f"rd.py: {error}")
