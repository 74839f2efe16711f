"""Digests of the sources that encodes depend on: what has not changed need not be coded again."""

import ast
import functools
import hashlib
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path

import rqlvc.codec
import rqlvc.compiled
import rqlvc.evaluation.anchors
import rqlvc.first_pass
import rqlvc.lanes
import rqlvc.rate
from rqlvc.rate.registry import CONTROLLERS, make_controller
from rqlvc.rate.rqnet import DEFAULT_WEIGHTS

_RATE = Path(rqlvc.rate.__path__[0])
_PREDICTION = (_RATE / "rqnet.py",)
"""What makes the points that controllers hear."""
_COMPILED = tuple(Path(inspect.getfile(module)) for module in (rqlvc.compiled, rqlvc.lanes))
"""What the codec's loops are made with."""
_LEVELS = _RATE / "constant.py"
"""What makes the hierarchy of levels."""
_TWO_PASSES = (_RATE / "two_pass.py", Path(rqlvc.first_pass.__file__), _LEVELS)


@functools.cache  # once, as all here: the sources may be edited while a long run uses the ones that it loaded
def codec_digest() -> str:
    """Of the codec: an encoder may choose differently with the same weights."""
    return _digest([*Path(rqlvc.codec.__path__[0]).rglob("*.py"), *_COMPILED])


@functools.cache
def anchor_digest() -> str:
    """Of what runs the conventional encoders."""
    return _digest([Path(rqlvc.evaluation.anchors.__file__)])


@functools.cache
def controller_digest(name: str) -> str:
    """Of what decides: the controller's own source and all of the rate control that it imports; RQNet where it is used.
    ``name`` may also be that of an encode without a controller, which may hear of predictions all the same."""
    return _digest(_with_imports(_used(name)))


def _used(name: str) -> Iterable[Path]:
    """What it uses itself."""
    heard = (*_PREDICTION, *([DEFAULT_WEIGHTS] if DEFAULT_WEIGHTS.exists() else []))
    known = {"constant": heard, "hierarchical": (_LEVELS,), "two-pass": _TWO_PASSES}
    if name in known or name not in CONTROLLERS:
        return known.get(name, ())
    controller = make_controller(name, bitrate=1.0, framerate=1.0, pixels=1)
    hears = CONTROLLERS[name].points in ("optional", "predicted")
    return (Path(inspect.getfile(type(controller))), *(heard if hears else ()))


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _with_imports(paths: Iterable[Path]) -> set[Path]:
    """``paths`` and all modules of the rate control that they import, and those that these import."""
    found: set[Path] = set()
    open_ones = list(paths)
    while open_ones:
        path = open_ones.pop()
        if path not in found:
            found.add(path)
            open_ones += _imported(path) if path.suffix == ".py" else ()
    return found


def _imported(path: Path) -> Iterator[Path]:
    """Modules of the rate control that a source imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                module = _RATE / f"{name.removeprefix('rqlvc.rate.')}.py"
                if name.startswith("rqlvc.rate.") and module.exists():
                    yield module
