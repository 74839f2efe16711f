"""``rqlvc evaluate paper`` on real clips with a plugged-in codec, checked against encodes made by hand."""

import contextlib
import json
from math import log
from pathlib import Path
from statistics import fmean

import pytest

from conftest import CommandLine, make_clip
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.metrics import bd_rate
from rqlvc.evaluation.paper import fits_of, frame_deviations
from rqlvc.evaluation.sweep import CURVE_LEVELS, Encode

CONTROLLERS = "no-rqnet,pi"
PER_FRAME = {
    *("type", "quality", "target_bits", "bits", "psnr_y", "psnr_yuv", "psnr_rgb", "ms_ssim"),
    *("alpha", "beta", "predicted"),
}


def encode_of(**fields: list) -> Encode:
    """An encode of which only some is of interest."""
    return Encode(**{name: [] for name in PER_FRAME} | {"seconds": 0.0} | fields)


def evaluate(rqlvc: CommandLine, data: Path, out: Path, *more: str):
    return rqlvc(
        *("evaluate", "paper", "--data", data, "--out", out, "--codec", "toy", "--controllers", CONTROLLERS),
        *("--keyint", "6", "--frames", "12", "--levels", "5,14,23,32", "--jobs", "1", *more),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences")
    make_clip(folder / "first.mkv", frames=12)
    make_clip(folder / "second.mkv", width=80, height=64, frames=14)
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


def cells(out: Path, table: str, row: str) -> list[str]:
    """The cells of a row of the Markdown table after the line that holds ``table``."""
    text = (out / "results.md").read_text()
    lines = text[text.index(table) :].splitlines()
    return [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {row} |")).split("|")[2:-1]]


def test_targets_are_the_bits_of_constant_levels(
    rqlvc: CommandLine, data: Path, finished: Path, tmp_path: Path
) -> None:
    rows = encodes(finished)
    assert len(rows) == 2 * (4 + 1 + 2 * 4)
    constant = {(row["sequence"], row["level"]): row for row in rows if row["controller"] == "constant"}
    for row in rows:
        if row["target_bits"] is not None:
            assert row["target_bits"] == constant[row["sequence"], row["level"]]["actual_bits"]
    coded = tmp_path / "coded.mkv"
    options = ("--quality", "23", "--keyint", "6", "--codec", "toy", "--frames", "12", "--json")
    summary = json.loads(rqlvc("encode", data / "second.mkv", "-o", coded, *options).stdout.splitlines()[-1])
    assert summary["bits"] == constant["second", 23.0]["actual_bits"]
    assert summary["psnr_yuv"] == pytest.approx(constant["second", 23.0]["psnr_yuv"], abs=1e-3)


def test_the_tables_follow_from_the_json(finished: Path) -> None:
    """ΔR and BD-rate computed again from what the JSON says of each encode."""
    rows = encodes(finished)
    for column, name in enumerate(CONTROLLERS.split(",")):
        own = [row for row in rows if row["controller"] == name]
        for sequence in ("first", "second"):
            errors = [
                100 * abs(row["actual_bits"] - row["target_bits"]) / row["target_bits"]
                for row in own
                if row["sequence"] == sequence
            ]
            assert float(cells(finished, "Table 3", sequence)[column]) == pytest.approx(fmean(errors), abs=0.006)
        worst = max(row["delta_r_percent"] for row in own)
        overview = cells(finished, "**Controllers in percent**", name)
        assert float(overview[2]) == pytest.approx(worst, abs=0.006)
        rates = []
        for sequence in ("first", "second"):
            curve, flat = (
                [(r["actual_bits"], r["psnr_yuv"]) for r in rows if (r["sequence"], r["controller"]) == key]
                for key in ((sequence, name), (sequence, "constant"))
            )
            with contextlib.suppress(RqlvcError):  # too far from each other to be compared
                rates.append(bd_rate(flat, curve))
        expected = f"{fmean(rates):.2f}" if len(rates) == 2 else "-"
        assert overview[5] == expected


def test_frame_files_hold_what_the_rows_sum_up(finished: Path) -> None:
    for row in encodes(finished):
        frames = json.loads((finished / row["frame_file"]).read_text())["encode"]
        assert sum(frames["bits"]) == row["actual_bits"] and len(frames["bits"]) == row["frames"]
        assert fmean(frames["psnr_y"]) == pytest.approx(row["psnr_y"])
        assert fmean(frames["psnr_rgb"]) == pytest.approx(row["psnr_rgb"])
        assert [i for i, kind in enumerate(frames["type"]) if kind == "I"] == [0, 6]
        assert {len(values) for name, values in frames.items() if name in PER_FRAME} == {12}


def test_figures_hold_the_truth_beside_what_was_thought(
    rqlvc: CommandLine, data: Path, finished: Path, tmp_path: Path
) -> None:
    figures = json.loads((finished / "figures.json").read_text())
    files = {
        (row["sequence"], row["controller"], row["level"]): json.loads((finished / row["frame_file"]).read_text())
        for row in encodes(finished)
    }
    assert {(fit["sequence"], fit["frame"]) for fit in figures["fits"]} == {("first", 4), ("second", 4)}
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
        assert each["frame"] == 6 and each["alpha"] == frames["alpha"][6]
        by_level = sorted(each["points"])
        assert [bits for _, bits in by_level] == sorted(bits for _, bits in by_level)
        # What the frame cost in the encode itself lies between its neighbours on the curve; zlib is not smooth.
        below = [bits for quality, bits in by_level if quality <= frames["quality"][6]]
        above = [bits for quality, bits in by_level if quality >= frames["quality"][6]]
        assert 0.95 * max(below, default=0) <= frames["bits"][6] <= 1.05 * min(above, default=frames["bits"][6])
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


def test_processes_do_not_change_the_results(rqlvc: CommandLine, data: Path, finished: Path, tmp_path: Path) -> None:
    result = evaluate(rqlvc, data, tmp_path, "--jobs", "2")
    assert result.returncode == 0, result.stderr.decode()
    assert (tmp_path / "results.md").read_bytes() == (finished / "results.md").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--controllers", "constant"), b"no controller 'constant' that meets a bitrate"),
        (("--controllers", "magic"), b"no controller 'magic'"),
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
