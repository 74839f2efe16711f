"""Distortion of pictures and the distance between two rate-distortion curves.

A sequence's PSNR is the mean of its frames' PSNRs in dB (not the PSNR of the mean MSE): the convention of the JCT-VC
common test conditions and of the learned-codec literature.
"""

import importlib.util
import json
import math
import subprocess
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rqlvc.errors import RqlvcError
from rqlvc.media.frame import Frame, Plane

PEAK = 255
PSNR_CAP = 100.0  # dB: what identical planes score, so that means over frames and planes stay finite
LUMA_WEIGHT = 6  # PSNR-YUV 6:1:1, the weighting of JCTVC-H0012 for 4:2:0
MS_SSIM_SMALLEST = 161  # luma samples on each side: five scales of an 11-tap window
BT709 = 0.2126, 0.0722  # shares of red and blue in luma
VMAF_MODEL = "vmaf_v0.6.1"  # libvmaf's default
MINIMUM_POINTS = 4  # points per curve, as in ITU-T VCEG-M33
MINIMUM_OVERLAP = 0.5  # share of the shorter curve's PSNR range that both curves must cover


def mse(a: Plane, b: Plane) -> float:
    """Mean squared error of two planes of one shape, on samples scaled to [0, 1].

    The sum is taken in integers, so the result does not depend on the order of addition.

    Raises:
        RqlvcError: the planes differ in shape or are empty.
    """
    if a.shape != b.shape or a.size == 0:
        raise RqlvcError(f"Cannot compare planes of shapes {a.shape} and {b.shape}: they must be equal and not empty.")
    difference = np.subtract(a, b, dtype=np.int32)
    np.multiply(difference, difference, out=difference)
    squares = int(difference.sum(dtype=np.int64))
    return squares / (a.size * PEAK**2)


def mse_y(a: Frame, b: Frame) -> float:
    """Luma MSE on samples scaled to [0, 1]."""
    return mse(a.y, b.y)


def psnr(mean_squared_error: float) -> float:
    """PSNR in dB of an MSE on samples in [0, 1], at most ``PSNR_CAP``."""
    if mean_squared_error <= 0:
        return PSNR_CAP
    return min(-10 * math.log10(mean_squared_error), PSNR_CAP)


def psnr_y(a: Frame, b: Frame) -> float:
    """Luma PSNR in dB."""
    return psnr(mse(a.y, b.y))


def psnr_yuv(a: Frame, b: Frame) -> float:
    """(6 Y + U + V) / 8 of the planes' PSNRs, in dB."""
    luma, u, v = (psnr(mse(p, q)) for p, q in ((a.y, b.y), (a.u, b.u), (a.v, b.v)))
    return (LUMA_WEIGHT * luma + u + v) / (LUMA_WEIGHT + 2)


def psnr_rgb(a: Frame, b: Frame, full_range: bool = False) -> float:
    """PSNR in dB over red, green and blue together, each clipped to [0, 1] and not rounded.

    BT.709's matrix (ITU-R BT.709-6, 3.2), whatever the video says of itself, as in the literature; a chroma sample
    stands for the 2x2 luma samples that it covers. ``full_range``: luma black is 0 and white 255, else 16 and 235.
    """
    difference = to_rgb(a, full_range)
    np.subtract(difference, to_rgb(b, full_range), out=difference)
    return psnr(float(np.einsum("chw,chw->", difference, difference, dtype=np.float64)) / difference.size)


def to_rgb(frame: Frame, full_range: bool) -> npt.NDArray[np.float32]:
    """(3, height, width) in [0, 1]."""
    height, width = frame.y.shape
    black, luma_span, chroma_span = (0, 255, 255) if full_range else (16, 219, 224)
    red_share, blue_share = BT709
    luma = (frame.y.astype(np.float32) - black) / luma_span
    blueness, redness = (
        ((plane.astype(np.float32) - 128) / chroma_span).repeat(2, 0).repeat(2, 1)[:height, :width]
        for plane in (frame.u, frame.v)
    )
    red = luma + np.float32(2 * (1 - red_share)) * redness
    blue = luma + np.float32(2 * (1 - blue_share)) * blueness
    green = (luma - np.float32(red_share) * red - np.float32(blue_share) * blue) / np.float32(
        1 - red_share - blue_share
    )
    return np.clip(np.stack([red, green, blue]), 0, 1)


def ms_ssim(a: Frame, b: Frame) -> float | None:
    """Multi-scale structural similarity of luma (Wang et al., 2003: five scales, a Gaussian window of 11 samples).

    In [0, 1], 1 for equal pictures; None where a side has less than ``MS_SSIM_SMALLEST`` samples.
    """
    if min(a.y.shape) < MS_SSIM_SMALLEST:
        return None
    import pytorch_msssim
    import torch

    pictures = (torch.from_numpy(frame.y.astype(np.float32))[None, None] for frame in (a, b))
    with torch.inference_mode():
        return float(pytorch_msssim.ms_ssim(*pictures, data_range=PEAK))


def vmaf_is_here() -> bool:
    """Whether the extra ``eval`` is installed, whose FFmpeg measures VMAF."""
    return importlib.util.find_spec("imageio_ffmpeg") is not None


def vmaf(sources: Sequence[Frame], shown: Sequence[Frame]) -> list[float]:
    """VMAF of each frame by libvmaf, ``VMAF_MODEL``, in [0, 100]. All frames of one size.

    Raises :class:`RqlvcError` where FFmpeg fails, as it does without the extra ``eval``.
    """
    try:
        import imageio_ffmpeg
    except ImportError:
        raise RqlvcError("VMAF needs the extra 'eval': pip install 'rqlvc[eval]'.") from None
    raw = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-video_size", f"{sources[0].width}x{sources[0].height}"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, frames in (("shown.yuv", shown), ("source.yuv", sources)):
            with (folder / path).open("wb") as file:
                for frame in frames:
                    file.writelines(np.ascontiguousarray(plane).data for plane in (frame.y, frame.u, frame.v))
        filter_graph = f"libvmaf=model=version={VMAF_MODEL}:n_threads=1:log_fmt=json:log_path=log.json"
        inputs = ["-threads", "1", *raw, "-i", "shown.yuv", *raw, "-i", "source.yuv"]
        finished = subprocess.run(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *inputs, "-lavfi", filter_graph, "-f", "null", "-"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        log = folder / "log.json"
        if finished.returncode or not log.exists():
            raise RqlvcError(f"FFmpeg could not measure VMAF: {finished.stderr.decode(errors='replace').strip()}")
        scores = [float(frame["metrics"]["vmaf"]) for frame in json.loads(log.read_text())["frames"]]
    if len(scores) != len(sources):
        raise RqlvcError(f"FFmpeg measured VMAF on {len(scores)} of {len(sources)} frames.")
    return scores


def bd_rate(anchor_points: Sequence[tuple[float, float]], test_points: Sequence[tuple[float, float]]) -> float:
    """Bjontegaard delta rate in percent: how much more the test spends than the anchor at equal PSNR.

    Negative is better than the anchor. Log-rate is interpolated over PSNR piecewise (PCHIP) and integrated over the
    PSNRs that both curves reach.

    Args:
        anchor_points, test_points: (rate, PSNR in dB) pairs in any order; rates in any one unit, above 0.

    Raises:
        RqlvcError: fewer than four points, a curve whose PSNR does not grow with its rate, or curves that share less
            than half of the shorter one's PSNR range, where the figure would say little.
    """
    anchor_rates, anchor_psnrs = _curve(anchor_points, "anchor")
    test_rates, test_psnrs = _curve(test_points, "test")
    low, high = max(anchor_psnrs[0], test_psnrs[0]), min(anchor_psnrs[-1], test_psnrs[-1])
    shorter = min(anchor_psnrs[-1] - anchor_psnrs[0], test_psnrs[-1] - test_psnrs[0])
    if high - low < MINIMUM_OVERLAP * shorter:
        raise RqlvcError(
            f"The curves hardly overlap: the anchor covers {anchor_psnrs[0]:.2f} to {anchor_psnrs[-1]:.2f} dB and the "
            f"test {test_psnrs[0]:.2f} to {test_psnrs[-1]:.2f} dB. Choose points that reach the same PSNRs."
        )
    import bjontegaard  # imports matplotlib.pyplot, which a metric alone should not pay for

    result = bjontegaard.bd_rate(
        anchor_rates,
        anchor_psnrs,
        test_rates,
        test_psnrs,
        method="pchip",
        require_matching_points=False,
        min_overlap=0,  # judged above
    )
    return float(result)


def _curve(points: Sequence[tuple[float, float]], name: str) -> tuple[list[float], list[float]]:
    """Rates and PSNRs of a curve, both strictly growing."""
    ordered = sorted(points)
    rates, psnrs = [float(rate) for rate, _ in ordered], [float(value) for _, value in ordered]
    if len(ordered) < MINIMUM_POINTS:
        raise RqlvcError(f"BD-rate needs {MINIMUM_POINTS} points per curve; the {name} has {len(ordered)}.")
    if not all(math.isfinite(value) for value in rates + psnrs) or rates[0] <= 0:
        raise RqlvcError(f"BD-rate needs finite points with rates above 0; the {name} has others.")
    if any(after[0] <= before[0] or after[1] <= before[1] for before, after in pairwise(ordered)):
        raise RqlvcError(f"BD-rate needs a PSNR that grows with the rate; the {name} has {ordered}.")
    return rates, psnrs
