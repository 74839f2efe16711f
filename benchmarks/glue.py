"""Several clips as one long one, scaled to one size: for what short sequences cannot show.

    python benchmarks/glue.py CLIP [CLIP ...] -o glued.y4m [--size 176x144] [--seconds 4] [--fps 25]

Each part takes the same time; a clip that is shorter runs backwards and forwards again until it is over, so that the
only scene cuts are those between the clips.
"""

import argparse
import sys
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain, cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from rqlvc.cli.options import PictureSize, parse_size
from rqlvc.errors import RqlvcError
from rqlvc.media.frame import Frame, Plane
from rqlvc.media.properties import VideoProperties
from rqlvc.media.reader import open_reader
from rqlvc.media.y4m import FRAME_SIGNATURE, header_bytes

SIZE = PictureSize(176, 144)
SECONDS = 4.0
FRAME_RATE = 25


def glue(clips: Sequence[Path], path: Path, size: PictureSize, seconds: float, frame_rate: int) -> None:
    """``seconds`` of each of ``clips``, stretched to ``size``, as y4m in ``path``: whole or not at all."""
    count = round(seconds * frame_rate)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(header_bytes(VideoProperties(size.width, size.height, Fraction(frame_rate))))
        for clip in clips:
            with open_reader(str(clip)) as reader:
                pictures = [_scaled(frame, size) for frame in islice(reader, count)]
            there_and_back = cycle(chain(pictures, pictures[-2:0:-1]))
            for picture in islice(there_and_back, count):
                file.write(FRAME_SIGNATURE + b"\n" + picture)
    partial.replace(path)


def _scaled(frame: Frame, size: PictureSize) -> bytes:
    chroma = PictureSize((size.width + 1) // 2, (size.height + 1) // 2)
    planes = ((frame.y, size), (frame.u, chroma), (frame.v, chroma))
    return b"".join(_resized(plane, wanted).tobytes() for plane, wanted in planes)


def _resized(plane: Plane, size: PictureSize) -> Plane:
    return np.asarray(Image.fromarray(plane).resize((size.width, size.height), Image.Resampling.LANCZOS))


def main() -> None:
    parser = argparse.ArgumentParser(description="Several clips as one, scaled to one size.")
    parser.add_argument("clips", nargs="+", type=Path, help="any video files, in their order")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a y4m file")
    parser.add_argument("--size", default="x".join(map(str, SIZE)), help="of the picture, such as 176x144")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each clip")
    parser.add_argument("--fps", type=int, default=FRAME_RATE)
    arguments = parser.parse_args()
    try:
        glue(arguments.clips, arguments.output, parse_size(arguments.size), arguments.seconds, arguments.fps)
    except RqlvcError as error:
        sys.exit(f"glue: error: {error}")


if __name__ == "__main__":
    main()
