"""What a run is held against: RQ-LVC's published figures, and what this package set out for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rqlvc.evaluation import comparison
from rqlvc.evaluation.paper import FIRST_FRAMES, Overview, Results, Rows, Tables, level_name
from rqlvc.evaluation.results import deviation
from rqlvc.evaluation.sweep import RECODE, TWO_PASS
from rqlvc.evaluation.tables import Cell, mean_of_all, table
from rqlvc.rate.registry import DEFAULT_CONTROLLER

PUBLISHED = "rq-lvc"
BASELINES = ("tip14", "icassp24", "rqnet-only", "no-rqnet")
"""Published methods and ablations that ``rq-lvc`` is better than in its paper."""
SEQUENCE_LIMIT = 2.0
"""Percent of deviation that no sequence should exceed."""
RQNET_LIMIT = 15.0
"""Percent of prediction error at each level; the paper's levels have 11.5 to 22.3."""
ENCODER_LIMITS = {"libx264": 0.0, "libx265": 10.0}
"""Percent of BD-rate against each."""
WORST_ENCODES = 8


@dataclass(frozen=True, slots=True)
class Goal:
    """In percent; met by ``limit`` or less. ``measured`` is None where the run has nothing to tell it from."""

    what: str
    limit: float
    measured: float | None
    furthest: str = ""
    """The sequence with the highest figure, and the figure."""


@dataclass(frozen=True, slots=True)
class _Aim:
    """A goal of a controller."""

    controller: str
    what: str
    limit: float
    measure: Callable[[Overview], float | None]
    rows: Callable[[Tables], Rows] = lambda tables: {}
    """The table that has it by sequence."""


_AIMS = (
    _Aim(DEFAULT_CONTROLLER, "deviation", 0.5, lambda row: row.average, lambda tables: tables.deviation),
    _Aim(
        *(DEFAULT_CONTROLLER, "deviation of the worst sequence", SEQUENCE_LIMIT),
        *(lambda row: row.worst_sequence, lambda tables: tables.deviation),
    ),
    _Aim(DEFAULT_CONTROLLER, "deviation of a P frame", 8.0, lambda row: row.frame),
    _Aim(DEFAULT_CONTROLLER, f"deviation of a P frame, first {FIRST_FRAMES}", 15.0, lambda row: row.first_frames),
    _Aim(DEFAULT_CONTROLLER, "BD-rate", -4.0, lambda row: row.bd_rate, lambda tables: tables.bd_rate),
    _Aim(RECODE, "deviation of a P frame", 8.0, lambda row: row.frame),
    _Aim(RECODE, "BD-rate", -4.0, lambda row: row.bd_rate, lambda tables: tables.bd_rate),
    _Aim(TWO_PASS, "deviation", 0.2, lambda row: row.average, lambda tables: tables.deviation),
    _Aim(PUBLISHED, "deviation (published: UVG)", 1.3, lambda row: row.average, lambda tables: tables.deviation),
    _Aim(PUBLISHED, "BD-rate (published: HEVC B)", -2.8, lambda row: row.bd_rate, lambda tables: tables.bd_rate),
)


def goals_of(tables: Tables, anchors: Mapping[str, Any] | None) -> list[Goal]:
    """``anchors`` is the experiment of the conventional encoders as it stands in ``results.json``, if there."""
    overview = tables.overview
    goals = [
        _goal(
            f"{aim.controller}: {aim.what}",
            aim.limit,
            aim.measure(overview[aim.controller]) if aim.controller in overview else None,
            *(aim.rows(tables), aim.controller),
        )
        for aim in _AIMS
    ]
    others = {name: overview[name].average for name in BASELINES if name in overview}
    if PUBLISHED in overview and others:
        best = min(others, key=lambda name: others[name])
        goals.append(Goal(f"{PUBLISHED}: deviation (that of {best})", others[best], overview[PUBLISHED].average))
    heard = f"as {DEFAULT_CONTROLLER} hears it"
    for who, rows in (("RQNet", tables.rqnet), (f"RQNet, {heard}", tables.mended_rqnet)):
        for level in [level for level in next(iter(rows.values()), {}) if level != "mean"]:
            mean = mean_of_all([row[level] for row in rows.values()])
            goals.append(_goal(f"{who}: error at {level}", RQNET_LIMIT, mean, rows, level))
    rates = {} if anchors is None else comparison.rates_by_sequence(anchors)
    means = [] if anchors is None else comparison.mean_rates(anchors)
    for encoder, limit in ENCODER_LIMITS.items():
        found = [mean.percent for mean in means if (mean.anchor, mean.metric) == (encoder, comparison.MAIN_METRIC)]
        goals.append(_goal(f"codec: BD-rate against {encoder}", limit, found[0] if found else None, rates, encoder))
    return goals


def _goal(what: str, limit: float, measured: float | None, rows: Rows, column: str) -> Goal:
    known = {name: value for name, row in rows.items() if (value := row.get(column)) is not None}
    worst = max(known, key=lambda name: known[name], default=None)
    return Goal(what, limit, measured, "" if worst is None else f"{worst} {known[worst]:.2f}")


def markdown(tables: Tables, results: Results, anchors: Mapping[str, Any] | None) -> str:
    """Goals and what became of them, and the encodes that miss their targets most."""
    goals = goals_of(tables, anchors)
    rows: dict[str, dict[str, Cell]] = {}
    for goal in goals:
        met = "not measured" if goal.measured is None else "yes" if goal.measured <= goal.limit else "**no**"
        rows[goal.what] = {"at most": goal.limit, "measured": goal.measured, "met": met, "furthest": goal.furthest}
    measured = [goal for goal in goals if goal.measured is not None]
    missed = sum(row["met"] == "**no**" for row in rows.values())
    lines = [
        f"{missed} of {len(measured)} goals are missed. All in percent: deviations are |target - actual| / target, "
        "BD-rates of controllers are against a constant level; *furthest* is the sequence with the highest figure.",
        "",
        *table("goal", ["at most", "measured", "met", "furthest"], rows, "{:.2f}"),
    ]
    for name in (DEFAULT_CONTROLLER, TWO_PASS, PUBLISHED):
        misses = [(deviation(job, encode), job) for job, encode in results.items() if job.controller == name]
        far = sorted((miss for miss in misses if miss[0] > SEQUENCE_LIMIT), key=lambda miss: -miss[0])
        listed = [f"{job.clip.name} at {level_name(job.level or 0)} {value:.2f}" for value, job in far[:WORST_ENCODES]]
        if misses:
            worst = f"; the worst: {', '.join(listed)}" if listed else ""
            lines += [
                "",
                f"`{name}` misses by more than {SEQUENCE_LIMIT:g} % in {len(far)} of {len(misses)} encodes{worst}.",
            ]
    return "\n".join(lines) + "\n"
