"""Records how real sequences answer to quality, small enough to keep: what tests and tuning of controllers run on.

    python benchmarks/surfaces.py --data DIR --out RUN --to tests/surfaces.npz [--jobs N]

Every sequence is coded at nine constant levels, and some of its frames at eight levels from one state (the encodes of
``rqlvc evaluate paper``, kept in RUN). Kept are the bits of every frame at every level, its PSNR, what RQNet expected,
and how much ln R rises for each level that a frame is above its reference.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from rqlvc.codec.registry import load_codec
from rqlvc.evaluation.paper import CURVES_LEVEL, Experiment
from rqlvc.evaluation.sweep import CONSTANT, CURVE_LEVELS, CURVES, Encode, find_clips, run_jobs
from rqlvc.parallel import Processes

LEVELS = (0.0, 10.0, 18.0, 27.0, 35.0, 43.0, 52.0, 60.0, 63.0)


def dependence(constant: list[Encode], curves: Encode) -> float:
    """d ln R / d (q - q of the reference), at equal q: frames from a state at one level against constant levels."""
    away, excess = [], []
    for frame, bits in zip(curves.curve_frames, curves.curves, strict=True):
        flat = np.interp(CURVE_LEVELS, LEVELS, [np.log(each.bits[frame]) for each in constant])
        away += [level - CURVES_LEVEL for level in CURVE_LEVELS]
        excess += list(np.log(bits) - flat)
    x, y = np.array(away), np.array(excess)
    return float((x * y).sum() / (x * x).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    codec = load_codec(device="cpu", threads=1)
    clips = find_clips(arguments.data, (), arguments.frames)
    experiment = Experiment(clips, codec.name, codec.identity, ())
    jobs = {clip: [experiment.job(clip, CONSTANT, level) for level in LEVELS] for clip in clips}
    curves = {clip: experiment.job(clip, CURVES, CURVES_LEVEL) for clip in clips}
    wanted = [job for each in jobs.values() for job in each] + list(curves.values())
    total = sum(job.cost for job in wanted)
    results = run_jobs(
        wanted,
        arguments.out,
        Processes(arguments.jobs),
        lambda job, left: print(f"{job.clip.name} {job.level:g}, {left / total:.0%} left", file=sys.stderr),
    )
    kept: dict[str, np.ndarray] = {"levels": np.array(LEVELS)}
    for clip in clips:
        encodes = [results[job] for job in jobs[clip]]
        slope = dependence(encodes, results[curves[clip]])
        rate = float(clip.properties.frame_rate)
        kept[f"{clip.name}.bits"] = np.array([each.bits for each in encodes], np.int32)
        kept[f"{clip.name}.psnr"] = np.array([each.psnr_yuv for each in encodes], np.float16)
        predicted = [[[bits for _, bits in points] for points in each.predicted] for each in encodes]
        kept[f"{clip.name}.predicted"] = np.array(predicted, np.float32).astype(np.int32)
        kept[f"{clip.name}.facts"] = np.array([clip.properties.width * clip.properties.height, rate, slope])
        print(f"{clip.name}: {slope:+.4f} of ln R for each level above the reference")
    np.savez_compressed(arguments.to, **kept)  # type: ignore[arg-type]
    print(f"{arguments.to}: {arguments.to.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
