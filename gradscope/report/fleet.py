"""A fleet as one plain dictionary: its findings counted, its runs the worst first, its numbers as they are spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import gradscope.plot as plot
from gradscope.record.fleet import COLUMNS, SEVERITIES, FleetData, diagnosed, worst
from gradscope.report import words
from gradscope.report.summary import Figures, told
from gradscope.types import Finding
from gradscope.types.loss import number

Frame = Any
SHOWN = 60
"""Runs whose rows stand open in a page; the rest is folded."""
CELLS = ("horizon", "decay_min", "decay_max", "clip_rate", "nonfinite_steps", "grad_norm", "steps", "recorded")
LOSS = "median loss of the first tenth of the steps, at most 10, → of the last tenth, at most 100"
PICTURES = {
    "loss_last": "Losses at the end",
    "horizon": "Horizons",
    "decay_min": "Steepest decays",
    "clip_rate": "Clipping",
    "grad_norm_max": "Largest gradient norms",
}


def gathered(fleet: FleetData, findings: Mapping[str, Sequence[Finding]]) -> tuple[dict[str, Any], Figures]:
    """All that a report says of a fleet, and the functions that draw its pictures.

    Args:
        fleet: the runs.
        findings: of each.
    """
    table: Any = diagnosed(fleet.numbers(), findings)
    table = table.iloc[_worst_first(table)].reset_index(drop=True)
    figures: Figures = {}
    return {
        "kind": "fleet",
        "name": str(fleet.root),
        "facts": _facts(table),
        "findings": _counted(findings),
        "rows": [_row(row) for row in table.to_dict("records")],
        "shown": SHOWN,
        "cells": {"loss": LOSS, **{name: COLUMNS[name] for name in CELLS}},
        "table": told("fleet", "All runs", "", table),
        "pictures": [
            _picture(table, column, title, figures) for column, title in PICTURES.items() if table[column].notna().any()
        ],
    }, figures


def _worst_first(table: Frame) -> list[int]:
    """Severe findings first, then the shortest horizons, measured by the lengths of the sequences."""
    severity = [-SEVERITIES.index(one) if one else 1 for one in table["severity"]]
    seen = table["horizon"].where(~table["horizon_censored"], table["timesteps"]) / table["timesteps"].clip(lower=1)
    return sorted(range(len(table)), key=lambda place: (severity[place], seen.fillna(2).iloc[place], place))


def _facts(table: Frame) -> dict[str, Any]:
    counts = table["severity"].value_counts()
    return {
        "runs": len(table),
        "healthy": int(counts.get("", 0)),
        **{severity: int(counts.get(severity, 0)) for severity in reversed(SEVERITIES)},
        "steps": int(table["steps"].sum()),
        "recorded": int(table["recorded"].sum()),
        "seconds": float(table["seconds"].sum()),
    }


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One run as text, by column."""
    cells = {name: words.told(row[name]) for name in CELLS}
    cells["horizon"] = words.lags(row["horizon"], row["horizon_censored"])
    cells["clip_rate"] = words.percent(row["clip_rate"])
    named = {name: row[name] for name in ("run", "finding", "severity")}
    losses = [number(row[name]) for name in ("loss_first", "loss_last") if not math.isnan(row[name])]
    return {**named, "cells": {"loss": " → ".join(losses) or "–", **cells}}


def _counted(findings: Mapping[str, Sequence[Finding]]) -> list[dict[str, Any]]:
    """Every code once, the severe and frequent ones first: in how many runs it is, and in which first of all."""
    found: dict[str, dict[str, Any]] = {}
    for name, mine in findings.items():
        for code, group in _by_code(mine).items():
            first = worst(group)
            entry = found.setdefault(code, {"code": code, "severity": first.severity, "runs": 0, "first": name})
            entry["runs"] += 1
            if SEVERITIES.index(first.severity) > SEVERITIES.index(entry["severity"]):
                entry |= {"severity": first.severity, "first": name}
            if entry["first"] == name:
                entry["title"] = first.title
    for entry in found.values():
        entry["share"] = entry["runs"] / len(findings)
    order = sorted(found.values(), key=lambda it: (-SEVERITIES.index(it["severity"]), -it["runs"]))
    return sorted(order, key=lambda it: it["code"] == "healthy")


def _by_code(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.code, []).append(finding)
    return found


def _picture(table: Frame, column: str, title: str, figures: Figures) -> dict[str, Any]:
    name = f"fleet-{column}"
    if np.isfinite(table[column]).sum() > 1:
        figures[name] = lambda ax: plot.runs(table, column, ax=ax)
    return told(name, title, _spread(table, column), table[["run", "finding", column]])


def _spread(table: Frame, column: str) -> str:
    """Where the middle lies, and which runs are at the ends."""
    known = table[np.isfinite(table[column])].sort_values(column)
    said, lost = COLUMNS[column].partition(";")[0], int(np.isinf(table[column]).sum())
    ends = [f"{words.told(float(known[column].iloc[end]))} ({known['run'].iloc[end]})" for end in (0, -1) if len(known)]
    middle = words.told(float(known[column].median()))
    spread = f"median {middle}, from {' to '.join(ends)}" if len(known) > 1 else "".join(ends[:1])
    rest = [spread] if spread else []
    rest += [f"not finite in {words.counted(lost, 'run')}"] if lost else []
    return f"{said[:1].upper()}{said[1:]}: {', '.join(rest)}."
