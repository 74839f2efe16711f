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
