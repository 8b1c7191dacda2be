"""`gradscope compare`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

import gradscope
from gradscope.cli import shown
from gradscope.compare import compare as side_by_side


@click.command()
@click.argument("logdirs", metavar="LOGDIR LOGDIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", default="compare.html", show_default=True,
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), help="File to write, '-' for stdout.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(list(shown.FORMATS)), help="Without it what the suffix of the file says."
)
def compare(logdirs: tuple[Path, ...], output: Path, form: str | None) -> None:
    r"""Put runs side by side: the same numbers beside each other, the same curves over each other.

    Each run is called by the name of its folder, or by its whole path where two have the same.

    \b
        gradscope compare runs/lstm runs/gru -o cells.html
    """
    form = shown.format_of(output, form)
    short = Counter(logdir.resolve().name for logdir in logdirs)
    names = [name if short[name := logdir.resolve().name] == 1 else str(logdir) for logdir in logdirs]
    if len(set(names)) < len(names):
        raise click.ClickException(f"{Counter(names).most_common(1)[0][0]} is given twice")
    runs = {name: gradscope.load(logdir) for name, logdir in zip(names, logdirs, strict=True)}
    with shown.waiting("reading the runs"):
        made = side_by_side(runs).report()
    said = shown.written(made, output, form)
    if said:
        shown.console().print(said, soft_wrap=True, markup=False)
