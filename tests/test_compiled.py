"""Compiled loops and what is kept of them on disk."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import rqlvc

PROGRAM = """
import numpy as np
from rqlvc.media.frame import Frame
from rqlvc.rate.activity import LUMA_UNIT, activity_maps
luma, chroma = np.full((16, 16), 3, np.uint8), np.zeros((8, 8), np.uint8)
print(f"{LUMA_UNIT * activity_maps(Frame(luma, chroma, chroma), None)[0, 0, 0]:.3g}")
"""


def test_a_loop_is_compiled_anew_when_one_that_it_calls_has_changed(tmp_path: Path) -> None:
    package = tmp_path / "rqlvc"
    shutil.copytree(Path(rqlvc.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}

    def mean_of_threes() -> str:
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.check_output(command, env=environment | {"PYTHONPATH": str(tmp_path)}, text=True).strip()

    assert mean_of_threes() == "3"
    transform = package / "compiled.py"
    source = transform.read_text()
    assert "/ 16) / 2)" in source
    transform.write_text(source.replace("/ 16) / 2)", "/ 16))"))  # of the transform that they call
    assert mean_of_threes() == "12"


MOVED = """
import torch
from rqlvc.codec.interpolation import compensate, extend
from rqlvc.codec.planes import Planes
from rqlvc.media.frame import Frame
from rqlvc.rate.rqnet import load_rqnet
pictures = extend([Planes(torch.rand(1, 1, 32, 32), torch.rand(1, 2, 16, 16))])
compensate(pictures, torch.zeros(1, 3, 4, 4), True)
planes = [torch.zeros(side, side, dtype=torch.uint8).numpy() for side in (32, 16, 16)]
load_rqnet().predict(Frame(*planes), Frame(*planes), None)
"""


def test_another_process_compiles_nothing_again(tmp_path: Path) -> None:
    """Loops that compute with lanes are found on disk as others are."""

    def kept() -> set[Path]:
        subprocess.run([sys.executable, "-c", MOVED], env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}, check=True)
        return {path for path in tmp_path.rglob("*") if path.is_file()}

    first = kept()
    assert first and kept() == first
