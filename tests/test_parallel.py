"""A Ray cluster of two workers on this machine: the same results as here, and a dead worker costs its own item only."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from conftest import CommandLine, make_clip
from rqlvc.errors import RqlvcError
from rqlvc.parallel import Processes, RayCluster, spread

PAPER = (
    *("evaluate", "paper", "--codec", "toy", "--controllers", "pi", "--levels", "10,30"),
    *("--keyint", "6", "--frames", "10"),
)


def square(number: int) -> int:
    return number * number


def square_slowly(number: int) -> int:
    time.sleep(0.3)
    return number * number


def die_the_first_time(marker: str) -> str:
    """Kills its own process unless the file ``marker`` says that it did so before."""
    path = Path(marker)
    if path.name.startswith("mortal") and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if path.name.startswith("doomed"):
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name


def refuse(number: int) -> int:
    raise RqlvcError(f"{number} is not wanted.")


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_take_few_more_items_than_they_work_on(processes: int) -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        for number in count(1):
            taken = number
            yield number

    results = spread(square, endless(), Processes(processes))
    found = dict(next(results) for _ in range(4))
    assert all(result == item * item for item, result in found.items())
    assert taken <= 4 + 2 * processes
    results.close()


def test_a_dead_process_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RqlvcError, match=r"a worker process died.*the same command goes on"):
        list(spread(die_the_first_time, [str(tmp_path / "doomed")], Processes(2)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--engine", "magic"), b"no engine"),
        (("--engine", "ray", "--jobs", "2"), b"--jobs is for processes"),
        (("--engine", "ray", "--address", "127.0.0.1:1"), b"there is no Ray cluster at 127.0.0.1:1"),
    ],
)
@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_a_sentence(
    rqlvc: CommandLine, tmp_path: Path, options: tuple[str, ...], said: bytes
) -> None:
    pytest.importorskip("ray")
    (tmp_path / "data").mkdir()
    make_clip(tmp_path / "data" / "clip.mkv", frames=4)
    result = rqlvc(*PAPER, "--data", tmp_path / "data", "--out", tmp_path / "run", *options)
    assert result.returncode != 0 and said in result.stderr and b"Traceback" not in result.stderr


@pytest.fixture(scope="module")
def cluster(rqlvc: CommandLine) -> Iterator[str]:
    """The address of a cluster of two machines with a CPU each, that can import what these tests can."""
    pytest.importorskip("ray")
    # In a process of its own: its machines inherit the environment, and nothing of it stays behind.
    script = (
        "import sys; from ray.cluster_utils import Cluster\n"
        "args = {'num_cpus': 1, 'object_store_memory': 100_000_000}\n"
        "cluster = Cluster(initialize_head=True, head_node_args=args); cluster.add_node(**args)\n"
        "cluster.wait_for_nodes(); print('at', cluster.address, flush=True); sys.stdin.read(); cluster.shutdown()"
    )
    environment = rqlvc.environment | {"RAY_USAGE_STATS_ENABLED": "0"}
    running = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )
    assert running.stdin is not None and running.stdout is not None
    line = next((line for line in running.stdout if line.startswith("at ")), "")
    assert line, "the cluster did not start"
    yield line.split()[1]
    running.stdin.close()
    running.wait(60)


@pytest.mark.slow
def test_two_machines_do_the_work(cluster: str) -> None:
    started = time.monotonic()
    results = dict(spread(square_slowly, range(20), RayCluster(cluster)))
    assert results == {number: number * number for number in range(20)}
    assert time.monotonic() - started < 60
    with pytest.raises(RqlvcError, match="7 is not wanted"):
        list(spread(refuse, [7], RayCluster(cluster)))


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_own_item(cluster: str, tmp_path: Path) -> None:
    markers = [str(tmp_path / name) for name in ("one", "mortal", "two", "doomed", "three")]
    results = dict(spread(die_the_first_time, markers, RayCluster(cluster)))
    assert results == {marker: Path(marker).name for marker in markers} | {markers[3]: None}


@pytest.mark.slow
def test_a_sweep_is_the_same_on_a_cluster(rqlvc: CommandLine, cluster: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    make_clip(tmp_path / "data" / "clip.mkv", frames=10)
    runs = {"ray": ("--engine", "ray", "--address", cluster), "here": ("--jobs", "2")}
    for name, options in runs.items():
        result = rqlvc(*PAPER, "--data", tmp_path / "data", "--out", tmp_path / name, *options)
        assert result.returncode == 0, result.stderr.decode()
    for name in ("results.md", "figures.json"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    files = {name: sorted((tmp_path / name / "encodes").iterdir()) for name in runs}
    assert [path.name for path in files["ray"]] == [path.name for path in files["here"]] != []
    for pair in zip(*files.values(), strict=True):
        there, here = (json.loads(path.read_text())["encode"] | {"seconds": 0} for path in pair)
        assert there == here


@pytest.mark.slow
def test_a_collection_is_the_same_on_a_cluster(rqlvc: CommandLine, cluster: str, tmp_path: Path) -> None:
    check_collections(rqlvc, tmp_path, "--engine", "ray", "--address", cluster)


def test_a_collection_is_the_same_from_two_processes(rqlvc: CommandLine, tmp_path: Path) -> None:
    check_collections(rqlvc, tmp_path, "--jobs", "2")


def check_collections(rqlvc: CommandLine, tmp_path: Path, *spread: str) -> None:
    (tmp_path / "data").mkdir()
    make_clip(tmp_path / "data" / "clip.mkv", width=96, height=80, frames=20)
    runs = {"there": spread, "here": ("--device", "cpu", "--threads", "1")}
    for name, options in runs.items():
        collect = ("collect", "--videos", tmp_path / "data", "--out", tmp_path / name, "--codec", "toy")
        result = rqlvc(*collect, "--samples", "150", *options)
        assert result.returncode == 0, result.stderr.decode()
    here, there = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in runs)
    assert len(here) > 2 and there == here
