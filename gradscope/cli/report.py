"""`gradscope report`."""

from __future__ import annotations

from pathlib import Path

import click

import gradscope
from gradscope.cli import shown


@click.command(short_help="Say what a run found, with all figures.")
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
    Of a folder with many runs below it, as of a sweep, it is one table of all runs, the worst first.

    \b
        gradscope report runs/exp1                       # runs/exp1/report.html
        gradscope report runs/exp1 --format text | less
        gradscope report runs/exp1 -o exp1.md
        gradscope report sweep --format json             # a sweep, for a program
    """
    found = gradscope.load(logdir)
    form = shown.format_of(output, form)
    if isinstance(found, gradscope.Run):
        with shown.waiting("reading the run"):
            made = found.report()
        head, table = shown.headline(made.summary["facts"]), shown.findings_table(made.findings)
    else:
        with shown.counted("reading", "runs") as progress:
            made = found.report(progress)
        head, table = "", shown.fleet_table(made.summary["rows"])
    if output is None:
        output = logdir / "report.html" if form == "html" else Path("-")
    said = shown.written(made, output, form)
    if said:
        out = shown.console()
        if head:
            out.print(head)
        out.print(table)
        out.print(said, soft_wrap=True, markup=False)
