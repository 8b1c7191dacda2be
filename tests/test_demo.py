"""The demo: its tasks can be trained on, and it runs from end to end."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import gradscope
from gradscope.cli import main
from gradscope.demo.tasks import ANY, TASKS, Task, digits
from gradscope.demo.training import CELLS, Trial, train


@pytest.fixture(scope="module")
def few() -> Task:
    """A little of the data, for tests that only ask whether it runs."""
    return little(digits(seed=0))


def little(task: Task) -> Task:
    return task._replace(**{name: getattr(task, name)[:96] for name in task._fields[:4]})


@pytest.mark.parametrize("cell", CELLS)
def test_trial(cell: str, few: Task, tmp_path: Path) -> None:
    epochs: list[tuple[int, int]] = []
    accuracy = train(Trial(cell, "norm"), few, 2, tmp_path, 0, lambda *done: epochs.append(done))
    run = gradscope.load(tmp_path)
    (layer,) = run.frame("layers").itertuples()
    assert epochs == [(1, 2), (2, 2)] and 0 <= accuracy <= 1
    assert layer.timesteps == 64 and 5 < layer.horizon < 40
    assert len(run.frame("clips"))


@pytest.mark.parametrize("name", TASKS)
def test_tasks_can_be_trained_on(name: str, tmp_path: Path) -> None:
    task = TASKS[name](0)
    assert task.train_x.shape[1] == 64 and len(task.train_x) + len(task.test_x) >= 1797
    for y in (task.train_y, task.test_y):
        counted = y[y != ANY]
        assert counted.min() >= 0 and counted.max() < task.classes
        assert counted.bincount().max() < 0.6 * len(counted)  # no answer is right by itself
    assert 0 <= train(Trial("gru", "norm"), little(task), 1, tmp_path, 0, lambda *_: None) <= 1
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
        train(Trial("lstm", "value"), few, 1, tmp_path, 0, lambda *_: None)
        runs.append(gradscope.load(tmp_path).frame("reach"))
    pd.testing.assert_frame_equal(*runs)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_command_on_a_terminal_that_knows_only_ascii(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "argv", ["gradscope", "demo", "--cell", "rnn", "--epochs", "1", "-o", str(tmp_path)])
    assert main() == 0 and capsys.readouterr().err == ""
    out = stdout.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "RNN, clipped by norm:  " in out and "rnn-value" in out
    assert "steps back" in out and "*" in out
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["report.html", "rnn-norm", "rnn-value"]
    assert f"Report: {tmp_path / 'report.html'}" in out
    assert gradscope.load(tmp_path / "rnn-norm").layers == [("rnn", 0, "forward", 0)]
