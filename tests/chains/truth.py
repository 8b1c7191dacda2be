"""The standard of truth for loops: a twin of a cell or a layer, that takes every timestep of every sequence alone.

A loop runs unchanged on the twin, in float64. The twin keeps each timestep's tensors with their gradients; which of
them make a chain is said by the test. What the loop does to a state between two timesteps is the Jacobian of the later
one's given state with respect to the earlier one's result, formed by autograd.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import oracles
import pandas as pd
import torch
from oracles import Cell, Layout, Step, choose_anchors, statistics
from torch import Tensor, nn

Place = tuple[int, int]
"""Number of a call, and of a sequence in it."""
Way = tuple[int, list[Place]]
"""A sequence of a chain: the timestep at which it begins, and the places that it goes through."""

LOST = 1e-12
"""A difference so much smaller than what it is the difference of is rounding."""


@dataclass
class Visit:
    """One timestep of one sequence: what it was given and gave, as tensors that nothing else uses."""

    step: Step
    given: tuple[Tensor, ...]
    out: tuple[Tensor, ...]
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def settle(self) -> None:
        """Keep the gradients as they are: `torch.autograd.grad` writes to the tensors' as well."""
        named = {"given": self.given, "out": self.out, "h": (self.step.h,), "recurrent": (self.step.recurrent,)}
        named |= {} if self.step.c is None else {"c": (self.step.c,)}
        self.gradients = {name: grad(tensors).clone() for name, tensors in named.items()}


class Twin(nn.Module):
    """In place of an `nn.RNNCell` or `nn.RNN` and their like, forward only.

    Attributes:
        calls: by call, by layer, by sequence, its timesteps.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls: list[list[list[list[Visit]]]] = []

    @property
    def is_cell(self) -> bool:
        return isinstance(self.module, nn.RNNCellBase)

    @property
    def family(self) -> str:
        return next(name for name in ("RNN", "LSTM", "GRU") if type(self.module).__name__.startswith(name))

    def cell(self, layer: int) -> Cell:
        suffix = "" if self.is_cell else f"_l{layer}"
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        weights = [getattr(self.module, kind + suffix, None) for kind in kinds]
        return Cell(self.family, getattr(self.module, "nonlinearity", ""), *weights)

    def forward(self, input: Any, hx: Any = None) -> Any:
        return self._call_cell(input, hx) if self.is_cell else self._call_layer(input, hx)

    def _state(self, hx: Any, *shape: int) -> list[Tensor]:
        if hx is None:
            hx = tuple(torch.zeros(*shape, self.module.hidden_size, dtype=torch.float64) for _ in range(2))
        return list(hx)[: 1 + (self.family == "LSTM")] if isinstance(hx, (tuple, list)) else [hx]

    def _call_cell(self, x: Tensor, hx: Any) -> Any:
        single = x.dim() == 1
        state = self._state(hx, *x.shape[:-1])
        rows = [x] if single else list(x)
        states = [[s] if single else list(s) for s in state]
        visits = [visit(self.cell(0), row, tuple(s[b] for s in states)) for b, row in enumerate(rows)]
        self.calls.append([[[v] for v in visits]])
        out = tuple(torch.stack(parts) for parts in zip(*(v.out for v in visits), strict=True))
        out = tuple(part[0] for part in out) if single else out
        return out if self.family == "LSTM" else out[0]

    def _call_layer(self, input: Any, hx: Any) -> Any:
        layout = Layout.of(self.module, input)
        layers = self.module.num_layers
        state = self._state(hx, layers, len(layout.lengths))
        if hx is not None:
            state = [layout.states_in(s) for s in state]
        sequences = [list(rows) for rows in layout.cut(input)]
        call = list[list[list[Visit]]]()
        for layer in range(layers):
            cell, tracks = self.cell(layer), list[list[Visit]]()
            for b, rows in enumerate(sequences):
                now, track = tuple(s[layer][b] for s in state), list[Visit]()
                for row in rows:
                    track.append(visit(cell, row, now))
                    now = track[-1].out
                tracks.append(track)
            call.append(tracks)
            sequences = [[v.out[0] for v in track] for track in tracks]
        self.calls.append(call)
        parts = range(1 + (self.family == "LSTM"))
        last = [torch.stack([torch.stack([t[-1].out[p] for t in tracks]) for tracks in call]) for p in parts]
        finals = tuple(layout.states_out(part) for part in last)
        return layout.assemble(sequences), finals if self.family == "LSTM" else finals[0]


def visit(cell: Cell, x: Tensor, state: tuple[Tensor, ...]) -> Visit:
    given = tuple(kept(part.clone()) for part in state)
    step = cell(x, given[0], given[1] if len(given) > 1 else None)
    for tensor in (step.h, step.c, step.recurrent):
        if tensor is not None:
            kept(tensor)
    return Visit(step, given, tuple(kept(part.clone()) for part in (step.h, step.c) if part is not None))


def kept(tensor: Tensor) -> Tensor:
    if tensor.requires_grad:
        tensor.retain_grad()
        return tensor
    return tensor.requires_grad_()


def grad(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.zeros_like(t).detach() if t.grad is None else t.grad for t in tensors])


def link(before: Visit, after: Visit) -> Tensor:
    """d(state given to a timestep) / d(results of the one before), rows by columns."""
    rows = []
    for part in after.given:
        for unit in part:
            zeros = [torch.zeros_like(o) for o in before.out]
            found = torch.autograd.grad(unit, before.out, retain_graph=True, allow_unused=True)
            rows.append(torch.cat([z if g is None else g for z, g in zip(zeros, found, strict=True)]))
    return torch.stack(rows).detach()


@dataclass
class Track:
    """One sequence through one layer of a chain."""

    cell: Cell
    start: int
    visits: list[Visit]

    @cached_property
    def jacobians(self) -> list[Tensor]:
        return [self.cell.jacobian(v.step) for v in self.visits]

    @cached_property
    def links(self) -> list[Tensor]:
        """From each timestep's result to the state given to the next."""
        return [link(a, b) for a, b in zip(self.visits, self.visits[1:], strict=False)]

    @cached_property
    def entering(self) -> list[Tensor]:
        """The loss gradient of every (h_t, c_t) but for what comes back from the next timestep of this sequence."""
        found = []
        for k, here in enumerate(self.visits):
            total = here.gradients["out"]
            back = torch.zeros_like(total)
            if k < len(self.links):
                back = self.links[k].T @ self.visits[k + 1].gradients["given"]
            direct = total - back
            size = len(here.out[0])
            for part in (direct[:size], direct[size:]):
                part[:] = 0 if part.norm() <= LOST * (total.norm() + back.norm()) else part
            found.append(direct)
        return found

    @cached_property
    def products(self) -> list[Tensor]:
        """ds_T/ds_t."""
        product, found = torch.eye(len(self.jacobians[0]), dtype=torch.float64), []
        for k in range(len(self.visits) - 1, -1, -1):
            found.insert(0, product)
            product = product @ self.jacobians[k] @ self.links[k - 1] if k else product
        return found

    @cached_property
    def reach(self) -> list[float]:
        anchors = choose_anchors([k for k, g in enumerate(self.entering) if bool(g.any())])
        curves = []
        for anchor in anchors:
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
        here, step, jacobian = self.visits[k], self.visits[k].step, self.jacobians[k]
        size, n = len(step.h), len(jacobian)
        values = {
            "grad_h": here.gradients["h"].norm(),
            "grad_h_direct": self.entering[k][:size].norm(),
            "weight_grad": here.gradients["recurrent"].norm() * here.given[0].norm(),
            "jacobian": jacobian.norm() / math.sqrt(n),
            "jacobian_h": jacobian[:size, :size].norm() / math.sqrt(size),
            "state": step.h.norm() / math.sqrt(size),
            "jacobian_max": torch.linalg.matrix_norm(jacobian, 2),
            "gain": self.products[k].norm() / math.sqrt(n),
        }
        if step.c is not None:
            values["grad_c"] = here.gradients["c"].norm()
            values["jacobian_c"] = jacobian[size:, size:].norm() / math.sqrt(n - size)
            values["cell"] = step.c.norm() / math.sqrt(n - size)
        return {name: float(torch.as_tensor(value).detach()) for name, value in values.items()}


def twin_of(model: nn.Module) -> nn.Module:
    """A copy in float64 with a twin in place of every cell and recurrent layer of torch's."""
    known = (nn.RNNBase, nn.RNNCellBase)
    model = copy.deepcopy(model).double()
    if isinstance(model, known):
        return Twin(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, known):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Twin(module))
    return model


def frames(model: nn.Module, chains: dict[str, list[list[Way]]], step: int = 0) -> list[dict[str, pd.DataFrame]]:
    """The tables of the chains of a model of twins, by module, chain and layer."""
    for twin in model.modules():
        for call in twin.calls if isinstance(twin, Twin) else ():
            for visit in (visit for tracks in call for track in tracks for visit in track):
                visit.settle()
    found = []
    for module, ways in chains.items():
        twin = model.get_submodule(module)
        assert isinstance(twin, Twin)
        for chain, parts in enumerate(ways):
            for layer in range(1 if twin.is_cell else twin.module.num_layers):
                key = {"step": step, "module": module, "layer": layer, "direction": "forward", "chain": chain}
                cell = twin.cell(layer)
                tracks = [
                    Track(cell, start, [v for call, row in places for v in twin.calls[call][layer][row]])
                    for start, places in parts
                ]
                tables = _tables(cell, tracks).items()
                found.append({name: pd.DataFrame([{**key, **row} for row in rows]) for name, rows in tables})
    return found


def _tables(cell: Cell, tracks: list[Track]) -> dict[str, list[dict[str, Any]]]:
    reach = oracles.reach_rows(tracks)  # type: ignore[arg-type]
    return {
        "timesteps": _timestep_rows(tracks),
        "reach": reach,
        "gates": _gate_rows(cell, tracks),
        "units": _unit_rows(cell, tracks),
        "weights": oracles.weight_rows(cell),
        "spectra": oracles.spectrum_rows(cell),
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


def _activations(tracks: list[Track], gate: str) -> dict[int, list[Tensor]]:
    found: dict[int, list[Tensor]] = {}
    for track in tracks:
        for k, here in enumerate(track.visits):
            found.setdefault(track.start + k, []).append(here.step.gates[gate].detach())
    return found


def _gate_rows(cell: Cell, tracks: list[Track]) -> list[dict[str, Any]]:
    rows = []
    for gate in tracks[0].visits[0].step.gates:
        for t, parts in _activations(tracks, gate).items():
            values = torch.stack(parts)
            low, high = (float(where.double().mean()) for where in oracles.saturated(cell, gate, values))
            rows.append({"t": t, "gate": gate, "low": low, "high": high, "mean": float(values.mean())})
    return rows


def _unit_rows(cell: Cell, tracks: list[Track]) -> list[dict[str, Any]]:
    rows = []
    for gate in tracks[0].visits[0].step.gates:
        values = torch.stack([x for parts in _activations(tracks, gate).values() for x in parts])
        low, high = (w.double().mean(0).tolist() for w in oracles.saturated(cell, gate, values))
        rows += [{"gate": gate, "unit": u, "low": low[u], "high": high[u]} for u in range(len(low))]
    return rows


def _layer_row(tracks: list[Track], reach: list[dict[str, Any]]) -> dict[str, Any]:
    exponents = [e for e in (track.lyapunov for track in tracks) if e is not None]
    longest = max(track.start + len(track.visits) for track in tracks)
    row = {"lyapunov": float(np.median(exponents)) if exponents else math.nan, "timesteps": longest}
    if not reach:
        return {**row, "horizon": math.nan, "horizon_censored": False, "decay": math.nan}
    median = [r["p50"] for r in reach]
    below = [lag for lag, value in enumerate(median) if value < oracles.FLOOR]
    horizon = below[0] if below else len(median) - 1
    return {**row, "horizon": horizon, "horizon_censored": not below, "decay": oracles.decay(median)}
