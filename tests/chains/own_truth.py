"""The standard of truth for a cell of one's own: each sequence alone, its Jacobians by `torch.autograd.functional`.

What enters a state from outside is the loss gradient of a loop that is cut between any two steps; the totals follow
from these and the Jacobians, and have to be autograd's own of the whole loop where the state is one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
import pandas as pd
import torch
from oracles import choose_anchors, statistics
from torch import Tensor

Loss = Callable[[list[Tensor]], Tensor]


def flat(state: Any) -> Tensor:
    """One vector of a state of one sequence: complex units as pairs."""
    parts = state if isinstance(state, tuple) else (state,)
    return torch.cat([(torch.view_as_real(p) if p.is_complex() else p).flatten() for p in parts])


def like(vector: Tensor, state: Any) -> Any:
    """The state of that form with these numbers."""
    parts = state if isinstance(state, tuple) else (state,)
    made, at = list[Tensor](), 0
    for part in parts:
        shape = (*part.shape, 2) if part.is_complex() else part.shape
        piece = vector[at : at + math.prod(shape)].reshape(shape)
        made.append(torch.view_as_complex(piece) if part.is_complex() else piece)
        at += math.prod(shape)
    return tuple(made) if isinstance(state, tuple) else made[0]


def widths(state: Any) -> list[int]:
    return [len(flat(part)) for part in (state if isinstance(state, tuple) else (state,))]


@dataclass
class Followed:
    """One sequence: its states, the Jacobian of each step, what enters each state from outside, and the totals."""

    states: list[Tensor]
    jacobians: list[Tensor]
    entering: list[Tensor]
    widths: list[list[int]]

    @property
    def totals(self) -> list[Tensor]:
        found = [self.entering[-1]]
        for g, jacobian in zip(self.entering[-2::-1], self.jacobians[:0:-1], strict=True):
            found.insert(0, g + jacobian.T @ found[0])
        return found

    @property
    def products(self) -> list[Tensor]:
        found = [torch.eye(len(self.states[-1]), dtype=torch.float64)]
        for jacobian in self.jacobians[:0:-1]:
            found.insert(0, found[0] @ jacobian)
        return found

    @property
    def reach(self) -> list[float]:
        curves = list[list[float]]()
        for anchor in choose_anchors([t for t, g in enumerate(self.entering) if bool(g.any())]):
            v = self.entering[anchor]
            curve = [1.0]
            for t in range(anchor, 0, -1):
                v = self.jacobians[t].T @ v
                curve.append(float(v.norm() / self.entering[anchor].norm()))
            curves.append(curve)
        longest = max(map(len, curves), default=0)
        return [float(np.median([c[lag] for c in curves if len(c) > lag])) for lag in range(longest)]

    @property
    def lyapunov(self) -> float:
        largest = float(torch.linalg.matrix_norm(self.products[0], 2))
        return math.log(largest) / (len(self.states) - 1) if largest else -math.inf

    def measure(self, t: int) -> dict[str, float]:
        jacobian, state, wide = self.jacobians[t], self.states[t], self.widths[t]
        first, before = wide[0], self.widths[max(0, t - 1)]
        found = {
            "grad_h": self.totals[t][:first].norm(),
            "grad_h_direct": self.entering[t][:first].norm(),
            "jacobian": jacobian.norm() / len(state) ** 0.5,
            "jacobian_h": jacobian[:first, : before[0]].norm() / first**0.5,
            "jacobian_max": torch.linalg.matrix_norm(jacobian, 2),
            "gain": self.products[t].norm() / len(self.states[-1]) ** 0.5,
            "state": state[:first].norm() / first**0.5,
        }
        if len(wide) > 1:
            second, old = slice(first, first + wide[1]), slice(before[0], before[0] + before[1])
            found["cell"] = state[second].norm() / wide[1] ** 0.5
            found["jacobian_c"] = jacobian[second, old].norm() / wide[1] ** 0.5
        return {name: float(value) for name, value in found.items()}


def follow(cell: Any, x: Tensor, loss: Loss, more: Sequence[Any] = ()) -> Followed:
    """Take one sequence, [T, 1, F], through a cell; `more`: further arguments of each step."""
    leaves, outputs, state = list[Tensor](), list[Tensor](), cell.initial(1)
    jacobians, sizes = list[Tensor](), list[list[int]]()
    for t in range(len(x)):
        given = state
        rest = [m[t] for m in more]

        def step(vector: Tensor, t: int = t, given: Any = given, rest: Any = rest) -> Tensor:
            return flat(cell.step(x[t], like(vector, given), *rest))

        jacobians.append(torch.autograd.functional.jacobian(step, flat(given).detach()))
        new = cell.step(x[t], given, *rest)
        leaf = flat(new).detach().requires_grad_()
        state = like(leaf.detach(), new)
        leaves.append(leaf)
        outputs.append(cell.read(like(leaf, new)))
        sizes.append(widths(new))
    loss(outputs).backward()
    entering = [torch.zeros_like(v) if v.grad is None else v.grad for v in leaves]
    return Followed([v.detach() for v in leaves], jacobians, entering, sizes)


def tables(found: Sequence[Followed], module: str) -> dict[str, pd.DataFrame]:
    """The rows of `timesteps`, `reach` and `layers`."""
    values: dict[tuple[str, int], list[float]] = {}
    for one in found:
        for t in range(len(one.states)):
            for quantity, value in one.measure(t).items():
                values.setdefault((quantity, t), []).append(value)
    scales = {q: max(v for (other, _), vs in values.items() if other == q for v in vs) for q, _ in values}
    rows = [{"t": t, "quantity": q, **statistics(v), "se": 0.0, "scale": scales[q]} for (q, t), v in values.items()]
    reach = oracles.reach_rows(found)  # type: ignore[arg-type]
    median = [row["p50"] for row in reach]
    below = [lag for lag, value in enumerate(median) if value < oracles.FLOOR]
    layer = {
        "horizon": below[0] if below else len(median) - 1,
        "horizon_censored": not below,
        "decay": oracles.decay(median),
        "lyapunov": float(np.median([one.lyapunov for one in found])),
        "timesteps": max(len(one.states) for one in found),
    }
    key = {"step": 0, "module": module, "layer": 0, "direction": "forward", "chain": 0}
    named = {"timesteps": rows, "reach": reach, "layers": [layer]}
    return {name: pd.DataFrame([{**key, **row} for row in part]) for name, part in named.items()}


def assert_agrees(run: Any, found: Sequence[Followed], module: str = "", rtol: float = 1e-9) -> None:
    """The run has these rows of timesteps, reach and layers, and no others."""
    for table, want in tables(found, module).items():
        names, columns = oracles.ROWS[table]
        oracles.assert_rows(table, run.frame(table), want, oracles.KEY + names, columns, rtol)
