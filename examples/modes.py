"""One clip under every mode of rate control, and a picture of each.

    python examples/modes.py CLIP [--bitrate 100k] [--modes bitrate,size,constant,capped,two-pass] [--folder .]

Shows most where the content changes. The size is what the bitrate would take, the buffer holds a second, and the
quality that is capped is the mean level of the encode at the bitrate.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.axes import Axes

from rqlvc.cli.rate_options import parse_bitrate
from rqlvc.codec.protocol import Codec
from rqlvc.codec.registry import load_codec
from rqlvc.control import RateTarget
from rqlvc.encoder import DEFAULT_KEYINT
from rqlvc.errors import RqlvcError
from rqlvc.first_pass import Source, make_first_pass
from rqlvc.media.reader import open_reader
from rqlvc.rate.buffer import Buffer
from rqlvc.summary import FrameStats
from rqlvc.transcode import encode_file
from style import BLUE, GREEN, INK, ORANGE, SOFT, panels, save

MEAN_FRAMES = 12
"""Over which levels are averaged: those of a miniGOP differ on purpose."""
BUFFER_SECONDS = 1.0

Encode = Sequence[FrameStats]


class Clip:
    """The encodes of one clip, each made when it is first asked for. ``bitrate`` in bits per second."""

    def __init__(self, path: str, codec: Codec, bitrate: float) -> None:
        self.path = path
        self.codec = codec
        self.bitrate = bitrate
        with open_reader(path) as reader:
            frames = sum(1 for _ in reader)
            self.frame_rate = float(reader.properties.frame_rate)
        self.size = round(bitrate * frames / self.frame_rate / 8)
        self.buffer = Buffer(bitrate, BUFFER_SECONDS * bitrate)
        self.one_pass = cache(partial(self._encode, "bitrate", RateTarget(bitrate=bitrate)))

    @property
    def quality(self) -> float:
        """The mean level of one pass at the bitrate."""
        return round(fmean(each.quality for each in self.one_pass()))

    def to_size(self) -> Encode:
        return self._encode("size", RateTarget(size=self.size))

    def at_constant_rate(self) -> Encode:
        return self._encode("constant", RateTarget(bitrate=self.bitrate, buffer=self.buffer))

    def at_capped_quality(self) -> Encode:
        return self._encode("capped", RateTarget(quality=self.quality, buffer=self.buffer))

    def in_two_passes(self) -> Encode:
        target = RateTarget(bitrate=self.bitrate, controller="two-pass")
        source = Source(self.path, keyint=DEFAULT_KEYINT, scenecut=True)
        outlook = make_first_pass(source, self.codec, target, partial(_show, "first pass"))
        return self._encode("two-pass", replace(target, outlook=outlook))

    def _encode(self, name: str, target: RateTarget) -> Encode:
        frames: list[FrameStats] = []

        def keep(frame: FrameStats) -> None:
            frames.append(frame)
            _show(name, frame)

        with TemporaryDirectory() as folder:
            encode_file(self.path, str(Path(folder, "coded.mkv")), self.codec, target, on_frame=keep)
        print(file=sys.stderr)
        return frames


def _show(name: str, frame: FrameStats) -> None:
    print(
        f"\r{name:10} {frame.time:6.2f} s  {frame.bits:7d} bits  quality {frame.quality:5.1f}", end="", file=sys.stderr
    )


# What is drawn


def draw_bitrate(clip: Clip, rate: Axes, quality: Axes) -> None:
    frames = clip.one_pass()
    draw_rates(rate, clip, {"actual, per second": (frames, BLUE)}, "target")
    draw_levels(quality, {"quality": (frames, BLUE)}, alone=True)


def draw_size(clip: Clip, size: Axes, quality: Axes) -> None:
    frames = clip.to_size()
    taken = np.cumsum([each.bits for each in frames]) / 8000
    size.axhline(clip.size / 1000, color=INK, linestyle="--", linewidth=1, label=f"limit, {clip.size} bytes")
    size.plot(times(frames), taken, color=BLUE, label=f"taken, {round(1000 * taken[-1])}")
    size.set_ylabel("kB")
    size.set_ylim(0, 1.1 * clip.size / 1000)
    draw_levels(quality, {"quality": (frames, BLUE)}, alone=True)


def draw_constant(clip: Clip, rate: Axes, fullness: Axes) -> None:
    frames = clip.at_constant_rate()
    draw_rates(rate, clip, {"actual, per second": (frames, BLUE)}, "target and channel")
    fullness.axhline(clip.buffer.size / 1000, color=INK, linestyle="--", linewidth=1, label="--bufsize")
    fullness.plot(times(frames), [(each.buffer or 0) / 1000 for each in frames], color=GREEN, label="after each frame")
    fullness.set_ylabel("kbit in the buffer")
    fullness.set_ylim(0, 1.1 * clip.buffer.size / 1000)


def draw_capped(clip: Clip, quality: Axes, rate: Axes) -> None:
    frames = clip.at_capped_quality()
    quality.axhline(clip.quality, color=INK, linestyle="--", linewidth=1, label=f"--quality {clip.quality:g}")
    draw_levels(quality, {"actual": (frames, BLUE)})
    draw_rates(rate, clip, {"actual, per second": (frames, BLUE)}, "--maxrate")


def draw_two_pass(clip: Clip, quality: Axes, rate: Axes) -> None:
    runs = {"one pass": (clip.one_pass(), ORANGE), "two passes": (clip.in_two_passes(), BLUE)}
    draw_levels(quality, runs)
    draw_rates(rate, clip, runs, "target")


MODES: dict[str, tuple[str, Callable[[Clip, Axes, Axes], None]]] = {
    "bitrate": ("--bitrate, one pass", draw_bitrate),
    "size": ("--target-size", draw_size),
    "constant": ("--bitrate = --maxrate, a buffer of a second", draw_constant),
    "capped": ("--quality and --maxrate, a buffer of a second", draw_capped),
    "two-pass": ("--bitrate, one pass and two", draw_two_pass),
}


def times(frames: Encode) -> np.ndarray:
    return np.array([each.time for each in frames])


def draw_rates(axes: Axes, clip: Clip, runs: dict[str, tuple[Encode, str]], target: str) -> None:
    """Bars: the bits of each second of each of ``runs`` (frames, colour), side by side."""
    axes.axhline(clip.bitrate / 1000, color=INK, linestyle="--", linewidth=1, label=target)
    width = 0.8 / len(runs)
    for place, (label, (frames, colour)) in enumerate(runs.items()):
        second = np.floor(times(frames) + 1e-6).astype(int)
        rates = np.bincount(second, [each.bits / 1000 for each in frames])
        rates /= np.bincount(second) / clip.frame_rate  # the last one may be short
        left = np.arange(len(rates)) + 0.1 + place * width
        axes.bar(left, rates, width, align="edge", color=colour, alpha=0.85, label=label)
    axes.set_ylabel("kbit/s")


def draw_levels(axes: Axes, runs: dict[str, tuple[Encode, str]], *, alone: bool = False) -> None:
    """Levels of the ``runs`` (frames, colour): every frame pale, their running mean strong."""
    for label, (frames, colour) in runs.items():
        levels = np.array([each.quality for each in frames])
        window = np.ones(MEAN_FRAMES)
        mean = np.convolve(levels, window, "same") / np.convolve(np.ones(len(levels)), window, "same")
        axes.plot(times(frames), levels, color=colour, linewidth=0.6, alpha=0.35)
        axes.plot(times(frames), mean, color=colour, label=None if alone else label)
    axes.set_ylabel("quality level")


def picture(clip: Clip, mode: str, path: Path) -> None:
    title, draw = MODES[mode]
    figure, (upper, lower) = panels(title, 2)
    draw(clip, upper, lower)
    for axes in (upper, lower):
        for cut in (each.time for each in clip.one_pass() if each.cut):
            axes.axvline(cut, color=SOFT, linestyle=":", linewidth=1)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="One clip under every mode of rate control, a picture of each.")
    parser.add_argument("clip", help="any video file, best one whose content changes")
    parser.add_argument("--bitrate", default="100k", help="in bits per second, such as 100k")
    parser.add_argument("--modes", default=",".join(MODES), help="some of these, all unless given")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the pictures go")
    parser.add_argument("--threads", type=int, help="of the CPU, all unless given")
    arguments = parser.parse_args()
    modes = arguments.modes.split(",")
    if unknown := set(modes) - set(MODES):
        parser.error(f"there is no mode {', '.join(sorted(unknown))}: choose of {', '.join(MODES)}.")
    try:
        codec = load_codec("rqlvc", threads=arguments.threads)
        clip = Clip(arguments.clip, codec, parse_bitrate(arguments.bitrate))
        for mode in modes:
            path = arguments.folder / f"{mode}.png"
            picture(clip, mode, path)
            print(f"Picture: {path}")
    except RqlvcError as error:
        sys.exit(f"modes: error: {error}")


if __name__ == "__main__":
    main()
