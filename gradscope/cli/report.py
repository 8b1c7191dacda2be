"""`gradscope report`."""

from __future__ import annotations

import shlex
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
@click.option(
    "--full", is_flag=True, help="Print everything that the text says, not the first screen alone; files have it all."
)
def report(logdir: Path, output: Path | None, form: str | None, full: bool) -> None:
    r"""Say what a run found, and write it down with all figures.

    LOGDIR is what attach() or `gradscope run` was given. The first screen says whether the training learns, what was
    found, and what to type; it has a table of the layers. --full prints the rest. The page is one file that needs no
    network; it has every finding with what to try, and of every layer gradients over timesteps and training, Jacobians,
    gates and clipping. Of a folder with many runs below it, as of a sweep, it is one table of them.

    \b
        gradscope report runs/exp1                       # runs/exp1/report.html
        gradscope report runs/exp1 --full | less         # everything in words
        gradscope report runs/exp1 --format text         # the screen alone, without a page
        gradscope report runs/exp1 -o exp1.md
        gradscope report sweep --format json             # a sweep, for a program
    """
    found = gradscope.load(logdir)
    form = shown.format_of(output, form)
    if isinstance(found, gradscope.Run):
        with shown.waiting("reading the run"):
            made = found.report()
    else:
        with shown.counted("reading", "runs") as progress:
            made = found.report(progress)
    if output is None:
        output = logdir / "report.html" if form == "html" else Path("-")
    said = shown.written(made, output, form, full)
    if said:
        shown.screen(made, full)
        more = "" if full else f"Everything in words: gradscope report {shlex.quote(str(logdir))} --full\n"
        shown.console().print(f"\n{more}{said}", soft_wrap=True, markup=False)
