"""`gradscope check`."""

from __future__ import annotations

from pathlib import Path

import click

import gradscope
from gradscope.cli import shown

LEVELS = ("info", "warning", "critical")


@click.command()
@shown.logdir_argument
@click.option(
    "--fail-on", type=click.Choice(["warning", "critical"]), default="warning", show_default=True,
    help="The least severe finding that fails.",
)  # fmt: skip
def check(logdir: Path, fail_on: str) -> int:
    r"""Fail if a run has findings: exit status 1, for scripts and continuous integration.

    \b
        gradscope run --logdir runs/ci train.py --epochs 1
        gradscope check runs/ci --fail-on critical
    """
    run = gradscope.load(logdir)
    with shown.waiting("reading the run"):
        findings = run.findings()
    shown.console().print(shown.findings_table(findings))
    worst = LEVELS[LEVELS.index(fail_on) :]
    return int(any(finding.severity in worst and finding.code != "healthy" for finding in findings))
