"""`gradscope check`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

import gradscope
from gradscope.cli import shown
from gradscope.types import SEVERITIES


@click.command(short_help="Fail if a run has findings.")
@shown.logdir_argument
@click.option(
    "--fail-on", type=click.Choice(["warning", "critical"]), default="warning", show_default=True,
    help="The lowest severity that fails.",
)  # fmt: skip
def check(logdir: Path, fail_on: str) -> int:
    r"""Fail if a run has findings: exit status 1, for scripts and continuous integration.

    A folder with many runs below it, such as a sweep, fails if any run has findings.

    \b
        gradscope run --logdir runs/ci train.py --epochs 1
        gradscope check runs/ci --fail-on critical
    """
    runs = gradscope.load(logdir)
    worst = SEVERITIES[SEVERITIES.index(fail_on) :]
    if isinstance(runs, gradscope.Run):
        with shown.waiting("reading the run"):
            findings = runs.findings()
        out, failing = shown.console(), any(finding.severity in worst for finding in findings)
        out.print(shown.findings_table(findings))
        if failing:
            out.print(
                f"Reasons and remedies: gradscope report {shlex.quote(str(logdir))}", soft_wrap=True, markup=False
            )
        return int(failing)
    with shown.counted("reading", "runs") as progress:
        by_run = runs.findings(progress)
    failing = [(name, finding) for name, own in by_run.items() for finding in own if finding.severity in worst]
    out = shown.console()
    out.print(f"{len({name for name, _ in failing}):,} of {len(by_run):,} runs have such findings")
    if failing:
        out.print(shown.runs_table(failing))
    return int(bool(failing))
