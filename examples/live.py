"""A clip as a live source, over a network whose bandwidth halves and recovers.

    python examples/live.py CLIP [--bitrate 300k] [--frames 240] [--picture live.png]

Every frame is coded as it comes, for low latency, under a buffer of a quarter second. The bandwidth changes after a
third and after two thirds of the frames, and the encoder hears of it by ``set_rates``, as from a network's estimator.
Draws target, actual rate, buffer and quality over time.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import count, islice
from pathlib import Path

import numpy as np

from rqlvc.cli.rate_options import parse_bitrate
from rqlvc.codec.registry import load_codec
from rqlvc.control import RateTarget, open_control
from rqlvc.encoder import Encoder, FrameStats
from rqlvc.errors import RqlvcError
from rqlvc.media.frame import Frame
from rqlvc.media.properties import VideoProperties
from rqlvc.media.reader import open_reader
from rqlvc.rate.buffer import Buffer
from style import BLUE, GREEN, INK, ORANGE, panels, save

BUFFER_SECONDS = 0.25
WINDOW = 0.5
"""Seconds over which the actual rate is shown."""


def camera(clip: str, properties: VideoProperties) -> Iterator[Frame]:
    """The frames of a clip, again and again, at steady times."""
    index = count()
    while True:
        with open_reader(clip) as reader:
            for frame in reader:
                yield replace(frame, time=Fraction(next(index)) / properties.frame_rate)


def stream(clip: str, bitrate: float, frames: int) -> tuple[list[FrameStats], list[float]]:
    """Of every frame, what was made of it, and the bandwidth at its time in bits per second."""
    with open_reader(clip) as reader:
        properties = reader.properties
    codec = load_codec("rqlvc")
    buffer = Buffer(bitrate, BUFFER_SECONDS * bitrate)
    target = RateTarget(bitrate=bitrate, buffer=buffer)
    control = open_control(target, codec, properties, None, lambda message: print(message, file=sys.stderr))
    frame_rate = float(properties.frame_rate)
    encoder = Encoder(
        codec,
        control.controller,
        keyint=None,
        predictor=control.predictor,
        buffer=buffer,
        policy=control.policy,
        frame_rate=frame_rate,
    )
    changes = {frames // 3: bitrate / 2, 2 * frames // 3: bitrate}
    stats, bandwidth = [], []
    for index, frame in enumerate(islice(camera(clip, properties), frames)):
        if index in changes:
            bitrate = changes[index]
            encoder.set_rates(bitrate, frame_rate)
        _packet, each = encoder.encode(frame)  # the payload of the packet goes to the network
        stats.append(each)
        bandwidth.append(bitrate)
        print(f"\r{each.time:6.2f} s  {each.bits:7d} bits  quality {each.quality:5.1f}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return stats, bandwidth


def draw(stats: list[FrameStats], bandwidth: list[float], title: str, path: Path) -> None:
    times = np.array([each.time for each in stats])
    bits = np.array([each.bits for each in stats], float)
    actual = np.array([bits[(times > time - WINDOW) & (times <= time)].sum() / WINDOW for time in times])
    shown = times >= WINDOW  # before that, the window is not full
    figure, (rate, buffer, quality) = panels(title, 3)
    rate.step(
        times, np.array(bandwidth) / 1000, where="post", color=INK, linestyle="--", linewidth=1, label="bandwidth"
    )
    rate.plot(times[shown], actual[shown] / 1000, color=BLUE, label=f"actual, over {WINDOW:g} s")
    rate.set_ylabel("kbit/s")
    rate.set_ylim(bottom=0)
    buffer.plot(times, [(each.buffer or 0) / 1000 for each in stats], color=GREEN)
    buffer.set_ylabel("kbit in the buffer")
    buffer.set_ylim(bottom=0)
    quality.plot(times, [each.quality for each in stats], color=ORANGE, linewidth=1, label="quality level")
    quality.plot(times, [each.psnr_y for each in stats], color=BLUE, label="PSNR-Y in dB")
    quality.set_ylabel("quality")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="A clip as a live source over a network that changes.")
    parser.add_argument("clip", help="any video file")
    parser.add_argument("--bitrate", default="300k", help="bandwidth in bits per second, such as 300k")
    parser.add_argument("--frames", type=int, default=240, help="frames to send; the clip is repeated")
    parser.add_argument("--picture", type=Path, default=Path("live.png"), help="where the plot goes")
    arguments = parser.parse_args()
    try:
        bitrate = parse_bitrate(arguments.bitrate)
        stats, bandwidth = stream(arguments.clip, bitrate, arguments.frames)
    except RqlvcError as error:
        sys.exit(f"live: error: {error}")
    draw(stats, bandwidth, f"{Path(arguments.clip).stem}, live", arguments.picture)
    spent = sum(each.bits for each in stats)
    offered = sum(bandwidth) / len(bandwidth)
    duration = stats[-1].time * len(stats) / max(len(stats) - 1, 1)
    print(
        f"{len(stats)} frames, {spent / duration / 1000:.1f} of {offered / 1000:.1f} kbit/s, buffer never below "
        f"{min(each.buffer or 0 for each in stats) / 1000:.1f} kbit, {sum(each.skipped for each in stats)} skipped"
    )
    print(f"Picture: {arguments.picture}")


if __name__ == "__main__":
    main()
