"""From a run to its report."""

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
from gradscope.report.fleet import gathered
from gradscope.report.processes import processes
from gradscope.report.runs import runs_table
from gradscope.report.sidebyside import compared
from gradscope.types import Finding

QUICK = 500_000
"""Rows of `timesteps` up to which a notebook's short form looks for findings by itself."""


def report(run: RunData, findings: Sequence[Finding] | None = None, name: str | None = None) -> Report:
    """The report of one run.

    Args:
        run: any run.
        findings: what to say about it; by default the diagnosis of the run.
        name: what to call it; by default its folder.
    """
    found = tuple(diagnose_ranks(run) if findings is None else findings)
    told, figures = summary.summarise(excerpt(run), found, name or called(run))
    told["headline"], told["processes"] = headline(run), processes(run)
    return Report(told, found, figures)


def comparison(runs: Mapping[str, RunData], findings: Mapping[str, Sequence[Finding]] | None = None) -> Report:
    """The report of several runs side by side.

    Args:
        runs: by name.
        findings: of each; by default the diagnosis of the runs.
    """
    found = {name: list(findings[name] if findings else diagnose_ranks(run)) for name, run in runs.items()}
    told, figures = compared({name: excerpt(run) for name, run in runs.items()}, found)
    told["overview"] = runs_table(runs, found)
    return Report(told, tuple(finding for mine in found.values() for finding in mine), figures)


def fleet(data: FleetData, runs: Mapping[str, RunData], findings: Mapping[str, Sequence[Finding]]) -> Report:
    """The report of many runs as one.

    Args:
        data: the runs below a folder.
        runs: the same, by name.
        findings: of each.
    """
    told, figures = gathered(data, findings)
    worst_first = {row["run"]: runs[row["run"]] for row in told["rows"]}
    told["overview"] = runs_table(worst_first, findings)
    return Report(told, tuple(finding for mine in findings.values() for finding in mine), figures)


def short(run: RunData) -> str:
    """A run in a notebook: its findings and its layers, in a few lines of HTML."""
    found = diagnose_ranks(run) if run.source.count("timesteps") <= QUICK else []
    told, _ = summary.summarise(excerpt(run), found, called(run))
    return render.short({**told, "headline": headline(run)})


def overview(runs: Mapping[str, RunData], width: int = 100) -> str:
    """The table of several runs as text, without their findings, which would take long.

    Args:
        runs: by name.
        width: columns of the page.
    """
    return render.overview(runs_table(runs), width)


def called(run: RunData) -> str:
    """The name of a run's folder, as the user gave it."""
    source = run.source
    if not isinstance(source, FolderSource):
        return "run"
    root = Path(source.root)
    return str(root.parent) if root.name == "gradscope" else str(root)
