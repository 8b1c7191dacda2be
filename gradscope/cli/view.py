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
    "--port", type=click.IntRange(0, 65535), help="0 for any free port; by default 6006, or the next free port."
)
def view(logdir: Path, host: str, port: int | None) -> int:
    """Open a run in TensorBoard, and print the address of its gradscope tab. Ends with Ctrl-C.

    LOGDIR may also contain several runs, each in its own folder.
    """
    if not os.path.isdir(logdir):  # also for names that no file can have
        gradscope.load(logdir)  # raises the error
    if missing := _missing(logdir):
        click.echo(f"gradscope: {missing}", err=True)
    serve = viewer()
    with shown.waiting("starting TensorBoard"):
        server = serve(logdir, host, port)
    with server, suppress(KeyboardInterrupt):
        click.echo(f"{server.url}  (end with Ctrl-C)")
        return 2 if server.wait() else 0
    return 0


def _missing(logdir: Path) -> str:
    """Say how to get records, if a folder has none yet; the tab shows new records."""
    try:
        runs = gradscope.load(logdir)
    except gradscope.GradscopeError:
        folder = shlex.quote(str(logdir))
        return (
            f"{logdir} holds no records yet. Train with: gradscope run --logdir {folder} train.py, or put this into "
            f"the training script: gradscope.attach(model, logdir={str(logdir)!r}). The tab shows new records."
        )
    if any(run.layers for run in ([runs] if isinstance(runs, gradscope.Run) else runs.values())):
        return ""
    return (
        f"{logdir} holds no recorded step yet. A running training writes its records every 30 s at the latest. If it "
        f"has ended, run it again and record every step: gradscope.attach(model, every=1), or gradscope run --every 1."
    )
