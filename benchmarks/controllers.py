"""All controllers on the simulated codec: bitrate error, per-frame error, steadiness and cost. Run it as a script."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from rqlvc.rate.allocation import Pattern
from rqlvc.rate.constant import Constant
from rqlvc.rate.registry import CONTROLLERS
from simulated_codec import SEQUENCES, Log, Simulation, controller_for, run

LEVELS = (10.0, 27.0, 43.0, 60.0)


def excess(log: Log, simulation: Simulation) -> float:
    """Bits above those of a fixed pattern with the same mean quality per slot, in percent: what unrest costs."""
    positions = np.arange(simulation.frames) % simulation.intra_period
    slots = np.where(positions == 0, -1, (positions - 1) % len(Pattern()))
    bits, last = 0, None
    for index, slot in enumerate(slots):
        quality = float(log.quality[slots == slot].mean())
        bits += simulation.bits(index, quality, last)
        last = quality
    return 100 * (float(log.bits.sum()) / bits - 1)


def measure(name: str, simulation: Simulation, level: float, points: str) -> tuple[Log, float]:
    total = float(run(Constant(level), simulation, points="none").bits.sum())
    controller = controller_for(name, simulation, total, total_frames=simulation.frames)
    return run(controller, simulation, points=points), total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="repeat every sequence with this many seeds")
    arguments = parser.parse_args()
    header = "controller", "error %", "worst %", "frame %", "first 8 %", "excess %", "decide us", "update us"
    print(f"{header[0]:18}" + "".join(f"{title:>11}" for title in header[1:]))
    worst_sequences = {}
    for name, entry in CONTROLLERS.items():
        if entry.factory is None:
            continue
        modes = {"optional": ("predicted", "none")}.get(entry.points, (entry.points,))
        for points in modes:
            rows = []
            by_sequence: dict[str, list[float]] = {}
            for title, base in SEQUENCES.items():
                for seed in range(arguments.seeds):
                    simulation = replace(base, seed=base.seed + 100 * seed)
                    for level in LEVELS:
                        log, total = measure(name, simulation, level, points)
                        error = 100 * log.error(total)
                        by_sequence.setdefault(title, []).append(error)
                        rows.append(
                            (
                                error,
                                100 * log.frame_error(),
                                100 * log.frame_error(9),
                                excess(log, simulation),
                                1e6 * float(np.median(log.decide_seconds)),
                                1e6 * float(np.median(log.update_seconds)),
                            )
                        )
            label = name if points == modes[0] else f"{name} (no points)"
            mean = np.mean(rows, axis=0)
            cells = (mean[0], max(row[0] for row in rows), *mean[1:])
            print(f"{label:18}" + "".join(f"{value:11.2f}" for value in cells), flush=True)
            worst_sequences[label] = {title: float(np.mean(errors)) for title, errors in by_sequence.items()}
    print("\nerror % by sequence, mean of the four levels")
    print(f"{'controller':18}" + "".join(f"{title:>11}" for title in SEQUENCES))
    for label, errors_of in worst_sequences.items():
        print(f"{label:18}" + "".join(f"{errors_of[title]:11.2f}" for title in SEQUENCES))


if __name__ == "__main__":
    main()
