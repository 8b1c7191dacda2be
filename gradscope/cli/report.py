"""`gradscope report`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

import gradscope
from gradscope.cli import shown


@click.command(short_help="Show the findings of a run, with all figures.")
@shown.logdir_argument
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    help="File to write, '-' for stdout; by default LOGDIR/report.html, or stdout for the other formats.",
)  # fmt: skip
@shown.format_option
@shown.full_option
def report(logdir: Path, output: Path | None, form: str | None, full: bool) -> None:
    r"""Show the findings of a run, and write a report with all figures.

    LOGDIR is the logdir of attach() or `gradscope run`. The first screen says whether the training learns; it has the
    findings, remedies to type, and a table of the layers. --full prints the rest. The page is one file that needs no
    network; it has every finding with its remedies, and for every layer gradients over timesteps and training,
    Jacobians, gates and clipping. For a folder with many runs below it, such as a sweep, it is one table of the runs.

    \b
        gradscope report runs/exp1                       # runs/exp1/report.html
        gradscope report runs/exp1 --full | less         # everything in words
        gradscope report runs/exp1 --format text         # the screen alone, without a page
        gradscope report runs/exp1 -o exp1.md
        gradscope report sweep --format json             # a sweep, for a program
    """
    runs = gradscope.load(logdir)
    form = shown.format_of(output, form)
    if isinstance(runs, gradscope.Run):
        with shown.waiting("reading the run"):
            report = runs.report()
    else:
        with shown.counted("reading", "runs") as progress:
            report = runs.report(progress)
    if output is None:
        output = logdir / "report.html" if form == "html" else Path("-")
    message = shown.write(report, output, form, full)
    if message:
        shown.screen(report, full)
        more = "" if full else f"Everything in words: gradscope report {shlex.quote(str(logdir))} --full\n"
        shown.console().print(f"\n{more}{message}", soft_wrap=True, markup=False)
