"""One row of `steps` for every step of an optimizer that owns watched recurrent parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loop.loops import Loop, Net, observe
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer, RMSprop


class ActorCritic(nn.Module):
    """Two recurrent layers for two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = Net(), Net(nn.GRU)

    def forward(self, x: Tensor) -> Tensor:
        return self.actor(x) + self.critic(x)


@pytest.mark.parametrize("every", [1, 2])
def test_one_row_for_every_step(every: int) -> None:
    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1, momentum=0.9)
        for _ in range(4):
            loop.backward()
            loop.step(optimizer)

    assert observe(train, every=every).steps == [(k, "SGD", k % every == 0, False) for k in range(4)]


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_fused_and_foreach_optimizers(kind: Callable[..., Optimizer], options: dict[str, bool]) -> None:
    def train(loop: Loop) -> None:
        optimizer = kind(loop.model.parameters(), lr=0.01, **options)
        for _ in range(2):
            loop.backward()
            loop.step(optimizer)

    assert observe(train).steps == [(k, kind.__name__, True, False) for k in range(2)]


def test_parameter_groups() -> None:
    """However the model is divided among the groups of one optimizer, also when a group comes later."""

    def train(loop: Loop) -> None:
        first, *rest = loop.model.rnn.parameters()
        optimizer = RMSprop([{"params": [first]}, {"params": rest, "lr": 0.1}], lr=0.01)
        for k in range(3):
            loop.backward()
            loop.step(optimizer)
            if k == 0:
                optimizer.add_param_group({"params": loop.model.head.parameters()})

    assert observe(train).steps == [(k, "RMSprop", True, False) for k in range(3)]


def test_a_group_that_comes_later_can_make_an_optimizer_count() -> None:
    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.head.parameters(), 0.1)
        loop.backward()
        optimizer.step()
        optimizer.add_param_group({"params": loop.model.rnn.parameters()})
        loop.backward()
        loop.step(optimizer)

    assert observe(train).steps == [(0, "SGD", True, False)]


def test_actor_and_critic() -> None:
    """Each optimizer's step is one, with the gradients that this optimizer got."""

    def train(loop: Loop) -> None:
        optimizers = Adam(loop.model.actor.parameters()), SGD(loop.model.critic.parameters(), 0.1)
        for _ in range(2):
            loop.backward()
            for optimizer in optimizers:
                loop.step(optimizer)

    outcome = observe(train, ActorCritic)
    assert outcome.steps == [(k, ("Adam", "SGD")[k % 2], k % 2 == 0, False) for k in range(4)]
    assert set(outcome.run.frame("layers")["module"]) == {"actor.rnn", "critic.rnn"}


def test_actor_and_critic_in_turn() -> None:
    """Two losses; the actor's also reaches the critic, whose gradient is thrown away: that changes none in use."""

    def train(loop: Loop) -> None:
        actor, critic = Adam(loop.model.actor.parameters()), SGD(loop.model.critic.parameters(), 0.1)
        for _ in range(2):
            loop.backward()
            critic.zero_grad()
            loop.step(actor)
            critic.zero_grad()
            loop.model.critic(torch.randn(3, 2, 3)).backward()
            loop.step(critic)

    outcome = observe(train, ActorCritic)
    assert outcome.steps == [(k, ("Adam", "SGD")[k % 2], True, False) for k in range(4)]
    assert outcome.clips == []


def test_one_forward_for_two_optimizers_in_turn() -> None:
    """A call whose gradient comes only after the other's step: not recorded, and said to be."""

    def train(loop: Loop) -> None:
        model = loop.model
        optimizers = Adam(model.actor.parameters()), SGD(model.critic.parameters(), 0.1)
        for _ in range(2):
            model.zero_grad()
            x = torch.randn(4, 2, 3)
            losses = model.actor(x), model.critic(x)
            for optimizer, loss in zip(optimizers, losses, strict=True):
                loss.backward()
                loop.step(optimizer)

    outcome = observe(train, ActorCritic, noted=True)
    assert outcome.steps == [(k, ("Adam", "SGD")[k % 2], k % 2 == 0, False) for k in range(4)]
    assert outcome.rows("notes", "step", "module") == [(1, "critic.rnn"), (3, "critic.rnn")]
    assert all("before the last optimizer step" in reason for _, reason in outcome.notes)


def test_optimizers_over_something_else_do_not_count() -> None:
    """Over other layers of the model, or over another model."""

    def train(loop: Loop) -> None:
        mine = SGD(loop.model.rnn.parameters(), 0.1)
        others = [Adam(loop.model.head.parameters()), SGD([nn.Parameter(torch.ones(2))], 0.1)]
        for _ in range(2):
            loop.backward()
            others[0].step()
            loop.step(mine)
            others[1].step()

    assert observe(train).steps == [(0, "SGD", True, False), (1, "SGD", True, False)]


def test_lbfgs() -> None:
    """Many evaluations are one step; the first is recorded, and the last leaves the gradients."""
    evaluations: list[int] = []

    def train(loop: Loop) -> None:
        optimizer = LBFGS(loop.model.parameters(), lr=0.01, max_iter=20, tolerance_grad=0, tolerance_change=0)
        for _ in range(2):
            lengths = iter(range(3, 99))

            def closure(lengths: Any = lengths) -> Tensor:
                evaluations.append(next(lengths))
                loop.backward(evaluations[-1])
                return torch.zeros(())

            loop.step(optimizer, closure)

    outcome = observe(train)
    assert outcome.steps == [(0, "LBFGS", True, False), (1, "LBFGS", True, False)]
    assert evaluations == [*range(3, 23)] * 4
    assert outcome.run.frame("layers")["timesteps"].tolist() == [3, 3]


def test_closures_of_any_optimizer() -> None:
    def train(loop: Loop) -> None:
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(2):
            loop.step(optimizer, loop.evaluate)

    assert observe(train).steps == [(0, "SGD", True, False), (1, "SGD", True, False)]


class Decayed(SGD):
    """Calls `super().step()`, twice."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        super().step()
        return super().step()


def test_subclasses_that_call_super() -> None:
    def train(loop: Loop) -> None:
        optimizer = Decayed(loop.model.parameters(), 0.01)
        for _ in range(2):
            loop.backward()
            loop.step(optimizer)

    assert observe(train).steps == [(0, "Decayed", True, False), (1, "Decayed", True, False)]


class SAM(Optimizer):
    """Sharpness-aware minimisation, as its public implementations do it."""

    def __init__(self, parameters: Any, base: Callable[..., Optimizer], **options: Any) -> None:
        super().__init__(parameters, options)
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def climb(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.clone()
                p.add_(p.grad, alpha=0.05)
        self.zero_grad()

    @torch.no_grad()
    def descend(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["old"])
        self.base.step()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        self.climb()
        with torch.enable_grad():
            closure()
        self.descend()


@pytest.mark.parametrize("by_closure", [False, True])
def test_sharpness_aware_minimisation(by_closure: bool) -> None:
    """Two passes are one step; the first, at the unperturbed weights, is recorded, the second is the optimizer's."""

    def train(loop: Loop) -> None:
        optimizer = SAM(loop.model.parameters(), SGD, lr=0.1)
        for _ in range(2):
            loop.backward(length=3)
            if by_closure:
                loop.step(optimizer, loop.evaluate)
                continue
            optimizer.climb()
            loop.loss(length=5).backward()
            loop.measure()
            optimizer.descend()

    outcome = observe(train)
    name = "SAM" if by_closure else "SGD"
    assert outcome.steps == [(0, name, True, False), (1, name, True, False)]
    assert outcome.run.frame("layers")["timesteps"].tolist() == [3, 3]


def test_frozen_layers_are_stepped_by_whoever_trains_the_rest() -> None:
    def train(loop: Loop) -> None:
        loop.model.rnn.requires_grad_(False)
        optimizer = SGD(loop.model.head.parameters(), 0.1)
        for _ in range(2):
            loop.backward()
            loop.step(optimizer)

    def frozen() -> nn.Module:
        model = Net()
        model.rnn.requires_grad_(False)
        return model

    outcome = observe(train, frozen)
    assert outcome.steps == [(0, "SGD", True, False), (1, "SGD", True, False)]
    assert outcome.run.frame("steps")["grad_norm"].isna().all()


def test_layers_unfrozen_later_have_a_norm() -> None:
    def train(loop: Loop) -> None:
        loop.model.rnn.requires_grad_(False)
        optimizer = SGD(loop.model.parameters(), 0.1)
        for _ in range(2):
            loop.backward()
            loop.step(optimizer)
            loop.model.rnn.requires_grad_(True)

    def frozen() -> nn.Module:
        model = Net()
        model.rnn.requires_grad_(False)
        return model

    norms = observe(train, frozen).run.frame("steps")["grad_norm"]
    assert norms.isna().tolist() == [True, False]
