"""``results.json``: a row for each encode of a run, whichever command made it. docs/json.md describes it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rqlvc.errors import RqlvcError
from rqlvc.evaluation.sweep import Encode, Job

SCHEMA = "rqlvc-results-4"
FILE_NAME = "results.json"


def deviation(job: Job, encode: Encode) -> float:
    """|target - actual| / target in percent (RQ-LVC, Eq. 9)."""
    assert job.target_bits is not None
    return 100 * abs(job.target_bits - sum(encode.bits)) / job.target_bits


def row(experiment: str, job: Job, encode: Encode) -> dict[str, Any]:
    """What ``results.json`` says of an encode; its frames are in the file that the row names."""
    similarities = [value for value in encode.ms_ssim if value is not None]
    properties = job.clip.properties
    return {
        "experiment": experiment,
        "sequence": job.clip.name,
        "width": properties.width,
        "height": properties.height,
        "frame_rate": str(properties.frame_rate),
        "frames": len(encode.bits),
        "keyint": job.keyint,
        "codec": job.codec,
        "model": job.model,
        "controller": job.controller,
        "level": job.level,
        "target_bits": job.target_bits,
        "actual_bits": sum(encode.bits),
        "delta_r_percent": None if job.target_bits is None else deviation(job, encode),
        "psnr_y": fmean(encode.psnr_y),
        "psnr_yuv": fmean(encode.psnr_yuv),
        "psnr_rgb": fmean(encode.psnr_rgb),
        "ms_ssim": fmean(similarities) if similarities else None,
        "vmaf": fmean(encode.vmaf) if encode.vmaf else None,
        "seconds": encode.seconds,
        "encodes": encode.encodes,
        "frame_file": job.file_name,
    }


def write_results(
    out: Path, experiment: str, settings: Mapping[str, Any], results: Iterable[tuple[Job, Encode]]
) -> None:
    """Put an experiment into the ``results.json`` of the folder ``out``, in place of what it held of the same name.

    Other experiments stay. Raises :class:`RqlvcError` when the file is there and no JSON.
    """
    path = out / FILE_NAME
    try:
        kept = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise RqlvcError(f"{path} is broken ({error}): delete it and run this again.") from error
    if kept.get("schema") != SCHEMA:  # of another version, whose rows say other things
        kept = {"experiments": {}, "encodes": []}
    rows = [entry for entry in kept["encodes"] if entry["experiment"] != experiment]
    rows += [row(experiment, job, encode) for job, encode in results]
    rows.sort(key=_order)
    experiments = dict(sorted((kept["experiments"] | {experiment: dict(settings)}).items()))
    write_whole(path, json.dumps({"schema": SCHEMA, "experiments": experiments, "encodes": rows}, indent=1))


def write_whole(path: Path, text: str) -> None:
    """The file as a whole, or as it was."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _order(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    names = tuple(entry[name] for name in ("experiment", "sequence", "codec", "controller"))
    return *names, -1 if entry["level"] is None else entry["level"], entry["target_bits"] or 0, entry["frame_file"]
