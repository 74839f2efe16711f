"""What buffers, changes of rate and sizes do on real sequences, beside what docs/rate-control.md says of them.

    python benchmarks/buffers.py --data DIR --out RUN [--show buffers,changes,sizes,repeats,lookahead]
        [--sequences a,b,c]

``buffers``: every sequence at the bitrates of four constant levels, at a constant rate with buffers of 0.25, 0.5, 1 and
2 seconds: violations as ``rqlvc info --verify-buffer`` finds them, skipped frames, error of the average rate; and what
is refused, because not even the lowest level of the first frame fits the buffer. The others take clips of 12 seconds,
176x144 at 25 fps (glue.py): each sequence forwards and backwards, and the sequences in their order, three glued
together. ``changes``: a constant rate that halves or doubles after 5.5 s, with a buffer of a second: all windows of a
second that begin half a second later or more. ``sizes``: target sizes of glued clips. ``repeats``: whether a glued clip
whose rate halves, coded again, gives the same bytes. ``lookahead``: glued clips at four levels with the hierarchy, with
the usual look-ahead and without: BD-rate, and what it costs in time.

Results are kept in RUN under a digest of the clip, the model, the sources and the settings: a stopped run goes on, a
rerun pays only for what is new, and runs of three sequences each add up to one of all. A clip of 12
seconds takes some 12 seconds on one core: all changes 20 minutes, sizes 4.
"""

import argparse
import functools
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import rqlvc.encoder
import rqlvc.rate
from glue import FRAME_RATE, SIZE, glue
from rqlvc.codec.protocol import Codec
from rqlvc.codec.registry import load_codec
from rqlvc.control import RateTarget
from rqlvc.encoder import DEFAULT_KEYINT
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.buffer_check import check_buffer
from rqlvc.evaluation.digests import codec_digest
from rqlvc.evaluation.metrics import bd_rate
from rqlvc.evaluation.sweep import file_digest, find_sequences
from rqlvc.media.container import ContainerReader
from rqlvc.rate.allocation import WINDOW
from rqlvc.rate.buffer import INITIAL, Buffer
from rqlvc.rate.constant import Constant, Hierarchical
from rqlvc.rate.hierarchy import LOOKAHEAD
from rqlvc.transcode import encode_file

LEVELS = (16.0, 28.0, 40.0, 52.0)
SECONDS = (0.25, 0.5, 1.0, 2.0)
"""Of the channel, in a buffer."""
PARTS, JOINT = 3, "+"
"""Sequences in a glued clip, and what joins their names."""
CLIP_SECONDS = 12.0
END_FRAMES = WINDOW
KEYINTS = (None, FRAME_RATE, DEFAULT_KEYINT)
"""Of clips whose rate changes: as with --low-latency; one intra frame in each window; the usual."""
CHANGE_TIME, CHANGE_FACTORS, CHANGE_SECONDS = Fraction(11, 2), (0.5, 2.0), 1.0
"""When the rate changes, to which part of what it was, and the buffer."""
SETTLE_SECONDS, NEAR_PERCENT = 0.5, 10.0
"""After a change, until windows of a second are meant to be this near to the new rate."""
BITS_PER_PIXEL = (0.04, 0.08, 0.16, 0.32)
"""Of target sizes."""
CHANGE_BITS_PER_PIXEL = 0.1
"""Before a change."""
SIZE_PERCENT = 98.0
"""Of a target size that is meant to be used."""
SHOWN = ("buffers", "changes", "sizes", "repeats", "lookahead")


@dataclass(frozen=True, slots=True)
class Job:
    """One encode: to a ``size`` in bytes where there is one, else at a ``bitrate`` under a buffer of so many
    ``seconds``, else at a constant ``level``."""

    path: str
    digest: str
    frames: int | None
    level: float | None = None
    bitrate: float | None = None
    seconds: float | None = None
    change: float | None = None
    """The factor of the bitrate from ``CHANGE_TIME`` on."""
    keyint: int | None = DEFAULT_KEYINT
    size: int | None = None
    again: bool = False
    """Of two encodes that are the same, the second."""
    lookahead: int | None = None
    """At a level: with the hierarchy around it, and so many frames seen ahead."""

    @property
    def name(self) -> str:
        return Path(self.path).stem

    @property
    def told(self) -> str:
        parts = {
            "level": self.level,
            "change": self.change,
            "buffer": self.seconds,
            "bytes": self.size,
            "keyint": self.keyint,
            "look-ahead": self.lookahead,
        }
        told = [f"{name} {value:g}" for name, value in parts.items() if value is not None]
        return ", ".join([self.name, *told, *["low latency"] * (self.keyint is None), *["again"] * self.again])


@dataclass(frozen=True, slots=True)
class Result:
    bitrate: float
    psnr_yuv: float
    skipped: int
    recoded: int
    violations: int
    bits: Sequence[int]
    """Of every frame."""
    digest: str
    """Of the coded file."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Refused:
    """No encode: not even the lowest level of the first frame fits the buffer."""

    reason: str


Outcomes = Mapping[Job, Result | Refused]


@functools.lru_cache(maxsize=1)
def codec() -> Codec:
    return load_codec("rqlvc", device="cpu", threads=1)


def run_job(job: Job, out: Path) -> Result | Refused:
    coded = out / f"{job_key(job)}.mkv"
    buffer = None if job.bitrate is None or job.seconds is None else Buffer(job.bitrate, job.bitrate * job.seconds)
    control: Constant | RateTarget
    schedule: tuple[tuple[Fraction, float], ...] = ()
    if job.bitrate is not None and job.change is not None:
        schedule = ((CHANGE_TIME, job.change * job.bitrate),)
    if job.size is not None:
        control = RateTarget(size=job.size)
    elif job.bitrate is not None:
        control = RateTarget(bitrate=job.bitrate, buffer=buffer, schedule=schedule)
    else:
        control = (Constant if job.lookahead is None else Hierarchical)(job.level or 0.0)
    ahead = LOOKAHEAD if job.lookahead is None else job.lookahead
    ahead = ahead if job.keyint else 0  # for low latency
    started = time.perf_counter()
    try:
        summary = encode_file(
            *(job.path, str(coded), codec(), control),
            keyint=job.keyint,
            lookahead=ahead,
            frames=job.frames,
            overwrite=True,
        )
    except RqlvcError as error:
        if buffer is None:
            raise
        return Refused(str(error))
    seconds = time.perf_counter() - started
    with ContainerReader(str(coded)) as container:
        packets = [(packet.time, 8 * len(packet.payload)) for packet in container]
    violations = 0
    if buffer is not None:
        violations = len(check_buffer(packets, buffer.maxrate, buffer.size, INITIAL, schedule).violations)
    digest = file_digest(coded)
    coded.unlink()
    bits = tuple(bits for _, bits in packets)
    skipped, recoded = summary.skipped_frames, summary.recoded_frames
    return Result(summary.bitrate, summary.psnr_yuv, skipped, recoded, violations, bits, digest, seconds)


@functools.cache
def source_digest() -> str:
    digest = hashlib.sha256(codec_digest().encode())
    encoder = Path(rqlvc.encoder.__file__)
    for path in [
        encoder,
        encoder.with_name("control.py"),
        encoder.with_name("transcode.py"),
        *sorted(Path(rqlvc.rate.__path__[0]).glob("*.py")),
    ]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def job_key(job: Job) -> str:
    fields: dict[str, Any] = asdict(replace(job, path="")) | {"model": codec().identity, "sources": source_digest()}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:24]


def load(path: Path) -> Result | Refused:
    fields = json.loads(path.read_text())
    return Refused(**fields) if "reason" in fields else Result(**fields)


def results_of(jobs: Sequence[Job], out: Path, processes: int) -> Outcomes:
    """From ``out`` where they are there; made and kept there where not."""
    known = {job: out / f"{job_key(job)}.json" for job in jobs}
    found = {job: load(path) for job, path in known.items() if path.exists()}
    for done, (job, result) in enumerate(
        made([job for job in jobs if job not in found], out, processes), len(found) + 1
    ):
        partial = known[job].with_suffix(".partial")
        partial.write_text(json.dumps(asdict(result)))
        partial.replace(known[job])
        found[job] = result
        print(f"{done}/{len(jobs)} {job.told}", file=sys.stderr)
    return {job: found[job] for job in jobs}


def made(jobs: Sequence[Job], out: Path, processes: int) -> Iterator[tuple[Job, Result | Refused]]:
    if processes == 1 or len(jobs) < 2:
        yield from ((job, run_job(job, out)) for job in jobs)
        return
    with ProcessPoolExecutor(min(processes, len(jobs)), get_context("spawn")) as pool:
        futures = {pool.submit(run_job, job, out): job for job in jobs}
        try:
            yield from ((futures[future], future.result()) for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def long_clips(paths: Sequence[Path], out: Path) -> list[Job]:
    """Each sequence alone, then in threes, ``out`` holding the clips: jobs that say nothing of a rate yet."""
    jobs = []
    for group in [
        *([path] for path in paths),
        *(paths[start : start + PARTS] for start in range(0, len(paths), PARTS)),
    ]:
        clip = out / f"{JOINT.join(path.stem for path in group)}_{CLIP_SECONDS:g}s.y4m"
        if not clip.exists():
            glue(group, clip, SIZE, CLIP_SECONDS / len(group), FRAME_RATE)
        jobs.append(Job(str(clip), file_digest(clip), None))
    return jobs


def rate_of(bits_per_pixel: float) -> float:
    """Bits per second of a glued clip."""
    return bits_per_pixel * SIZE.width * SIZE.height * FRAME_RATE


def changing(clips: Sequence[Job]) -> list[Job]:
    bitrate = rate_of(CHANGE_BITS_PER_PIXEL)
    return [
        replace(clip, bitrate=bitrate, seconds=CHANGE_SECONDS, change=factor, keyint=keyint)
        for keyint in KEYINTS
        for clip in clips
        for factor in CHANGE_FACTORS
    ]


def windows(job: Job, result: Result) -> np.ndarray:
    """Deviation in percent from the new rate of every window of a second that begins late enough after a change."""
    assert job.bitrate is not None and job.change is not None
    first = math.ceil((CHANGE_TIME + Fraction(SETTLE_SECONDS)) * FRAME_RATE)
    sums = np.convolve(result.bits, np.ones(FRAME_RATE), "valid")[first:]
    return np.asarray(100 * np.abs(sums / (job.bitrate * job.change) - 1))


def table(head: str, rows: Sequence[str]) -> str:
    return "\n".join([f"| {head} |", "| --- " * (head.count("|") + 1) + "|", *(f"| {row} |" for row in rows)])


def accepted(outcomes: Outcomes) -> dict[Job, Result]:
    return {job: outcome for job, outcome in outcomes.items() if isinstance(outcome, Result)}


def refusals(outcomes: Outcomes) -> list[str]:
    """A line for each."""
    refused = ((job, outcome) for job, outcome in outcomes.items() if isinstance(outcome, Refused))
    return [f"{job.told}: refused: {outcome.reason}" for job, outcome in refused]


def buffers_report(outcomes: Outcomes) -> str:
    """A row per buffer size, then the combinations that did not go as asked."""
    lines, failing = [], []
    results = accepted(outcomes)
    for seconds in SECONDS:
        refused = sum(job.seconds == seconds for job in outcomes if job not in results)
        rows = [(job, result) for job, result in results.items() if job.seconds == seconds]
        if not rows:
            lines.append(f"{seconds:g} | 0 | {refused} | - | - | - | - | -")
            continue
        errors = [100 * abs(result.bitrate / job.bitrate - 1) for job, result in rows if job.bitrate]
        again = 100 * sum(result.recoded for _, result in rows) / sum(len(result.bits) for _, result in rows)
        violations, skipped = (sum(getattr(each, name) for _, each in rows) for name in ("violations", "skipped"))
        lines.append(
            f"{seconds:g} | {len(rows)} | {refused} | {violations} | {skipped} | {again:.2f} | {fmean(errors):.2f} "
            f"| {max(errors):.2f}"
        )
    for job, result in results.items():
        error = 0.0 if job.bitrate is None else 100 * (result.bitrate / job.bitrate - 1)
        if result.violations or result.skipped or abs(error) > 2:
            failing.append(
                f"{job.name}, level {job.level:g}, {job.seconds:g} s: error {error:+.2f} %, {result.violations} "
                f"violations, {result.skipped} of {len(result.bits)} frames skipped"
            )
    head = "buffer s | encodes | refused | violations | skipped frames | coded again % | mean error % | worst error %"
    return "\n".join([table(head, lines), *failing, *refusals(outcomes)])


def changes_report(outcomes: Outcomes) -> str:
    """A row per kind of clip, intra frames and factor, then the encodes whose windows are not all near.

    By its end a file pays what it owes or has saved, which a stream that goes on does not: windows that reach into its
    last frames are left out of the last columns.
    """
    kinds: dict[str, list[tuple[Job, Result]]] = {}
    for job, result in accepted(outcomes).items():
        clip = "glued" if JOINT in job.name else "one scene"
        intra = "only the first" if job.keyint is None else f"every {job.keyint}"
        kinds.setdefault(f"{clip} | {intra} | × {job.change:g}", []).append((job, result))
    rows, failing = [], []
    for kind, members in kinds.items():
        found = [windows(*member) for member in members]
        near = [np.mean(each <= NEAR_PERCENT) for each in found]
        going_on = [each[:-END_FRAMES] for each in found]
        violations, skipped = (sum(getattr(each, name) for _, each in members) for name in ("violations", "skipped"))
        rows.append(
            f"{kind} | {len(members)} | {violations} | {skipped} | {100 * fmean(near):.0f} "
            f"| {max(each.max() for each in found):.0f} "
            f"| {100 * fmean(np.mean(each <= NEAR_PERCENT) for each in going_on):.0f} "
            f"| {max(each.max() for each in going_on):.0f}"
        )
        failing += [
            f"{job.told}: {100 * share:.0f} % of windows, worst {each.max():.0f} %"
            for (job, _), share, each in zip(members, near, found, strict=True)
            if share < 1
        ]
    head = "clip | intra frames | rate | encodes | violations | skipped frames | windows within 10 %, % | worst % "
    lines = [table(head + "| before the end: within 10 %, % | worst %", rows), *failing, *refusals(outcomes)]
    return "\n".join(lines)


def sizes_report(outcomes: Outcomes) -> str:
    rows, results = [], accepted(outcomes)
    for bits_per_pixel in BITS_PER_PIXEL:
        size = size_of(bits_per_pixel)
        found = [100 * sum(result.bits) / (8 * size) for job, result in results.items() if job.size == size]
        rows.append(
            f"{size} | {bits_per_pixel:g} | {len(found)} | {sum(used > 100 for used in found)} "
            f"| {sum(used < SIZE_PERCENT for used in found)} | {min(found):.2f} | {fmean(found):.2f}"
        )
    return table("bytes | bits per pixel | files | over | below 98 % | least used % | used on average %", rows)


def size_of(bits_per_pixel: float) -> int:
    return round(rate_of(bits_per_pixel) * CLIP_SECONDS / 8)


def repeats_report(outcomes: Outcomes) -> str:
    results = accepted(outcomes)
    rows = [
        f"{job.name} | {'same' if result.digest == results[replace(job, again=True)].digest else 'DIFFERENT'}"
        for job, result in results.items()
        if not job.again
    ]
    return table("clip | coded twice, bytes are", rows)


def lookahead_report(outcomes: Outcomes) -> str:
    """A row per clip."""
    rows, rates, costs = [], [], []
    results = accepted(outcomes)
    for name in dict.fromkeys(job.name for job in results):
        blind, seeing = (
            [result for job, result in results.items() if (job.name, job.lookahead) == (name, ahead)]
            for ahead in (0, LOOKAHEAD)
        )
        rates.append(bd_rate(*([(each.bitrate, each.psnr_yuv) for each in half] for half in (blind, seeing))))
        costs.append(100 * (sum(each.seconds for each in seeing) / sum(each.seconds for each in blind) - 1))
        rows.append(f"{name} | {rates[-1]:+.2f} | {costs[-1]:+.1f}")
    rows.append(f"**mean** | {fmean(rates):+.2f} | {fmean(costs):+.1f}")
    return table(f"clip | BD-rate with {LOOKAHEAD} frames ahead, % | time, %", rows)


def run(data: Path, out: Path, shown: Sequence[str], names: Sequence[str], frames: int | None, processes: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    paths = find_sequences(data, names)
    if "buffers" in shown:
        constant = [Job(str(path), file_digest(path), frames, level) for path in paths for level in LEVELS]
        rates = accepted(results_of(constant, out, processes))
        buffered = [
            replace(job, bitrate=result.bitrate, seconds=seconds)
            for job, result in rates.items()
            for seconds in SECONDS
        ]
        print(buffers_report(results_of(buffered, out, processes)))
    clips = long_clips(paths, out) if set(shown) - {"buffers"} else []
    if "changes" in shown:
        print(changes_report(results_of(changing(clips), out, processes)))
    glued = [clip for clip in clips if JOINT in clip.name]
    if "sizes" in shown:
        sized = [replace(clip, size=size_of(each)) for clip in glued for each in BITS_PER_PIXEL]
        print(sizes_report(results_of(sized, out, processes)))
    if "lookahead" in shown:
        seen = [replace(clip, level=level, lookahead=n) for clip in glued for level in LEVELS for n in (0, LOOKAHEAD)]
        print(lookahead_report(results_of(seen, out, processes)))
    if "repeats" in shown:
        once = [job for job in changing(glued) if (job.keyint, job.change) == (None, CHANGE_FACTORS[0])]
        twice = [replace(job, again=again) for job in once for again in (False, True)]
        print(repeats_report(results_of(twice, out, processes)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Buffers, changes of rate and sizes on real sequences.")
    parser.add_argument("--data", type=Path, required=True, help="folder of sequences")
    parser.add_argument("--out", type=Path, required=True, help="where results are kept")
    parser.add_argument("--show", default=",".join(SHOWN), help="some of these, all unless given")
    parser.add_argument("--sequences", default="", help="names without suffix, all unless given")
    parser.add_argument("--frames", type=int, help="of each sequence of buffers, all unless given")
    parser.add_argument("--jobs", type=int, default=1, help="encodes at a time")
    arguments = parser.parse_args()
    names = [name for name in arguments.sequences.split(",") if name]
    shown = arguments.show.split(",")
    if unknown := set(shown) - set(SHOWN):
        parser.error(f"there is no {', '.join(sorted(unknown))} to show: choose of {', '.join(SHOWN)}.")
    try:
        run(arguments.data, arguments.out, shown, names, arguments.frames, arguments.jobs)
    except RqlvcError as error:
        sys.exit(f"buffers: error: {error}")


if __name__ == "__main__":
    main()
