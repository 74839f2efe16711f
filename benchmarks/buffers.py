"""Constant bitrate under decoder buffers on real sequences: violations, skipped frames, error of the average rate.

    python benchmarks/buffers.py --data DIR --out RUN [--sequences a,b] [--frames N] [--jobs 2]

Every sequence at the bitrates of four constant quality levels, each with buffers of 0.25, 0.5, 1 and 2 seconds: real
files, checked as ``rqlvc info --verify-buffer`` does. Results are kept in RUN under a digest of the sequence, the
model, the sources and the settings, so that a stopped run goes on and a rerun pays only for what is new.
"""

import argparse
import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import rqlvc.encoder
import rqlvc.rate
from rqlvc.codec.protocol import Codec
from rqlvc.codec.registry import load_codec
from rqlvc.control import RateTarget
from rqlvc.errors import RqlvcError
from rqlvc.evaluation.buffer_check import check_buffer
from rqlvc.evaluation.sweep import codec_digest, file_digest, find_sequences
from rqlvc.media.container import ContainerReader
from rqlvc.rate.buffer import INITIAL, Buffer
from rqlvc.rate.constant import Constant
from rqlvc.transcode import encode_file

LEVELS = (16.0, 28.0, 40.0, 52.0)
SECONDS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Job:
    """One encode: at a constant ``level`` where ``bitrate`` is None, else under a buffer of so many ``seconds``."""

    path: str
    digest: str
    frames: int | None
    level: float
    bitrate: float | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        return Path(self.path).stem


@dataclass(frozen=True, slots=True)
class Result:
    bitrate: float
    psnr_yuv: float
    skipped: int
    recoded: int
    frames: int
    violations: int


@functools.lru_cache(maxsize=1)
def codec() -> Codec:
    return load_codec("rqlvc", device="cpu", threads=1)


def run_job(job: Job, out: Path) -> Result:
    coded = out / f"{job_key(job)}.mkv"
    if job.bitrate is None or job.seconds is None:
        summary = encode_file(job.path, str(coded), codec(), Constant(job.level), frames=job.frames, overwrite=True)
        violations = 0
    else:
        buffer = Buffer(job.bitrate, job.bitrate * job.seconds)
        target = RateTarget(bitrate=job.bitrate, buffer=buffer)
        summary = encode_file(job.path, str(coded), codec(), target, frames=job.frames, overwrite=True)
        with ContainerReader(str(coded)) as container:
            packets = [(packet.time, 8 * len(packet.payload)) for packet in container]
        violations = len(check_buffer(packets, buffer.maxrate, buffer.size, INITIAL).violations)
    coded.unlink()
    skipped, recoded = summary.skipped_frames, summary.recoded_frames
    return Result(summary.bitrate, summary.psnr_yuv, skipped, recoded, summary.frames, violations)


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


def results_of(jobs: Sequence[Job], out: Path, processes: int) -> dict[Job, Result]:
    """From ``out`` where they are there; made and kept there where not."""
    known = {job: out / f"{job_key(job)}.json" for job in jobs}
    found = {job: Result(**json.loads(path.read_text())) for job, path in known.items() if path.exists()}
    for done, (job, result) in enumerate(
        made([job for job in jobs if job not in found], out, processes), len(found) + 1
    ):
        partial = known[job].with_suffix(".partial")
        partial.write_text(json.dumps(asdict(result)))
        partial.replace(known[job])
        found[job] = result
        print(f"{done}/{len(jobs)} {job.name} level {job.level:g} buffer {job.seconds or '-'}", file=sys.stderr)
    return found


def made(jobs: Sequence[Job], out: Path, processes: int) -> Iterator[tuple[Job, Result]]:
    if processes == 1 or len(jobs) < 2:
        yield from ((job, run_job(job, out)) for job in jobs)
        return
    with ProcessPoolExecutor(min(processes, len(jobs)), get_context("spawn")) as pool:
        futures = {pool.submit(run_job, job, out): job for job in jobs}
        try:
            yield from ((futures[future], future.result()) for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def report(results: dict[Job, Result]) -> str:
    """A row per buffer size, then the combinations that did not go as asked."""
    lines = ["| buffer s | encodes | violations | skipped frames | coded again % | mean error % | worst error % |"]
    lines.append("| --- " * 7 + "|")
    for seconds in SECONDS:
        rows = [(job, result) for job, result in results.items() if job.seconds == seconds]
        errors = [100 * abs(result.bitrate / job.bitrate - 1) for job, result in rows if job.bitrate]
        again = 100 * sum(result.recoded for _, result in rows) / sum(result.frames for _, result in rows)
        violations, skipped = (sum(getattr(each, name) for _, each in rows) for name in ("violations", "skipped"))
        lines.append(
            f"| {seconds:g} | {len(rows)} | {violations} | {skipped} | {again:.2f} | {fmean(errors):.2f} "
            f"| {max(errors):.2f} |"
        )
    for job, result in results.items():
        error = 0.0 if job.bitrate is None else 100 * (result.bitrate / job.bitrate - 1)
        if result.violations or result.skipped or abs(error) > 2:
            lines.append(
                f"{job.name}, level {job.level:g}, {job.seconds:g} s: error {error:+.2f} %, {result.violations} "
                f"violations, {result.skipped} of {result.frames} frames skipped"
            )
    return "\n".join(lines)


def run(data: Path, out: Path, names: Sequence[str], frames: int | None, processes: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    paths = find_sequences(data, names)
    constant = [Job(str(path), file_digest(path), frames, level) for path in paths for level in LEVELS]
    rates = results_of(constant, out, processes)
    buffered = [replace(job, bitrate=rates[job].bitrate, seconds=seconds) for job in constant for seconds in SECONDS]
    print(report(results_of(buffered, out, processes)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Constant bitrate under decoder buffers on real sequences.")
    parser.add_argument("--data", type=Path, required=True, help="folder of sequences")
    parser.add_argument("--out", type=Path, required=True, help="where results are kept")
    parser.add_argument("--sequences", default="", help="names without suffix, all unless given")
    parser.add_argument("--frames", type=int, help="of each sequence, all unless given")
    parser.add_argument("--jobs", type=int, default=1, help="encodes at a time")
    arguments = parser.parse_args()
    names = [name for name in arguments.sequences.split(",") if name]
    try:
        run(arguments.data, arguments.out, names, arguments.frames, arguments.jobs)
    except RqlvcError as error:
        sys.exit(f"buffers: error: {error}")


if __name__ == "__main__":
    main()
