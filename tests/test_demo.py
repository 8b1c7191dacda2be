"""The demo: what it draws and says is made from the numbers, and it runs from end to end."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

import gradscope
from gradscope.demo import figure
from gradscope.demo.show import show
from gradscope.demo.summary import Horizon, Layer, Summary, sentence, summarise
from gradscope.demo.tasks import ANY, TASKS, Task, digits
from gradscope.demo.training import CELLS, CLIPPINGS, Trial, train
from gradscope.report.chart import ASCII, BRAILLE, Curve, Pen, draw
from gradscope.types.loss import Change

NAN = float("nan")
AT_TWELVE = Horizon(12, False)


def decaying(per_step: float, steps: int = 17) -> list[float]:
    return [10 ** (per_step * lag) for lag in range(steps)]


def a_layer(
    after: Horizon, per_step: float, before: Horizon | None = AT_TWELVE, saturated: float = 0.1, gate: str = "hidden"
) -> Layer:
    values = decaying(per_step, 64)
    reach = pd.DataFrame({"p10": values, "p50": values, "p90": values}).rename_axis("lag")
    return Layer(before, after, per_step, gate, saturated, 64, reach)


def test_chart_in_ascii() -> None:
    drawn = draw([Curve("short", "red", decaying(-0.25)), Curve("long", "blue", decaying(0.0))], ASCII, columns=34)
    expected = """\
     1 |********************************** * long
       |  o
       |   ooo
       |      o
  1e-1 |       ooo
       |          o
       |           ooo
       |              o
  1e-2 |               ooo
       |                  oo
       |                    ooo
       |                       o
  1e-3 |------------------------ooo-------
       |                           o
       |                            ooo
       |                               o
  1e-4 |                                oo o short
       ++-------+-------+--------+-------+
        0       4       8        12      16
                    steps back"""
    assert drawn.plain == expected


@pytest.mark.parametrize("pen", [ASCII, BRAILLE])
@pytest.mark.parametrize(
    "values",
    [[], [1.0], [NAN] * 9, [0.0] * 9, [1.0, NAN, 0.1, float("inf")], decaying(-3), decaying(2), decaying(-0.01)],
)
def test_chart_of_anything_fits(pen: Pen, values: list[float]) -> None:
    lines = draw([Curve("it", "red", values)], pen, columns=40).plain.splitlines()
    assert max(map(cell_len, lines)) <= 8 + 40 + len(" o it")
    assert len(lines) <= 24


def test_ascii_chart_is_ascii() -> None:
    assert draw([Curve(name, "red", decaying(-0.1)) for name in "abc"], ASCII).plain.isascii()


HARDLY = "less than a thousandth of the loss gradient is left 20 steps back (before training, a thousandth after 12)"


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (a_layer(Horizon(20, False), -0.15), f"{HARDLY}, so the first 44 of 64 inputs hardly teach it anything."),
        (
            a_layer(Horizon(63, True), -0.005, before=Horizon(63, True)),
            "48% of the loss gradient is left 63 steps back (before training, it reached all 63), so the first inputs "
            "can teach it.",
        ),
        (
            a_layer(Horizon(63, True), -0.04, saturated=0.7),
            "0.3% of the loss gradient is left 63 steps back (before training, a thousandth after 12), so the first "
            "inputs teach it little; its hidden state is saturated in 70% of units and steps.",
        ),
        (
            a_layer(Horizon(63, True), 0.05, saturated=0.3, gate="update"),
            "the loss gradient grows 1,413-fold on its way to 63 steps back (before training, a thousandth after 12); "
            "its update gate is saturated in 30% of units and steps.",
        ),
        (
            a_layer(Horizon(20, False), -0.15, before=None),
            "less than a thousandth of the loss gradient is left 20 steps back, so the first 44 of 64 inputs "
            "hardly teach it anything.",
        ),
        (
            a_layer(Horizon(NAN, False), NAN),
            "the reach of its loss gradient is unknown, for the reasons in the table `notes`.",
        ),
    ],
)
def test_sentence(layer: Layer, said: str) -> None:
    assert sentence(layer) == said


@pytest.fixture(scope="module")
def few() -> Task:
    """A little of the data, for tests that only ask whether it runs."""
    return little(digits(seed=0))


def little(task: Task) -> Task:
    return task._replace(**{name: getattr(task, name)[:96] for name in task._fields[:4]})


@pytest.mark.parametrize("cell", CELLS)
def test_trial(cell: str, few: Task, tmp_path: Path) -> None:
    trial = Trial(cell, "norm")
    epochs: list[None] = []
    accuracy = train(trial, few, 2, tmp_path, seed=0, report=lambda: epochs.append(None))
    summary = summarise(trial, accuracy, gradscope.load(tmp_path))
    (layer,) = summary.layers.values()
    assert len(epochs) == 2
    assert 0 <= summary.accuracy <= 1
    assert 0 < summary.overhead < 1
    assert layer.timesteps == 64
    assert layer.reach["p50"].iloc[0] == pytest.approx(1)
    assert layer.before is None and 5 < layer.after.lag < 40  # of one record there is no beginning
    assert 0 <= summary.clipped <= 1


@pytest.mark.parametrize("name", TASKS)
def test_tasks_can_be_trained_on(name: str, tmp_path: Path) -> None:
    task = TASKS[name](0)
    assert task.train_x.shape[1] == 64 and len(task.train_x) + len(task.test_x) >= 1797
    for y in (task.train_y, task.test_y):
        counted = y[y != ANY]
        assert counted.min() >= 0 and counted.max() < task.classes
        assert counted.bincount().max() < 0.6 * len(counted)  # no answer is right by itself
    assert 0 <= train(Trial("gru", "norm"), little(task), 1, tmp_path, seed=0, report=lambda: None) <= 1
    assert [key.module for key in gradscope.load(tmp_path).layers] == ["rnn"]


def test_made_tasks_are_what_they_say() -> None:
    adding, copy, tagging = (TASKS[name](0) for name in ("adding", "copy", "tagging"))
    values, marks = adding.train_x.unbind(2)
    assert (marks.sum(1) == 2).all() and (marks[:, :32].sum(1) == 1).all()
    assert torch.equal(adding.train_y, ((values * marks).sum(1) > 1).long())
    assert torch.equal(copy.train_x[:, :4].argmax(2), copy.train_y[:, -4:]) and (copy.train_y[:, :-4] == ANY).all()
    assert torch.equal((tagging.train_x.argmax(2) - 1).cumsum(1), tagging.train_y)


def test_trial_repeats_itself_and_leaves_other_files_alone(few: Task, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    runs = []
    for _ in range(2):
        train(Trial("lstm", "value"), few, 1, tmp_path, seed=0, report=lambda: None)
        runs.append(gradscope.load(tmp_path).frame("reach"))
    pd.testing.assert_frame_equal(*runs)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("loss", [None, Change(2.3, 1.386, 10, 100)])
def test_the_loss_is_told_where_one_was_seen(loss: Change | None) -> None:
    console = Console(file=io.StringIO(), width=200)
    show([Summary(Trial("gru", "norm"), 0.5, 0.9, 0.01, {"rnn": a_layer(AT_TWELVE, -0.2, None)}, loss)], console)
    said = console.file.getvalue()
    assert ("GRU, clipped by norm: loss 2.30 -> 1.39; less than a thousandth" in said) is bool(loss)
    assert ("loss 2.30" in said) is bool(loss) and " 12  " in said


def test_figure(tmp_path: Path) -> None:
    pytest.importorskip("seaborn")
    layers = {"rnn": a_layer(Horizon(20, False), -0.15)}
    figure.save([Summary(Trial(c, k), 0.5, 0.9, 0.01, layers) for c in CELLS for k in CLIPPINGS], tmp_path / "it.png")
    assert (tmp_path / "it.png").stat().st_size > 10_000


def test_command_on_a_terminal_that_knows_only_ascii(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gradscope.cli", "demo", "--cell", "rnn", "--epochs", "1", "-o", str(tmp_path)]
    run = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False)
    out = run.stdout.decode("ascii")
    assert (run.returncode, run.stderr) == (0, b"")
    assert "RNN, clipped by norm: " in out
    assert "steps back" in out
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["reach.png", "report.html", "rnn-norm", "rnn-value"]
    assert f"Report: {tmp_path / 'report.html'}" in out
    assert gradscope.load(tmp_path / "rnn-norm").layers == [("rnn", 0, "forward", 0)]
