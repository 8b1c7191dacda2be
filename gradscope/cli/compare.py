"""`gradscope compare`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

import gradscope
from gradscope.cli import shown
from gradscope.compare import compare as side_by_side

MOST = 16
"""Runs of one folder that are put side by side, at most."""


@click.command(short_help="Put runs side by side.")
@click.argument("logdirs", metavar="LOGDIR LOGDIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", default="compare.html", show_default=True,
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), help="File to write, '-' for stdout.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(list(shown.FORMATS)), help="Without it what the suffix of the file says."
)
@click.option("--full", is_flag=True, help="Print everything that the text says, not the first screen alone.")
def compare(logdirs: tuple[Path, ...], output: Path, form: str | None, full: bool) -> None:
    r"""Put runs side by side: the same numbers beside each other, the same curves over each other.

    The first screen is a table with a row for each run: what differs between their settings, loss, horizon, worst
    finding, clipping; and what separates the runs that learn from those that do not. Each run is called by the name of
    its folder, or by its whole path where two have the same. A folder with several runs below it, as of a sweep, stands
    for all of them.

    \b
        gradscope compare runs/lstm runs/gru -o cells.html
        gradscope compare runs/demo
    """
    form = shown.format_of(output, form)
    runs = _named(logdirs)
    with shown.waiting("reading the runs"):
        made = side_by_side(runs).report()
    said = shown.written(made, output, form, full)
    if said:
        shown.screen(made, full)
        shown.console().print(f"\n{said}", soft_wrap=True, markup=False)


def _named(logdirs: Sequence[Path]) -> dict[str, gradscope.Run]:
    """The runs in some folders, by short names."""
    found: list[tuple[Path, gradscope.Run]] = []
    for logdir in logdirs:
        runs = gradscope.load(logdir)
        if isinstance(runs, gradscope.Run):
            found.append((logdir, runs))
        elif len(runs) > MOST:
            raise click.ClickException(
                f"{logdir} holds {len(runs):,} runs, and {MOST} at most can be told apart side by side: name some of "
                f"them, or see all in one table with: gradscope report {logdir}"
            )
        else:
            found += [(logdir / name, run) for name, run in runs.items()]
    short = Counter(logdir.resolve().name for logdir, _ in found)
    names = [name if short[name := logdir.resolve().name] == 1 else str(logdir) for logdir, _ in found]
    if len(set(names)) < len(names):
        raise click.ClickException(f"{Counter(names).most_common(1)[0][0]} is given twice")
    return {name: run for name, (_, run) in zip(names, found, strict=True)}
