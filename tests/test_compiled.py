"""Compiled loops and what is kept of them on disk."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import rqlvc

PROGRAM = """
import numpy as np
from rqlvc.rate.activity import activity
result = np.zeros((1, 1, 8), np.float32)
activity(np.full((8, 8), 3, np.float32), np.zeros((2, 4, 4), np.float32), result)
print(f"{result[0, 0, 0]:g}")
"""


def test_a_loop_is_compiled_anew_when_one_that_it_calls_has_changed(tmp_path: Path) -> None:
    package = tmp_path / "rqlvc"
    shutil.copytree(Path(rqlvc.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}

    def mean_of_threes() -> str:
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.check_output(command, env=environment | {"PYTHONPATH": str(tmp_path)}, text=True).strip()

    assert mean_of_threes() == "24"
    transform = package / "compiled.py"
    source = transform.read_text()
    assert "/ 16) / 2)" in source
    transform.write_text(source.replace("/ 16) / 2)", "/ 16))"))  # of the transform that activity calls
    assert mean_of_threes() == "96"
