"""The command `gradscope demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

if TYPE_CHECKING:
    from gradscope import Run
    from gradscope.demo.summary import Summary
    from gradscope.demo.tasks import Task
    from gradscope.demo.training import Trial

SEED = 0


@click.command(short_help="Train small networks and show their gradients.")
@click.option(
    "--task", type=click.Choice(["digits", "adding", "copy", "tagging"]), default="digits", show_default=True,
    help="Task to learn.",
)  # fmt: skip
@click.option(
    "--cell",
    type=click.Choice(["rnn", "lstm", "gru", "all"]),
    default="all",
    show_default=True,
    help="Network to train.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=15, show_default=True, help="Passes over the data.")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), default="runs/demo", show_default=True,
    help="Folder for the runs, the report and the picture; replaces an earlier demo in it.",
)  # fmt: skip
def demo(task: str, cell: str, epochs: int, output: Path) -> None:
    r"""Train small networks on real data and show their gradients.

    An RNN, an LSTM and a GRU read 1,797 handwritten digits pixel by pixel, 64 steps each, and name the digit after the
    last pixel. Each trains twice, with gradients clipped by norm and by value. The demo takes about a minute. The other
    tasks are artificial, also of 64 steps: add two marked numbers far apart, copy symbols after a long pause, and tag
    every bracket with its depth.

    \b
    Read the records afterwards, for example:
        run = gradscope.load("runs/demo/lstm-norm")
        run.frame("timesteps", quantity="grad_h")
    """
    from gradscope.demo.show import show
    from gradscope.demo.tasks import TASKS
    from gradscope.demo.training import CELLS, CLIPPINGS, Trial

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"cannot write to {output}: {error.strerror}") from None
    cells = list(CELLS) if cell == "all" else [cell]
    trials = [Trial(name, clipping) for name in cells for clipping in CLIPPINGS]
    console = Console(highlight=False)
    data = TASKS[task](SEED)
    console.print(
        f"{len(data.train_x):,} {data.what} to learn, {len(data.test_x)} for testing; "
        f"{data.train_x.shape[1]} {data.step} each, one per step"
    )
    summaries = _train_all(trials, data, epochs, output, console)
    show(summaries, console)
    console.print()
    console.print(_write(summaries, output), soft_wrap=True)


def _train_all(trials: list[Trial], data: Task, epochs: int, output: Path, console: Console) -> list[Summary]:
    import torch

    from gradscope.demo.show import progress
    from gradscope.demo.summary import summarise
    from gradscope.demo.training import train

    torch.set_num_threads(1)  # a second thread does not speed such small matrices up, and slows them on a busy machine
    summaries: list[Summary] = []
    with progress(console) as bar:
        tasks = [bar.add_task(trial.title, total=epochs, start=False) for trial in trials]
        for trial, task in zip(trials, tasks, strict=True):
            bar.start_task(task)
            logdir = output / trial.name
            accuracy = train(trial, data, epochs, logdir, SEED, report=lambda task=task: bar.advance(task))
            summaries.append(summarise(trial, accuracy, _run(logdir)))
    return summaries


def _run(logdir: Path) -> Run:
    import gradscope

    run = gradscope.load(logdir)
    assert isinstance(run, gradscope.Run)
    return run


def _write(summaries: list[Summary], output: Path) -> str:
    """Draw the picture and write the report, if the packages are installed, and name the files."""
    from gradscope.compare import compare
    from gradscope.demo import figure

    runs = f"Runs: {output / summaries[0].trial.name} and its neighbours; read one with gradscope.load(...)"
    picture, report = output / "reach.png", output / "report.html"
    try:
        figure.save(summaries, picture)
        by_name = {summary.trial.name: _run(output / summary.trial.name) for summary in summaries}
        compare(by_name).report().save(report)
    except ModuleNotFoundError as error:
        return (
            f"{runs}\nNo picture and no report, as {error.name} is not installed: pip install 'gradscope-rnn[report]'"
        )
    return f"{runs}\nPicture: {picture}\nReport: {report}"
