"""``rqlvc evaluate paper`` on real clips with a plugged-in codec, checked against encodes made by hand."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from bisect import bisect
from fractions import Fraction
from math import exp, log
from pathlib import Path
from statistics import fmean

import pytest
from scipy.interpolate import PchipInterpolator

import rqlvc as rqlvc_package
from conftest import CommandLine, make_clip, read_frames, register, same_picture
from rqlvc.evaluation.paper import Experiment, fits_of, frame_deviations, tables_of
from rqlvc.evaluation.report.markdown import run_markdown
from rqlvc.evaluation.stress import Trial, outcome
from rqlvc.evaluation.sweep import CURVE_LEVELS, Clip, Encode, Job
from rqlvc.media.properties import VideoProperties

CONTROLLERS = "no-rqnet,pi"
SEQUENCES = "first", "second"
PER_FRAME = {
    *("type", "quality", "target_bits", "bits", "psnr_y", "psnr_yuv", "psnr_rgb", "ms_ssim"),
    *("alpha", "beta", "predicted"),
}


def encode_of(**fields: list) -> Encode:
    """An encode of which only some is of interest."""
    return Encode(**{name: [] for name in PER_FRAME} | {"seconds": 0.0, "encodes": 0} | fields)


PAPER = (
    *("evaluate", "paper", "--codec", "toy", "--controllers", CONTROLLERS, "--levels", "5,14,23,32"),
    *("--keyint", "6", "--frames", "24", "--jobs", "1"),
)


def evaluate(rqlvc: CommandLine, data: Path, out: Path, *more: str):
    return rqlvc(*PAPER, "--data", data, "--out", out, *more)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences")
    make_clip(folder / "first.mkv", width=96, height=64, frames=24)
    make_clip(folder / "second.mkv", width=80, height=64, frames=26)
    return folder


@pytest.fixture(scope="module")
def finished(rqlvc: CommandLine, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    result = evaluate(rqlvc, data, out)
    assert result.returncode == 0, result.stderr.decode()
    assert (out / "results.md").read_bytes() == result.stdout
    return out


def encodes(out: Path) -> list[dict]:
    return json.loads((out / "results.json").read_text())["encodes"]


def cells(out: Path, table: str, row: str, file: str = "results.md") -> list[str]:
    """The cells of a row of the Markdown table after the line that holds ``table``."""
    text = (out / file).read_text()
    lines = text[text.index(table) :].splitlines()
    return [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {row} |")).split("|")[2:-1]]


def test_targets_are_the_bits_of_constant_levels(
    rqlvc: CommandLine, data: Path, finished: Path, tmp_path: Path
) -> None:
    rows = encodes(finished)
    assert len(rows) == 2 * (4 + 4 + 1 + 2 * 4)  # constant, hierarchical, curves, two controllers
    constant = {(row["sequence"], row["level"]): row for row in rows if row["controller"] == "constant"}
    for row in rows:
        if row["target_bits"] is not None:
            assert row["target_bits"] == constant[row["sequence"], row["level"]]["actual_bits"]
    coded = tmp_path / "coded.mkv"
    options = ("--quality=23", "--controller=constant", "--keyint=6", "--codec=toy", "--frames=24", "--json")
    summary = json.loads(rqlvc("encode", data / "second.mkv", "-o", coded, *options).stdout.splitlines()[-1])
    assert summary["bits"] == constant["second", 23.0]["actual_bits"]
    assert summary["psnr_yuv"] == pytest.approx(constant["second", 23.0]["psnr_yuv"], abs=1e-3)


def integral(curve: list[tuple[float, float]], low: float, high: float) -> float:
    """Of ln(rate) over distortion, by SciPy's monotone cubic."""
    distortions, rates = zip(*sorted((value, log(bits)) for bits, value in curve), strict=True)
    return float(PchipInterpolator(distortions, rates).integrate(low, high))


def recomputed_bd_rate(anchor: list[tuple[float, float]], test: list[tuple[float, float]]) -> float:
    """Bjontegaard's definition, written down again: the mean difference of ln(rate) over the common distortions."""
    low = max(min(value for _, value in curve) for curve in (anchor, test))
    high = min(max(value for _, value in curve) for curve in (anchor, test))
    return 100 * (exp((integral(test, low, high) - integral(anchor, low, high)) / (high - low)) - 1)


def test_the_tables_follow_from_the_json(finished: Path) -> None:
    """ΔR and BD-rate computed again from what the JSON says of each encode, without the code that made the tables."""
    rows = encodes(finished)
    compared = 0
    for column, name in enumerate(CONTROLLERS.split(",")):
        own = [row for row in rows if row["controller"] == name]
        for row in own:
            error = 100 * abs(row["actual_bits"] - row["target_bits"]) / row["target_bits"]
            assert row["delta_r_percent"] == pytest.approx(error)
        for sequence in SEQUENCES:
            errors = [row["delta_r_percent"] for row in own if row["sequence"] == sequence]
            assert float(cells(finished, "Table 3", sequence)[column]) == pytest.approx(fmean(errors), abs=0.006)
        means = [fmean(r["delta_r_percent"] for r in own if r["sequence"] == sequence) for sequence in SEQUENCES]
        expected = [fmean(means), max(means), max(row["delta_r_percent"] for row in own)]
        for count in (24, 8):  # inter frames, all and those among the first eight
            errors = []
            for row in own:
                frames = json.loads((finished / row["frame_file"]).read_text())["encode"]
                bits, targets = (frames[field][:count] for field in ("bits", "target_bits"))
                errors += [100 * abs(bits[i] - targets[i]) / targets[i] for i in range(count) if i % 6]
            expected.append(fmean(errors))
        overview = cells(finished, "**Controllers in percent**", name)
        assert [float(cell) for cell in overview[:5]] == pytest.approx(expected, abs=0.006)
        references = {"constant": "**BD-rate in percent** on", "hierarchical": "**BD-rate in percent against"}
        for cell, (reference, title) in enumerate(references.items(), 5):
            rates = []
            for sequence in SEQUENCES:
                curve, anchor = (
                    [(r["actual_bits"], r["psnr_yuv"]) for r in rows if (r["sequence"], r["controller"]) == key]
                    for key in ((sequence, name), (sequence, reference))
                )
                shown = cells(finished, title, sequence)[column]
                if shown != "-":  # "-" is for curves too far from each other to be compared
                    rates.append(recomputed_bd_rate(anchor, curve))
                    assert float(shown) == pytest.approx(rates[-1], abs=0.006)
                    compared += 1
            if len(rates) < len(SEQUENCES):
                assert overview[cell] == "-"
            else:
                assert float(overview[cell]) == pytest.approx(fmean(rates), abs=0.006)
    assert compared
    fits = json.loads((finished / "figures.json").read_text())["fits"]
    for sequence in SEQUENCES:
        scores = [fit["models"] for fit in fits if fit["sequence"] == sequence]
        expected = [fmean(s[model]["r_squared"] for s in scores) for model in ("linear", "exponential", "logarithmic")]
        assert [float(cell) for cell in cells(finished, "Table 2", sequence)] == pytest.approx(expected, abs=0.0006)


def test_frame_files_hold_what_the_rows_sum_up(finished: Path) -> None:
    for row in encodes(finished):
        frames = json.loads((finished / row["frame_file"]).read_text())["encode"]
        assert sum(frames["bits"]) == row["actual_bits"] and len(frames["bits"]) == row["frames"]
        assert fmean(frames["psnr_y"]) == pytest.approx(row["psnr_y"])
        assert fmean(frames["psnr_rgb"]) == pytest.approx(row["psnr_rgb"])
        assert [i for i, kind in enumerate(frames["type"]) if kind == "I"] == [0, 6, 12, 18]
        assert {len(values) for name, values in frames.items() if name in PER_FRAME} == {24}


def test_figures_hold_the_truth_beside_what_was_thought(
    rqlvc: CommandLine, data: Path, finished: Path, tmp_path: Path
) -> None:
    figures = json.loads((finished / "figures.json").read_text())
    files = {
        (row["sequence"], row["controller"], row["level"]): json.loads((finished / row["frame_file"]).read_text())
        for row in encodes(finished)
    }
    assert {(fit["sequence"], fit["frame"]) for fit in figures["fits"]} == {
        (name, frame) for name in SEQUENCES for frame in (4, 20)
    }
    for fit in figures["fits"]:
        model, points = fit["models"]["logarithmic"], fit["points"]
        fitted = [model["alpha"] * log(bits) + model["beta"] for _, bits in points]
        errors = [value - quality for value, (quality, _) in zip(fitted, points, strict=True)]
        assert sum(errors) == pytest.approx(0, abs=1e-6)  # least squares leaves no mean error
        spread = sum((quality - fmean(q for q, _ in points)) ** 2 for quality, _ in points)
        assert model["r_squared"] == pytest.approx(1 - sum(e * e for e in errors) / spread)
    assert len(figures["predictions"]) == len(figures["deviations"]) == 2 * 2 * 4
    for each in figures["predictions"]:
        frames = files[each["sequence"], each["controller"], each["level"]]["encode"]
        assert each["frame"] == 12 and each["alpha"] == frames["alpha"][12]
        by_level = sorted(each["points"])
        assert [bits for _, bits in by_level] == sorted(bits for _, bits in by_level)
        # What the frame cost in the encode itself lies between its neighbours on the curve; zlib is not smooth.
        below = [bits for quality, bits in by_level if quality <= frames["quality"][12]]
        above = [bits for quality, bits in by_level if quality >= frames["quality"][12]]
        assert 0.95 * max(below, default=0) <= frames["bits"][12] <= 1.05 * min(above, default=frames["bits"][12])
    for each in figures["deviations"]:
        frames = files[each["sequence"], each["controller"], each["level"]]["encode"]
        for percent, bits, target in zip(each["percent"], frames["bits"], frames["target_bits"], strict=True):
            assert (percent is None) == (target is None)
            assert percent is None or bits == pytest.approx(target * (1 + percent / 100), abs=1 + target * 1e-4)


def test_a_second_run_makes_nothing_and_says_the_same(rqlvc: CommandLine, data: Path, finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    again = evaluate(rqlvc, data, finished)
    assert b"done" not in again.stderr
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_only_encodes_of_controllers_that_use_a_changed_source_are_made_again(tmp_path: Path) -> None:
    shutil.copytree(
        Path(rqlvc_package.__file__).parent, tmp_path / "rqlvc", ignore=shutil.ignore_patterns("__pycache__")
    )
    program = (
        "import json; from rqlvc.evaluation.digests import controller_digest as digest\n"
        "from rqlvc.rate.registry import CONTROLLERS\n"
        "print(json.dumps({name: digest(name) for name in CONTROLLERS}))"
    )

    def digests() -> dict[str, str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return json.loads(subprocess.check_output([sys.executable, "-c", program], env=environment))

    def changed(source: str) -> set[str]:
        before = digests()
        with (tmp_path / "rqlvc" / source).open("a") as file:
            file.write("\n# changed\n")
        after = digests()
        return {name for name in before if before[name] != after[name]}

    adaptive = {"adaptive", "recode"}
    assert changed("rate/rate_filter.py") == adaptive
    assert changed("rate/outlook.py") == {*adaptive, "two-pass"}
    assert changed("rate/feedback.py") == adaptive
    assert changed("rate/rqnet_loops.py") == {"constant", *adaptive, "rq-lvc", "rqnet-only"}
    assert changed("rate/initial.py") == set(digests()) - {"constant"}


def test_processes_do_not_change_the_results(rqlvc: CommandLine, data: Path, finished: Path, tmp_path: Path) -> None:
    result = evaluate(rqlvc, data, tmp_path, "--jobs", "2")
    assert result.returncode == 0, result.stderr.decode()
    assert (tmp_path / "results.md").read_bytes() == (finished / "results.md").read_bytes()


def test_a_killed_run_goes_on_and_ends_the_same(rqlvc: CommandLine, data: Path, finished: Path, tmp_path: Path) -> None:
    running = rqlvc.start(*PAPER, "--data", data, "--out", tmp_path)
    assert running.stderr is not None
    said = [running.stderr.readline() for _ in range(7)]
    running.kill()
    running.communicate()
    assert all(b"done" in line for line in said), said
    assert not (tmp_path / "results.json").exists()
    made = len(list((tmp_path / "encodes").glob("*.json")))
    again = evaluate(rqlvc, data, tmp_path)
    assert again.stderr.count(b"done") == len(encodes(finished)) - made <= len(encodes(finished)) - 7
    for name in ("results.md", "figures.json"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    assert run_markdown(tmp_path) == run_markdown(finished)
    assert [without_time(row) for row in encodes(tmp_path)] == [without_time(row) for row in encodes(finished)]


def without_time(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "seconds"}


def test_a_codec_of_another_package_is_evaluated_by_name(rqlvc: CommandLine, data: Path, tmp_path: Path) -> None:
    plugins = register(tmp_path / "plugins", {"mine": "my_codec:MyCodec"}, package="my-package")
    (plugins / "my_codec.py").write_text(
        "from toy_codec import ToyCodec\n\n\nclass MyCodec(ToyCodec):\n"
        '    def __init__(self, device="auto", threads=None):\n'
        '        super().__init__(device, threads, name="mine", identity="5eed")\n'
    )
    options = ("--sequences", "first", "--levels", "20", "--controllers", "pi", "--frames", "8")
    result = rqlvc(
        *("evaluate", "paper", "--codec", "mine", "--data", data, "--out", tmp_path / "run", "--jobs", "1", *options),
        plugins=plugins,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.startswith(b"Codec `mine`, model `5eed`")
    assert {(row["codec"], row["model"]) for row in encodes(tmp_path / "run")} == {("mine", "5eed")}


def test_anchors_meet_the_same_targets_beside_us(
    rqlvc: CommandLine, data: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    options = ("--codec", "toy", "--controllers", CONTROLLERS, "--keyint", "6", "--frames", "24", "--jobs", "1")
    result = rqlvc("evaluate", "anchors", "--data", data, "--out", out, "--levels", "5,14,23,32", *options)
    assert result.returncode == 0, result.stderr.decode()
    assert (out / "anchors.md").read_bytes() == result.stdout
    assert b"toy, " not in result.stderr  # ours were all there
    report = json.loads((out / "results.json").read_text())
    assert set(report["experiments"]) == {"anchors", "paper"}
    paper, rows = ([row for row in encodes(out) if row["experiment"] == name] for name in ("paper", "anchors"))
    assert paper == encodes(finished)
    ours = {(row["sequence"], row["level"]): row for row in rows if row["codec"] == "toy" and not row["target_bits"]}
    modes = {(row["codec"], row["controller"]) for row in rows}
    assert modes >= {
        ("libx264", "one-pass"),
        ("libx264", "two-pass"),
        ("libx265", "two-pass"),
        ("libsvtav1", "one-pass"),
    }
    for row in rows:
        frames = json.loads((out / row["frame_file"]).read_text())["encode"]
        assert sum(frames["bits"]) == row["actual_bits"] and len(frames["bits"]) == 24
        assert fmean(frames["psnr_yuv"]) == pytest.approx(row["psnr_yuv"])
        if row["controller"] in ("one-pass", "two-pass"):
            wanted = ours[row["sequence"], row["level"]]["actual_bits"]
            assert abs(row["target_bits"] - wanted) <= 1000 / 2 * 24 / 25 + 1  # to the nearest kbit/s
    listed = report["experiments"]["anchors"]["bd_rates"]
    known = [each for each in listed if each["percent"] is not None]
    assert {each["metric"] for each in known} >= {"PSNR-Y", "PSNR-YUV", "PSNR-RGB"}
    assert not [each for each in known if each["metric"] == "MS-SSIM"]  # too small for it
    fields = {"PSNR-Y": "psnr_y", "PSNR-YUV": "psnr_yuv", "PSNR-RGB": "psnr_rgb", "VMAF": "vmaf"}
    for each in known:
        curves = (
            [
                (row["actual_bits"], row[fields[each["metric"]]])
                for row in rows
                if (row["codec"], row["sequence"], row["controller"]) == (codec, each["sequence"], "constant")
            ]
            for codec in (each["anchor"], "toy")
        )
        assert each["percent"] == pytest.approx(recomputed_bd_rate(*curves), abs=1e-6)

    def shown(table: str, row: str) -> list[str]:
        return cells(out, table, row, "anchors.md")

    for encoder in ("libx264", "libx265", "libsvtav1"):
        metrics = ("PSNR-Y", "PSNR-YUV", "PSNR-RGB")
        values = {
            name: [e["percent"] for e in known if (e["anchor"], e["metric"]) == (encoder, name)] for name in metrics
        }
        counts = [f" ({len(each)} of 2)" if len(each) < 2 else "" for each in values.values()]
        expected = [f"{fmean(each):+.1f}{few}" for each, few in zip(values.values(), counts, strict=True)]
        assert shown("quality), mean of the sequences", encoder)[:3] == expected
    for codec, controller in {key for key in modes if key[1] not in ("constant", "curves")}:
        errors = [
            100 * abs(row["actual_bits"] - row["target_bits"]) / row["target_bits"]
            for row in rows
            if (row["codec"], row["controller"]) == (codec, controller)
        ]
        numbers = [float(cell) for cell in shown("**Deviation from the target", f"{codec}, {controller}")]
        assert numbers == pytest.approx([fmean(errors), max(errors)], abs=0.006)


def test_stress_cuts_repeats_and_changes_rates(rqlvc: CommandLine, data: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    make_clip(tmp_path / "data" / "third.mkv", width=96, height=64, frames=9, rate=30)
    shutil.copy(data / "first.mkv", tmp_path / "data")
    out = tmp_path / "run"
    result = rqlvc(
        *("evaluate", "stress", "--data", tmp_path / "data", "--out", out, "--codec", "toy", "--jobs", "1"),
        *("--controllers", "no-rqnet", "--frames", "24", "--keyint", "8"),
    )
    assert result.returncode == 0, result.stderr.decode()
    assert (out / "stress.md").read_bytes() == result.stdout
    report = json.loads((out / "results.json").read_text())
    trials = report["experiments"]["stress"]["trials"]
    assert [each["kind"] for each in trials] == ["targets"] * 8 + ["cuts", "repeats", "steps"]
    cuts, repeats, steps = trials[-3:]

    first, third = read_frames(tmp_path / "data" / "first.mkv"), read_frames(tmp_path / "data" / "third.mkv")
    glued = read_frames(out / "clips" / "cuts_96x64.y4m")
    assert cuts["events"] == [15, 24, 39]
    parts = first[:15], third, first[:15], third
    assert all(same_picture(a, b) for a, b in zip(glued, itertools.chain(*parts), strict=True))
    again = read_frames(out / "clips" / "first_10_times.y4m")
    assert len(again) == 70 and all(same_picture(frame, first[i % 7]) for i, frame in enumerate(again))

    assert steps["rates"] == [[0, 400_000], [23, 200_000], [46, 800_000]] and steps["events"] == [23, 46]
    rows = {row["frame_file"]: row for row in report["encodes"]}
    for each in trials:
        row = rows[each["frame_file"]]
        frames = json.loads((out / each["frame_file"]).read_text())["encode"]
        rate = float(Fraction(row["frame_rate"]))
        starts, values = zip(*each["rates"], strict=True)
        targets = [values[bisect(starts, index) - 1] / rate for index in range(row["frames"])]
        assert row["target_bits"] == pytest.approx(sum(targets), abs=1)
        second = min(round(rate), row["frames"])
        worst = max(
            100 * abs(sum(frames["bits"][i : i + second]) / sum(targets[i : i + second]) - 1)
            for i in range(row["frames"] - second + 1)
        )
        assert each["worst_second_percent"] == pytest.approx(worst)
        assert each["delta_r_percent"] == pytest.approx(100 * abs(row["actual_bits"] / row["target_bits"] - 1))
        assert len(each["recovery_seconds"]) == len(each["events"])
    halves = json.loads((out / steps["frame_file"]).read_text())["encode"]["target_bits"]
    assert sum(halves[24:32]) < sum(halves[:8]) and sum(halves[24:32]) < sum(halves[56:64]) / 2
    assert steps["frame_file"] != repeats["frame_file"]


def test_recovery_is_the_time_to_the_first_window_near_the_target() -> None:
    """Twice the bits for ten frames after a cut, then what was asked for, with groups of five frames."""
    properties = VideoProperties(96, 64, Fraction(10))
    clip = Clip("glued.y4m", "", properties, 60)
    job = Job(clip, "toy", "", "pi", None, 5, 60 * 100, rates=((0, 1000),))
    bits = [100] * 20 + [200] * 10 + [100] * 30
    encode = encode_of(bits=bits, quality=[30.0] * 60)
    assert outcome(Trial("cuts", job, (20, 40)), encode).recovery_seconds == (1.0, 0.0)
    assert outcome(Trial("cuts", job, (20, 28)), encode).recovery_seconds == (None, 0.2)
    assert outcome(Trial("cuts", job, (20,)), encode).worst_second_percent == pytest.approx(100)


@pytest.mark.parametrize(
    ("quality", "bits", "out_of_reach"),
    [(63, 90, True), (0, 110, True), (63, 110, False), (0, 90, False), (30, 90, False)],
)
def test_a_target_is_out_of_reach_where_the_codec_could_do_no_better(
    quality: float, bits: int, out_of_reach: bool
) -> None:
    """A controller that is stuck at the wrong end of the range is not excused."""
    clip = Clip("clip.y4m", "", VideoProperties(96, 64, Fraction(10)), 20)
    job = Job(clip, "toy", "", "pi", None, 5, 20 * 100, rates=((0, 1000),))
    encode = encode_of(bits=[bits] * 20, quality=[30.0] * 9 + [float(quality)] * 11)
    assert outcome(Trial("targets", job), encode).out_of_reach == out_of_reach


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--controllers", "constant"), b"no controller 'constant' that meets a bitrate"),
        (("--controllers", "magic"), b"no controller 'magic'"),
        (("--controllers", "pi,rq-lvc"), b"'rq-lvc' needs RQNet, and none is shipped for the codec 'toy'"),
        (("--sequences", "third"), b"lacks third; it has: first, second"),
        (("--levels", "10,70"), b"each from 0 to 63"),
        (("--data", "nowhere"), b"nowhere is no folder"),
    ],
)
def test_a_mistake_is_a_sentence(
    rqlvc: CommandLine, data: Path, tmp_path: Path, options: tuple[str, ...], said: bytes
) -> None:
    result = evaluate(rqlvc, data, tmp_path, *options)
    assert result.returncode != 0 and said in result.stderr and b"Traceback" not in result.stderr


def test_controllers_that_a_codec_has_no_network_for_are_left_out(
    rqlvc: CommandLine, data: Path, tmp_path: Path
) -> None:
    options = ("--codec", "toy", "--sequences", "first", "--levels", "20,20", "--frames", "4", "--jobs", "1")
    result = rqlvc("evaluate", "paper", "--data", data, "--out", tmp_path, *options)
    assert result.returncode == 0, result.stderr.decode()
    assert b"without rq-lvc and rqnet-only" in result.stderr
    made = [row["controller"] for row in encodes(tmp_path)]
    assert len(made) == len(set(made)) and "rq-lvc" not in made
    times = {row["controller"]: row["encodes"] / row["frames"] for row in encodes(tmp_path)}
    assert times["constant"] == times["pi"] == 1 and times["four-pass"] == 5
    assert times["two-pass"] >= 2 and 1 < times["adaptive"] <= times["recode"]
    assert {"constant", "curves", "adaptive", "two-pass", "four-pass", "no-rqnet", "tip14", "icassp24", "pi"} <= {*made}


def test_ctrl_c_ends_all_processes_with_a_sentence(rqlvc: CommandLine, data: Path, tmp_path: Path) -> None:
    command = rqlvc.command(*PAPER, "--data", data, "--out", tmp_path, "--jobs", "2")
    running = subprocess.Popen(command, stderr=subprocess.PIPE, env=rqlvc.environment, start_new_session=True)
    assert running.stderr is not None and b"done" in running.stderr.readline()
    os.killpg(running.pid, signal.SIGINT)  # as a terminal sends it: to the workers too
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130 and said.endswith(b"interrupted: the same command goes on from here\n")
    assert b"Traceback" not in said and not (tmp_path / "results.json").exists()


def test_rqnets_errors_are_told_by_level_with_their_mean() -> None:
    """Table 4 of two frames at two levels: off by 10 and 30 %, and by 0 and 50 %; other levels do not count."""
    clip = Clip("clip.y4m", "", VideoProperties(96, 64, Fraction(10)), 2)
    experiment = Experiment([clip], "toy", "", [], [10.0, 27.0])
    predictions = {10.0: (110.0, 70.0), 27.0: (100.0, 150.0)}
    results = {
        experiment.job(clip, "constant", level): encode_of(
            type=["P", "P"], bits=[100, 100], predicted=[[(level, bits), (43.0, 999.0)] for bits in predicted]
        )
        for level, predicted in predictions.items()
    }
    assert tables_of(experiment, results).rqnet == {"clip": pytest.approx({"q 10": 20, "q 27": 25, "mean": 22.5})}
    # As adaptive hears it: the second frame's points follow from half of the first one's error in ln bits.
    halves = {"q 10": (10 + 100 * abs(70 / 110**0.5 / 10 - 1)) / 2, "q 27": 25.0}
    mended = {"clip": pytest.approx(halves | {"mean": (halves["q 10"] + 25) / 2})}
    assert tables_of(experiment, results).mended_rqnet == mended
    unknown = {job: encode_of(type=["P", "P"], bits=[100, 100], predicted=[[], []]) for job in results}
    assert tables_of(experiment, unknown).rqnet == {}


def test_the_right_model_fits_best() -> None:
    """Frames that follow ln R = a + b q are fitted without error by the logarithm only."""
    curve = [round(100 * 2.718281828 ** (0.07 * level)) for level in CURVE_LEVELS]
    encode = encode_of(curve_frames=[4, 12], curves=[curve, [2 * bits for bits in curve]])
    fits = fits_of(encode)
    assert fits["logarithmic"] > 0.9999 and fits["linear"] < 0.95 and fits["exponential"] < fits["linear"]


def test_frame_deviations_leave_out_intra_frames() -> None:
    encode = encode_of(bits=[900, 110, 80, 300], target_bits=[1000.0, 100.0, 100.0, 100.0], type=["I", "P", "P", "P"])
    assert frame_deviations(encode) == pytest.approx([10, 20, 200])
    assert frame_deviations(encode, 3) == pytest.approx([10, 20])
