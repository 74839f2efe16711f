"""The page of one encode, from its ``--stats`` file."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from rqlvc.codec.registry import load_codec
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.report.html import UNKNOWN, Cell, page, table, tiles
from rqlvc.evaluation.report.pictures import Coded, check_model, figures

WORST = 12
"""Frames in the table of the worst ones."""
PICTURES = 4
WINDOW = 1.0
"""Seconds that the moving rate is measured over."""
_NUMBER = (int, float)
FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "frame": {
        "frame_type": str,
        "time": _NUMBER,
        "quality": _NUMBER,
        "bits": int,
        "psnr_y": _NUMBER,
        "psnr_yuv": _NUMBER,
    },
    "summary": {
        "output": str,
        "codec": str,
        "model": str,
        "width": int,
        "height": int,
        "fps": _NUMBER,
        "duration": _NUMBER,
        "bits_per_pixel": _NUMBER,
        "encode_fps": _NUMBER,
        "interrupted": bool,
    },
}
"""What is needed of the lines of each type."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """The lines of a file, by what they are."""

    frames: list[dict[str, Any]]
    warnings: list[str]
    summary: dict[str, Any] | None
    """None where the encode was killed, or is not done."""


def read_statistics(path: Path) -> Statistics:
    """Raises :class:`RqlvcError`, with the number of the line, for what is no file of ``rqlvc encode --stats``."""
    frames, warnings, summary = [], [], None
    for number, line in _lines(path):
        kind = str(line.get("type"))
        for field, type_ in FIELDS.get(kind, {}).items():
            if not isinstance(line.get(field), type_):
                raise RqlvcError(f"line {number} of {path} has no {field!r}: name a file of 'rqlvc encode --stats'.")
        if kind == "frame":
            frames.append(line)
        elif kind == "warning":
            warnings.append(str(line.get("message")))
        elif kind == "summary":
            summary = line
    if not frames:
        raise RqlvcError(f"{path} holds no frames: name a file of 'rqlvc encode --stats'.")
    return Statistics(frames, warnings, summary)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    def refuse(constant: str) -> None:
        raise ValueError(f"it holds {constant}")

    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                line = json.loads(text, parse_constant=refuse)
                if not isinstance(line, dict):
                    raise ValueError("it is no object")
                yield number, line
    except UnicodeDecodeError as error:
        raise RqlvcError(f"{path} is no text: name a file of 'rqlvc encode --stats'.") from error
    except ValueError as error:
        raise RqlvcError(
            f"line {number} of {path} is broken ({error}): name a file of 'rqlvc encode --stats'."
        ) from error


def moving_rate(times: Sequence[float], bits: Sequence[int], window: float = WINDOW) -> list[float | None]:
    """Bits per second over the ``window`` seconds that end with each frame; None before there are so many."""
    rates: list[float | None] = []
    held: deque[tuple[float, int]] = deque()
    total = 0
    duration = frame_seconds(times)
    for time, count in zip(times, bits, strict=True):
        held.append((time, count))
        total += count
        while held[0][0] <= time - window + 1e-9:
            total -= held.popleft()[1]
        whole = time + duration - times[0] >= window - duration / 2  # times are rounded to milliseconds
        rates.append(total / window if whole else None)
    return rates


def frame_seconds(times: Sequence[float]) -> float:
    """The mean time from a frame to the next; a 25th of a second where there is one frame."""
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 and times[-1] > times[0] else 0.04


def encode_page(path: Path, source: Path | None = None) -> str:
    """HTML of the encode whose statistics ``path`` holds, with pictures of the worst frames where ``source`` is coded.

    Raises :class:`RqlvcError` for other files, and where the pictures cannot be those of the encode.
    """
    statistics = read_statistics(path)
    frames, summary = statistics.frames, statistics.summary
    name = Path(summary["output"]).name if summary else path.name
    body = [f"<h1>{escape(name)}</h1>", *_summary(statistics)]
    body += [f'<p class="warning">{escape(message)}</p>' for message in statistics.warnings]
    body += [
        "<h2>Frame by frame</h2>",
        '<div class="legend" id="encode-legend"></div><figure class="chart" id="encode"></figure>',
        *_worst(frames),
    ]
    if source is not None:
        body += ['<div class="pictures">', *_pictures(statistics, path, source), "</div>"]
    times, bits = [frame["time"] for frame in frames], [frame["bits"] for frame in frames]
    data = {
        "kind": "encode",
        "target_bitrate": summary.get("target_bitrate") if summary else None,
        "frame_seconds": frame_seconds(times),
        "frames": {
            "time": times,
            "bits": bits,
            "target_bits": [None if f.get("target_bits") is None else round(f["target_bits"]) for f in frames],
            "quality": [round(frame["quality"], 2) for frame in frames],
            "psnr_y": [round(frame["psnr_y"], 2) for frame in frames],
            "psnr_yuv": [round(frame["psnr_yuv"], 2) for frame in frames],
            "intra": [index for index, frame in enumerate(frames) if frame["frame_type"] == "I"],
            "second": [None if rate is None else round(rate) for rate in moving_rate(times, bits)],
        },
    }
    return page(name, body, data)


def _summary(statistics: Statistics) -> list[str]:
    frames, summary = statistics.frames, statistics.summary
    bits = sum(frame["bits"] for frame in frames)
    times = [frame["time"] for frame in frames]
    duration = summary["duration"] if summary else times[-1] + frame_seconds(times)
    intra = sum(frame["frame_type"] == "I" for frame in frames)
    qualities = [frame["quality"] for frame in frames]
    rate = bits / duration / 1000
    target = summary.get("target_bitrate") if summary else None
    if summary is None:
        meta = "The encode has not ended: there is no summary. The figures are those of the frames so far."
        remark = "target not known before the end"
    else:
        meta = (
            f"Codec <code>{escape(summary['codec'])}</code>, model <code>{escape(summary['model'])}</code> · "
            f"{summary['width']}×{summary['height']} at {summary['fps']:.2f} fps"
            f"{' · interrupted' if summary['interrupted'] else ''}"
        )
        remark = (
            "constant quality" if target is None else f"target {target / 1000:.1f}, {summary['error_percent']:+.2f} %"
        )
    entries = [
        ("Bitrate", f"{rate:.1f} kbit/s", remark),
        ("Size", _bytes(bits), f"{summary['bits_per_pixel']:.4f} bits per pixel" if summary else f"{bits} bits"),
        ("PSNR-YUV", f"{fmean(frame['psnr_yuv'] for frame in frames):.2f} dB", "mean of the frames, 6:1:1"),
        ("PSNR-Y", f"{fmean(frame['psnr_y'] for frame in frames):.2f} dB", "mean of the frames"),
        ("Quality level", f"{fmean(qualities):.1f}", f"{min(qualities):.1f} to {max(qualities):.1f}; 63 is best"),
        ("Frames", f"{len(frames)}", f"{intra} of them intra, {duration:.2f} s"),
        ("Speed", f"{summary['encode_fps']:.1f} fps" if summary else UNKNOWN, "encoded"),
    ]
    return [
        f'<p class="meta">{meta}</p>',
        tiles([(name, value.replace("-", "−"), text.replace(" -", " −")) for name, value, text in entries]),
    ]


def _bytes(bits: int) -> str:
    count = bits / 8
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def _deviation(frame: dict[str, Any]) -> float | None:
    """(bits - target) / target in percent."""
    target = frame.get("target_bits")
    return 100 * (frame["bits"] - target) / target if target else None


def worst_frames(frames: Sequence[dict[str, Any]], count: int) -> list[int]:
    """Half of them those with the lowest PSNR-YUV, half those furthest from their target, where there are targets."""
    by_picture = sorted(range(len(frames)), key=lambda index: frames[index]["psnr_yuv"])
    by_rate = sorted(range(len(frames)), key=lambda index: -abs(_deviation(frames[index]) or 0.0))
    if not any(_deviation(frame) for frame in frames):
        return sorted(by_picture[:count])
    worst = by_picture[: count // 2]
    worst += [index for index in by_rate if index not in worst][: count - len(worst)]
    return sorted(worst)


def _worst(frames: Sequence[dict[str, Any]]) -> list[str]:
    rows: list[list[Cell]] = [
        [
            index,
            frame["frame_type"],
            frame["time"],
            frame.get("target_bits"),
            frame["bits"],
            _deviation(frame),
            frame["quality"],
            frame["psnr_y"],
            frame["psnr_yuv"],
        ]
        for index, frame in ((index, frames[index]) for index in worst_frames(frames, WORST))
    ]
    heads = ["frame", "type", "time", "target bits", "bits", "deviation %", "quality", "PSNR-Y", "PSNR-YUV"]
    forms = ["{}", "{}", "{:.3f}", "{:,.0f}", "{:,.0f}", "{:+.1f}", "{:.2f}", "{:.2f}", "{:.2f}"]
    return [
        "<h2>Worst frames</h2>",
        '<p class="soft">Those with the lowest PSNR-YUV, and those furthest from their target where they had one.</p>',
        table("worst frames", heads, rows, forms),
    ]


def _pictures(statistics: Statistics, path: Path, source: Path) -> Iterator[str]:
    frames, summary = statistics.frames, statistics.summary
    if summary is None:
        raise RqlvcError(f"{path} has no summary line, which names the codec: leave out --source.")
    codec = load_codec(summary["codec"], device="cpu", threads=1)
    check_model(codec, summary["model"])
    coded = Coded(
        source,
        [frame["quality"] for frame in frames],
        [frame["frame_type"] == "I" for frame in frames],
        [frame["psnr_yuv"] for frame in frames],
    )
    captions = {}
    for index in worst_frames(frames, PICTURES):
        frame, deviation = frames[index], _deviation(frames[index])
        rate = "" if deviation is None else f", {deviation:+.1f} % against its target".replace("-", "−")
        captions[index] = (
            f"Frame {index}, {frame['frame_type']}: source, and decoded with {frame['psnr_yuv']:.2f} dB from "
            f"{frame['bits']} bits{rate}"
        )
    return figures(codec, coded, captions)
