"""Controllers on what real sequences cost: played back from recordings (``benchmarks/surfaces.py``), in seconds."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rqlvc.rate.constant import Constant
from rqlvc.rate.hierarchy import GOP_WEIGHTS, level_offsets
from rqlvc.rate.registry import CONTROLLERS
from simulated_codec import PREDICTED_QUALITIES, Log, Recorded, controller_for, recorded, run

SURFACES = Path(__file__).with_name("surfaces.npz")


@pytest.fixture(scope="module")
def sequences() -> Mapping[str, Recorded]:
    return recorded(SURFACES)


def play(sequence: Recorded, name: str, level: float) -> tuple[Log, float]:
    """The controller at the bits of a constant level, and these bits."""
    total = float(run(Constant(level), sequence).bits.sum())
    controller = controller_for(name, sequence, total, total_frames=sequence.frames)
    points = {"optional": "predicted"}.get(CONTROLLERS[name].points, CONTROLLERS[name].points)
    return run(controller, sequence, points=points), total


def errors(sequences: Mapping[str, Recorded], name: str) -> np.ndarray:
    """|target - actual| / target, (sequences, levels)."""
    return np.array(
        [
            [log.error(total) for log, total in (play(sequence, name, level) for level in PREDICTED_QUALITIES)]
            for sequence in sequences.values()
        ]
    )


def test_recordings_are_of_real_content(sequences: Mapping[str, Recorded]) -> None:
    assert len(sequences) == 12
    for sequence in sequences.values():
        assert (np.diff(sequence.log_bits.mean(axis=1)) > 0).all()  # better costs more
        assert sequence.frames > 20 and 0 < sequence.reference < 0.1


def test_adaptive_meets_targets_on_every_sequence(sequences: Mapping[str, Recorded]) -> None:
    found = errors(sequences, "adaptive")
    assert found.mean() < 0.005
    assert found.mean(axis=1).max() < 0.025


def test_what_is_seen_ahead_makes_the_quality_steadier(sequences: Mapping[str, Recorded]) -> None:
    def unrest(sequence: Recorded, level: float) -> float:
        """Variance of the base."""
        quality = play(sequence, "adaptive", level)[0].quality
        offsets = np.array(level_offsets(GOP_WEIGHTS, sequence.intra_period))
        return float(np.var(quality - offsets[np.arange(sequence.frames) % sequence.intra_period]))

    seeing, blind = (
        np.array(
            [[unrest(replace(each, lookahead=view), level) for level in (10, 27, 43)] for each in sequences.values()]
        )
        for view in (32, 0)
    )
    assert seeing.mean() < 0.9 * blind.mean()
    assert np.median(seeing - blind) < 0


@pytest.mark.parametrize("name", ["rq-lvc", "no-rqnet", "tip14", "icassp24", "pi"])
def test_adaptive_meets_targets_better_than_others(sequences: Mapping[str, Recorded], name: str) -> None:
    assert errors(sequences, "adaptive").mean() < errors(sequences, name).mean()
