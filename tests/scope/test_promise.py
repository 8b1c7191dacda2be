"""The promise: with a scope attached, a training is bit for bit the one without it."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import cases
import numpy as np
import pytest
import torch
from cases import Case
from scope.trainings import Net
from torch import Tensor, nn

import gradscope


def optimizers() -> dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]:
    return {
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05),
        "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.05),
    }


def bits(model: nn.Module, loss: Tensor) -> list[Tensor]:
    """All that a step leaves behind: copies of the loss, parameters, gradients, buffers and random-number states."""
    tensors = [loss.detach(), *model.parameters(), *model.buffers()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    numbers = [hash(random.getstate()), hash(np.random.get_state()[1].tobytes())]
    return [t.detach().clone() for t in (*tensors, torch.get_rng_state(), torch.tensor(numbers))]


def train(case: Case, scoped: bool, optimizer: str = "sgd", steps: int = 4, **arguments: Any) -> list[Tensor]:
    torch.manual_seed(7)
    model, x = Net(case), cases.build(case).input
    torch.manual_seed(8)
    trainer = optimizers()[optimizer](list(model.parameters()))
    scope = gradscope.attach(model, strict=True, **arguments) if scoped else None
    seen = []
    for _ in range(steps):
        trainer.zero_grad()
        loss = model(x)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trainer.step()
        seen += bits(model, loss)
    if scope is not None:
        scope.close()
        assert len(scope.run.frame("timesteps")) > 0
    return seen


def assert_same_bits(bare: list[Tensor], seen: list[Tensor]) -> None:
    assert len(bare) == len(seen)
    different = [k for k, (a, b) in enumerate(zip(bare, seen, strict=True)) if not torch.equal(a, b)]
    assert not different, f"{len(different)} of {len(bare)} tensors differ, the first at {different[0]}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", cases.COVERING, ids=str)
def test_training_is_bit_for_bit_the_same(case: Case, dtype: torch.dtype) -> None:
    """Recorded steps and others in turn, with both quantity sets."""
    case = cases.replace(case, dtype=dtype)
    bare = train(case, scoped=False)
    assert_same_bits(bare, train(case, scoped=True, quantities="full", every=2, max_sequences=None))
    assert_same_bits(bare, train(case, scoped=True, quantities="core", every=1, max_sequences=2))


@pytest.mark.parametrize("optimizer", optimizers())
def test_optimizers(optimizer: str) -> None:
    case = Case("lstm", 2, True, dropout=0.5, dtype=torch.float32)
    bare = train(case, scoped=False, optimizer=optimizer)
    assert_same_bits(bare, train(case, scoped=True, optimizer=optimizer, quantities="full", every=1))


@pytest.mark.parametrize("kind", cases.FACTORS["kind"])
def test_wide_layers(kind: str) -> None:
    """Beyond 64 units, where singular values and gains take probes: random numbers of their own."""
    case = Case(kind, 2, True, dropout=0.5, hidden=66, dtype=torch.float32)
    bare = train(case, scoped=False, steps=2)
    assert_same_bits(bare, train(case, scoped=True, steps=2, quantities="full", every=1))


def test_gradients_are_laid_out_as_ever() -> None:
    """Strides, and how often they were written."""
    built, seen = cases.build(Case("lstm", 2, True)), []
    for scoped in (False, True):
        built.module.zero_grad()
        with gradscope.attach(built.module, every=1) if scoped else nullcontext():
            built.backward()
        seen.append([(p.grad.stride(), p.grad._version) for p in built.module.parameters()])
    assert seen[0] == seen[1]


def test_the_comparison_can_fail() -> None:
    """One random number more or less is seen."""
    case = Case("lstm", 2, dropout=0.5)
    seen = train(case, scoped=False)
    assert_same_bits(seen, train(case, scoped=False))
    with pytest.raises(AssertionError):
        assert_same_bits(seen, train(cases.replace(case, dropout=0.4), scoped=False))


def lbfgs(scoped: bool) -> list[Tensor]:
    torch.manual_seed(7)
    case = Case("gru", 2)
    model, x = Net(case).eval(), cases.build(case).input
    model.rnn.train()
    trainer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)

    def closure() -> Tensor:
        trainer.zero_grad()
        loss = model(x)
        loss.backward()
        return loss

    scope = gradscope.attach(model, every=1, strict=True) if scoped else None
    seen = [tensor for _ in range(3) for tensor in bits(model, trainer.step(closure))]
    if scope is not None:
        scope.close()
        assert set(scope.run.frame("timesteps")["step"]) == {0, 1, 2}
    return seen


def test_closures_of_lbfgs() -> None:
    """Several forward and backward passes within one optimizer step, which is one step of the record."""
    assert_same_bits(lbfgs(False), lbfgs(True))


def penalised(scoped: bool) -> list[Tensor]:
    """A gradient penalty: `autograd.grad` with a graph, and a backward through it."""
    torch.manual_seed(7)
    case = Case("gru")
    model, x = Net(case), cases.build(case).input.requires_grad_()
    trainer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = gradscope.attach(model, every=1) if scoped else None
    seen = []
    for _ in range(3):
        trainer.zero_grad()
        loss = model(x)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        total = loss + slope.square().sum()
        total.backward()
        trainer.step()
        seen += [*bits(model, total), x.grad.clone()]
    if scope is not None:
        scope.close()
    return seen


@pytest.mark.filterwarnings("ignore::gradscope.errors.GradscopeWarning")
def test_gradient_penalty() -> None:
    assert_same_bits(penalised(False), penalised(True))


def test_the_graph_is_the_user_s_own() -> None:
    """No node of ours between theirs, and outputs of the same types."""
    built = cases.build(Case("lstm", 2, True, layout="packed_unsorted"))
    bare = built.forward()
    with gradscope.attach(built.module, every=1):
        seen = built.forward()
        built.loss(*seen).backward()

    def nodes(parts: tuple[Any, ...]) -> list[str]:
        return [type(cases.values_of(part).grad_fn).__name__ for part in parts]

    assert nodes(bare) == nodes(seen)
    assert list(map(type, bare)) == list(map(type, seen))


def test_the_user_s_own_hooks_still_run() -> None:
    """Forward hooks that replace the output, tensor hooks, and full backward hooks, in their order."""
    built, heard = cases.build(Case("lstm")), []

    def double(module: nn.Module, inputs: Any, result: Any) -> Any:
        heard.append("forward")
        result[0].register_hook(lambda grad: heard.append("tensor"))
        return 2 * result[0], result[1]

    built.module.register_forward_hook(double)
    built.module.register_full_backward_hook(lambda *_: heard.append("backward"))
    built.input.requires_grad_()
    with gradscope.attach(built.module, every=1):
        built.backward()
    assert heard == ["forward", "tensor", "backward"] or heard == ["forward", "backward", "tensor"]
