"""A training loop run twice, without a scope and with one: nothing may differ, and the rows are checked by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import gradscope


class Net(nn.Module):
    """A recurrent layer among things that draw random numbers and have buffers."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.rnn = kind(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.rnn(self.embed(x))[0])

    def top(self, output: Tensor) -> Tensor:
        """What is above the recurrent layer, up to the loss."""
        return self.head(nn.functional.dropout(self.norm(output.flatten(0, 1)), 0.2)).square().mean()


class Loop:
    """What a training loop works with, and what it has seen."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.scope: gradscope.Scope | None = None
        self.seen: list[bytes] = []
        self.norms: list[float] = []  # one for every row of `steps`
        self.sizes: list[tuple[float, float]] = []  # before and after, one for every row of `clips`

    def loss(self, length: int = 4) -> Tensor:
        """A loss on random data, after a look at everything."""
        self.look()
        value = self.model(torch.randn(length, 2, 3))
        self.seen.append(_bits(value))
        return value

    def backward(self, length: int = 4) -> None:
        """Fresh gradients."""
        self.model.zero_grad()
        self.loss(length).backward()

    def evaluate(self) -> Tensor:
        """Loss with fresh gradients: a closure."""
        self.model.zero_grad()
        value = self.loss()
        value.backward()
        return value

    def step(self, optimizer: Optimizer, *args: Any) -> None:
        """One step, whose gradients are measured by hand; those of a closure are its last."""
        if not args:
            self.measure(optimizer)
        optimizer.step(*args)
        if args:
            self.measure(optimizer)

    def measure(self, optimizer: Optimizer | None = None) -> None:
        """Write down the recurrent gradients' norm, of those that an optimizer owns."""
        owned = optimizer and {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.norms.append(size(p for p in self.recurrent() if owned is None or id(p) in owned))

    def clip(
        self, function: Callable[..., Any], parameters: Any, *args: Any, order: float = 2.0, **options: Any
    ) -> Any:
        """Clip, and write down the norm before and after."""
        parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        before = size(parameters, order)
        result = function(parameters, *args, **options)
        self.sizes.append((before, size(parameters, order)))
        return result

    def by_hand(self, change: Callable[[Tensor], Any]) -> None:
        """Do something to each recurrent gradient, and write down the norm before and after."""
        before = size(self.recurrent())
        for parameter in self.recurrent():
            change(parameter.grad)
        self.sizes.append((before, size(self.recurrent())))

    def recurrent(self) -> list[nn.Parameter]:
        """Parameters of all recurrent layers."""
        return [p for m in self.model.modules() if isinstance(m, nn.RNNBase) for p in m.parameters()]

    def look(self) -> None:
        """Keep the bits of parameters, gradients, buffers and random-number streams."""
        tensors = [*self.model.parameters(), *self.model.buffers(), torch.get_rng_state()]
        tensors += [p.grad for p in self.model.parameters() if p.grad is not None]
        self.seen += [*map(_bits, tensors), repr((random.getstate(), np.random.get_state())).encode()]


def size(parameters: Iterable[Tensor], order: float = 2.0) -> float:
    """Norm of all gradients together, in float64."""
    flat = [p.grad.detach().double().flatten() for p in parameters if p.grad is not None]
    return float(torch.linalg.vector_norm(torch.cat(flat), order)) if flat else math.nan


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


@dataclass(frozen=True)
class Outcome:
    """What a scope recorded of a loop."""

    run: gradscope.Run

    @property
    def steps(self) -> list[tuple[Any, ...]]:
        """Every row of `steps` as (step, optimizer, recorded, skipped)."""
        return self.rows("steps", "step", "optimizer", "recorded", "skipped")

    @property
    def clips(self) -> list[tuple[Any, ...]]:
        """Every row of `clips` as (step, kind, how, threshold, clipped)."""
        return self.rows("clips", "step", "kind", "how", "threshold", "clipped")

    @property
    def notes(self) -> list[tuple[int, str]]:
        """Every note as (step, reason)."""
        return self.rows("notes", "step", "reason")

    def rows(self, table: str, *columns: str) -> list[tuple[Any, ...]]:
        """Some columns of a table, by row."""
        return list(self.run.frame(table)[list(columns)].itertuples(index=False, name=None))


def observe(
    train: Callable[[Loop], Any],
    build: Callable[[], nn.Module] = Net,
    *,
    every: Any = 1,
    noted: bool = False,
    **arguments: Any,
) -> Outcome:
    """Train without a scope and with one: the same bits, and rows that agree with each other and with the loop's.

    Args:
        train: the loop.
        build: makes its model.
        every: see `attach`.
        noted: notes are expected, and so are their warnings.
        arguments: of `attach`.
    """
    bare, observed = _start(build), _start(build)
    train(_seeded(bare))
    bare.look()
    with gradscope.attach(observed.model, every=every, strict=True, **arguments) as observed.scope:
        train(_seeded(observed))
    observed.look()
    assert_same_bits(bare.seen, observed.seen)
    outcome = Outcome(observed.scope.run)
    assert noted or not outcome.notes
    check(outcome.run, observed.norms, observed.sizes)
    return outcome


def _start(build: Callable[[], nn.Module]) -> Loop:
    torch.manual_seed(0)
    return Loop(build())


def _seeded(loop: Loop) -> Loop:
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(1)
    return loop


def assert_same_bits(bare: Sequence[bytes], observed: Sequence[bytes]) -> None:
    """All that a loop has seen."""
    different = [k for k, (a, b) in enumerate(zip(bare, observed, strict=True)) if a != b]
    assert not different, f"{len(different)} of {len(bare)} differ, the first is number {different[0]}"


def check(run: gradscope.Run, norms: list[float], sizes: list[tuple[float, float]]) -> None:
    """What holds of every run, whatever the loop."""
    steps, clips = run.frame("steps"), run.frame("clips")
    assert steps["step"].diff().dropna().eq(1).all()
    assert len(steps) == len(norms)
    looked = steps["recorded"] | steps["grad_norm"].notna()
    assert steps["grad_norm"].tolist() == pytest.approx(np.where(looked, norms, math.nan), rel=1e-5, nan_ok=True)
    assert ((steps["overhead_s"] > 0) & (steps["overhead_s"] <= steps["step_s"])).all()
    timesteps = run.frame("timesteps")
    assert set(timesteps["step"]) == set(steps["step"][steps["recorded"]])
    assert not timesteps.duplicated(["step", "module", "layer", "direction", "chain", "quantity", "t"]).any()
    assert set(clips["step"]) <= set(steps["step"])
    assert clips["index"].tolist() == clips.groupby("step").cumcount().tolist()
    found = clips[["norm_before", "norm_after"]].to_numpy()
    assert found == pytest.approx(np.array(sizes).reshape(-1, 2), rel=1e-4, nan_ok=True)
    known = np.isfinite(found).all(axis=1) & (found[:, 0] > 0)
    before, after = found[known].T
    assert clips["coefficient"][known].tolist() == pytest.approx((after / before).tolist(), rel=1e-4, abs=1e-9)


def assert_same_rows(
    one: gradscope.Run, other: gradscope.Run, *tables: str, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Two runs have recorded the same."""
    for table in tables:
        assert not one.frame(table).empty
        pd.testing.assert_frame_equal(one.frame(table), other.frame(table), rtol=rtol, atol=atol)
