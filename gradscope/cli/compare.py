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
"""Largest number of runs of one folder side by side."""


@click.command(short_help="Put runs side by side.")
@click.argument("logdirs", metavar="LOGDIR LOGDIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", default="compare.html", show_default=True,
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), help="File to write, '-' for stdout.",
)  # fmt: skip
@shown.format_option
@shown.full_option
def compare(logdirs: tuple[Path, ...], output: Path, form: str | None, full: bool) -> None:
    r"""Put runs side by side: numbers next to each other, and overlaid curves.

    The first screen is a table with a row for each run: its differing settings, loss, horizon, worst finding and
    clipping; below are the settings that separate runs that learn from the others. The name of a run is its folder's,
    or the whole path if two folders have the same name. A folder with several runs below it, such as a sweep, stands
    for all of them.

    \b
        gradscope compare runs/lstm runs/gru -o cells.html
        gradscope compare runs/demo
    """
    form = shown.format_of(output, form)
    runs = _named(logdirs)
    with shown.waiting("reading the runs"):
        report = side_by_side(runs).report()
    message = shown.write(report, output, form, full)
    if message:
        shown.screen(report, full)
        shown.console().print(f"\n{message}", soft_wrap=True, markup=False)


def _named(logdirs: Sequence[Path]) -> dict[str, gradscope.Run]:
    """Load the runs in some folders, by short names."""
    loaded: list[tuple[Path, gradscope.Run]] = []
    for logdir in logdirs:
        runs = gradscope.load(logdir)
        if isinstance(runs, gradscope.Run):
            loaded.append((logdir, runs))
        elif len(runs) > MOST:
            raise click.ClickException(
                f"{logdir} holds {len(runs):,} runs, and at most {MOST} are distinct side by side: name some of them, "
                f"or see all in one table with: gradscope report {logdir}"
            )
        else:
            loaded += [(logdir / name, run) for name, run in runs.items()]
    short = Counter(logdir.resolve().name for logdir, _ in loaded)
    names = [name if short[name := logdir.resolve().name] == 1 else str(logdir) for logdir, _ in loaded]
    if len(set(names)) < len(names):
        raise click.ClickException(f"{Counter(names).most_common(1)[0][0]} appears twice")
    return {name: run for name, (_, run) in zip(names, loaded, strict=True)}
