"""The standard of truth for cells: a twin that takes every row of every call alone, and forms every Jacobian.

A loop runs unchanged on the twin. The state that a call was given and the one it gave are copied there, as tensors of
their own that retain their gradients; a complex number counts as a pair of real ones.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import oracles
import pandas as pd
import torch
from oracles import choose_anchors, statistics
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Place = tuple[int, int]
"""Number of a call, and of a row in it."""
Way = tuple[int, list[Place]]
"""A sequence of a chain: the timestep at which it begins, and the places that it goes through."""
LOST = 1e-12
"""A difference so much smaller than what it is the difference of is rounding."""
LIMITS = {"sigmoid": (0.1, 0.9), "tanh": (-0.9, 0.9)}


@dataclass(frozen=True)
class Shape:
    """What the truth has to be told of a cell.

    Attributes:
        state: the argument that is the state.
        rows: arguments with a row for each sequence.
        new: the new state in what `forward` returned.
        initial: the state of one row where none is given.
        gates: of the cell, the arguments of one row and its state: activations by name, and their kinds.
        blocks: of the cell: gate -> square matrix.
    """

    state: str = "state"
    rows: Sequence[str] = ("x",)
    new: Callable[[Any], Any] = lambda result: result
    initial: Callable[[], Any] | None = None
    gates: Callable[..., Mapping[str, tuple[Tensor, str]]] | None = None
    blocks: Callable[[Any], Mapping[str, Tensor]] | None = None


@dataclass
class Visit:
    """One row of one call."""

    arguments: dict[str, Any]
    form: Any
    given: list[Tensor]
    raw: list[Tensor]
    out: list[Tensor]
    total: Tensor = field(default_factory=lambda: torch.empty(0))
    back: Tensor = field(default_factory=lambda: torch.empty(0))

    def settle(self) -> None:
        """Keep the gradients: dL/d(what was returned), not by way of another part of it, and dL/d(what was given)."""
        self.total = joined([grad(t) for t in (self.raw if len(self.raw) == 1 else self.out)])
        self.back = joined([grad(t) for t in self.given])


class Twin(nn.Module):
    """In place of a cell.

    Attributes:
        calls: by call, by row.
    """

    def __init__(self, cell: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.cell, self.shape = cell, shape
        self.calls: list[list[Visit]] = []

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("cell"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(type(self.cell).forward).bind(self.cell, *args, **kwargs)
        arguments = dict(list(bound.arguments.items())[1:])
        state = arguments.pop(self.shape.state, None)
        batch = len(arguments[self.shape.rows[0]])
        found = [self._visit(arguments, state, b) for b in range(batch)]
        self.calls.append([visit for visit, _ in found])
        leaves = [pytree.tree_leaves(result) for _, result in found]
        form = pytree.tree_flatten(found[0][1])[1]
        return pytree.tree_unflatten([_stack(parts) for parts in zip(*leaves, strict=True)], form)

    def _visit(self, arguments: dict[str, Any], state: Any, b: int) -> tuple[Visit, Any]:
        own = {k: v[b : b + 1] if k in self.shape.rows else v for k, v in arguments.items()}
        parts, form = pytree.tree_flatten(self.shape.initial() if state is None and self.shape.initial else state)
        given = [kept((p if state is None else p[b : b + 1]).clone()) for p in parts]
        result = self.cell(**own, **{self.shape.state: pytree.tree_unflatten(given, form)})
        raw = [kept(p) for p in pytree.tree_leaves(self.shape.new(result))]
        out = [kept(p.clone()) for p in raw]
        leaves, whole = pytree.tree_flatten(result)
        copies = {id(r): o for r, o in zip(raw, out, strict=True)}
        assert len(raw) == 1 or all(id(x) in copies for x in leaves), "an output beside several parts of a state"
        fixed = {k: v.detach() if isinstance(v, Tensor) else v for k, v in own.items()}
        visit = Visit(fixed, form, given, raw, out)
        return visit, pytree.tree_unflatten([copies.get(id(x), x) for x in leaves], whole)

    def jacobian(self, visit: Visit) -> Tensor:
        """d(state returned) / d(state given)."""
        sizes = [x.numel() for x in map(real, visit.given)]

        def advance(s: Tensor) -> Tensor:
            parts = [_like(p, g) for p, g in zip(s.split(sizes), visit.given, strict=True)]
            state = {self.shape.state: pytree.tree_unflatten(parts, visit.form)}
            return joined(pytree.tree_leaves(self.shape.new(self.cell(**visit.arguments, **state))))

        return torch.autograd.functional.jacobian(advance, joined(visit.given).detach())


def _stack(parts: Sequence[Any]) -> Any:
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else parts[0]


def _like(flat: Tensor, part: Tensor) -> Tensor:
    return torch.view_as_complex(flat.view(*part.shape, 2)) if part.is_complex() else flat.view(part.shape)


def kept(tensor: Tensor) -> Tensor:
    if tensor.requires_grad:
        tensor.retain_grad()
        return tensor
    return tensor.requires_grad_()


def real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([real(p).flatten() for p in parts])


def grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor).detach() if tensor.grad is None else tensor.grad.detach().clone()


def link(before: Visit, after: Visit) -> Tensor:
    """d(state given to a timestep) / d(state returned by the one before)."""
    rows = []
    for part in after.given:
        for unit in real(part).flatten():
            found = torch.autograd.grad(unit, before.out, retain_graph=True, allow_unused=True)
            rows.append(
                joined([torch.zeros_like(o) if g is None else g for o, g in zip(before.out, found, strict=True)])
            )
    return torch.stack(rows).detach()


@dataclass
class Track:
    """One sequence of a chain."""

    twin: Twin
    start: int
    visits: list[Visit]

    @cached_property
    def jacobians(self) -> list[Tensor]:
        return [self.twin.jacobian(v) for v in self.visits]

    @cached_property
    def links(self) -> list[Tensor]:
        return [link(a, b) for a, b in zip(self.visits, self.visits[1:], strict=False)]

    @cached_property
    def entering(self) -> list[Tensor]:
        """The loss gradient of every state but for what comes back from the next timestep of this sequence."""
        found = []
        for k, here in enumerate(self.visits):
            back = self.links[k].T @ self.visits[k + 1].back if k < len(self.links) else torch.zeros_like(here.total)
            direct = here.total - back
            for part in direct.split([real(o).numel() for o in here.out]):
                part[:] = 0 if part.norm() <= LOST * (here.total.norm() + back.norm()) else part
            found.append(direct)
        return found

    @cached_property
    def products(self) -> list[Tensor]:
        """ds_T/ds_t."""
        product, found = torch.eye(len(self.jacobians[-1]), dtype=torch.float64), []
        for k in range(len(self.visits) - 1, -1, -1):
            found.insert(0, product)
            product = product @ self.jacobians[k] @ self.links[k - 1] if k else product
        return found

    @cached_property
    def reach(self) -> list[float]:
        curves = []
        for anchor in choose_anchors([k for k, g in enumerate(self.entering) if bool(g.any())]):
            v = self.entering[anchor]
            curve = [1.0]
            for k in range(anchor, 0, -1):
                v = self.links[k - 1].T @ (self.jacobians[k].T @ v)
                curve.append(float(v.norm() / self.entering[anchor].norm()))
            curves.append(curve)
        longest = max(map(len, curves), default=0)
        return [float(np.median([c[lag] for c in curves if len(c) > lag])) for lag in range(longest)]

    @property
    def lyapunov(self) -> float | None:
        lags = len(self.visits) - 1
        if not lags:
            return None
        largest = float(torch.linalg.matrix_norm(self.products[0], 2))
        return math.log(largest) / lags if largest else -math.inf

    def measure(self, k: int) -> dict[str, float]:
        here, jacobian = self.visits[k], self.jacobians[k]
        sizes = [real(o).numel() for o in here.out]
        before = [real(g).numel() for g in here.given]
        first = sizes[0]
        values = {
            "grad_h": here.total[:first].norm(),
            "grad_h_direct": self.entering[k][:first].norm(),
            "jacobian": jacobian.norm() / math.sqrt(len(jacobian)),
            "jacobian_h": jacobian[:first, : before[0]].norm() / math.sqrt(first),
            "state": joined(here.out)[:first].norm() / math.sqrt(first),
            "jacobian_max": torch.linalg.matrix_norm(jacobian, 2),
            "gain": self.products[k].norm() / math.sqrt(len(self.products[k])),
        }
        if len(sizes) > 1:
            rows, columns = slice(first, first + sizes[1]), slice(before[0], before[0] + before[1])
            values["jacobian_c"] = jacobian[rows, columns].norm() / math.sqrt(sizes[1])
            values["cell"] = joined(here.out)[rows].norm() / math.sqrt(sizes[1])
        return {name: float(torch.as_tensor(value).detach()) for name, value in values.items()}


def frames(twin: Twin, module: str, chains: Sequence[Sequence[Way]], step: int = 0) -> list[dict[str, pd.DataFrame]]:
    """The tables of the chains of a twin."""
    for visits in twin.calls:
        for visit in visits:
            visit.settle()
    found = []
    for chain, ways in enumerate(chains):
        key = {"step": step, "module": module, "layer": 0, "direction": "forward", "chain": chain}
        tracks = [Track(twin, start, [twin.calls[call][row] for call, row in places]) for start, places in ways]
        tables = _tables(twin, tracks)
        found.append({name: pd.DataFrame([{**key, **row} for row in rows]) for name, rows in tables.items()})
        found[-1]["spectra"] = found[-1]["spectra"].reindex(columns=[*key, "gate", "index", "real", "imag"])
    return found


def _tables(twin: Twin, tracks: list[Track]) -> dict[str, list[dict[str, Any]]]:
    reach = oracles._reach_rows(tracks)  # type: ignore[arg-type]
    blocks = twin.shape.blocks(twin.cell) if twin.shape.blocks else {}
    return {
        "timesteps": _timestep_rows(tracks),
        "reach": reach,
        "gates": [row for name, by_time in _activations(tracks).items() for row in _gate_rows(name, by_time)],
        "units": [row for name, by_time in _activations(tracks).items() for row in _unit_rows(name, by_time)],
        "weights": [{"gate": gate, **_block_row(block.detach())} for gate, block in blocks.items()],
        "spectra": [row for gate, block in blocks.items() for row in _spectrum_rows(gate, block.detach())],
        "layers": [_layer_row(tracks, reach)],
    }


def _timestep_rows(tracks: list[Track]) -> list[dict[str, Any]]:
    values: dict[tuple[str, int], list[float]] = {}
    for track in tracks:
        for k in range(len(track.visits)):
            for quantity, value in track.measure(k).items():
                values.setdefault((quantity, track.start + k), []).append(value)
    scales = {q: max(v for (other, _), vs in values.items() if other == q for v in vs) for q, _ in values}
    return [{"t": t, "quantity": q, **statistics(v), "se": 0.0, "scale": scales[q]} for (q, t), v in values.items()]


def _activations(tracks: list[Track]) -> dict[str, dict[int, list[tuple[Tensor, str]]]]:
    found: dict[str, dict[int, list[tuple[Tensor, str]]]] = {}
    twin = tracks[0].twin
    for track in tracks if twin.shape.gates else ():
        for k, here in enumerate(track.visits):
            state = pytree.tree_unflatten(here.given, here.form)
            for name, value in twin.shape.gates(twin.cell, here.arguments, state).items():
                found.setdefault(name, {}).setdefault(track.start + k, []).append(value)
    return found


def _saturated(values: list[tuple[Tensor, str]]) -> tuple[Tensor, Tensor, Tensor]:
    """Where below, where above, and the values, [rows, units]."""
    x, kind = torch.stack([v.detach().flatten() for v, _ in values]), values[0][1]
    if kind == "relu":
        return (x == 0).double(), torch.zeros_like(x), x
    low, high = LIMITS[kind]
    return (x < low).double(), (x > high).double(), x


def _gate_rows(name: str, by_time: dict[int, list[tuple[Tensor, str]]]) -> list[dict[str, Any]]:
    rows = []
    for t, values in by_time.items():
        low, high, x = (float(part.mean()) for part in _saturated(values))
        rows.append({"t": t, "gate": name, "low": low, "high": high, "mean": x})
    return rows


def _unit_rows(name: str, by_time: dict[int, list[tuple[Tensor, str]]]) -> list[dict[str, Any]]:
    low, high, _ = (part.mean(0).tolist() for part in _saturated([v for values in by_time.values() for v in values]))
    return [{"gate": name, "unit": u, "low": low[u], "high": high[u]} for u in range(len(low))]


def _block_row(block: Tensor) -> dict[str, float]:
    departure = block.T @ block - torch.eye(len(block), dtype=block.dtype)
    return {
        "spectral_radius": float(torch.linalg.eigvals(block).abs().max()),
        "spectral_norm": float(torch.linalg.matrix_norm(block, 2)),
        "orthogonality": float(departure.norm()) / math.sqrt(len(block)),
    }


def _spectrum_rows(gate: str, block: Tensor) -> list[dict[str, Any]]:
    values = torch.linalg.eigvals(block).tolist()
    return [{"gate": gate, "index": k, "real": z.real, "imag": z.imag} for k, z in enumerate(values)]


def _layer_row(tracks: list[Track], reach: list[dict[str, Any]]) -> dict[str, Any]:
    exponents = [e for e in (track.lyapunov for track in tracks) if e is not None]
    longest = max(track.start + len(track.visits) for track in tracks)
    row = {"lyapunov": float(np.median(exponents)) if exponents else math.nan, "timesteps": longest}
    if not reach:
        return {**row, "horizon": math.nan, "horizon_censored": False, "decay": math.nan}
    median = [r["p50"] for r in reach]
    below = [lag for lag, value in enumerate(median) if value < oracles.FLOOR]
    horizon = below[0] if below else len(median) - 1
    return {**row, "horizon": horizon, "horizon_censored": not below, "decay": oracles._decay(median)}
