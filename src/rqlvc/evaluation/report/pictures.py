"""Source and decoded picture of a frame, for the worst frames of a page.

Results keep no bitstreams. But a frame depends only on the levels of the frames since the last intra frame, and these
are known: coding them again gives the picture that was coded.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rqlvc.codec.protocol import Codec, State
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.metrics import psnr_yuv, to_rgb
from rqlvc.media.frame import Frame
from rqlvc.media.reader import open_reader

TOLERANCE = 0.1
"""In dB: floats differ in their last bits between machines, which may move a level of the texture here and there."""
JPEG_QUALITY = 88
WIDEST = 960
"""In pixels: larger pictures are scaled down, so that the page stays small."""


@dataclass(frozen=True, slots=True)
class Coded:
    """What is known of an encode of ``source``. Lists have an entry for each frame."""

    source: Path
    quality: Sequence[float]
    intra: Sequence[bool]
    psnr_yuv: Sequence[float]


def check_model(codec: Codec, model: str) -> None:
    """Raises :class:`RqlvcError` where ``codec`` is not the one whose weights made the results."""
    if codec.identity != model:
        raise RqlvcError(
            f"the results were made with model {model} of the codec {codec.name}, and {codec.identity} is installed: "
            "install that one, or leave out --source."
        )


def figures(codec: Codec, coded: Coded, captions: Mapping[int, str]) -> Iterator[str]:
    """A figure of each frame of ``captions``, source and decoded, in order.

    Raises :class:`RqlvcError` where ``coded.source`` does not code to what ``coded`` says: it was another video.
    """
    starts = [index for index, intra in enumerate(coded.intra) if intra]
    for start, end in zip(starts, [*starts[1:], len(coded.intra)], strict=True):
        wanted = [index for index in captions if start <= index < end]
        if not wanted:
            continue
        state: State | None = None
        with open_reader(str(coded.source), start=start, frames=max(wanted) + 1 - start) as reader:
            full_range = reader.properties.colour.full_range
            for index, frame in enumerate(reader, start):
                encoded = codec.encode(frame, coded.quality[index], state)
                state = encoded.state
                if index in wanted:
                    wanted.remove(index)
                    _check(coded, index, psnr_yuv(frame, encoded.reconstruction))
                    yield _figure(index, frame, encoded.reconstruction, full_range, captions[index])
        if wanted:
            raise RqlvcError(f"{coded.source} has no frame {wanted[0]}: name the video that was coded.")


def _check(coded: Coded, index: int, score: float) -> None:
    if abs(score - coded.psnr_yuv[index]) > TOLERANCE:
        raise RqlvcError(
            f"frame {index} of {coded.source} codes to {score:.2f} dB and not to the {coded.psnr_yuv[index]:.2f} dB of "
            "the results: name the video that was coded, from its first frame, or leave out --source."
        )


def _figure(index: int, source: Frame, decoded: Frame, full_range: bool, caption: str) -> str:
    images = "".join(
        f'<img src="{_data_uri(to_rgb(picture, full_range))}" width="{picture.width}" height="{picture.height}" '
        f'alt="{alt}, frame {index}">'
        for alt, picture in (("source", source), ("decoded", decoded))
    )
    return f'<figure><div class="pair">{images}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _data_uri(picture: npt.NDArray[np.float32]) -> str:
    """JPEG of (3, height, width) in [0, 1]."""
    from PIL import Image

    image = Image.fromarray(np.rint(255 * picture).astype(np.uint8).transpose(1, 2, 0))
    image.thumbnail((WIDEST, WIDEST))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
