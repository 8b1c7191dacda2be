"""`gradscope report`."""

from __future__ import annotations

from pathlib import Path

import click

import gradscope
from gradscope.cli import shown


@click.command()
@shown.logdir_argument
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    help="File to write, '-' for stdout; without it LOGDIR/report.html, or stdout for the other formats.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(list(shown.FORMATS)), help="Without it what the suffix of the file says."
)
def report(logdir: Path, output: Path | None, form: str | None) -> None:
    r"""Say what a run found, and write it down with all figures.

    LOGDIR is what attach() or `gradscope run` was given. The page is one file that needs no network; it has every
    finding with what to try, and of every layer gradients over timesteps and training, Jacobians, gates and clipping.

    \b
        gradscope report runs/exp1                       # runs/exp1/report.html
        gradscope report runs/exp1 --format text | less
        gradscope report runs/exp1 -o exp1.md
    """
    run = gradscope.load(logdir)
    form = shown.format_of(output, form)
    with shown.waiting("reading the run"):
        made = run.report()
        findings = made.findings
    if output is None:
        output = logdir / "report.html" if form == "html" else Path("-")
    said = shown.written(made, output, form)
    if said:
        out = shown.console()
        out.print(shown.findings_table(findings))
        out.print(said, soft_wrap=True, markup=False)
