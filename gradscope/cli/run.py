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
    short_help="Run a training script as it is, and watch its networks.",
    context_settings=SETTINGS,
    options_metavar="[--logdir D] [--every N]",
)
@click.option("-m", "--module", "as_module", is_flag=True, help="SCRIPT is a module, as for `python -m`.")
@click.option(
    "--logdir", type=click.Path(file_okay=False, path_type=Path),
    help="Run folder to write, with a number behind if it holds a run; without it runs/NAME, after the script. "
    "Several processes, as of torchrun, have to be given one.",
)  # fmt: skip
@click.option(
    "--every",
    type=click.IntRange(min=1),
    help="Record every N-th step; without it 8 to each doubling of the step, as 1.5 % of the time and a second allow.",
)
@click.argument("script")
@click.argument("arguments", metavar="[ARGS...]", nargs=-1, type=click.UNPROCESSED)
def run(
    as_module: bool, logdir: Path | None, every: int | None, script: str, arguments: tuple[str, ...]
) -> Callable[[], int]:
    r"""Run a training script as it is, with every recurrent network in it watched.

    The script gets its arguments, and the command has its output, its exit status and its tracebacks, as if python had
    run it; at the end gradscope says on stderr whether the training learns, what it found first, what to type against
    that, and where the records are. A model is attached when an optimizer takes its parameters:
    the first is recorded in D itself, further ones in folders within it.

    \b
        gradscope run train.py --epochs 3
        gradscope run --logdir runs/exp1 --every 10 -m package.train --lr 0.1

    Torch is loaded before the script begins: what it reads from the environment at that moment, such as
    OMP_NUM_THREADS, must be set outside of the script.
    """
    found = Script.find(script, arguments, as_module)
    rank, size = processes()
    if logdir is None and size > 1:
        raise gradscope.GradscopeError(
            f"this is one of {size} processes, and they record in one folder: "
            f"pass it to all of them, as --logdir runs/{found.name}"
        )
    folder = _free(Path("runs") / found.name) if logdir is None else _given(logdir, rank, size)
    watch = Watch(folder.absolute(), every, telling=rank == 0)
    return lambda: execute(found, watch)


def _given(logdir: Path, rank: int, size: int) -> Path:
    """The folder, or one within it for processes that `torchrun` has started anew after a failure.

    Where it holds an earlier run, a process on its own records beside that.

    Raises:
        GradscopeError: it holds an earlier run of several processes, which cannot agree on another folder.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    folder = logdir if restart == "0" else logdir / f"restart-{restart}"
    if size == 1:
        return _free(folder)
    if begun(folder, rank):
        raise gradscope.GradscopeError(f"{folder} holds a run already: pass another --logdir, or remove it")
    return folder


def _free(folder: Path) -> Path:
    """The folder, or the first of its numbered neighbours that holds no run."""
    return next(candidate for candidate in numbered(folder) if not (candidate / "gradscope").exists())
