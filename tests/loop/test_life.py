"""Scopes in the life of a training: begun late, continued, paused, broken off, doubled, and side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from loop.loops import Loop, Net, Outcome, assert_same_bits, assert_same_rows, check, observe, size
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam

import gradscope

TABLES = ("timesteps", "reach", "gates", "weights", "layers")


def steps(count: int) -> Callable[[Loop], None]:
    """A plain loop."""

    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(count):
            loop.backward()
            loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-3)
            loop.step(optimizer)

    return train


# --- resuming


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


# --- without optimizers


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


# --- pausing, and breaking off


def test_paused_steps_are_counted_and_not_recorded() -> None:
    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for k in range(4):
            if loop.scope and k == 1:
                loop.scope.pause()
            if loop.scope and k == 3:
                loop.scope.resume()
            loop.backward()
            loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-3)
            loop.step(optimizer)

    outcome = observe(train)
    assert outcome.steps == [(k, "SGD", k in (0, 3), False) for k in range(4)]
    assert outcome.run.frame("clips")["step"].tolist() == [0, 1, 2, 3]


def test_paused_around_an_evaluation() -> None:
    """Whose backward passes are not the step's."""

    def train(loop: Loop) -> None:
        steps(1)(loop)
        if loop.scope:
            loop.scope.pause()
        loop.backward(length=7)
        if loop.scope:
            loop.scope.resume()
        steps(1)(loop)

    outcome = observe(train)
    assert outcome.steps == [(0, "SGD", True, False), (1, "SGD", True, False)]
    assert outcome.run.frame("layers")["timesteps"].tolist() == [4, 4]


class Broken(Exception):
    """Raised by the user's code."""


class Fails(SGD):
    """Raises at its second step."""

    calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        if self.calls == 2:
            raise Broken
        return super().step()


def breaks(_: Any) -> None:
    raise Broken


@pytest.mark.parametrize("moment", ["forward", "backward", "clipping", "step"])
def test_a_failure_in_the_middle_of_a_step(moment: str) -> None:
    """The loop goes on with the next batch: the attempt is no step, and the step after it is whole."""

    def train(loop: Loop) -> None:
        optimizer = Fails(loop.model.parameters(), 0.1) if moment == "step" else SGD(loop.model.parameters(), 0.1)
        for attempt in range(3):
            optimizer.zero_grad()
            try:
                _attempt(loop, optimizer, moment if attempt == 1 else "")
            except Broken:
                continue

    outcome = observe(train)
    name = "Fails" if moment == "step" else "SGD"
    assert outcome.steps == [(0, name, True, False), (1, name, True, False)]
    assert outcome.rows("clips", "step", "clipped") == [(0, True)] + [(1, True)] * (2 if moment == "step" else 1)


def _attempt(loop: Loop, optimizer: Any, moment: str) -> None:
    output, _ = loop.model.rnn(loop.model.embed(torch.randn(4, 2, 3)))
    if moment == "forward":
        raise Broken
    if moment == "backward":
        loop.model.embed.weight.register_hook(breaks)
        loss = loop.model.top(output)
        loop.model.embed.weight._backward_hooks.clear()
        output.register_hook(breaks)
    else:
        loss = loop.model.top(output)
    loss.backward()
    if moment == "clipping":
        raise Broken
    loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-3)
    if moment != "step":
        loop.measure()
    optimizer.step()
    if moment == "step":
        loop.measure()


def test_a_loop_that_raises_leaves_what_it_had(tmp_path: Path) -> None:
    model = Net()
    optimizer = SGD(model.parameters(), 0.1)
    with pytest.raises(Broken), gradscope.attach(model, tmp_path, every=1, strict=True):
        for k in range(3):
            model(torch.randn(4, 2, 3)).backward()
            if k == 2:
                raise Broken
            optimizer.step()
    outcome = Outcome(gradscope.load(tmp_path))
    assert outcome.steps == [(0, "SGD", True, False), (1, "SGD", True, False), (2, "", True, False)]


# --- several


@pytest.mark.parametrize("inner_first", [False, True])
def test_two_scopes_on_one_model(inner_first: bool) -> None:
    """Each with its own interval; what one does not record costs the other nothing of its rows."""
    second: list[gradscope.Scope] = []

    def train(loop: Loop) -> None:
        if loop.scope:
            second.append(gradscope.attach(loop.model, every=3, strict=True))
        steps(4)(loop)
        if loop.scope:
            for scope in (second[0], loop.scope) if inner_first else (loop.scope, second[0]):
                scope.close()

    first = observe(train, every=2)
    other = Outcome(second[0].run)
    assert first.steps == [(k, "SGD", k % 2 == 0, False) for k in range(4)]
    assert other.steps == [(k, "SGD", k % 3 == 0, False) for k in range(4)]
    assert_same_rows(first.run, other.run, "clips")
    alone = observe(steps(4), every=3)
    assert_same_rows(other.run, alone.run, *TABLES, "clips")


def test_one_scope_goes_on_when_the_other_is_closed() -> None:
    def train(loop: Loop) -> None:
        other = gradscope.attach(loop.model, every=1, strict=True) if loop.scope else None
        steps(1)(loop)
        if other:
            other.close()
        steps(1)(loop)

    assert observe(train).steps == [(0, "SGD", True, False), (1, "SGD", True, False)]


class Trainee:
    """A training that shares no random stream with others, in steps that can be interleaved."""

    def __init__(self, seed: int, with_scaler: bool) -> None:
        torch.manual_seed(seed)
        self.model = nn.GRU(3, 4) if seed else nn.LSTM(3, 5)
        self.data = [torch.randn(3 + seed, 2, 3) for _ in range(6)]
        self.scaler = GradScaler("cpu", init_scale=1024.0, enabled=with_scaler)
        self.optimizer = (Adam if seed else SGD)(self.model.parameters(), 0.1)
        self.norms: list[float] = []
        self.sizes: list[tuple[float, float]] = []
        self.scope: Any = None

    def train(self, meet: Callable[[], Any]) -> None:
        for x in self.data:
            self.optimizer.zero_grad()
            meet()
            loss = self.scaler.scale(self.model(x)[0].square().mean())
            meet()
            loss.backward()
            meet()
            self.scaler.unscale_(self.optimizer)
            before = size(self.model.parameters())
            meet()
            clip_grad_norm_(self.model.parameters(), 1e-3)
            self.sizes.append((before, size(self.model.parameters())))
            self.norms.append(self.sizes[-1][1])
            meet()
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def bits(self) -> list[bytes]:
        tensors = [*self.model.parameters(), *(p.grad for p in self.model.parameters())]
        return [t.detach().numpy().tobytes() for t in tensors]


def alone(seed: int, with_scaler: bool, scoped: bool) -> Trainee:
    trainee = Trainee(seed, with_scaler)
    if not scoped:
        trainee.train(lambda: None)
        return trainee
    with gradscope.attach(trainee.model, every=2, strict=True) as trainee.scope:
        trainee.train(lambda: None)
    return trainee


@pytest.mark.parametrize("scalers", [(False, False), (True, True), (False, True)], ids=str)
def test_two_threads_train_two_models(scalers: tuple[bool, bool]) -> None:
    """Each scope sees its own, as if it were alone."""
    barrier, failed = threading.Barrier(2, timeout=20), []
    trainees = [Trainee(seed, scaler) for seed, scaler in enumerate(scalers)]

    def work(trainee: Trainee) -> None:
        try:
            with gradscope.attach(trainee.model, every=2, strict=True) as trainee.scope:
                trainee.train(barrier.wait)
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(trainee,)) for trainee in trainees]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for seed, trainee in enumerate(trainees):
        expected = alone(seed, scalers[seed], scoped=True)
        assert_same_bits(alone(seed, scalers[seed], scoped=False).bits(), trainee.bits())
        outcome = Outcome(trainee.scope.run)
        check(outcome.run, trainee.norms, trainee.sizes)
        assert outcome.steps == [(k, ("SGD", "Adam")[seed], k % 2 == 0, False) for k in range(6)]
        assert_same_rows(outcome.run, expected.scope.run, *TABLES, "clips")
        assert outcome.notes == []


class Pair(nn.Module):
    """Two models trained in turn in one thread."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Net(), Net(nn.GRU)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x)


def test_two_models_trained_in_turn() -> None:
    """A scope for each; neither hears of the other's steps."""
    others: list[gradscope.Scope] = []

    def train(loop: Loop) -> None:
        pair = loop.model
        if loop.scope:
            others.append(gradscope.attach(pair.other, every=1, strict=True))
        mine, another = SGD(pair.one.parameters(), 0.1), Adam(pair.other.parameters())
        for _ in range(2):
            loop.backward()
            pair.other(torch.randn(4, 2, 3)).backward()
            loop.clip(clip_grad_norm_, pair.one.parameters(), 1e-3)
            another.step()
            loop.measure(mine)
            mine.step()
        for scope in others:
            scope.close()

    outcome = observe(train, Pair, include="one.*")
    assert outcome.steps == [(0, "SGD", True, False), (1, "SGD", True, False)]
    assert Outcome(others[0].run).steps == [(0, "Adam", True, False), (1, "Adam", True, False)]
    assert Outcome(others[0].run).clips == []
