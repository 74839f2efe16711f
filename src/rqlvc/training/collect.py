"""Collects what RQNet learns from: real encodes of real frames at its four quality levels, in varied contexts.

The unit of work is a *chain*: up to two dozen consecutive frames, coded along a random walk of the quality, as steady
as a controller's or anywhere, and most of them with a hierarchy around it. Each frame is coded five times from the same
state (a codec's state is a value): at the four levels, which are the targets, and at the chain's own, which it goes on
from. So references come at all qualities and far into a group of pictures. Some chains hold a cut, some an intra frame
in the middle, some skip or repeat frames.

A chain depends on nothing but the seed, its number, the clips and the codec. Results are written in shards of a few
chains, whole or not at all, so that a killed collection goes on where it was and gives the same samples.
"""

import contextlib
import functools
import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rqlvc.codec.protocol import QUALITY_MAX, Codec, State, carried_quality
from rqlvc.codec.registry import load_codec
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.metrics import mse_y
from rqlvc.media.frame import Frame, Plane
from rqlvc.media.reader import VIDEO_SUFFIXES, open_reader
from rqlvc.parallel import Engine, spread
from rqlvc.rate.activity import MAPS, activity_maps
from rqlvc.rate.hierarchy import GOP_WEIGHTS, pattern_offsets
from rqlvc.rate.protocol import FrameInfo, FrameResult
from rqlvc.rate.rqnet import QUALITY_LEVELS, context_scalars, padded_pixels

FORMAT = "rqlvc-rates-3"
MANIFEST = "manifest.json"
CHAINS_PER_SHARD = 8
MAP_STEPS = 10
"""Maps are stored in steps of a tenth: 10 % of a magnitude."""

CROP = 224
SMALLEST = 64
"""Luma samples on each side, below which a clip is left out."""
HALVED_SHARE = 0.3
"""Chains from pictures at half size: their texture is finer."""
CHAIN_LENGTHS = (2, 24)
CUT_SHARE = 0.3
INTRA_SHARE = 0.07
"""Frames within a chain that are coded intra."""
STRIDES, STRIDE_SHARES = (1, 2, 3, 0), (0.77, 0.12, 0.04, 0.07)
"""Frames from one to the next: 0 repeats a frame."""
STEADY_SHARE = 0.6
"""Chains whose quality moves as little as that of a controller that keeps it steady; that of the others is anywhere."""
STEADY_STEP, QUALITY_STEP = 0.5, 4.0
"""Standard deviations of the walk's steps, of steady chains and of others."""
QUALITY_JUMP_SHARE = 0.12
"""Steps that go anywhere instead, in chains that are not steady."""
HIERARCHY_SHARE = 0.75
"""Chains whose inter frames follow the hierarchy of controllers' miniGOPs around the walk."""


class Sample(NamedTuple):
    """One frame in one context."""

    maps: npt.NDArray[np.uint8]
    """(23, h, w) in steps of a tenth."""
    scalars: tuple[float, ...]
    bits: tuple[int, ...]
    """At the four levels, from the same state."""
    mse: tuple[float, ...]
    """Luma distortion at the four levels."""
    pixels: int
    """Luma pixels after padding."""
    clip: int
    """Which of the manifest's clips the frame is from."""
    last_clip: int
    """Which the frame before is from: another after a cut."""


@dataclass(frozen=True, slots=True)
class Collection:
    """What a folder holds so far."""

    samples: int
    made: int
    """Of these, made by this call."""
    bytes: int


@dataclass(frozen=True, slots=True)
class _Source:
    path: Path
    frames: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Workers:
    """Who collects instead of this process. ``weights`` are the codec's, where not those that come with it."""

    engine: Engine
    weights: Path | None = None


@dataclass(frozen=True, slots=True)
class _ShardOrder:
    """A shard for another process."""

    sources: tuple[_Source, ...]
    codec: str
    identity: str
    weights: Path | None
    seed: int
    shard: int


@dataclass(frozen=True, slots=True)
class _Picture:
    frame: Frame
    clip: int


def collect(
    videos: Path,
    out: Path,
    codec: Codec,
    *,
    samples: int = 16000,
    minutes: float | None = None,
    seed: int = 0,
    resume: bool = False,
    workers: Workers | None = None,
    on_shard: Callable[[Collection], None] = lambda collection: None,
) -> Collection:
    """Fill the folder ``out`` with ``samples`` samples (or a few more) of ``codec``'s bits on the clips of ``videos``.

    Stops after the first new shard that ends past ``minutes``. ``resume`` goes on with what ``out`` holds. About 12 kB
    a sample. ``workers`` do the encodes, on CPUs with one thread each, and ``codec`` only says with what; the
    samples are those of one thread here. Raises :class:`RqlvcError` when there is nothing to collect from, when ``out``
    holds a collection and ``resume`` is not given, and when it was made with another codec, seed or set of clips.
    """
    started = time.monotonic()
    sources = _sources(videos)
    _open_folder(out, _manifest(codec, seed, sources), resume)
    shard, done = 0, Collection(0, 0, 0)
    missing = (number for number in itertools.count() if not _shard_path(out, number).exists())
    with contextlib.closing(
        _shards_here(sources, codec, seed, missing)
        if workers is None
        else _shards_there(sources, codec, seed, missing, workers)
    ) as made:
        while done.samples < samples:
            path = _shard_path(out, shard)
            is_new = not path.exists()
            if is_new:
                if minutes is not None and done.made and time.monotonic() - started > 60 * minutes:
                    break
                _write_shard(path, next(made))
            count = _count(path)
            done = Collection(done.samples + count, done.made + is_new * count, done.bytes + path.stat().st_size)
            shard += 1
            on_shard(done)
    return done


def _shard_path(out: Path, shard: int) -> Path:
    return out / f"samples-{shard:05d}.npz"


def _shards_here(
    sources: Sequence[_Source], codec: Codec, seed: int, shards: Iterable[int]
) -> Generator[list[Sample], None, None]:
    for shard in shards:
        yield _shard(sources, codec, seed, shard)


def _shards_there(
    sources: Sequence[_Source], codec: Codec, seed: int, shards: Iterable[int], workers: Workers
) -> Generator[list[Sample], None, None]:
    """In order, though they come as they are done: a collection that is stopped has no gaps."""
    orders, numbers = itertools.tee(
        _ShardOrder(tuple(sources), codec.name, codec.identity, workers.weights, seed, shard) for shard in shards
    )
    early: dict[int, list[Sample]] = {}
    with contextlib.closing(spread(_run_shard, orders, workers.engine)) as results:
        for order in numbers:
            while order.shard not in early:
                done, samples = next(results)
                if samples is None:
                    raise RqlvcError("workers died again and again, perhaps for want of memory: go on with --resume.")
                early[done.shard] = samples
            yield early.pop(order.shard)


def _run_shard(order: _ShardOrder) -> list[Sample]:
    codec = _codec(order.codec, order.weights)
    if codec.identity != order.identity:
        raise RqlvcError(
            f"{socket.gethostname()} has model {codec.identity} of the codec {order.codec}, not {order.identity}: "
            "install the same version on all machines."
        )
    return _shard(order.sources, codec, order.seed, order.shard)


@functools.lru_cache(maxsize=1)
def _codec(name: str, weights: Path | None) -> Codec:
    return load_codec(name, device="cpu", threads=1, weights=weights)


def _shard(sources: Sequence[_Source], codec: Codec, seed: int, shard: int) -> list[Sample]:
    chains = range(shard * CHAINS_PER_SHARD, (shard + 1) * CHAINS_PER_SHARD)
    return [sample for chain in chains for sample in _chain(sources, codec, seed, chain)]


def _sources(videos: Path) -> list[_Source]:
    """The clips of a folder that are large enough."""
    if not videos.is_dir():
        raise RqlvcError(f"{videos} is not a folder: give one that holds video clips.")
    sources = []
    for path in sorted(videos.iterdir()):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            with open_reader(str(path)) as reader:
                frames = reader.frame_count or sum(1 for _ in reader)
                size = reader.properties.width, reader.properties.height
            if min(size) >= SMALLEST:
                sources.append(_Source(path, frames, *size))
    if not sources:
        raise RqlvcError(f"{videos} holds no video of at least {SMALLEST}x{SMALLEST}: give a folder that does.")
    return sources


def _manifest(codec: Codec, seed: int, sources: Sequence[_Source]) -> dict[str, Any]:
    """All that the samples depend on."""
    return {
        "format": FORMAT,
        "codec": codec.name,
        "identity": codec.identity,
        "seed": seed,
        "levels": list(QUALITY_LEVELS),
        "clips": [source.path.name for source in sources],
    }


def _open_folder(out: Path, manifest: dict[str, Any], resume: bool) -> None:
    path = out / MANIFEST
    if path.exists():
        if not resume:
            raise RqlvcError(f"{out} already holds a collection: go on with --resume, or choose another folder.")
        if read_manifest(out) != manifest:
            raise RqlvcError(
                f"{out} was collected with another codec model, seed or set of clips: choose another folder."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RqlvcError(f"{out} is not an empty folder: choose another one for the collection.")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest, indent=1))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a collection was made of. Raises :class:`RqlvcError` when ``folder`` holds none of this version."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise RqlvcError(f"{folder} holds no collection that can be read: make one with 'rqlvc collect'.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RqlvcError(f"the collection in {folder} is of another version: make a new one with 'rqlvc collect'.")
    return manifest


def _write_shard(path: Path, samples: Sequence[Sample]) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        np.savez_compressed(
            file,
            maps=np.concatenate([sample.maps.reshape(-1) for sample in samples]),
            shapes=np.array([sample.maps.shape[1:] for sample in samples], np.int32),
            scalars=np.array([sample.scalars for sample in samples], np.float32),
            bits=np.array([sample.bits for sample in samples], np.int64),
            mse=np.array([sample.mse for sample in samples], np.float32),
            pixels=np.array([sample.pixels for sample in samples], np.int64),
            clip=np.array([sample.clip for sample in samples], np.int32),
            last_clip=np.array([sample.last_clip for sample in samples], np.int32),
        )
    os.replace(temporary, path)


def _count(path: Path) -> int:
    with np.load(path) as shard:
        return len(shard["pixels"])


def read_samples(folder: Path) -> list[Sample]:
    """Every sample of a collection, in the order of their making. Raises :class:`RqlvcError` when there are none."""
    read_manifest(folder)
    samples: list[Sample] = []
    for path in sorted(folder.glob("samples-*.npz")):
        try:
            with np.load(path) as shard:
                columns = {name: shard[name] for name in shard.files}
        except (OSError, ValueError) as error:
            raise RqlvcError(f"{path} is broken ({error}): delete it and collect with --resume.") from error
        ends = np.cumsum(MAPS * columns["shapes"].prod(axis=1))
        for index, maps in enumerate(np.split(columns["maps"], ends[:-1])):
            samples.append(
                Sample(
                    maps.reshape(MAPS, *columns["shapes"][index]),
                    tuple(columns["scalars"][index].tolist()),
                    tuple(columns["bits"][index].tolist()),
                    tuple(columns["mse"][index].tolist()),
                    int(columns["pixels"][index]),
                    int(columns["clip"][index]),
                    int(columns["last_clip"][index]),
                )
            )
    if not samples:
        raise RqlvcError(f"{folder} holds no samples yet: run 'rqlvc collect' for longer.")
    return samples


def _chain(sources: Sequence[_Source], codec: Codec, seed: int, number: int) -> list[Sample]:
    """The samples of chain ``number``, one a frame."""
    rng = np.random.default_rng([seed, number])
    walk = float(rng.uniform(0, QUALITY_MAX))
    steady = rng.random() < STEADY_SHARE
    hierarchy = pattern_offsets(GOP_WEIGHTS) if rng.random() < HIERARCHY_SHARE else (0.0,)
    samples: list[Sample] = []
    state: State | None = None
    before: _Picture | None = None
    reference: Frame | None = None
    last: FrameResult | None = None
    position = 0
    for index, picture in enumerate(_pictures(sources, rng)):
        frame = picture.frame
        if index == 0 or rng.random() < INTRA_SHARE:
            state, reference = None, None
        maps = (activity_maps(frame, reference) * MAP_STEPS).round().clip(0, 255).astype(np.uint8)
        targets = [codec.encode(frame, level, state) for level in QUALITY_LEVELS]
        samples.append(
            Sample(
                maps.transpose(2, 0, 1),
                context_scalars(reference is None, last),
                tuple(8 * len(coded.payload) for coded in targets),
                tuple(mse_y(frame, coded.reconstruction) for coded in targets),
                padded_pixels(frame.width, frame.height),
                picture.clip,
                picture.clip if before is None else before.clip,
            )
        )
        position = 0 if reference is None else position + 1
        offset = hierarchy[(position - 1) % len(hierarchy)] if position else 0.0
        quality = min(max(walk + offset, 0.0), QUALITY_MAX)
        coded = codec.encode(frame, quality, state)
        info = FrameInfo(index, reference is None, position, frame.width * frame.height)
        last = FrameResult(info, carried_quality(quality), 8 * len(coded.payload), mse_y(frame, coded.reconstruction))
        state, reference, before = coded.state, coded.reconstruction, picture
        jump = not steady and rng.random() < QUALITY_JUMP_SHARE
        step = rng.normal(0, STEADY_STEP if steady else QUALITY_STEP)
        walk = float(rng.uniform(0, QUALITY_MAX) if jump else walk + step)
        walk = min(max(walk, 0.0), QUALITY_MAX)
    return samples


def _pictures(sources: Sequence[_Source], rng: np.random.Generator) -> list[_Picture]:
    """The frames of a chain, all of one size, from one clip or with a cut to a second one."""
    length = int(rng.integers(CHAIN_LENGTHS[0], CHAIN_LENGTHS[1] + 1))
    lengths = [length]
    if rng.random() < CUT_SHARE:
        cut = int(rng.integers(1, length))
        lengths = [cut, length - cut]
    clips = [int(rng.integers(len(sources))) for _ in lengths]
    halve = rng.random() < HALVED_SHARE
    smallest = min(min(sources[clip].width, sources[clip].height) for clip in clips)
    scale = 2 if halve and smallest >= 2 * SMALLEST else 1
    sides = [
        min(CROP, *(side // scale for side in all_sides)) // 16 * 16
        for all_sides in ([sources[c].height for c in clips], [sources[c].width for c in clips])
    ]
    pictures = []
    for clip, count in zip(clips, lengths, strict=True):
        frames = _read(sources[clip], count, int(rng.choice(STRIDES, p=STRIDE_SHARES)), rng)
        top, left = (
            int(rng.integers(0, (side // scale - size) // 2 + 1)) * 2
            for side, size in zip((sources[clip].height, sources[clip].width), sides, strict=True)
        )
        for frame in frames:
            scaled = frame if scale == 1 else _halved(frame)
            pictures.append(_Picture(_cropped(scaled, top, left, *sides), clip))
    return pictures


def _read(source: _Source, count: int, stride: int, rng: np.random.Generator) -> list[Frame]:
    """``count`` frames of a clip from a random place on, ``stride`` apart; fewer where the clip is too short."""
    span = (count - 1) * stride + 1
    if span > source.frames:
        stride, span = min(stride, 1), min(count, source.frames)
    start = int(rng.integers(0, source.frames - span + 1))
    with open_reader(str(source.path), start=start, frames=span) as reader:
        frames = list(reader)
    return [frames[0]] * count if stride == 0 else frames[::stride]


def _halved(frame: Frame) -> Frame:
    """The picture at half size, by means of 2x2 samples."""

    def half(plane: Plane) -> Plane:
        even = plane[: plane.shape[0] // 2 * 2, : plane.shape[1] // 2 * 2].astype(np.uint16)
        total = even[0::2, 0::2] + even[0::2, 1::2] + even[1::2, 0::2] + even[1::2, 1::2]
        return ((total + 2) // 4).astype(np.uint8)

    return replace(frame, y=half(frame.y), u=half(frame.u), v=half(frame.v))


def _cropped(frame: Frame, top: int, left: int, height: int, width: int) -> Frame:
    """A cut-out of even place and size."""

    def cut(plane: Plane, scale: int) -> Plane:
        rows, columns = slice(top // scale, (top + height) // scale), slice(left // scale, (left + width) // scale)
        return np.ascontiguousarray(plane[rows, columns])

    return replace(frame, y=cut(frame.y, 1), u=cut(frame.u, 2), v=cut(frame.v, 2))
