"""Reports from runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gradscope.diagnose import diagnose_ranks
from gradscope.diagnose.headline import headline
from gradscope.record import FleetData, RunData
from gradscope.record.reader import FolderSource
from gradscope.report import render, summary
from gradscope.report.document import Report
from gradscope.report.excerpt import excerpt
from gradscope.report.fleet import summarise_fleet
from gradscope.report.processes import processes
from gradscope.report.runs import runs_table
from gradscope.report.sidebyside import summarise_runs
from gradscope.types import Finding

QUICK = 500_000
"""Largest number of rows of `timesteps` for which a notebook's short form searches for findings."""


def report(run: RunData, findings: Sequence[Finding] | None = None, name: str | None = None) -> Report:
    """Make the report of one run.

    Args:
        run: any run.
        findings: its findings; by default the diagnosis of the run.
        name: its name; by default its folder.
    """
    results = tuple(diagnose_ranks(run) if findings is None else findings)
    contents, figures = summary.summarise(excerpt(run), results, name or name_of(run))
    contents["headline"], contents["processes"] = headline(run), processes(run)
    return Report(contents, results, figures)


def comparison(runs: Mapping[str, RunData], findings: Mapping[str, Sequence[Finding]] | None = None) -> Report:
    """Make the report of several runs side by side.

    Args:
        runs: runs by name.
        findings: findings by name; by default the diagnosis of the runs.
    """
    results = {name: list(findings[name] if findings else diagnose_ranks(run)) for name, run in runs.items()}
    contents, figures = summarise_runs({name: excerpt(run) for name, run in runs.items()}, results)
    contents["overview"] = runs_table(runs, results)
    return Report(contents, tuple(finding for own in results.values() for finding in own), figures)


def fleet(data: FleetData, runs: Mapping[str, RunData], findings: Mapping[str, Sequence[Finding]]) -> Report:
    """Make one report of many runs.

    Args:
        data: the runs below a folder.
        runs: the same, by name.
        findings: findings by name.
    """
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
    """Render the table of several runs as text, without findings, which would take long.

    Args:
        runs: runs by name.
        width: columns of the page.
    """
    return render.overview(runs_table(runs), width)


def name_of(run: RunData) -> str:
    """Return the name of a run's folder, as the user wrote it."""
    source = run.source
    if not isinstance(source, FolderSource):
        return "run"
    root = Path(source.root)
    return str(root.parent) if root.name == "gradscope" else str(root)
