"""Two passes: what the first one finds makes the second nearer to its target and steadier, and is refused elsewhere."""

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import CommandLine, make_clip
from rqlvc.rate.constant import Constant
from rqlvc.rate.outlook import Outlook
from rqlvc.rate.registry import make_controller
from simulated_codec import Law, Log, Simulation, run

FIRST_QUALITY = 40.0


def both(simulation: Simulation, quality: float) -> tuple[Log, Log, float]:
    """One pass and two at the bits of a constant quality, and these bits."""
    total = float(run(Constant(quality), simulation).bits.sum())
    first = run(Constant(FIRST_QUALITY), simulation)
    outlook = Outlook(FIRST_QUALITY, tuple(map(int, first.bits)), tuple(map(bool, first.intra)))
    bitrate = total * simulation.framerate / simulation.frames
    logs = [
        run(
            make_controller(
                "adaptive" if found is None else "two-pass",
                bitrate=bitrate,
                framerate=simulation.framerate,
                pixels=simulation.pixels,
                total_frames=simulation.frames,
                outlook=found,
            ),
            simulation,
        )
        for found in (None, outlook)
    ]
    return logs[0], logs[1], total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("quality", [20.0, 30.0])
def test_second_pass_holds_quality_over_scenes_that_differ(seed: int, quality: float) -> None:
    scenes = (Law(0.02), Law(0.2), Law(0.06))  # the dear one cannot be foreseen by one pass
    simulation = Simulation(frames=192, intra_period=64, scenes=scenes, seed=seed)
    one, two, total = both(simulation, quality)
    assert two.error(total) < 0.005
    assert np.std(two.quality) < np.std(one.quality)


def test_first_pass_of_another_video_is_noticed() -> None:
    simulation = Simulation(frames=40, intra_period=8)
    outlook = Outlook(30.0, (1000,) * 40, tuple(index % 10 == 0 for index in range(40)))
    controller = make_controller("two-pass", bitrate=1e5, framerate=30, pixels=simulation.pixels, outlook=outlook)
    with pytest.raises(Exception, match="frame 8 is not what the first pass found"):
        run(controller, simulation)


def test_only_two_pass_makes_something_of_a_first_pass() -> None:
    outlook = Outlook(30.0, (1000,), (True,))
    with pytest.raises(Exception, match="two-pass needs one"):
        make_controller("rq-lvc", bitrate=1e5, framerate=30, pixels=100, outlook=outlook)


def test_command_codes_twice_and_meets_the_target(rqlvc: CommandLine, tmp_path: Path) -> None:
    clip, log, stats = make_clip(tmp_path / "clip.mkv", frames=90), tmp_path / "log.json", tmp_path / "stats.jsonl"
    options = ["--bitrate", "400k", "--codec", "toy", "--two-pass", "--passlog", log, "--keyint", "16"]
    twice = rqlvc("encode", clip, "-o", tmp_path / "a.mkv", *options, "--json", "--stats", stats)
    assert twice.returncode == 0, twice.stderr.decode()
    summary = json.loads(twice.stdout.splitlines()[-1])
    assert abs(summary["error_percent"]) < 1
    kept = json.loads(log.read_text())
    assert len(kept["bits"]) == summary["frames"] == 90
    assert kept["intra"] == list(range(0, 90, 16))

    # The log stands for the first pass: the same bytes, and another bitrate without another first pass.
    written = log.stat().st_mtime_ns
    again = rqlvc("encode", clip, "-o", tmp_path / "b.mkv", *options)
    assert again.returncode == 0, again.stderr.decode()
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()
    assert log.stat().st_mtime_ns == written


def test_log_of_other_settings_or_content_is_refused_by_name(rqlvc: CommandLine, tmp_path: Path) -> None:
    clip, log = make_clip(tmp_path / "clip.mkv", frames=12), tmp_path / "log.json"
    other = make_clip(tmp_path / "other.mkv", frames=13)
    options = ["--bitrate", "400k", "--codec", "toy", "--two-pass", "--passlog", log]
    assert rqlvc("encode", clip, "-o", tmp_path / "a.mkv", *options).returncode == 0
    for source, more, reason in (
        (clip, ["--keyint", "5"], b"keyint 32 instead of 5"),
        (clip, ["--frames", "9"], b"frames None instead of 9"),
        (other, [], b"content"),
    ):
        refused = rqlvc("encode", source, "-o", tmp_path / "c.mkv", *options, *more)
        assert refused.returncode == 1 and reason in refused.stderr, refused.stderr.decode()
    log.write_text("{}")
    broken = rqlvc("encode", clip, "-o", tmp_path / "c.mkv", *options)
    assert broken.returncode == 1 and b"is no pass log" in broken.stderr
    assert not (tmp_path / "c.mkv").exists()


@pytest.mark.parametrize(
    "options",
    [["--quality", "30"], ["--bitrate", "300k", "--low-latency"], ["--bitrate", "300k", "--controller", "pi"]],
)
def test_what_two_passes_cannot_do_is_wrong_usage_or_a_clear_error(
    rqlvc: CommandLine, clip: Path, tmp_path: Path, options: list[str]
) -> None:
    refused = rqlvc("encode", clip, "-o", tmp_path / "a.mkv", "--two-pass", "--codec", "toy", *options)
    assert refused.returncode in (1, 2) and b"Traceback" not in refused.stderr
    assert not (tmp_path / "a.mkv").exists()
