"""Records how real sequences answer to quality, small enough to keep: what tests and tuning of controllers run on.

    python benchmarks/surfaces.py --data DIR --out RUN --to tests/surfaces.npz [--jobs N]

Every sequence is coded at six constant levels, and some of its frames at eight levels from one state (the encodes of
``rqlvc evaluate paper``, kept in RUN). Kept are the bits of every frame at every level, what RQNet expected, how much
there is to code of the next frame, and how much ln R rises for each level that a frame is above its reference.

Also prints what :mod:`rqlvc.rate.initial` says of usual content: the mean lines of Q over ln bpp, and the bits of
intra frames over those of the inter frames after them, as a power of the former's novelty. And how bits follow novelty
within groups of pictures: what :mod:`rqlvc.rate.adaptive` makes of a look-ahead.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from rqlvc.codec.registry import load_codec
from rqlvc.evaluation.paper import CURVES_LEVEL, Experiment
from rqlvc.evaluation.sweep import CONSTANT, CURVE_LEVELS, CURVES, Encode, find_clips, run_jobs
from rqlvc.media.reader import open_reader
from rqlvc.parallel import Processes
from rqlvc.rate.protocol import QUALITY_MAX
from rqlvc.scenecut import log_novelty, shrunk

LEVELS = (0.0, 10.0, 27.0, 43.0, 60.0, 63.0)
SEEN, LEAST_AHEAD = 8, 4
"""Frames whose bits are known, in the fit of bits to novelty, and frames after them, at least, within the group."""
RATIO_LEVELS = slice(1, 5)
"""10 to 60: where the ratio of intra to inter frames is fitted."""


def dependence(constant: list[Encode], curves: Encode) -> float:
    """d ln R / d (q - q of the reference), at equal q: frames from a state at one level against constant levels."""
    away, excess = [], []
    for frame, bits in zip(curves.curve_frames, curves.curves, strict=True):
        flat = np.interp(CURVE_LEVELS, LEVELS, [np.log(each.bits[frame]) for each in constant])
        away += [level - CURVES_LEVEL for level in CURVE_LEVELS]
        excess += list(np.log(bits) - flat)
    x, y = np.array(away), np.array(excess)
    return float((x * y).sum() / (x * x).sum())


def novelties(path: str, count: int) -> list[float]:
    """How much there is to code of the next frame after each; the last one's is that of the one before."""
    with open_reader(path, frames=count) as reader:
        small = [shrunk(frame) for frame in reader]
    found = [log_novelty(after, before) for before, after in pairwise(small)]
    return [*found, found[-1]]


def usual_lines(kept: dict[str, np.ndarray], names: list[str], keyint: int) -> None:
    """Prints the constants of :mod:`rqlvc.rate.initial`."""
    lines: dict[str, list[np.ndarray]] = {"intra": [], "inter": []}
    known, ratios = [], []
    for name in names:
        bits = np.log(kept[f"{name}.bits"])
        log_bpp = bits - np.log(kept[f"{name}.facts"][0])
        intra = np.arange(bits.shape[1]) % keyint == 0
        lines["intra"].append(np.polyfit(log_bpp[:, 0], LEVELS, 1))
        lines["inter"].append(np.polyfit(log_bpp[:, ~intra].mean(axis=1), LEVELS, 1))
        for start in np.flatnonzero(intra):
            inter = bits[RATIO_LEVELS, start + 1 : start + keyint]
            if inter.size:
                known.append(np.log(kept[f"{name}.novelty"][start]))
                ratios.append((bits[RATIO_LEVELS, start] - np.log(np.exp(inter).mean(axis=1))).mean())
    alphas = {}
    for kind, found in lines.items():
        alphas[kind], beta = np.mean(found, axis=0)
        print(f"{kind}: Q = {alphas[kind]:.1f} ln bpp + {beta:.1f}")
    power, constant = np.polyfit(known, ratios, 1)
    above_middle = np.mean(LEVELS[RATIO_LEVELS]) - QUALITY_MAX / 2
    middle = constant - (1 / alphas["intra"] - 1 / alphas["inter"]) * above_middle
    left = np.std(np.array(ratios) - np.polyval([power, constant], known))
    print(
        f"intra / inter: {np.exp(middle):.2f} novelty ** {power:.2f} over {len(ratios)} groups of pictures; "
        f"deviation of its logarithm {left:.2f}, without novelty {np.std(ratios):.2f}"
    )


def spans(frames: int, keyint: int) -> Iterator[tuple[slice, slice, bool]]:
    """SEEN inter frames, the rest of their group after them, and whether they are its first; all of these."""
    for group in range(0, frames, keyint):
        end = min(group + keyint, frames)
        for start in range(group + 1, end - SEEN - LEAST_AHEAD + 1, SEEN):
            yield slice(start, start + SEEN), slice(start + SEEN, end), start == group + 1


def bits_and_novelty(kept: dict[str, np.ndarray], names: list[str], keyint: int) -> None:
    """Prints, for each level, how mean bits of the rest of a group change from those of some frames before, as a power
    of the change of the mean novelty, and how much dearer frames are that come after the first of a group."""
    for number, level in enumerate(LEVELS):
        novelty, bits, young = [], [], []
        for name in names:
            cost = kept[f"{name}.bits"][number].astype(float)
            new = np.concatenate([[np.nan], kept[f"{name}.novelty"][:-1]])
            for before, after, first_of_group in spans(len(cost), keyint):
                novelty.append(np.log(new[after].mean() / new[before].mean()))
                bits.append(np.log(cost[after].mean() / cost[before].mean()))
                young.append(first_of_group)
        x, y, first = np.array(novelty), np.array(bits), np.array(young)
        power = (x * y).sum() / (x * x).sum()
        rest = y - power * x
        print(
            f"level {level:g}: bits ~ novelty ** {power:.2f}, correlation {np.corrcoef(x, y)[0, 1]:.2f}, deviation "
            f"{np.sqrt((rest * rest).mean()):.2f} of {np.sqrt((y * y).mean()):.2f}; after the first {SEEN} of a group "
            f"{rest[first].mean():+.2f}, after others {rest[~first].mean():+.2f}"
        )


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
        kept[f"{clip.name}.novelty"] = np.array(novelties(clip.path, clip.frames), np.float32)
        predicted = [[[bits for _, bits in points] for points in each.predicted] for each in encodes]
        kept[f"{clip.name}.predicted"] = np.array(predicted, np.float32).astype(np.int32)
        kept[f"{clip.name}.facts"] = np.array([clip.properties.width * clip.properties.height, rate, slope])
        print(f"{clip.name}: {slope:+.4f} of ln R for each level above the reference")
    for say in (usual_lines, bits_and_novelty):
        say(kept, [clip.name for clip in clips], experiment.keyint)
    np.savez_compressed(arguments.to, **kept)  # type: ignore[arg-type]
    print(f"{arguments.to}: {arguments.to.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
