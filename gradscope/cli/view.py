"""`gradscope view`."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path

import click

import gradscope
from gradscope.cli import shown
from gradscope.record.plugins import viewer


@click.command(short_help="Open a run in TensorBoard.")
@shown.logdir_argument
@click.option("--host", default="localhost", show_default=True, help="Address to serve on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="0 for any that is free; without it 6006, or the next that is free."
)
def view(logdir: Path, host: str, port: int | None) -> int:
    """Open a run in TensorBoard, and print the address of its gradscope tab. Ends with Ctrl-C.

    LOGDIR may also hold several runs, each in a folder of its own.
    """
    if not os.path.isdir(logdir):  # also where the name is one that no file can have
        gradscope.load(logdir)  # says what is wrong with it
    if missing := _missing(logdir):
        click.echo(f"gradscope: {missing}", err=True)
    serve = viewer()
    with shown.waiting("starting TensorBoard"):
        served = serve(logdir, host, port)
    with served, suppress(KeyboardInterrupt):
        click.echo(f"{served.url}  (end with Ctrl-C)")
        return 2 if served.wait() else 0
    return 0


def _missing(logdir: Path) -> str:
    """How to get records, where a folder has none yet; the tab shows them as they come."""
    try:
        found = gradscope.load(logdir)
    except gradscope.GradscopeError:
        folder = shlex.quote(str(logdir))
        return (
            f"{logdir} holds no records yet. Train with: gradscope run --logdir {folder} train.py, or put this into "
            f"the training script: gradscope.attach(model, logdir={str(logdir)!r}). The tab shows records as they come."
        )
    if any(run.layers for run in ([found] if isinstance(found, gradscope.Run) else found.values())):
        return ""
    return (
        f"no step of {logdir} is recorded yet. A training that runs writes its records every 30 s at the latest. If it "
        f"has ended, run it again and record every step: gradscope.attach(model, every=1), or gradscope run --every 1."
    )
