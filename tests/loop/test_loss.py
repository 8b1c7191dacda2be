"""`steps.loss`: the value on which `backward()` was called, for every step, whatever the loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loop.loops import Loop, Net, Outcome, observe
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import LBFGS, SGD, Adam

import gradscope
from gradscope.record.recorder import reference

EVERY = pytest.mark.parametrize("every", [1, 10**9])


def run(train: Callable[[Loop, list[float]], Any], every: int = 10**9, **options: Any) -> Outcome:
    """Observe a loop, which writes down what the losses of its steps are."""
    told: list[list[float]] = []

    def training(loop: Loop) -> None:
        told.append([])
        train(loop, told[-1])

    outcome = observe(training, every=every, **options)
    assert told[0] == pytest.approx(told[1], nan_ok=True)
    assert outcome.run.frame("steps")["loss"].tolist() == pytest.approx(told[1], rel=1e-5, nan_ok=True)
    return outcome


@EVERY
@pytest.mark.parametrize(
    "call",
    [
        lambda loss: loss.backward(),
        lambda loss: torch.autograd.backward(loss),
        lambda loss: torch.autograd.backward([loss]),
        lambda loss: loss.backward(gradient=torch.tensor(0.5)),
        lambda loss: loss.unsqueeze(0).backward(),
        lambda loss: torch.Tensor.backward(loss, create_graph=False),
    ],
    ids=["method", "function", "list", "gradient", "one element", "class"],
)
def test_however_it_is_called(every: int, call: Callable[[Tensor], Any]) -> None:
    def train(loop: Loop, told: list[float]) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = loop.loss()
            told.append(loss.item())
            call(loss)
            loop.step(optimizer)

    run(train, every)


@EVERY
def test_several_passes_are_summed(every: int) -> None:
    """Accumulation, two losses at once, and a retained graph."""

    def train(loop: Loop, told: list[float]) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for step in range(3):
            optimizer.zero_grad()
            losses = [loop.loss() / 2 for _ in range(2)]
            if step == 0:
                for loss in losses:
                    loss.backward()
            elif step == 1:
                torch.autograd.backward(losses)
            else:
                losses[0].backward(retain_graph=True)
                losses[0].backward()
            told.append(sum(loss.item() for loss in losses) if step < 2 else 2 * losses[0].item())
            loop.step(optimizer)

    run(train, every)


@EVERY
def test_what_is_no_scalar_is_not_known_and_no_failure(every: int) -> None:
    def train(loop: Loop, told: list[float]) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for step in range(4):
            optimizer.zero_grad()
            if step == 0:
                output = loop.model.rnn(torch.randn(4, 2, 4))[0]
                output.backward(torch.ones_like(output))
            elif step == 1:
                loop.loss().backward()
                output = loop.model.rnn(torch.randn(4, 2, 4))[0]
                output.backward(torch.ones_like(output))
            elif step == 2:
                parameters = list(loop.model.parameters())
                for parameter, gradient in zip(parameters, torch.autograd.grad(loop.loss(), parameters), strict=True):
                    parameter.grad = gradient
            else:
                edge = torch.autograd.graph.get_gradient_edge(loop.loss())
                torch.autograd.backward([edge])
            told.append(math.nan)
            loop.step(optimizer)

    outcome = run(train, every, noted=every == 1)
    assert outcome.run.frame("steps")["nonfinite"].tolist() == [0] * 4


@EVERY
@pytest.mark.parametrize("through", ["scale", "scale and divide", "list", "disabled"])
def test_under_a_scaler_it_is_what_scale_was_given(every: int, through: str) -> None:
    def train(loop: Loop, told: list[float]) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=1, enabled=through != "disabled")
        for _ in range(3):
            optimizer.zero_grad()
            loss = loop.loss()
            if through == "list":
                torch.autograd.backward(scaler.scale([loss]))
            else:
                scaled = scaler.scale(loss)
                (scaled / 4 if "divide" in through else scaled).backward()
            told.append(loss.item() / (4 if "divide" in through else 1))
            scaler.unscale_(optimizer)
            loop.measure(optimizer)
            scaler.step(optimizer)
            scaler.update()

    run(train, every)


class Pair(nn.Module):
    """Two recurrent networks that are trained against each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Net(), Net(nn.GRU)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.other(x)


@EVERY
@pytest.mark.parametrize("order", ["in turn", "both first"])
def test_each_optimizer_s_step_has_its_own_passes(every: int, order: str) -> None:
    def train(loop: Loop, told: list[float]) -> None:
        parts = loop.model.one, loop.model.other
        optimizers = [SGD(part.parameters(), 0.1) for part in parts]
        for _ in range(3):
            losses = [part(torch.randn(4, 2, 3)) for part in parts]
            for part, optimizer, loss in zip(parts, optimizers, losses, strict=True):
                part.zero_grad()
                loss.backward()
                if order == "in turn":
                    loop.measure(optimizer)
                    optimizer.step()
            for optimizer in optimizers if order == "both first" else ():
                loop.measure(optimizer)
                optimizer.step()
            told += [loss.item() for loss in losses]

    # A forward pass from before the other's step is not recorded, which a note says.
    run(train, every, build=Pair, noted=every == 1 and order == "in turn")


@EVERY
def test_one_loss_for_two_optimizers_is_that_of_both_steps(every: int) -> None:
    def train(loop: Loop, told: list[float]) -> None:
        optimizers = SGD(loop.model.one.parameters(), 0.1), Adam(loop.model.other.parameters())
        for _ in range(3):
            loop.model.zero_grad()
            loss = loop.loss()
            loss.backward()
            for optimizer in optimizers:
                loop.measure(optimizer)
                optimizer.step()
            told += [loss.item()] * 2

    run(train, every, build=Pair)


@EVERY
def test_another_model_s_losses_are_not_ours(every: int) -> None:
    """A critic trained in turn with the policy that is watched; and one that is part of the model, without layers."""

    def train(loop: Loop, told: list[float]) -> None:
        critic = nn.Linear(3, 1)
        optimizer, another = SGD(loop.model.parameters(), 0.1), SGD(critic.parameters(), 0.1)
        for _ in range(3):
            critic(torch.ones(3)).square().sum().backward()
            loop.model.zero_grad()
            loss = loop.loss()
            loss.backward()
            critic(torch.zeros(3)).square().sum().backward()
            another.step()
            told.append(loss.item())
            loop.step(optimizer)

    run(train, every)


@EVERY
def test_a_pass_over_the_head_alone_counts(every: int) -> None:
    def train(loop: Loop, told: list[float]) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            losses = loop.loss(), loop.model.head(torch.ones(5)).square().sum()
            for loss in losses:
                loss.backward()
            told.append(sum(loss.item() for loss in losses))
            loop.step(optimizer)

    run(train, every)


@EVERY
def test_of_a_closure_the_first(every: int) -> None:
    def train(loop: Loop, told: list[float]) -> None:
        optimizer = LBFGS(loop.model.parameters(), lr=0.01, max_iter=4)
        for _ in range(3):
            seen: list[float] = []

            def evaluate(seen: list[float] = seen) -> Tensor:
                loss = loop.evaluate()
                seen.append(loss.item())
                return loss

            loop.step(optimizer, evaluate)
            assert len(seen) > 1
            told.append(seen[0])

    run(train, every)


@EVERY
def test_accumulated_before_and_within_a_closure(every: int) -> None:
    """As Lightning does it: the last micro-batch runs within the optimizer's step."""

    def train(loop: Loop, told: list[float]) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            losses: list[Tensor] = []

            def micro_batch(losses: list[Tensor] = losses) -> Tensor:
                losses.append(loop.loss() / 2)
                losses[-1].backward()
                return losses[-1]

            micro_batch()
            optimizer.step(micro_batch)
            loop.measure(optimizer)
            told.append(sum(loss.item() for loss in losses))

    run(train, every)


def test_a_loss_that_the_loop_writes_into_afterwards() -> None:
    def train(loop: Loop, told: list[float]) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = loop.loss()
            told.append(loss.item())
            loss.backward()
            loss.detach().zero_()
            loop.step(optimizer)

    run(train)


def test_a_loop_without_an_optimizer() -> None:
    def train(loop: Loop, told: list[float]) -> None:
        for _ in range(3):
            loop.model.zero_grad()
            loss = loop.loss()
            loss.backward()
            told.append(loss.item())
            loop.measure()
            if loop.scope:
                loop.scope.step()

    run(train, 1)


def test_paused_steps_have_a_loss_too() -> None:
    def train(loop: Loop, told: list[float]) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for step in range(3):
            if loop.scope and step == 1:
                loop.scope.pause()
            optimizer.zero_grad()
            loss = loop.loss()
            loss.backward()
            told.append(loss.item())
            loop.step(optimizer)

    run(train, 10**9)


def test_an_optimizer_for_every_parameter_that_steps_within_backward() -> None:
    """And sets the gradient to None at once, so that none is left when the pass is over."""
    torch.manual_seed(0)
    model = nn.GRU(3, 4)
    optimizers = {parameter: SGD([parameter], 0.01) for parameter in model.parameters()}

    def apply(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    handles = [p.register_post_accumulate_grad_hook(apply) for p in optimizers]
    losses: list[float] = []
    with gradscope.attach(model, every=10**9, strict=True) as scope:
        for _ in range(3):
            loss = model(torch.randn(5, 2, 3))[0].square().mean()
            losses += [loss.item()] * 4
            loss.backward()
    assert scope.run.frame("steps")["loss"].tolist() == pytest.approx(losses)
    assert len(handles) == 4


@pytest.mark.filterwarnings("ignore::gradscope.GradscopeWarning")
@pytest.mark.parametrize("where", ["loss", "gradient", "clipped gradient"])
@EVERY
def test_nan_is_found_at_the_step_where_it_happens(every: int, where: str) -> None:
    model, head = nn.GRU(3, 4), nn.Linear(4, 1)
    optimizer = SGD([*model.parameters(), *head.parameters()], 0.01)
    with gradscope.attach(model, every=every) as scope:
        for step in range(60):
            optimizer.zero_grad()
            loss = head(model(torch.randn(5, 2, 3))[0]).square().mean()
            if step == 50:
                loss = loss * math.nan if where == "loss" else loss + (loss - loss.detach()).sqrt()
            loss.backward()
            if where == "clipped gradient":
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    steps = scope.run.frame("steps")
    assert steps["step"][steps["nonfinite"] > 0].min() == 50
    notes = scope.run.frame("notes", step=50)["reason"]
    assert notes.str.contains("its weights were still finite").any()
    if every > 1:
        assert steps["step"][steps["recorded"]].tolist() == [0, 51, 52]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are taken for those of a device: numbers are read when rows are flushed."""
    for room in ("losses", "ledger"):
        monkeypatch.setattr(f"gradscope.observe.{room}.keep", reference)
    for room in ("ending", "look"):
        monkeypatch.setattr(f"gradscope.observe.{room}.known", lambda values: False)


@pytest.mark.usefixtures("device")
def test_on_a_device_numbers_are_read_at_the_flush() -> None:
    """The same as on the host, also what a scaler has scaled; of what the loop writes into meanwhile, NaN."""

    def train(loop: Loop, told: list[float]) -> None:
        optimizer, scaler = SGD(loop.model.parameters(), 0.1), GradScaler("cpu", init_scale=8.0)
        for step in range(4):
            optimizer.zero_grad()
            loss = loop.loss()
            told.append(math.nan if step == 3 else loss.item())
            if step == 1:
                (scaler.scale(loss) * 2 / 2).backward()
                scaler.unscale_(optimizer)
            else:
                loss.backward()
            if step == 3:
                loss.detach().zero_()
            loop.clip(nn.utils.clip_grad_norm_, loop.model.parameters(), 1e-3)
            loop.measure()
            scaler.step(optimizer) if step == 1 else optimizer.step()

    outcome = run(train)
    assert outcome.clips == [(k, "norm", "clip_grad_norm_", 1e-3, True) for k in range(4)]


@pytest.mark.usefixtures("device")
@pytest.mark.filterwarnings("ignore::gradscope.GradscopeWarning")
def test_nan_on_a_device_is_found_at_the_flush_with_its_step() -> None:
    model = nn.GRU(3, 4)
    optimizer = SGD(model.parameters(), 0.01)
    with gradscope.attach(model, every=10**9) as scope:
        for step in range(40):
            optimizer.zero_grad()
            (model(torch.randn(5, 2, 3))[0].square().mean() * (math.nan if step >= 20 else 1.0)).backward()
            optimizer.step()
            if step == 30:
                scope.run.frame("steps")
    steps = scope.run.frame("steps")
    assert steps["step"][steps["nonfinite"] > 0].min() == 20
    assert steps["step"][steps["recorded"]].tolist() == [0, 32, 33]  # the flush was in step 31
