"""Forward and backward passes: what of them is a step's, however many there are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loop.loops import Loop, Net, assert_same_rows, observe
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.observe.passes import Passes

TABLES = ("timesteps", "reach", "gates", "weights", "layers")
TWO = [(0, "SGD", True, False), (1, "SGD", True, False)]


def test_accumulation() -> None:
    """Three micro-batches are one step, and the first of them is recorded."""

    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for number in range(6):
            (loop.loss(length=3 + number) / 3).backward()
            if number % 3 == 2:
                loop.step(optimizer)
                optimizer.zero_grad()

    outcome = observe(train)
    assert outcome.steps == TWO and outcome.clips == []
    assert outcome.run.frame("layers")["timesteps"].tolist() == [3, 6]


def test_accumulation_with_clipping() -> None:
    """Of the sum, once, and of every micro-batch."""

    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(2):
            loop.loss().backward()
            loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-3)
            loop.loss().backward()
            loop.clip(clip_grad_norm_, loop.model.parameters(), 1e3)
            loop.step(optimizer)
            optimizer.zero_grad()

    outcome = observe(train)
    norm = "norm", "clip_grad_norm_"
    assert outcome.steps == TWO
    assert outcome.clips == [(step, *norm, *limited) for step in range(2) for limited in ((1e-3, True), (1e3, False))]


def test_a_penalty_on_gradients_above_the_layer() -> None:
    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss = loop.loss()
            (slope,) = torch.autograd.grad(loss, loop.model.head.weight, create_graph=True)
            (loss + slope.square().sum()).backward()
            loop.step(optimizer)

    outcome = observe(train)
    assert outcome.steps == TWO and outcome.clips == []
    assert outcome.run.frame("timesteps", quantity="grad_h")["p50"].gt(0).all()


def test_a_penalty_on_gradients_through_the_layer() -> None:
    """What enters it by double backward cannot be observed: one note for every step, and no number that is wrong."""

    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss = loop.loss()
            (slope,) = torch.autograd.grad(loss, loop.model.embed.weight, create_graph=True)
            (loss + slope.square().sum()).backward()
            loop.step(optimizer)

    outcome = observe(train, lambda: Net(nn.GRU), noted=True)
    assert outcome.steps == TWO and outcome.clips == []
    assert {step for step, _ in outcome.notes} == {0, 1}
    assert outcome.run.frame("timesteps", quantity="grad_h")["p50"].isna().all()


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
def test_backward_with_a_graph() -> None:
    """A second `backward` through the gradients of the first, as in meta-learning: two passes, one step."""

    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(2):
            loop.loss().backward(create_graph=True)
            loop.model.head.bias.grad.square().sum().backward(inputs=[loop.model.head.bias])
            loop.step(optimizer)
            optimizer.zero_grad(set_to_none=True)  # else the cycle of gradient and graph would stay

    assert observe(train).steps == TWO


class Checkpointed(Net):
    """Keeps nothing between forward and backward."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        output = checkpoint(lambda y: self.rnn(y)[0], self.embed(x), use_reentrant=self.reentrant)
        return self.top(output)


class Reentrant(Checkpointed):
    reentrant = True


def once_per_step(loop: Loop) -> None:
    optimizer = SGD(loop.model.parameters(), 0.1)
    for _ in range(2):
        loop.backward()
        loop.clip(clip_grad_norm_, loop.model.parameters(), 1e-2)
        loop.step(optimizer)


@pytest.mark.parametrize("kind", [Checkpointed, Reentrant])
def test_activation_checkpointing(kind: type[Net]) -> None:
    """The same records as without: the recomputation is the same call."""
    outcome, plain = observe(once_per_step, kind), observe(once_per_step)
    assert outcome.steps == TWO
    assert outcome.clips == [(k, "norm", "clip_grad_norm_", 1e-2, True) for k in range(2)]
    assert_same_rows(outcome.run, plain.run, *TABLES, "clips", rtol=1e-5, atol=1e-6)


class Segmented(nn.Module):
    """Two recurrent layers, each recomputed in a backward pass of its own, and dropout that is drawn again."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.lower, self.upper = nn.GRU(4, 4, 2, dropout=0.3), nn.GRU(4, 4)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        output = self.embed(x)
        for layer in (self.lower, self.upper):
            output = self.run(layer, output)
        return self.head(output).square().mean()

    def run(self, layer: nn.GRU, x: Tensor) -> Tensor:
        def segment(y: Tensor) -> Tensor:
            return nn.functional.dropout(layer(y)[0], 0.2)

        return segment(x) if self.reentrant is None else checkpoint(segment, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_in_segments(reentrant: bool) -> None:
    outcome = observe(once_per_step, lambda: Segmented(reentrant))
    plain = observe(once_per_step, lambda: Segmented(None))
    assert outcome.steps == TWO
    assert_same_rows(outcome.run, plain.run, *TABLES, "clips", rtol=1e-5, atol=1e-6)


def detach(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.detach() for each in state)


def test_truncated_backpropagation() -> None:
    """State carried over and detached: one step for each chunk, and it is said once."""

    def train(loop: Loop) -> None:
        optimizer, state = SGD(loop.model.parameters(), 0.1), None
        for _ in range(3):
            optimizer.zero_grad()
            output, state = loop.model.rnn(torch.randn(4, 2, 4), state and detach(state))
            loop.model.top(output).backward()
            loop.step(optimizer)

    outcome = observe(train, noted=True)
    ((step, reason),) = outcome.notes
    assert step == 1 and reason.startswith("the state was detached: it was carried over from an earlier step")
    assert outcome.steps == [(k, "SGD", True, False) for k in range(3)]
    assert outcome.rows("layers", "step", "timesteps") == [(0, 4), (1, 4), (2, 4)]


@pytest.mark.parametrize("often", [False, True], ids=["one loss", "a loss for each chunk"])
def test_state_carried_within_a_step(often: bool) -> None:
    """Chunks linked by their state: one step, and of one backward pass all of them are recorded."""

    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            state, losses = None, []
            for _ in range(3):
                output, state = loop.model.rnn(torch.randn(4, 2, 4), state)
                losses.append(loop.model.top(output))
            if not often:
                losses = [sum(losses)]
            for loss in losses:
                loss.backward(retain_graph=True)
            loop.step(optimizer)

    outcome = observe(train)
    assert outcome.steps == TWO
    layers = outcome.run.frame("layers")
    assert layers.groupby("step")["timesteps"].sum().tolist() == [12, 12]
    assert layers["residual"].max() < 1e-4


class Rollout(Net):
    """Feeds on itself, and is also called where nothing is learned."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.rnn(self.embed(x))
        self.rnn(self.embed(x))  # an output that nobody uses
        return super().forward(x)


def test_calls_without_a_backward_are_nothing() -> None:
    outcome = observe(once_per_step, Rollout)
    assert outcome.steps == TWO
    assert len(outcome.run.frame("layers")) == 2


def test_evaluation_between_the_steps() -> None:
    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(2):
            loop.model.eval()
            loop.loss(length=9)
            loop.model.train()
            loop.backward()
            loop.step(optimizer)

    outcome = observe(train)
    assert outcome.steps == TWO
    assert outcome.run.frame("layers")["timesteps"].tolist() == [4, 4]


def test_a_training_without_recurrence_in_some_steps() -> None:
    """A step whose loss does not reach the layer has a row, no gradient, and nothing to record."""

    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for k in range(3):
            optimizer.zero_grad()
            loss: Any = loop.model.top(torch.randn(3, 2, 5)) if k == 1 else loop.loss()
            loss.backward()
            loop.step(optimizer)

    outcome = observe(train)
    assert outcome.steps == [(0, "SGD", True, False), (1, "SGD", False, False), (2, "SGD", True, False)]
    assert outcome.run.frame("steps")["grad_norm"].isna().tolist() == [False, True, False]


def test_attached_between_forward_and_backward() -> None:
    """Too late for this step's numbers, which is no reason for noise; the next is whole."""
    model = Net()
    optimizer = SGD(model.parameters(), 0.1)
    loss = model(torch.randn(4, 2, 3))
    with gradscope.attach(model, every=1, strict=True) as scope:
        loss.backward()
        optimizer.step()
        model(torch.randn(4, 2, 3)).backward()
        optimizer.step()
    assert scope.run.frame("steps")["optimizer"].tolist() == ["SGD", "SGD"]
    assert set(scope.run.frame("timesteps")["step"]) == {1}


def test_gradients_that_go_while_a_pass_of_another_runs_are_no_sign_of_it() -> None:
    """As when another thread trains another model, and this one's loop calls `zero_grad` meanwhile."""
    parameter = torch.nn.Parameter(torch.ones(2))
    passes = Passes(lambda: [parameter])
    for gone in (True, False):
        parameter.grad = torch.ones(2)
        one = passes.begin((torch.ones(()),), thorough=True)
        parameter.grad = None if gone else torch.ones(2)
        assert passes.end(one) is not gone
