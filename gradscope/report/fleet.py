"""A fleet as one plain dictionary: counts of findings, runs from the worst on, and distributions of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import gradscope.plot as plot
from gradscope.record.fleet import COLUMNS, FleetData, diagnosed, worst
from gradscope.report import words
from gradscope.report.summary import Figures, picture_data
from gradscope.types import SEVERITIES, Finding
from gradscope.types.loss import number

Frame = Any
SHOWN = 60
"""Rows of runs that a page shows unfolded."""
CELLS = ("horizon", "decay_min", "decay_max", "clip_rate", "nonfinite_steps", "grad_norm", "steps", "recorded")
LOSS = "median loss of the first tenth of the steps, at most 10, → of the last tenth, at most 100"
PICTURES = {
    "loss_last": "Losses at the end",
    "horizon": "Horizons",
    "decay_min": "Steepest decays",
    "clip_rate": "Clipping",
    "grad_norm_max": "Largest gradient norms",
}


def summarise_fleet(fleet: FleetData, findings: Mapping[str, Sequence[Finding]]) -> tuple[dict[str, Any], Figures]:
    """Summarise a fleet for a report, with the functions that draw its pictures."""
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
        "table": picture_data("fleet", "All runs", "", table),
        "pictures": [
            _picture(table, column, title, figures) for column, title in PICTURES.items() if table[column].notna().any()
        ],
    }, figures


def _worst_first(table: Frame) -> list[int]:
    """Sort by severity, then by the horizon relative to the length of the sequences."""
    severity = [-SEVERITIES.index(name) if name else 1 for name in table["severity"]]
    reach = table["horizon"].where(~table["horizon_censored"], table["timesteps"]) / table["timesteps"].clip(lower=1)
    return sorted(range(len(table)), key=lambda place: (severity[place], reach.fillna(2).iloc[place], place))


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
    """Write one run as text, by column."""
    cells = {name: words.as_text(row[name]) for name in CELLS}
    cells["horizon"] = words.lags(row["horizon"], row["horizon_censored"])
    cells["clip_rate"] = words.percent(row["clip_rate"])
    named = {name: row[name] for name in ("run", "finding", "severity")}
    losses = [number(row[name]) for name in ("loss_first", "loss_last") if not math.isnan(row[name])]
    return {**named, "cells": {"loss": " → ".join(losses) or "–", **cells}}


def _counted(findings: Mapping[str, Sequence[Finding]]) -> list[dict[str, Any]]:
    """Count the runs of each code, the severe and frequent ones first, with the worst run as an example."""
    entries: dict[str, dict[str, Any]] = {}
    for name, own in findings.items():
        for code, group in _by_code(own).items():
            first = worst(group)
            entry = entries.setdefault(code, {"code": code, "severity": first.severity, "runs": 0, "first": name})
            entry["runs"] += 1
            if SEVERITIES.index(first.severity) > SEVERITIES.index(entry["severity"]):
                entry |= {"severity": first.severity, "first": name}
            if entry["first"] == name:
                entry["title"] = first.title
    for entry in entries.values():
        entry["share"] = entry["runs"] / len(findings)
    order = sorted(entries.values(), key=lambda entry: (-SEVERITIES.index(entry["severity"]), -entry["runs"]))
    return sorted(order, key=lambda entry: entry["code"] == "healthy")


def _by_code(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.code, []).append(finding)
    return groups


def _picture(table: Frame, column: str, title: str, figures: Figures) -> dict[str, Any]:
    name = f"fleet-{column}"
    if np.isfinite(table[column]).sum() > 1:
        figures[name] = lambda ax: plot.runs(table, column, ax=ax)
    return picture_data(name, title, _spread(table, column), table[["run", "finding", column]])


def _spread(table: Frame, column: str) -> str:
    """Name the median, and the runs at both ends."""
    known = table[np.isfinite(table[column])].sort_values(column)
    meaning, infinite = COLUMNS[column].partition(";")[0], int(np.isinf(table[column]).sum())
    ends = [
        f"{words.as_text(float(known[column].iloc[end]))} ({known['run'].iloc[end]})" for end in (0, -1) if len(known)
    ]
    middle = words.as_text(float(known[column].median()))
    spread = f"median {middle}, from {' to '.join(ends)}" if len(known) > 1 else "".join(ends[:1])
    rest = [spread] if spread else []
    rest += [f"not finite in {words.plural(infinite, 'run')}"] if infinite else []
    return f"{meaning[:1].upper()}{meaning[1:]}: {', '.join(rest)}."
