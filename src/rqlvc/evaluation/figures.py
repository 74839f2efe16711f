"""``figures.json``: the data of the RQ-LVC paper's Figs. 3, 5 and 6, from the encodes of its tables."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rqlvc.evaluation.results import write_whole
from rqlvc.evaluation.sweep import CURVE_LEVELS, CURVES, Encode, Job
from rqlvc.rate.models import FITS, r_squared
from rqlvc.rate.protocol import RatePoint

SCHEMA = "rqlvc-figures-1"
FILE_NAME = "figures.json"


def curves_of(encode: Encode) -> Iterator[tuple[int, list[RatePoint]]]:
    """The frames whose curve was measured, and the points of each."""
    for frame, curve in zip(encode.curve_frames, encode.curves, strict=True):
        yield frame, [RatePoint(level, bits) for level, bits in zip(CURVE_LEVELS, curve, strict=True)]


def fits(results: Mapping[Job, Encode]) -> list[dict[str, Any]]:
    """Fig. 3: measured points and the three models fitted to them, a row for each frame whose curve was measured."""
    return [
        {"sequence": job.clip.name, "frame": frame, "points": _pairs(points), "models": _models(points)}
        for job, encode in results.items()
        if job.controller == CURVES
        for frame, points in curves_of(encode)
    ]


def _models(points: Sequence[RatePoint]) -> dict[str, dict[str, float]]:
    models = {name: fit(points) for name, fit in FITS.items()}
    return {name: asdict(model) | {"r_squared": r_squared(model, points)} for name, model in models.items()}  # type: ignore[call-overload]


def predictions(results: Mapping[Job, Encode]) -> list[dict[str, Any]]:
    """Fig. 5: the curve that a controller had of a frame before coding it, beside really coding it at many levels."""
    return [
        {
            "sequence": job.clip.name,
            "controller": job.controller,
            "level": job.level,
            "frame": frame,
            "alpha": encode.alpha[frame],
            "beta": encode.beta[frame],
            "predicted": [list(point) for point in encode.predicted[frame]],
            "points": _pairs(points),
        }
        for job, encode in results.items()
        if job.target_bits is not None
        for frame, points in curves_of(encode)
    ]


def deviations(results: Mapping[Job, Encode]) -> list[dict[str, Any]]:
    """Fig. 6: 100 · (bits - target) / target of every frame over time."""
    return [
        {
            "sequence": job.clip.name,
            "controller": job.controller,
            "level": job.level,
            "type": "".join(encode.type),
            "percent": [
                round(100 * (bits - target) / target, 3) if target and target > 0 else None
                for bits, target in zip(encode.bits, encode.target_bits, strict=True)
            ],
        }
        for job, encode in results.items()
        if job.target_bits is not None
    ]


def write_figures(results: Mapping[Job, Encode], out: Path) -> None:
    """``figures.json`` in the folder ``out``."""
    order = sorted(results, key=lambda job: (job.clip.name, job.controller, job.level or 0.0))
    ordered = {job: results[job] for job in order}
    data = {
        "schema": SCHEMA,
        "fits": fits(ordered),
        "predictions": predictions(ordered),
        "deviations": deviations(ordered),
    }
    write_whole(out / FILE_NAME, json.dumps(data))


def _pairs(points: Sequence[RatePoint]) -> list[list[float]]:
    return [[point.quality, point.bits] for point in points]
