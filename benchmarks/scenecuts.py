"""Scene cuts found and false alarms on real sequences: every pair of sequences glued, and every sequence as it is.

    python benchmarks/scenecuts.py --data DIR [--sequences a,b]

Pairs are cropped to the smaller picture. Prints what the detector would say at its threshold, and the margin.
"""

import argparse
import sys
from itertools import pairwise, permutations
from pathlib import Path

from rqlvc.errors import RqlvcError
from rqlvc.evaluation.sweep import find_sequences
from rqlvc.media.reader import open_reader
from rqlvc.scenecut import CUT_RATIO, Small, novelty, shrunk


def pictures_of(path: Path) -> list[Small]:
    with open_reader(str(path)) as reader:
        return [shrunk(frame) for frame in reader]


def at_cut(before: Small, after: Small) -> float:
    height, width = (min(sides) for sides in zip(before.shape, after.shape, strict=True))
    return novelty(after[:height, :width], before[:height, :width])


def run(data: Path, names: list[str]) -> None:
    clips = {path.stem: pictures_of(path) for path in find_sequences(data, names)}
    cuts = {(first, second): at_cut(clips[first][-1], clips[second][0]) for first, second in permutations(clips, 2)}
    quiet = {
        (name, index): novelty(after, before)
        for name, pictures in clips.items()
        for index, (before, after) in enumerate(pairwise(pictures), 1)
    }
    found = sum(value > CUT_RATIO for value in cuts.values())
    alarms = sum(value > CUT_RATIO for value in quiet.values())
    print(f"threshold {CUT_RATIO}: {found} of {len(cuts)} cuts found, {alarms} false alarms in {len(quiet)} frames")
    if cuts:
        weakest = min(cuts, key=lambda key: cuts[key])
        print(f"weakest cut {cuts[weakest]:.3f} ({weakest[0]} to {weakest[1]})")
    loudest = max(quiet, key=lambda key: quiet[key])
    print(f"nearest to a false alarm {quiet[loudest]:.3f} ({loudest[0]}, frame {loudest[1]})")


def main() -> None:
    parser = argparse.ArgumentParser(description="Scene cuts found and false alarms.")
    parser.add_argument("--data", type=Path, required=True, help="folder of sequences")
    parser.add_argument("--sequences", default="", help="names without suffix, all unless given")
    arguments = parser.parse_args()
    try:
        run(arguments.data, [name for name in arguments.sequences.split(",") if name])
    except RqlvcError as error:
        sys.exit(f"scenecuts: error: {error}")


if __name__ == "__main__":
    main()
