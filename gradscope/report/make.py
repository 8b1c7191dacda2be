"""Reports from runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradscope.diagnose import diagnose_ranks
from gradscope.diagnose.progress import headline
from gradscope.record import FleetData, RunData
from gradscope.record.reader import FolderSource
from gradscope.report import render, summary, words
from gradscope.report.document import Report
from gradscope.report.excerpt import excerpt
from gradscope.report.fleet import summarise_fleet
from gradscope.report.runs import runs_table
from gradscope.report.sidebyside import summarise_runs
from gradscope.types import Finding

QUICK = 500_000
"""Largest number of rows of `timesteps` for which a notebook's short form searches for findings."""
HEADS = {
    "rank": "rank",
    "steps": "steps",
    "recorded": "recorded",
    "nonfinite_steps": "steps not finite",
    "own_nonfinite": "own gradients not finite",
    "skipped": "skipped",
    "gradient": "median grad_h",
    "horizon": "median horizon",
    "overhead": "overhead",
}
"""Numbers of each process; the processes share a step's gradients, their own are from before the reduction."""


def report(run: RunData, findings: Sequence[Finding], name: str | None = None) -> Report:
    """Make the report of one run, by default with the name of its folder."""
    contents, figures = summary.summarise(excerpt(run), findings, name or name_of(run))
    contents["headline"], contents["processes"] = headline(run), processes(run)
    return Report(contents, tuple(findings), figures)


def comparison(runs: Mapping[str, RunData], findings: Mapping[str, Sequence[Finding]]) -> Report:
    """Make the report of several runs side by side."""
    contents, figures = summarise_runs({name: excerpt(run) for name, run in runs.items()}, findings)
    contents["overview"] = runs_table(runs, findings)
    return Report(contents, tuple(finding for own in findings.values() for finding in own), figures)


def fleet(data: FleetData, runs: Mapping[str, RunData], findings: Mapping[str, Sequence[Finding]]) -> Report:
    """Make one report of many runs, the runs below a folder."""
    contents, figures = summarise_fleet(data, findings)
    worst_first = {row["run"]: runs[row["run"]] for row in contents["rows"]}
    contents["overview"] = runs_table(worst_first, findings)
    return Report(contents, tuple(finding for own in findings.values() for finding in own), figures)


def short(run: RunData) -> str:
    """Render a run for a notebook: findings and layers, in a few lines of HTML."""
    findings = diagnose_ranks(run) if run.source.count("timesteps") <= QUICK else []
    contents, _ = summary.summarise(excerpt(run), findings, name_of(run))
    return render.short({**contents, "headline": headline(run)})


def overview(runs: Mapping[str, RunData], width: int = 100) -> str:
    """Render the table of several runs as text, without findings, which would take long."""
    return render.overview(runs_table(runs), width)


def name_of(run: RunData) -> str:
    """Return the name of a run's folder, as the user wrote it."""
    source = run.source
    if not isinstance(source, FolderSource):
        return "run"
    root = Path(source.root)
    return str(root.parent) if root.name == "gradscope" else str(root)


def processes(run: RunData) -> dict[str, Any]:
    """Return the numbers of each process, and their text, if there are several processes."""
    ranks = run.source.ranks
    entries = [_process(run.of_rank(rank), rank) for rank in ranks] if len(ranks) > 1 else []
    rows = [[_cell(name, entry[name]) for name in HEADS] for entry in entries]
    return {"entries": entries, "heads": list(HEADS.values()), "rows": rows}


def _process(run: RunData, rank: int) -> dict[str, Any]:
    steps = run.frame("steps")
    columns = ["step", "p50", "nonfinite"]
    gradients = run.source.read("timesteps", {"quantity": "grad_h"}, columns)
    whole, own = float(steps["step_s"].sum()), float(steps["overhead_s"].sum())
    return {
        "rank": rank,
        "steps": len(steps),
        "recorded": int(steps["recorded"].sum()),
        "nonfinite_steps": int((steps["nonfinite"] > 0).sum()),
        "own_nonfinite": int(gradients.loc[gradients["nonfinite"] > 0, "step"].nunique()),
        "skipped": int(steps["skipped"].sum()),
        "gradient": float(gradients["p50"].median()),
        "horizon": float(run.source.read("layers", None, ["horizon"])["horizon"].median()),
        "overhead": own / whole if whole else math.nan,
    }


def _cell(name: str, value: Any) -> str:
    return words.percent(value) if name == "overhead" else words.as_text(value)
