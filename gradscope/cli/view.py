"""`gradscope view`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import click

import gradscope
from gradscope.cli import shown


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
    from gradscope_tensorboard.view import serve

    with shown.waiting("starting TensorBoard"):
        served = serve(logdir, host, port)
    with served, suppress(KeyboardInterrupt):
        click.echo(f"{served.url}  (end with Ctrl-C)")
        return 2 if served.wait() else 0
    return 0
