"""``rqlvc report`` on a real run and a real encode: what the page says is what the files say, also in a browser."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from browser import CHROMIUM, Browser, open_browser
from conftest import CommandLine, make_clip
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.paper import RATE_CONTROLLERS
from rqlvc.evaluation.report.encode import encode_page as encode_page_of
from rqlvc.evaluation.report.encode import moving_rate, worst_frames
from rqlvc.evaluation.report.markdown import run_markdown
from rqlvc.evaluation.report.run import run_page as run_page_of

CONTROLLERS = ("adaptive", "pi")
AWKWARD = "it's <b> & so"
"""A name of a sequence that would break a page that does not escape it."""


class Tables(HTMLParser):
    """Tables by name: rows of cells, each its full value where it carries one, otherwise its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[Any]]] = {}
        self._row: list[Any] | None = None
        self._value: str | None = None
        self._text: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag == "table":
            self._rows = self.tables.setdefault(values["data-table"] or "", [])
        if tag == "tr":
            self._row = []
        if tag in ("th", "td"):
            self._value, self._text = values.get("data-value"), ""

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td") and self._row is not None:
            self._row.append(self._text if self._value is None else float(self._value))
            self._text = None
        if tag == "tr" and self._row is not None:
            self._rows.append(self._row)


def data_of(page: Path) -> dict[str, Any]:
    """The JSON that the charts are drawn from."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def rows_of(run: Path, experiment: str = "paper") -> list[dict[str, Any]]:
    encodes = json.loads((run / "results.json").read_text())["encodes"]
    return [row for row in encodes if row["experiment"] == experiment]


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences")
    make_clip(folder / "first.mkv", frames=9)
    make_clip(folder / f"{AWKWARD}.mkv", width=80, height=64, frames=9)
    return folder


@pytest.fixture(scope="module")
def run(rqlvc: CommandLine, sequences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    common = ("--data", sequences, "--out", out, "--codec", "toy", "--keyint", "6", "--frames", "9", "--jobs", "1")
    small = (*common, "--sequences", "first", "--controllers", "pi")
    for command in (
        ("evaluate", "paper", *common, "--levels", "5,14,23,32", "--controllers", ",".join(CONTROLLERS)),
        ("evaluate", "anchors", *small, "--levels", "14,23", "--encoders", "libx264"),
        ("evaluate", "stress", *small),
    ):
        result = rqlvc(*command)
        assert result.returncode == 0, result.stderr.decode()
    return out


@pytest.fixture(scope="module")
def run_page(rqlvc: CommandLine, run: Path, sequences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("pages") / "run.html"
    result = rqlvc("report", run, "-o", page, "--source", sequences)
    assert result.returncode == 0, result.stderr.decode()
    return page


@pytest.fixture(scope="module")
def statistics(rqlvc: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The file of an encode at a bitrate, 45 frames at 25 fps, and its source."""
    folder = tmp_path_factory.mktemp("encode")
    clip = make_clip(folder / "clip.mkv", frames=45)
    options = ("--bitrate", "150k", "--controller", "pi", "--codec", "toy", "--keyint", "20")
    result = rqlvc("encode", clip, "-o", folder / "coded.mkv", *options, "--stats", folder / "stats.jsonl")
    assert result.returncode == 0, result.stderr.decode()
    return folder / "stats.jsonl", clip


@pytest.fixture(scope="module")
def encode_page(rqlvc: CommandLine, statistics: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("pages") / "encode.html"
    result = rqlvc("report", statistics[0], "-o", page, "--source", statistics[1])
    assert result.returncode == 0, result.stderr.decode()
    return page


# The numbers


def test_tables_of_a_run_say_what_its_json_says(run: Path, run_page: Path) -> None:
    rows, tables = rows_of(run), Tables(run_page.read_text()).tables
    shown = {tuple(row[:3]): row[3:] for row in tables["encodes"][1:]}
    assert len(shown) == len(rows)
    for row in rows:
        target, bits, deviation, psnr_y, psnr_yuv, seconds = shown[row["sequence"], row["controller"], row["level"]]
        assert bits == row["actual_bits"] and seconds == row["seconds"]
        assert (psnr_y, psnr_yuv) == (pytest.approx(row["psnr_y"]), pytest.approx(row["psnr_yuv"]))
        if row["target_bits"] is None:
            assert (target, deviation) == ("–", "–")
        else:
            assert target == row["target_bits"]
            assert deviation == pytest.approx(100 * abs(bits - target) / target)

    by_sequence = {(row[0], name): row[i] for row in tables["deviation"] for i, name in enumerate(CONTROLLERS, 1)}
    overview = {row[0]: row[1:] for row in tables["controllers"]}
    for name in CONTROLLERS:
        own = [row for row in rows if row["controller"] == name]
        means = [
            fmean(row["delta_r_percent"] for row in own if row["sequence"] == sequence)
            for sequence in ("first", AWKWARD)
        ]
        assert [by_sequence[sequence, name] for sequence in ("first", AWKWARD)] == pytest.approx(means)
        assert by_sequence["average", name] == pytest.approx(fmean(means))
        worst = max(row["delta_r_percent"] for row in own)
        assert overview[name][:3] == pytest.approx([fmean(means), max(means), worst])


def test_the_page_says_what_the_markdown_says(run: Path, run_page: Path) -> None:
    """The columns that need frames and curves: rounded as there."""
    markdown = (run / "results.md").read_text()
    for row in Tables(run_page.read_text()).tables["controllers"][1:]:
        cells = [row[0], *("-" if value == "–" else f"{value:.2f}" for value in row[1:])]
        assert f"| {' | '.join(cells)} |" in markdown


def test_markdown_has_all_tables_and_what_falls_short(rqlvc: CommandLine, run: Path, tmp_path: Path) -> None:
    for name in ("once.md", "again.md"):
        result = rqlvc("report", run, "-o", tmp_path / name)
        assert result.returncode == 0, result.stderr.decode()
    text = (tmp_path / "once.md").read_text()
    assert text == (tmp_path / "again.md").read_text()
    for name in ("results.md", "anchors.md", "stress.md"):
        assert (run / name).read_text() in text
    goals = {
        cells[0]: cells[1:]
        for line in text[: text.index("## Rate control")].splitlines()
        if line.startswith("| ")
        and (cells := [cell.strip() for cell in line.split("|")[1:-1]])[0] not in ("goal", "---")
    }
    own = [row for row in rows_of(run) if row["controller"] == "adaptive"]
    means = {
        sequence: fmean(row["delta_r_percent"] for row in own if row["sequence"] == sequence)
        for sequence in ("first", AWKWARD)
    }
    worst = max(means, key=lambda sequence: means[sequence])
    for what, limit, measured in (
        ("deviation", 0.5, fmean(means.values())),
        ("deviation of the worst sequence", 2.0, means[worst]),
    ):
        met = "yes" if measured <= limit else "**no**"
        assert goals[f"adaptive: {what}"] == [f"{limit:.2f}", f"{measured:.2f}", met, f"{worst} {means[worst]:.2f}"]
    assert goals["rq-lvc: deviation (published: UVG)"][1:3] == ["-", "not measured"]
    assert goals["codec: BD-rate against libx264"][1:3] == ["-", "not measured"]  # two levels make no curve
    missed = [goal for goal in goals.values() if goal[2] == "**no**"]
    measured_goals = [goal for goal in goals.values() if goal[2] != "not measured"]
    assert f"{len(missed)} of {len(measured_goals)} goals are missed" in text
    far = sum(row["delta_r_percent"] > 2 for row in own)
    assert f"`adaptive` misses by more than 2 % in {far} of {len(own)} encodes" in text


def test_other_experiments_are_shown_as_their_json_has_them(run: Path, run_page: Path) -> None:
    experiments = json.loads((run / "results.json").read_text())["experiments"]
    tables = Tables(run_page.read_text()).tables
    anchors, trials = experiments["anchors"], experiments["stress"]["trials"]
    assert [row[:4] for row in tables["accuracies"][1:]] == [list(row.values()) for row in anchors["accuracies"]]
    rates = [[*rate.values()] for rate in anchors["bd_rates"] if rate["metric"] == "PSNR-YUV"]  # others: not measured
    assert tables["bd-rates"][1:] == [["–" if value is None else value for value in rate] for rate in rates] != []
    assert len(tables["stress"][1:]) == len(trials) > 0
    for row, trial in zip(tables["stress"][1:], trials, strict=True):
        recovered = [seconds for seconds in trial["recovery_seconds"] if seconds is not None]
        assert row[:3] == [trial["controller"], trial["kind"], trial["sequence"]]
        assert row[3] == ", ".join(f"{rate // 1000}" for _, rate in trial["rates"])
        assert row[4:6] == [trial["delta_r_percent"], trial["worst_second_percent"]]
        assert row[6] == max(recovered, default="–")


def test_charts_of_a_run_are_drawn_from_its_encodes(run: Path, run_page: Path) -> None:
    data = data_of(run_page)
    drawn = {(encode["sequence"], encode["name"], encode["level"]): encode for encode in data["encodes"]}
    for row in rows_of(run):
        if row["controller"] == "curves":
            measured = json.loads((run / row["frame_file"]).read_text())["encode"]
            assert data["curves"][row["sequence"]]["bits"] == measured["curves"]
            continue
        if row["controller"] == "hierarchical":  # nearly the curve of the constant levels: in tables alone
            continue
        encode = drawn[row["sequence"], row["controller"], row["level"]]
        assert (encode["actual_bits"], encode["psnr_yuv"]) == (row["actual_bits"], row["psnr_yuv"])
        frames = json.loads((run / row["frame_file"]).read_text())["encode"]
        assert encode["frames"]["bits"] == frames["bits"]
        assert encode["frames"]["intra"] == [0, 6]
        if row["target_bits"] is not None:
            belief = encode["belief"]
            assert (belief["frame"], belief["bits"]) == (4, frames["curves"][0])
            assert (belief["alpha"], belief["beta"]) == (frames["alpha"][4], frames["beta"][4])
    anchors = [row for row in rows_of(run, "anchors") if row["codec"] == "libx264"]
    for row in anchors:
        if row["controller"] == "constant":
            assert drawn[row["sequence"], "libx264", row["level"]]["actual_bits"] == row["actual_bits"]


def test_the_page_of_an_encode_says_what_its_statistics_say(statistics: tuple[Path, Path], encode_page: Path) -> None:
    *frames, summary = (json.loads(line) for line in statistics[0].read_text().splitlines())
    text, data = encode_page.read_text(), data_of(encode_page)
    for shown in (
        f"{summary['bitrate'] / 1000:.1f} kbit/s",
        f"target {summary['target_bitrate'] / 1000:.1f}, {summary['error_percent']:+.2f} %".replace("-", "−"),
        f"{summary['psnr_y']:.2f} dB",
        f"{summary['psnr_yuv']:.2f} dB",
    ):
        assert shown in text
    assert data["frames"]["bits"] == [frame["bits"] for frame in frames]
    assert data["frames"]["intra"] == [0, 20, 40]
    worst = min(range(45), key=lambda index: frames[index]["psnr_yuv"])
    assert worst in [row[0] for row in Tables(text).tables["worst frames"][1:]]


def test_without_a_summary_the_frames_are_reported(
    rqlvc: CommandLine, statistics: tuple[Path, Path], tmp_path: Path
) -> None:
    """As a killed encode leaves it."""
    lines = statistics[0].read_text().splitlines()[:30]
    (tmp_path / "killed.jsonl").write_text("\n".join(lines) + "\n")
    assert rqlvc("report", tmp_path / "killed.jsonl", "-o", tmp_path / "page.html").returncode == 0
    text = (tmp_path / "page.html").read_text()
    bits = sum(json.loads(line)["bits"] for line in lines)
    assert "has not ended" in text and f"{bits * 25 / 30 / 1000:.1f} kbit/s" in text


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=80), st.sampled_from([5, 10, 25, 50]), st.integers(0, 3))
def test_the_moving_rate_is_the_bits_of_the_last_second(bits: list[int], rate: int, start: int) -> None:
    times = [start + index / rate for index in range(len(bits))]
    for index, value in enumerate(moving_rate(times, bits)):
        expected = sum(bits[index + 1 - rate : index + 1]) if index + 1 >= rate else None
        assert value == expected or len(bits) == 1


def test_worst_frames_are_the_worst_in_picture_and_in_rate() -> None:
    frames = [{"psnr_yuv": 40.0 - index, "bits": 100, "target_bits": 100.0 + index % 3} for index in range(10)]
    frames[2]["bits"] = 900
    assert worst_frames(frames, 2) == [2, 9]
    assert worst_frames([frame | {"target_bits": None} for frame in frames], 2) == [8, 9]


def test_every_controller_has_a_colour_and_a_shape_of_its_own(run_page: Path) -> None:
    text = run_page.read_text()
    slots = json.loads(re.findall(r'"slots": ?(\{[^}]*\})', text)[0])
    assert len(set(slots.values())) == len(slots) == len(RATE_CONTROLLERS)
    colours = re.findall(r"--(s\d+): #", text)
    assert {colours.count(slot) for slot in slots.values()} == {2}  # on a light and on a dark page
    assert text.split("const SHAPES = [")[1].split("];")[0].count("\n  ") >= len(slots)


# One file


@pytest.mark.parametrize("name", ["run_page", "encode_page"])
def test_a_page_needs_no_network_and_is_small(name: str, request: pytest.FixtureRequest) -> None:
    page: Path = request.getfixturevalue(name)
    text = page.read_text()
    assert set(re.findall(r"https?://[^\"' )]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', text))
    assert "<b> & so" not in text
    assert page.stat().st_size < 3_000_000


def test_pictures_are_source_and_decoded(run_page: Path, encode_page: Path) -> None:
    for page, count, sizes in ((run_page, 2 * 2, {(64, 48), (80, 64)}), (encode_page, 2 * 4, {(64, 48)})):
        found = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page.read_text())
        pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]
        assert len(pictures) == count and {picture.size for picture in pictures} <= sizes
        for source, decoded in zip(pictures[::2], pictures[1::2], strict=True):
            assert source.size == decoded.size and source.tobytes() != decoded.tobytes()


def test_a_page_is_replaced_only_when_asked(rqlvc: CommandLine, statistics: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    refused = rqlvc("report", statistics[0], "-o", page)
    assert refused.returncode == 1 and b"exists" in refused.stderr and page.read_text() == "mine"
    assert rqlvc("report", statistics[0], "-o", page, "-y").returncode == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def edited(run: Path, folder: Path, old: str, new: str) -> Path:
    """A copy of a run with another results.json."""
    shutil.copytree(run, folder)
    text = (folder / "results.json").read_text()
    assert old in text
    (folder / "results.json").write_text(text.replace(old, new))
    return folder


def test_mistakes_are_sentences(rqlvc: CommandLine, run: Path, statistics: tuple[Path, Path], tmp_path: Path) -> None:
    stats, page = statistics[0], tmp_path / "page.html"
    lines = stats.read_text().splitlines()
    texts = {
        "cut.jsonl": lines[0] + "\n" + lines[1][:50],
        "nan.jsonl": re.sub(r'"psnr_y": [\d.]+', '"psnr_y": NaN', lines[0]),
        "other.jsonl": '{"type": "info", "frames": 3}\n',
        "summary.jsonl": lines[0] + '\n{"type": "summary"}\n',
        "lacking.jsonl": lines[0].replace('"quality"', '"level"', 1),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "empty").mkdir()
    cut = edited(run, tmp_path / "cut", '"encodes"', "")
    version = edited(run, tmp_path / "version", "rqlvc-results-4", "rqlvc-results-9")
    lacking = edited(run, tmp_path / "lacking", '"actual_bits"', '"bits"')
    missing = edited(run, tmp_path / "missing", '"frame_file": "encodes/', '"frame_file": "elsewhere/')
    other = edited(run, tmp_path / "changed", '"level": 14.0', '"level": 15.0')
    for make, results, said in (
        (run_page_of, tmp_path / "empty", "has no results.json"),
        (run_page_of, cut, "is broken"),
        (run_page_of, version, "has the schema 'rqlvc-results-9'"),
        (run_page_of, lacking, "it lacks 'actual_bits'"),
        (run_page_of, missing, "is missing, which results.json names"),
        (run_page_of, other, "it lacks first, constant, q 14"),
        (encode_page_of, tmp_path / "cut.jsonl", "line 2 of"),
        (encode_page_of, tmp_path / "nan.jsonl", "it holds NaN"),
        (encode_page_of, tmp_path / "other.jsonl", "holds no frames"),
        (encode_page_of, tmp_path / "summary.jsonl", "line 2 of"),
        (encode_page_of, tmp_path / "lacking.jsonl", "has no 'quality'"),
        (encode_page_of, statistics[1], "name a file of 'rqlvc encode --stats'"),
    ):
        with pytest.raises(RqlvcError, match=re.escape(said)):
            make(results)
    for arguments, said in (
        ((tmp_path / "nowhere",), "no file or folder"),
        ((run, "--source", tmp_path / "empty"), "lacks"),
        ((stats, "-o", tmp_path / "page.md"), "the tables of an evaluation alone"),
        ((stats, "--source", make_clip(tmp_path / "short.mkv", frames=3)), "no frame"),
        ((stats, "--source", make_clip(tmp_path / "other.mkv", width=80, frames=45)), "name the video that was coded"),
    ):
        result = rqlvc("report", "-o", page, *arguments)
        error = result.stderr.decode()
        assert result.returncode == 1 and said in error and "Traceback" not in error, error
        assert not page.exists() and not page.with_suffix(".md").exists()
    earlier = edited(run, tmp_path / "earlier", '"sequences"', '"earlier"')
    with pytest.raises(RqlvcError, match="lacks 'sequences': evaluate again"):
        run_markdown(earlier)


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: install the package 'chromium' to test pages in a browser")
    with open_browser() as opened:
        yield opened


FEWEST_LABELS = """Math.min(...[...document.querySelectorAll('figure.chart > svg')].flatMap((chart) =>
    [...chart.querySelectorAll('text')].reduce((counts, text) => {
        if (text.classList.contains('title')) counts.push(0);
        else if (text.getAttribute('x') === '39') counts[counts.length - 1]++;
        return counts;
    }, [])))"""
"""Labels of the vertical axis that has fewest of them: one alone tells no scale."""


@pytest.mark.parametrize("name", ["run_page", "encode_page"])
def test_pages_fit_a_phone_and_a_desk(name: str, browser: Browser, request: pytest.FixtureRequest) -> None:
    page: Path = request.getfixturevalue(name)
    for width in (390, 1400):
        backgrounds = set()
        for dark in (False, True):
            browser.open(page, width=width, dark=dark, phone=width < 500)
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.run("innerWidth") == width  # a phone zooms out of what is wider than its screen
            assert browser.run("document.querySelectorAll('.chart path.line').length") > 0
            assert browser.run(FEWEST_LABELS) >= 2
            assert "NaN" not in browser.run("[...document.querySelectorAll('.chart')].map((c) => c.innerHTML).join()")
            backgrounds.add(browser.run("getComputedStyle(document.body).backgroundColor"))
        assert len(backgrounds) == 2
    assert browser.problems == []


def test_a_click_on_a_header_sorts(browser: Browser, run: Path, run_page: Path) -> None:
    browser.open(run_page, width=1400)
    column = "[...document.querySelectorAll('[data-table=encodes] tbody tr')].map((row) => row.cells[%d].textContent)"
    header = "document.querySelector('[data-table=encodes] thead').rows[0].cells[%d]"
    bits = sorted(row["actual_bits"] for row in rows_of(run))
    for order, expected in (("ascending", bits), ("descending", bits[::-1])):
        browser.run(f"{header % 4}.querySelector('button').click()")
        assert browser.run(f"{header % 4}.getAttribute('aria-sort')") == order
        assert browser.run(column % 4) == [f"{value:,}" for value in expected]
    browser.run(f"{header % 0}.querySelector('button').click()")
    names = browser.run(column % 0)
    assert names == sorted(names, key=str.lower) and AWKWARD in names
    assert browser.run(f"{header % 4}.getAttribute('aria-sort')") is None
    browser.run(f"{header % 5}.querySelector('button').click()")
    shown = browser.run(column % 5)
    known = [float(value) for value in shown if value != "–"]
    assert known == sorted(known) and shown[len(known) :] == ["–"] * (len(shown) - len(known)) != []
    assert browser.problems == []


def test_charts_follow_the_choices_and_show_values(browser: Browser, run: Path, run_page: Path) -> None:
    browser.open(run_page, width=1400)
    for name, value in (("sequence", AWKWARD), ("level", "23")):
        browser.run(
            f"(() => {{ const s = document.getElementById('{name}'); s.value = {json.dumps(value)}; s.onchange(); }})()"
        )
    titles = "[...document.querySelectorAll('#frames h3')].map((title) => title.textContent)"
    wanted = {row["controller"]: row for row in rows_of(run) if (row["sequence"], row["level"]) == (AWKWARD, 23)}
    assert browser.run(titles) == [
        f"{name} {wanted[name]['delta_r_percent']:.2f} % off over all 9 frames" for name in CONTROLLERS
    ]
    frames = json.loads((run / wanted[CONTROLLERS[0]]["frame_file"]).read_text())["encode"]
    chart = "document.querySelector('#frames figure')"
    for _ in range(3):  # by the keyboard: frames 0, 1, 2
        browser.run(f"{chart}.dispatchEvent(new KeyboardEvent('keydown', {{ key: 'ArrowRight' }}))")
    tip = browser.run(f"{chart}.querySelector('.tip').textContent")
    assert tip.startswith("frame 2, P") and f"{frames['bits'][2]:,} bits" in tip
    browser.run("document.querySelector('#chips button').click()")
    assert browser.run("document.querySelector('#chips button').getAttribute('aria-pressed')") == "false"
    assert [title.split()[0] for title in browser.run(titles)] == list(CONTROLLERS[1:])
    assert browser.problems == []
