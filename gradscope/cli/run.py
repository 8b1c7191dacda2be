"""`gradscope run`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

import gradscope
from gradscope.attach.processes import processes
from gradscope.cli.script import Script, execute
from gradscope.cli.watch import Watch
from gradscope.record.existing import numbered
from gradscope.record.folder import begun

SETTINGS = {"ignore_unknown_options": False, "allow_interspersed_args": False}


@click.command(
    short_help="Run a training script unchanged, and record its networks.",
    context_settings=SETTINGS,
    options_metavar="[--logdir D] [--every N]",
)
@click.option("-m", "--module", "as_module", is_flag=True, help="SCRIPT is a module, as for `python -m`.")
@click.option(
    "--logdir", type=click.Path(file_okay=False, path_type=Path),
    help="Run folder to write, with a number behind if it holds a run; by default runs/NAME, after the script. "
    "Several processes, such as torchrun's, need this option.",
)  # fmt: skip
@click.option(
    "--every",
    type=click.IntRange(min=1),
    help="Record every N-th step; by default 8 in each doubling of the step, as 1.5 % of the time and a second allow.",
)
@click.argument("script")
@click.argument("arguments", metavar="[ARGS...]", nargs=-1, type=click.UNPROCESSED)
def run(
    as_module: bool, logdir: Path | None, every: int | None, script: str, arguments: tuple[str, ...]
) -> Callable[[], int]:
    r"""Run a training script unchanged, and record every recurrent network in it.

    The script gets its arguments, and the command has its output, its exit status and its tracebacks, as if python had
    run it. At the end gradscope says on stderr whether the training learns, and names the first finding, a remedy to
    type, and the folder of the records. gradscope attaches to a model when an optimizer takes its parameters: it
    records the first model in D itself, further ones in folders within it.

    \b
        gradscope run train.py --epochs 3
        gradscope run --logdir runs/exp1 --every 10 -m package.train --lr 0.1

    The command imports torch before the script begins: set environment variables that torch reads at import, such as
    OMP_NUM_THREADS, outside of the script.
    """
    target = Script.find(script, arguments, as_module)
    rank, size = processes()
    if logdir is None and size > 1:
        raise gradscope.GradscopeError(
            f"this is one of {size} processes, and all record in one folder: "
            f"pass this folder to all of them, as --logdir runs/{target.name}"
        )
    folder = _free(Path("runs") / target.name) if logdir is None else _folder(logdir, rank, size)
    watch = Watch(folder.absolute(), every, verbose=rank == 0)
    return lambda: execute(target, watch)


def _folder(logdir: Path, rank: int, size: int) -> Path:
    """Return the folder, or a folder within it for processes that `torchrun` has restarted after a failure.

    A single process records beside an earlier run.

    Raises:
        GradscopeError: the folder holds an earlier run, and several processes cannot agree on another folder.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    folder = logdir if restart == "0" else logdir / f"restart-{restart}"
    if size == 1:
        return _free(folder)
    if begun(folder, rank):
        raise gradscope.GradscopeError(f"{folder} already holds a run: pass another --logdir, or remove the folder")
    return folder


def _free(folder: Path) -> Path:
    """Return the folder, or its first numbered neighbour without a run."""
    return next(candidate for candidate in numbered(folder) if not (candidate / "gradscope").exists())
