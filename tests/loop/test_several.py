"""Several scopes, threads and models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loop.lives import TABLES, steps
from loop.loops import Loop, Net, Outcome, assert_same_bits, assert_same_rows, check, observe, size
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam

import gradscope


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
        losses = [scope.run.frame("steps")["loss"].tolist() for scope in (trainee.scope, expected.scope)]
        assert losses[0] == losses[1] and all(loss > 0 for loss in losses[0])  # not the other's, which run meanwhile


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
