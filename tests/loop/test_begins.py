"""A training resumed, without optimizers, and looked at before it is over."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from loop.lives import TABLES, steps
from loop.loops import Loop, Net, Outcome, assert_same_rows, observe
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam

import gradscope

# -- resuming


def test_steps_are_counted_from_the_first() -> None:
    outcome = observe(steps(4), every=3, first_step=1000)
    assert outcome.steps == [(k, "SGD", k == 1002, False) for k in range(1000, 1004)]
    assert outcome.run.frame("clips")["step"].tolist() == [1000, 1001, 1002, 1003]


def test_a_folder_is_continued(tmp_path: Path) -> None:
    observe(steps(3), every=2, logdir=tmp_path)
    model = Net()
    with gradscope.attach(model, tmp_path, every=2, first_step=3, strict=True) as scope:
        optimizer = Adam(model.parameters())
        for _ in range(2):
            model(torch.randn(4, 2, 3)).backward()
            optimizer.step()
    for run in (scope.run, gradscope.load(tmp_path)):
        names = ["SGD"] * 3 + ["Adam"] * 2
        assert Outcome(run).steps == [(k, name, k % 2 == 0, False) for k, name in enumerate(names)]
        assert set(run.frame("timesteps")["step"]) == {0, 2, 4}
        assert run.frame("clips")["step"].tolist() == [0, 1, 2]
    assert [session["first_step"] for session in scope.run.meta["sessions"]] == [0, 3]


def test_a_folder_holds_what_memory_would(tmp_path: Path) -> None:
    kept, written = observe(steps(3), every=2), observe(steps(3), every=2, logdir=tmp_path)
    assert_same_rows(written.run, kept.run, *TABLES, "clips")
    assert_same_rows(gradscope.load(tmp_path), kept.run, *TABLES, "clips")


# -- without optimizers


def test_steps_without_an_optimizer() -> None:
    """The loop updates by hand, and says so."""

    def train(loop: Loop) -> None:
        for _ in range(3):
            loop.backward()
            loop.measure()
            with torch.no_grad():
                for parameter in loop.model.parameters():
                    parameter -= 0.1 * parameter.grad
            if loop.scope:
                loop.scope.step()

    outcome = observe(train, every=2)
    assert outcome.steps == [(0, "", True, False), (1, "", False, False), (2, "", True, False)]
    assert outcome.clips == []


@pytest.mark.parametrize("set_to_none", [False, True])
def test_gradients_zeroed_before_the_step_is_said_to_be_over(set_to_none: bool) -> None:
    """Nothing but the loop knows what its gradients were for: zeroing them is no clipping."""

    def train(loop: Loop) -> None:
        for _ in range(2):
            loop.loss().backward()
            loop.measure()
            with torch.no_grad():
                for parameter in loop.model.parameters():
                    parameter -= 0.1 * parameter.grad
            loop.model.zero_grad(set_to_none=set_to_none)
            if loop.scope:
                loop.scope.step()

    outcome = observe(train)
    assert outcome.steps == [(0, "", True, False), (1, "", True, False)] and outcome.clips == []


def test_no_step_at_all() -> None:
    """A single forward and backward yields data, and once: in the middle, again, and at the end."""
    looks: list[pd.DataFrame] = []

    def train(loop: Loop) -> None:
        loop.backward()
        loop.measure()
        for _ in range(2 if loop.scope else 0):
            looks.append(loop.scope.run.frame("timesteps"))

    outcome = observe(train)
    assert outcome.steps == [(0, "", True, False)]
    for frame in looks:
        pd.testing.assert_frame_equal(frame, outcome.run.frame("timesteps"))


def test_a_run_taken_in_the_middle_of_a_step() -> None:
    model = Net()
    with gradscope.attach(model, every=1, strict=True) as scope:
        model(torch.randn(4, 2, 3)).backward()
        run = scope.run
        seen = len(run.frame("timesteps"))
    assert len(run.frame("timesteps")) == seen


def test_a_last_step_that_is_not_finished() -> None:
    def train(loop: Loop) -> None:
        steps(2)(loop)
        loop.backward()
        loop.measure()

    outcome = observe(train)
    assert outcome.steps == [(0, "SGD", True, False), (1, "SGD", True, False), (2, "", True, False)]


def test_nothing_is_unfinished_after_a_step() -> None:
    """A forward that never sees a backward makes no step."""

    def train(loop: Loop) -> None:
        steps(1)(loop)
        loop.loss()

    assert observe(train).steps == [(0, "SGD", True, False)]


def test_notes_are_not_lost_by_looking() -> None:
    """What was noted in a step is recorded with it, though the run was looked at meanwhile."""
    model = Net()
    optimizer, scaler = SGD(model.parameters(), 0.1), GradScaler("cpu", init_scale=4.0)
    with gradscope.attach(model, every=1) as scope:
        scaler.scale(model(torch.randn(4, 2, 3))).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        with pytest.warns(gradscope.GradscopeWarning, match="unscale_"):
            scaler.unscale_(optimizer)
        looked = scope.run.frame("notes")
        scaler.step(optimizer)
    notes = scope.run.frame("notes")
    assert len(looked) == len(notes) == 1 and looked["reason"].tolist() == notes["reason"].tolist()
