"""A loop run on a model under a scope and on a copy with twins in place of its cells: the tables have to be theirs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import oracles
import torch
from torch import Tensor, nn

import gradscope
from custom.truth import Shape, Twin, Way, frames

INPUT, HIDDEN, BATCH, TIME = 3, 4, 3, 5

Backward = Callable[[Tensor], None]
Loop = Callable[[Any, Backward], None]


def data(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random numbers that depend on the seed and the shape alone."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def straight(calls: Sequence[int] | int, batch: int = BATCH, rows: Sequence[int] | None = None) -> list[Way]:
    """A chain through these calls, or the first so many, each sequence in its own row."""
    numbers = range(calls) if isinstance(calls, int) else calls
    return [(0, [(call, row) for call in numbers]) for row in (range(batch) if rows is None else rows)]


def record(model: nn.Module, loop: Loop, **arguments: Any) -> gradscope.Run:
    """What a scope makes of one pass of a loop; gradients, buffers and random numbers must be those without it."""
    bare = copy.deepcopy(model)
    torch.manual_seed(2)
    loop(bare, lambda loss: loss.backward())
    after = torch.get_rng_state()
    torch.manual_seed(2)
    forwards = {kind: kind.__dict__.get("forward") for kind in {type(m) for m in model.modules()}}
    with gradscope.attach(model, **{"every": 1, "quantities": "full", "strict": True, **arguments}) as scope:
        loop(model, lambda loss: loss.backward())
        run = scope.run
        run.frame("layers")
        assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(torch.get_rng_state(), after)
    assert {kind: kind.__dict__.get("forward") for kind in forwards} == forwards
    for mine, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)
    for mine, theirs in zip(model.buffers(), bare.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    return scope.run


def twin_of(model: nn.Module, shapes: Mapping[str, Shape]) -> nn.Module:
    """A copy in float64 with twins in place of these modules."""
    model = copy.deepcopy(model).double()
    for name, shape in shapes.items():
        if not name:
            return Twin(model, shape)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Twin(model.get_submodule(name), shape))
    return model


def hold(
    model: nn.Module,
    loop: Loop,
    shapes: Shape | Mapping[str, Shape],
    chains: Sequence[Sequence[Way]] | Mapping[str, Sequence[Sequence[Way]]],
    *,
    rtol: float = 1e-10,
    notes: Sequence[str] = (),
    **arguments: Any,
) -> gradscope.Run:
    """The run agrees with the twin of the model about these chains, and has these notes and no others.

    Args:
        model: with the cells.
        loop: is given the model and what to call in place of `loss.backward()`.
        shapes: of the cells, by name.
        chains: by module, for each chain its sequences.
        rtol: relative to the largest value of a quantity.
        notes: beginnings of the expected reasons.
        arguments: of `attach`.
    """
    shapes = {"": shapes} if isinstance(shapes, Shape) else shapes
    chains = chains if isinstance(chains, Mapping) else {"": chains}
    twin = twin_of(model, shapes)
    run = record(model, loop, **arguments)
    torch.manual_seed(2)
    loop(twin, lambda loss: loss.backward(retain_graph=True))
    expected = [
        table
        for name, ways in chains.items()
        for table in frames(twin.get_submodule(name), name, ways)  # type: ignore[arg-type]
    ]
    reasons = reasons_of(run)
    assert len(reasons) == len(notes), reasons
    assert all(reason.startswith(note) for reason, note in zip(reasons, sorted(notes), strict=True)), reasons
    oracles.assert_agrees(run, *expected, rtol=rtol)
    assert run.frame("layers")["residual"].max() <= rtol
    return run


def reasons_of(run: gradscope.Run) -> list[str]:
    return sorted(run.frame("notes")["reason"])
