"""Two passes: what the first one finds makes the second nearer to its target and steadier, and is refused elsewhere."""

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from conftest import CommandLine, make_clip
from rqlvc.control import RateTarget
from rqlvc.evaluation.buffer_check import check_buffer
from rqlvc.first_pass import NEAR, Cost, Source, look, make_first_pass
from rqlvc.media.container import ContainerReader
from rqlvc.media.properties import VideoProperties
from rqlvc.rate.buffer import Buffer
from rqlvc.rate.constant import Constant
from rqlvc.rate.outlook import Outlook, Term, base_level
from rqlvc.rate.protocol import QualityRange
from rqlvc.rate.registry import make_controller
from rqlvc.summary import FrameStats
from rqlvc.transcode import encode_file
from simulated_codec import PREDICTED_QUALITIES, Law, Log, Recorded, Simulation, controller_for, recorded, run
from test_cli import assert_sentence
from toy_codec import ToyCodec

SURFACES = Path(__file__).with_name("surfaces.npz")

PROPERTIES = VideoProperties(416, 240, Fraction(30))


def first_pass(simulation: Simulation | Recorded, total: float) -> tuple[Outlook, list[float]]:
    """What ``look`` finds of a target of ``total`` bits, and the bases that it coded at."""
    bases = []

    def code(control: Constant) -> list[Cost]:
        bases.append(control.quality)
        log = run(control, simulation)
        return [Cost(int(bits), bool(intra), None) for bits, intra in zip(log.bits, log.intra, strict=True)]

    properties = replace(PROPERTIES, width=simulation.pixels, height=1)
    bitrate = total * float(PROPERTIES.frame_rate) / simulation.frames
    lookahead = simulation.lookahead if isinstance(simulation, Recorded) else 0
    return look(code, bitrate, properties, simulation.intra_period, lookahead), bases


def play(simulation: Simulation | Recorded, name: str, outlook: Outlook | None, total: float) -> Log:
    return run(controller_for(name, simulation, total, total_frames=simulation.frames, outlook=outlook), simulation)


def both(simulation: Simulation, quality: float) -> tuple[Log, Log, float]:
    """One pass and two at the bits of a constant quality, and these bits."""
    total = float(run(Constant(quality), simulation).bits.sum())
    found, _ = first_pass(simulation, total)
    return play(simulation, "adaptive", None, total), play(simulation, "two-pass", found, total), total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("quality", [20.0, 30.0])
def test_second_pass_holds_quality_over_scenes_that_differ(seed: int, quality: float) -> None:
    scenes = (Law(0.02), Law(0.2), Law(0.06))  # the dear one cannot be foreseen by one pass
    simulation = Simulation(frames=192, intra_period=64, scenes=scenes, seed=seed)
    one, two, total = both(simulation, quality)
    assert two.error(total) < 0.005
    assert np.std(two.quality) < np.std(one.quality)


def test_first_pass_far_from_the_target_is_made_again_nearer() -> None:
    usual = Simulation(frames=64)
    _, bases = first_pass(usual, float(run(Constant(20.0), usual).bits.sum()))
    assert len(bases) == 1
    dear = Simulation(frames=64, scenes=(Law(bits_per_pixel=0.6),))
    total = float(run(Constant(20.0), dear).bits.sum())
    found, (first, second) = first_pass(dear, total)
    assert first - second > NEAR and found.bases == (first, second)
    assert abs(found.base(total, QualityRange()) - second) < abs(found.base(total, QualityRange()) - first)
    assert play(dear, "two-pass", found, total).error(total) < 0.002


@pytest.mark.parametrize("level", PREDICTED_QUALITIES)
def test_second_pass_meets_targets_on_real_sequences(level: float) -> None:
    errors = []
    for sequence in recorded(SURFACES).values():
        total = float(run(Constant(level), sequence).bits.sum())
        found, _ = first_pass(sequence, total)
        errors.append(play(sequence, "two-pass", found, total).error(total))
    assert np.mean(errors) < 0.003
    assert max(errors) < 0.015


def test_base_level_costs_what_is_asked_for_within_the_limits() -> None:
    limits = QualityRange(10, 50)
    terms = [Term(5.0, 0.05, 0.0), Term(4.0, 0.06, -8.0)]

    def cost(base: float) -> float:
        return sum(math.exp(term.at(limits.clip(base + term.offset))) for term in terms)

    for base in (20.0, 48.0, 56.0):  # at 56 the first term is held by the limit
        assert base_level(terms, cost(base), limits) == pytest.approx(base, abs=0.02)
    assert limits.clip(base_level(terms, 1.0, limits)) == 10
    assert limits.clip(base_level([], 1.0, limits)) == limits.maximum  # of nothing that costs anything
    assert base_level(terms, 1e9, limits) - 8 > 50


def test_first_pass_of_another_video_is_noticed() -> None:
    simulation = Simulation(frames=40, intra_period=8)
    outlook = Outlook((30.0,), (0.0,) * 40, ((1000,) * 40,), tuple(index % 10 == 0 for index in range(40)))
    controller = make_controller("two-pass", bitrate=1e5, framerate=30, pixels=simulation.pixels, outlook=outlook)
    with pytest.raises(Exception, match="frame 8 is not what the first pass found"):
        run(controller, simulation)


def test_only_two_pass_makes_something_of_a_first_pass() -> None:
    outlook = Outlook((30.0,), (0.0,), ((1000,),), (True,))
    with pytest.raises(Exception, match="two-pass needs one"):
        make_controller("rq-lvc", bitrate=1e5, framerate=30, pixels=100, outlook=outlook)


def test_intra_frames_that_wait_for_the_buffer_are_no_other_video(tmp_path: Path) -> None:
    clip, coded = make_clip(tmp_path / "clip.mkv", frames=60), tmp_path / "coded.mkv"
    target = RateTarget(bitrate=150e3, buffer=Buffer(150e3, 18e3, 1.0), controller="two-pass")
    outlook = make_first_pass(Source(str(clip), 8, True), ToyCodec(), target)
    stats: list[FrameStats] = []
    summary = encode_file(
        str(clip), str(coded), ToyCodec(), replace(target, outlook=outlook), keyint=8, on_frame=stats.append
    )
    assert summary.frames == 60 and summary.skipped_frames > 0
    assert [each.index for each in stats if each.type == "I"] != [i for i, intra in enumerate(outlook.intra) if intra]
    with ContainerReader(str(coded)) as reader:
        packets = [(packet.time, 8 * len(packet.payload)) for packet in reader]
    assert not check_buffer(packets, 150e3, 18e3, 1.0).violations


def test_command_codes_twice_and_meets_the_target(rqlvc: CommandLine, tmp_path: Path) -> None:
    clip, log, stats = make_clip(tmp_path / "clip.mkv", frames=90), tmp_path / "log.json", tmp_path / "stats.jsonl"
    options = ["--bitrate", "400k", "--codec", "toy", "--two-pass", "--passlog", log, "--keyint", "16"]
    twice = rqlvc("encode", clip, "-o", tmp_path / "a.mkv", *options, "--json", "--stats", stats)
    assert twice.returncode == 0, twice.stderr.decode()
    summary = json.loads(twice.stdout.splitlines()[-1])
    assert abs(summary["error_percent"]) < 1
    kept = json.loads(log.read_text())
    assert {len(each["bits"]) for each in kept["passes"]} == {len(kept["offsets"])} == {summary["frames"]} == {90}
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
        (clip, ["--frames", "9"], b"frames unset instead of 9"),
        (clip, ["--lookahead", "3"], b"lookahead 32 instead of 3"),
        (clip, ["--gop-weights", "1,2"], b"gop-weights 1,1.28,1,1.53,1,1.28,1,1.88 instead of 1,2"),
        (other, [], b"content"),
    ):
        refused = rqlvc("encode", source, "-o", tmp_path / "c.mkv", *options, *more)
        assert refused.returncode == 1 and reason in refused.stderr, refused.stderr.decode()
    kept = json.loads(log.read_text())
    kept["offsets"].pop()
    for broken in ("{}", json.dumps(kept)):
        log.write_text(broken)
        refused = rqlvc("encode", clip, "-o", tmp_path / "c.mkv", *options)
        assert refused.returncode == 1 and b"is no pass log" in refused.stderr
    assert not (tmp_path / "c.mkv").exists()


def test_two_commands_are_the_two_passes(rqlvc: CommandLine, tmp_path: Path) -> None:
    clip, log, out = make_clip(tmp_path / "clip.mkv", frames=40), tmp_path / "log.json", tmp_path / "out.mkv"
    options = ["--bitrate", "400k", "--codec", "toy", "--keyint", "16"]
    assert_sentence(
        rqlvc("encode", clip, "-o", out, *options, "--pass", "2", "--passlog", log), "no pass log", "--pass 1"
    )

    first = rqlvc("encode", clip, "--pass", "1", "--passlog", log, *options)  # the first pass writes no video
    assert first.returncode == 0 and b"40 frames" in first.stderr, first.stderr.decode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mkv", "log.json"]
    second = rqlvc("encode", clip, "-o", out, "--pass", "2", "--passlog", log, *options)
    assert second.returncode == 0, second.stderr.decode()
    in_one = tmp_path / "in_one.mkv"
    assert rqlvc("encode", clip, "-o", in_one, "--two-pass", *options).returncode == 0
    assert out.read_bytes() == in_one.read_bytes()

    # As users of ffmpeg do it: both commands name the output. A log is replaced only when that is asked for.
    again = ["encode", clip, "-o", tmp_path / "again.mkv", "--pass", "1", "--passlog", log, *options[:-1], "8"]
    assert_sentence(rqlvc(*again), "log.json exists", "-y")
    assert rqlvc(*again, "-y").returncode == 0
    assert not (tmp_path / "again.mkv").exists()
    assert json.loads(log.read_text())["intra"] == list(range(0, 40, 8))
    refused = rqlvc("encode", clip, "-o", tmp_path / "again.mkv", "--pass", "2", "--passlog", log, *options)
    assert_sentence(refused, "keyint 8 instead of 16")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--pass", "1"], "--pass needs --passlog"),
        (["--pass", "3", "--passlog", "log"], "for '--pass'"),
        (["--pass", "1", "--two-pass", "--passlog", "log"], "leave out --pass"),
        (["--pass", "1", "--passlog", "log", "--rate-schedule", "rates"], "--rate-schedule"),
        (["--pass", "1", "--passlog", "log", "--controller", "pi"], "--controller pi"),
        (["--pass", "2", "--passlog", "log"], "say where the coded file goes"),
        (["--passlog", "log"], "--pass 1"),
        ([], "say where the coded file goes"),
    ],
)
def test_passes_that_make_no_sense_are_wrong_usage(
    rqlvc: CommandLine, clip: Path, tmp_path: Path, options: list[str], reason: str
) -> None:
    (tmp_path / "rates").write_text("1,200k")
    placed = [str(tmp_path / option) if option in ("log", "rates") else option for option in options]
    output = ["-o", tmp_path / "out.mkv"] if options == ["--passlog", "log"] else []
    refused = rqlvc("encode", clip, *output, *placed, "--bitrate", "300k", "--codec", "toy")
    assert_sentence(refused, code=2)
    words = " ".join(refused.stderr.decode().replace("│", " ").split())
    assert reason in words
    assert [path.name for path in tmp_path.iterdir()] == ["rates"]


def test_a_log_takes_the_place_of_no_other_file(rqlvc: CommandLine, clip: Path, tmp_path: Path) -> None:
    content, options = clip.read_bytes(), ["--bitrate", "300k", "--codec", "toy"]
    out = tmp_path / "out.mkv"
    for how in (["--pass", "1", "-y"], ["--two-pass", "-o", out]):
        assert_sentence(rqlvc("encode", clip, *how, *options, "--passlog", clip), "itself")
        assert_sentence(rqlvc("encode", clip, *how, *options, "--passlog", tmp_path), "is a folder")
        assert_sentence(rqlvc("encode", clip, *how, *options, "--passlog", tmp_path / "no" / "log"), "create it first")
    assert_sentence(rqlvc("encode", clip, "--two-pass", "-o", out, *options, "--passlog", out), "itself")
    assert clip.read_bytes() == content and not out.exists()


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
