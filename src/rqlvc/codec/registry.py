"""Codecs by name: whatever is registered under the entry point group ``rqlvc.codecs``.

A package plugs its codec in with two lines of its ``pyproject.toml``::

    [project.entry-points."rqlvc.codecs"]
    mine = "my_package:MyCodec"

where ``my_package.MyCodec(device="auto", threads=None)`` gives a :class:`rqlvc.codec.protocol.Codec` whose ``name`` is
``"mine"``: files carry that name, and the decoder asks this registry for it. A factory with a third parameter,
``weights``, can be given a file of other weights (``--model``).
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from rqlvc.codec.protocol import Codec
from rqlvc.errors import RqlvcError

ENTRY_POINT_GROUP = "rqlvc.codecs"
DEFAULT_CODEC = "rqlvc"


@dataclass(frozen=True, slots=True)
class CodecEntry:
    """A registered codec, not loaded: ``target`` is ``module:factory``, ``package`` the distribution that brings it."""

    name: str
    target: str
    package: str


def available_codecs() -> list[CodecEntry]:
    """Every registered codec by name, without importing any of them."""
    return [CodecEntry(point.name, point.value, _package(point)) for _, point in sorted(_registered().items())]


def load_codec(
    name: str = DEFAULT_CODEC, *, device: str = "auto", threads: int | None = None, weights: Path | None = None
) -> Codec:
    """The codec registered as ``name``, on ``device`` (auto, cpu or cuda) with ``threads`` CPU threads (None: all).

    ``weights`` is a file of trained weights to use instead of those that come with the codec. Raises
    :class:`RqlvcError` when the name is unknown, when the plug-in cannot be loaded or takes no weights, or when what it
    gives is not a codec of that name.
    """
    registered = _registered()
    if name not in registered:
        known = ", ".join(sorted(registered)) or "none: install the package with pip"
        raise RqlvcError(
            f"there is no codec called '{name}' here (known: {known}). Install the package that brings it."
        )
    point = registered[name]
    try:
        factory = point.load()
        if weights is None:
            codec = factory(device=device, threads=threads)
        elif _takes_weights(factory):
            codec = factory(device=device, threads=threads, weights=weights)
        else:
            raise RqlvcError(f"codec '{name}' ({point.value}) takes no weights file: leave out {weights}.")
    except RqlvcError:
        raise
    except Exception as error:  # a plug-in is other people's code and may fail in any way
        raise RqlvcError(
            f"codec '{name}' ({point.value} of {_package(point)}) could not be loaded: {type(error).__name__}: {error}"
        ) from error
    missing = [part for part in ("name", "identity", "encode", "decode") if not hasattr(codec, part)]
    if missing:
        raise RqlvcError(f"codec '{name}' ({point.value}) lacks {', '.join(missing)}: see rqlvc.codec.protocol.Codec.")
    if codec.name != name:
        raise RqlvcError(f"the codec registered as '{name}' calls itself '{codec.name}': the two names must agree.")
    loaded: Codec = codec
    return loaded


def _takes_weights(factory: Callable[..., Codec]) -> bool:
    parameters = inspect.signature(factory).parameters
    return "weights" in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _registered() -> dict[str, EntryPoint]:
    # An editable install beside a normal one lists a name twice; the first one found is the one Python imports.
    return {point.name: point for point in reversed(tuple(entry_points(group=ENTRY_POINT_GROUP)))}


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
