"""`gradscope demo`."""

from __future__ import annotations

from pathlib import Path

import click

import gradscope
from gradscope.cli import shown
from gradscope.compare import compare as side_by_side

SEED = 0


@click.command(short_help="Train small networks and show their gradients.")
@click.option(
    "--task", type=click.Choice(["digits", "adding", "copy", "tagging"]), default="digits", show_default=True,
    help="Task to learn.",
)  # fmt: skip
@click.option(
    "--cell", type=click.Choice(["rnn", "lstm", "gru", "all"]), default="all", show_default=True,
    help="Network to train.",
)  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), default=15, show_default=True, help="Passes over the data.")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), default="runs/demo", show_default=True,
    help="Folder for the runs and the report; replaces an earlier demo in it.",
)  # fmt: skip
def demo(task: str, cell: str, epochs: int, output: Path) -> None:
    r"""Train small networks on real data and show their gradients.

    An RNN, an LSTM and a GRU read 1,797 handwritten digits pixel by pixel, 64 steps each, and name the digit after the
    last pixel. Each trains twice, with gradients clipped by norm and by value. The demo takes about a minute, and
    prints the first screen of `gradscope compare`. The other tasks are artificial, also of 64 steps: add two marked
    numbers far apart, copy symbols after a long pause, and tag every bracket with its depth.

    \b
    Read the records afterwards, for example:
        run = gradscope.load("runs/demo/lstm-norm")
        run.frame("timesteps", quantity="grad_h")
    """
    import torch

    from gradscope.demo.tasks import TASKS
    from gradscope.demo.training import CELLS, CLIPPINGS, Trial, train

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot write to {output}: {error.strerror}") from None
    data, out = TASKS[task](SEED), shown.console()
    out.print(
        f"{len(data.train_x):,} {data.what} to learn, {len(data.test_x)} for testing; "
        f"{data.train_x.shape[1]} {data.step} each, one per step"
    )
    torch.set_num_threads(1)  # a second thread does not speed such small matrices up, and slows them on a busy machine
    trials = [Trial(name, clipping) for clipping in CLIPPINGS for name in (CELLS if cell == "all" else [cell])]
    for trial in trials:
        with shown.counted(trial.title, "epochs") as progress:
            accuracy = train(trial, data, epochs, output / trial.name, SEED, progress)
        out.print(f"{trial.title + ':':<23} {accuracy:.1%} of the answers on test data are right")
    out.print(f"\n{_summary([trial.name for trial in trials], output)}", soft_wrap=True)


def _summary(names: list[str], output: Path) -> str:
    """Compare the runs, if the packages are installed, and name the files."""
    files = f"Runs: {output / names[0]} and its neighbours; read one with gradscope.load(...)"
    runs = {name: run for name in names if isinstance(run := gradscope.load(output / name), gradscope.Run)}
    try:
        report = side_by_side(runs).report()
        path = report.save(output / "report.html")
    except ModuleNotFoundError as error:
        return f"{files}\nNo report, as {error.name} is not installed: pip install 'gradscope-rnn[report]'"
    shown.screen(report, full=False)
    return f"{files}\nReport: {path}"
