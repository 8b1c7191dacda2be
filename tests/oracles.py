"""The standard of truth: one fused call unrolled in float64 as a plain loop, with everything taken by autograd.

Shares no code with gradscope, and prefers slow and obvious to fast. Every sequence runs alone, one vector per
timestep, so that padding does not exist; every h_t and c_t is a tensor of its own that retains its gradient; every
Jacobian is formed. `examine` gives the truth as tensors, `frames` turns it into the tables of the contract, and
`assert_agrees` holds a run to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

KEY = ["step", "module", "layer", "direction", "chain"]
STATISTICS = ["p10", "p50", "p90", "mean"]
FLOOR = 1e-3

BLOCKS = {  # rows of weight_hh, in the order in which torch stacks them
    "RNN": ("hidden",),
    "LSTM": ("input", "forget", "candidate", "output"),
    "GRU": ("reset", "update", "candidate"),
}
CORE = ("grad_h", "grad_h_direct", "grad_c", "weight_grad", "jacobian", "jacobian_h", "jacobian_c", "state", "cell")
FULL = (*CORE, "jacobian_max", "gain")
LSTM_ONLY = {"grad_c", "jacobian_c", "cell"}

Loss = Callable[[Any, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class Call:
    """One call of a fused module and what is done with its result.

    Attributes:
        loss: of `(output, h_n, c_n)` in the module's own layout (`c_n` is None but for LSTM).
        masks: dropout masks after each layer but the last, scaled, [time, sequence, feature], in kernel order.
        weights: the weights that the kernel used, by name, where they are not the module's attributes.
        dtype: of the whole computation.
    """

    module: nn.RNNBase
    input: Tensor | PackedSequence
    loss: Loss
    hx: Any = None
    masks: Sequence[Tensor] = ()
    weights: Mapping[str, Tensor] | None = None
    dtype: torch.dtype = torch.float64


@dataclass
class Step:
    """One timestep of one sequence. `above` is h as the output, the layer above and nobody else see it."""

    x: Tensor
    h_before: Tensor
    c_before: Tensor | None
    recurrent: Tensor  # U h_{t-1} + b_hh
    h: Tensor
    c: Tensor | None
    gates: dict[str, Tensor]
    above: Tensor | None = None


@dataclass
class Cell:
    """The equations of one layer and direction, as the documentation of torch gives them."""

    family: str
    nonlinearity: str
    W: Tensor
    U: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    R: Tensor | None

    def __call__(self, x: Tensor, h: Tensor, c: Tensor | None) -> Step:
        from_input = self.W @ x
        if self.b_ih is not None:
            from_input = from_input + self.b_ih
        recurrent = self.U @ h
        if self.b_hh is not None:
            recurrent = recurrent + self.b_hh
        equations = {"RNN": self.rnn, "LSTM": self.lstm, "GRU": self.gru}[self.family]
        new_h, new_c, gates = equations(from_input, recurrent, h, c)
        return Step(x, h, c, recurrent, new_h, new_c, gates)

    def rnn(self, from_input, recurrent, h, c):
        squash = torch.tanh if self.nonlinearity == "tanh" else torch.relu
        new_h = squash(from_input + recurrent)
        return new_h, None, {"hidden": new_h}

    def lstm(self, from_input, recurrent, h, c):
        a_i, a_f, a_g, a_o = (from_input + recurrent).chunk(4)
        i, f, g, o = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.tanh(a_g), torch.sigmoid(a_o)
        new_c = f * c + i * g
        hidden = o * torch.tanh(new_c)
        new_h = hidden if self.R is None else self.R @ hidden
        return new_h, new_c, {"input": i, "forget": f, "output": o, "candidate": g, "hidden": hidden}

    def gru(self, from_input, recurrent, h, c):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = from_input.chunk(3), recurrent.chunk(3)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + r * h_n)
        new_h = (1 - z) * n + z * h
        return new_h, None, {"reset": r, "update": z, "candidate": n, "hidden": new_h}

    def jacobian(self, step: Step) -> Tensor:
        """d(h_t, c_t) / d(h_{t-1}, c_{t-1}); without a cell state, dh_t / dh_{t-1}."""
        size = len(step.h_before)
        before = _joined(step.h_before.detach(), step.c_before)

        def advance(state: Tensor) -> Tensor:
            after = self(step.x.detach(), state[:size], state[size:] if step.c is not None else None)
            return _joined(after.h, after.c)

        return torch.autograd.functional.jacobian(advance, before.detach())


def _joined(h: Tensor, c: Tensor | None) -> Tensor:
    return h if c is None else torch.cat([h, c])


def _grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor).detach() if tensor.grad is None else tensor.grad.detach()


def _norm(tensor: Tensor) -> float:
    """Euclidean, of the entries as float64: the squares of small float32 numbers would vanish."""
    return float(tensor.detach().double().norm())


def _largest(matrix: Tensor) -> float:
    """The largest singular value; NaN where there is none."""
    return float(torch.linalg.matrix_norm(matrix, 2)) if bool(matrix.isfinite().all()) else math.nan


def _kept(tensor: Tensor) -> Tensor:
    tensor.retain_grad()
    return tensor


@dataclass
class Track:
    """One sequence through one layer in one direction; `steps` are in the order of the input."""

    cell: Cell
    reverse: bool
    steps: list[Step]
    h_n: Tensor
    c_n: Tensor | None

    @property
    def order(self) -> list[int]:
        """The timesteps in the order in which the recurrence visits them."""
        return list(range(len(self.steps)))[:: -1 if self.reverse else 1]

    @cached_property
    def jacobians(self) -> list[Tensor]:
        """In float64 whatever the precision of the network, so that products of many do not leave its range."""
        return [self.cell.jacobian(step).double() for step in self.steps]

    def entering(self, t: int) -> tuple[Tensor, Tensor | None]:
        """The gradient that enters (h_t, c_t) from outside the recurrence."""
        step, is_last = self.steps[t], t == self.order[-1]
        g_h = _grad(step.above) + (_grad(self.h_n) if is_last else 0)
        if step.c is None:
            return g_h, None
        return g_h, _grad(self.c_n) if is_last else torch.zeros_like(step.c).detach()

    @cached_property
    def products(self) -> dict[int, Tensor]:
        """ds_T/ds_t for every t, T the last step."""
        product = torch.eye(len(self.jacobians[0]), dtype=torch.float64)
        found = {}
        for t in reversed(self.order):
            found[t] = product
            product = product @ self.jacobians[t]
        return found

    @cached_property
    def anchors(self) -> list[int]:
        """Positions, counted along the recurrence, of at most three entering gradients that are not zero."""
        entries = [_joined(*self.entering(t)) for t in self.order]
        return choose_anchors([position for position, g in enumerate(entries) if bool((g != 0).any())])

    @cached_property
    def reach(self) -> list[float]:
        """By lag: the median over the anchors that go back that far."""
        curves = []
        for anchor in self.anchors:
            v = _joined(*self.entering(self.order[anchor])).double()
            sizes = [v.norm()]
            for position in range(anchor, 0, -1):
                v = self.jacobians[self.order[position]].T @ v
                sizes.append(v.norm())
            curves.append([float(size / sizes[0]) for size in sizes])
        longest = max(map(len, curves), default=0)
        return [float(np.median([curve[lag] for curve in curves if len(curve) > lag])) for lag in range(longest)]

    def measure(self, t: int) -> dict[str, float]:
        """Every quantity of the contract at one timestep."""
        step, jacobian = self.steps[t], self.jacobians[t]
        size, n = len(step.h), len(jacobian)
        values = {
            "grad_h": _norm(_grad(step.h)),
            "grad_h_direct": _norm(self.entering(t)[0]),
            "weight_grad": _norm(_grad(step.recurrent)) * _norm(step.h_before),
            "jacobian": _norm(jacobian) / math.sqrt(n),
            "jacobian_h": _norm(jacobian[:size, :size]) / math.sqrt(size),
            "state": _norm(step.h) / math.sqrt(size),
            "jacobian_max": _largest(jacobian),
            "gain": _norm(self.products[t]) / math.sqrt(n),
        }
        if step.c is not None:
            values["grad_c"] = _norm(_grad(step.c))
            values["jacobian_c"] = _norm(jacobian[size:, size:]) / math.sqrt(n - size)
            values["cell"] = _norm(step.c) / math.sqrt(n - size)
        return values

    @property
    def lyapunov(self) -> float | None:
        """None for a sequence of one step, that has no Jacobian between states; -inf where nothing comes back."""
        lags = len(self.steps) - 1
        if lags == 0:
            return None
        largest = _largest(self.products[self.order[0]])
        return -math.inf if largest == 0 else math.log(largest) / lags


def choose_anchors(positions: list[int], most: int = 3) -> list[int]:
    """At most `most` of the positions, evenly spaced, the last one always."""
    count, kept = len(positions), min(most, len(positions))
    return [positions[(j + 1) * count // kept - 1] for j in range(kept)]


def choose_sequences(batch: int, most: int | None) -> list[int]:
    """At most `most` of the batch, evenly spaced."""
    kept = batch if most is None else min(batch, most)
    return [math.floor(x + 0.5) for x in np.linspace(0, batch - 1, kept)]


@dataclass
class Layer:
    """One layer in one direction: a track for every sequence of the batch, in kernel order."""

    layer: int
    direction: str
    cell: Cell
    tracks: list[Track]


@dataclass
class Truth:
    """What one call did, and every layer of it."""

    output: Any
    h_n: Tensor
    c_n: Tensor | None
    loss: Tensor
    layers: list[Layer]
    weights: dict[str, Tensor] = field(repr=False)
    inputs: list[Tensor] = field(repr=False)
    initial: tuple[Tensor, Tensor | None] = field(repr=False)


# ---------------------------------------------------------------------------------------------------------------------
# Unrolling


@dataclass
class Layout:
    """Between a module's own layout and [time, sequence, feature] with lengths, in kernel order."""

    module: nn.RNNBase
    packed: PackedSequence | None
    unbatched: bool
    lengths: list[int]

    @classmethod
    def of(cls, module: nn.RNNBase, input: Tensor | PackedSequence) -> Layout:
        if isinstance(input, PackedSequence):
            sizes = input.batch_sizes.tolist()
            return cls(module, input, False, [sum(size > b for size in sizes) for b in range(sizes[0])])
        if input.dim() == 2:
            return cls(module, None, True, [len(input)])
        time, batch = (1, 0) if module.batch_first else (0, 1)
        return cls(module, None, False, [input.shape[time]] * input.shape[batch])

    def cut(self, input: Tensor | PackedSequence) -> list[Tensor]:
        """The sequences, each [its own length, feature]."""
        if self.packed is not None:
            starts = np.concatenate([[0], np.cumsum(input.batch_sizes.tolist())])
            return [
                torch.stack([input.data[starts[t] + b] for t in range(length)]) for b, length in enumerate(self.lengths)
            ]
        if self.unbatched:
            return [input]
        return list(input if self.module.batch_first else input.transpose(0, 1))

    def assemble(self, sequences: list[list[Tensor]]) -> Tensor | PackedSequence:
        """The output of the module from one list of vectors per sequence."""
        if self.packed is not None:
            rows = [sequences[b][t] for t, size in enumerate(self.packed.batch_sizes.tolist()) for b in range(size)]
            return PackedSequence(torch.stack(rows), *self.packed[1:])
        batch = torch.stack([torch.stack(rows) for rows in sequences])
        if self.unbatched:
            return batch[0]
        return batch if self.module.batch_first else batch.transpose(0, 1)

    def states_in(self, states: Tensor) -> Tensor:
        """[layer x direction, sequence, unit] in kernel order."""
        if self.unbatched:
            return states.unsqueeze(1)
        order = None if self.packed is None else self.packed.sorted_indices
        return states if order is None else states[:, order]

    def states_out(self, states: Tensor) -> Tensor:
        if self.unbatched:
            return states.squeeze(1)
        order = None if self.packed is None else self.packed.unsorted_indices
        return states if order is None else states[:, order]


def _leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype, copy=True).requires_grad_()


def _directions(module: nn.RNNBase) -> list[tuple[str, str]]:
    return [("forward", ""), ("reverse", "_reverse")][: 2 if module.bidirectional else 1]


def _read_weights(call: Call) -> dict[str, Tensor]:
    module = call.module
    kinds = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * module.bias + ["weight_hr"] * bool(module.proj_size)
    names = [f"{k}_l{n}{s}" for n in range(module.num_layers) for _, s in _directions(module) for k in kinds]
    source = call.weights or {name: getattr(module, name) for name in names}
    return {name: _leaf(source[name], call.dtype) for name in names}


def _initial(call: Call, layout: Layout) -> tuple[Tensor, Tensor | None]:
    module, is_lstm = call.module, isinstance(call.module, nn.LSTM)
    shape = (module.num_layers * len(_directions(module)), len(layout.lengths))
    if call.hx is None:
        h, c = torch.zeros(*shape, module.proj_size or module.hidden_size), torch.zeros(*shape, module.hidden_size)
    else:
        h, c = map(layout.states_in, call.hx if is_lstm else (call.hx, call.hx))
    return _leaf(h, call.dtype), _leaf(c, call.dtype) if is_lstm else None


def _run_sequence(cell: Cell, inputs: list[Tensor], h: Tensor, c: Tensor | None, reverse: bool) -> Track:
    steps: list[Step | None] = [None] * len(inputs)
    for t in range(len(inputs))[:: -1 if reverse else 1]:
        step = steps[t] = cell(inputs[t], h, c)
        h, c = _kept(step.h), None if step.c is None else _kept(step.c)
        step.above = _kept(h.clone())
        _kept(step.recurrent)
    return Track(cell, reverse, steps, _kept(h.clone()), None if c is None else _kept(c.clone()))


def _run_stack(call: Call, weights: dict[str, Tensor], sequences: list[list[Tensor]], initial) -> list[Layer]:
    module, layers = call.module, []
    family = next(name for name in BLOCKS if isinstance(module, getattr(nn, name)))
    for number in range(module.num_layers):
        results = []
        for direction, suffix in _directions(module):
            kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            mine = [weights.get(f"{kind}_l{number}{suffix}") for kind in kinds]
            cell = Cell(family, getattr(module, "nonlinearity", ""), *mine)
            h0, c0 = (None if s is None else s[len(layers)] for s in initial)
            tracks = [
                _run_sequence(cell, rows, h0[b], None if c0 is None else c0[b], direction == "reverse")
                for b, rows in enumerate(sequences)
            ]
            results.append(tracks)
            layers.append(Layer(number, direction, cell, tracks))
        sequences = [_above(tracks) for tracks in zip(*results, strict=True)]
        if number < len(call.masks):
            mask = call.masks[number].to(call.dtype)
            sequences = [[row * mask[t, b] for t, row in enumerate(rows)] for b, rows in enumerate(sequences)]
    return layers


def _above(tracks: tuple[Track, ...]) -> list[Tensor]:
    """What one sequence gives to the layer above: both directions side by side."""
    return [torch.cat([step.above for step in steps]) for steps in zip(*(t.steps for t in tracks), strict=True)]


def examine(call: Call) -> Truth:
    """Unroll the call, take its loss, and send the gradient back."""
    layout = Layout.of(call.module, call.input)
    weights, initial = _read_weights(call), _initial(call, layout)
    inputs = [_leaf(rows, call.dtype) for rows in layout.cut(call.input)]
    layers = _run_stack(call, weights, [list(rows) for rows in inputs], initial)
    top = [layer.tracks for layer in layers if layer.layer == call.module.num_layers - 1]
    output = layout.assemble([_above(tracks) for tracks in zip(*top, strict=True)])
    h_n, c_n = (
        None
        if layers[0].tracks[0].c_n is None and name == "c_n"
        else layout.states_out(torch.stack([torch.stack([getattr(t, name) for t in layer.tracks]) for layer in layers]))
        for name in ("h_n", "c_n")
    )
    loss = call.loss(output, h_n, c_n)
    loss.backward()
    return Truth(output, h_n, c_n, loss.detach(), layers, weights, inputs, initial)


def dropout_masks(module: nn.RNNBase, input: Tensor | PackedSequence, rng_state: Tensor) -> list[Tensor]:
    """The masks that the CPU kernels drew from this generator state, as `Call.masks` wants them.

    One mask per boundary between layers, over the whole output of the lower one (packed rows when packed), drawn
    in order. Whoever uses them checks that the unrolled output is the fused one.
    """
    layout = Layout.of(module, input)
    width = (module.proj_size or module.hidden_size) * len(_directions(module))
    rows = [(t, b) for t in range(max(layout.lengths)) for b, length in enumerate(layout.lengths) if t < length]
    dtype = input.data.dtype
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(rng_state)
        drawn = [
            nn.functional.dropout(torch.ones(len(rows), width, dtype=dtype), module.dropout)
            for _ in range(module.num_layers - 1)
        ]
    masks = [torch.zeros(max(layout.lengths), len(layout.lengths), width, dtype=dtype) for _ in drawn]
    for mask, values in zip(masks, drawn, strict=True):
        for (t, b), value in zip(rows, values, strict=True):
            mask[t, b] = value
    return masks


# ---------------------------------------------------------------------------------------------------------------------
# The tables of the contract


def frames(
    truth: Truth, *, module: str = "", chain: int = 0, step: int = 0, max_sequences: int | None = None
) -> dict[str, pd.DataFrame]:
    """The layer tables of the contract for one call, with the quantities of `full`.

    `timesteps` and `reach` have one column more, `scale`: the largest finite size of that quantity over t and
    sequences, to which tolerances are relative.
    """
    tables: dict[str, list[pd.DataFrame]] = {}
    for layer in truth.layers:
        chosen = choose_sequences(len(layer.tracks), max_sequences)
        tracks = [layer.tracks[b] for b in chosen]
        key = {"step": step, "module": module, "layer": layer.layer, "direction": layer.direction, "chain": chain}
        for name, rows in _layer_tables(layer.cell, tracks).items():
            tables.setdefault(name, []).append(pd.DataFrame([{**key, **row} for row in rows]))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}


def _layer_tables(cell: Cell, tracks: list[Track]) -> dict[str, list[dict[str, Any]]]:
    reach = _reach_rows(tracks)
    return {
        "timesteps": _timestep_rows(tracks),
        "reach": reach,
        "gates": _gate_rows(cell, tracks),
        "units": _unit_rows(cell, tracks),
        "weights": _weight_rows(cell),
        "spectra": _spectrum_rows(cell),
        "layers": [_layer_row(tracks, reach)],
    }


def statistics(values: Sequence[float]) -> dict[str, float]:
    """p10, p50, p90 and mean of what is finite; how many there are, and how many of them are not finite."""
    finite = np.array([value for value in values if math.isfinite(value)])
    p10, p50, p90 = np.percentile(finite, [10, 50, 90]) if len(finite) else [math.nan] * 3
    mean = finite.mean() if len(finite) else math.nan
    counts = {"sequences": len(values), "nonfinite": len(values) - len(finite)}
    return {"p10": p10, "p50": p50, "p90": p90, "mean": mean, **counts}


def _scale(values: Sequence[float]) -> float:
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0)


def _longest(tracks: list[Track]) -> int:
    return max(len(track.steps) for track in tracks)


def _timestep_rows(tracks: list[Track]) -> list[dict[str, Any]]:
    values: dict[tuple[str, int], list[float]] = {}
    for track in tracks:
        for t in range(len(track.steps)):
            for quantity, value in track.measure(t).items():
                values.setdefault((quantity, t), []).append(value)
    scales = {q: _scale([v for (other, _), vs in values.items() if other == q for v in vs]) for q, _ in values}
    return [
        {"t": t, "quantity": q, **statistics(found), "se": 0.0, "scale": scales[q]} for (q, t), found in values.items()
    ]


def _reach_rows(tracks: list[Track]) -> list[dict[str, Any]]:
    curves = [track.reach for track in tracks]
    scale = _scale([value for curve in curves for value in curve])
    longest = max(map(len, curves))
    return [
        {"lag": lag, **statistics([curve[lag] for curve in curves if len(curve) > lag]), "scale": scale}
        for lag in range(longest)
    ]


def _saturated(cell: Cell, gate: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """Where a gate is as good as closed and as good as open."""
    if cell.family == "RNN" and cell.nonlinearity == "relu":
        return values == 0, torch.zeros_like(values, dtype=torch.bool)
    lowest = -0.9 if gate in ("candidate", "hidden") else 0.1
    return values < lowest, values > 0.9


def _gate_values(tracks: list[Track], gate: str, t: int | None = None) -> Tensor:
    """[rows, units]: all sequences that are valid at t, or all timesteps of all sequences."""
    steps = [step for track in tracks for at, step in enumerate(track.steps) if t is None or t == at]
    return torch.stack([step.gates[gate].detach() for step in steps])


def _gate_rows(cell: Cell, tracks: list[Track]) -> list[dict[str, Any]]:
    rows = []
    for gate in tracks[0].steps[0].gates:
        for t in range(_longest(tracks)):
            values = _gate_values(tracks, gate, t)
            low, high = (float(where.double().mean()) for where in _saturated(cell, gate, values))
            rows.append({"t": t, "gate": gate, "low": low, "high": high, "mean": float(values.mean())})
    return rows


def _unit_rows(cell: Cell, tracks: list[Track]) -> list[dict[str, Any]]:
    rows = []
    for gate in tracks[0].steps[0].gates:
        low, high = (w.double().mean(0).tolist() for w in _saturated(cell, gate, _gate_values(tracks, gate)))
        rows += [{"gate": gate, "unit": u, "low": low[u], "high": high[u]} for u in range(len(low))]
    return rows


def _blocks(cell: Cell) -> dict[str, Tensor]:
    names = BLOCKS[cell.family]
    return dict(zip(names, cell.U.detach().chunk(len(names)), strict=True))


def _eigenvalues(cell: Cell, block: Tensor) -> Tensor:
    square = block if cell.R is None else block @ cell.R.detach()
    return torch.linalg.eigvals(square)


def _weight_rows(cell: Cell) -> list[dict[str, Any]]:
    rows = []
    for gate, block in _blocks(cell).items():
        columns = block.shape[1]
        departure = block.T @ block - torch.eye(columns, dtype=block.dtype)
        rows.append(
            {
                "gate": gate,
                "spectral_radius": float(_eigenvalues(cell, block).abs().max()),
                "spectral_norm": float(torch.linalg.matrix_norm(block, 2)),
                "orthogonality": float(departure.norm()) / math.sqrt(columns),
            }
        )
    return rows


def _spectrum_rows(cell: Cell) -> list[dict[str, Any]]:
    rows = []
    for gate, block in _blocks(cell).items():
        values = sorted(_eigenvalues(cell, block).tolist(), key=lambda z: (-abs(z), -z.real, -z.imag))
        rows += [{"gate": gate, "index": k, "real": z.real, "imag": z.imag} for k, z in enumerate(values)]
    return rows


def _layer_row(tracks: list[Track], reach: list[dict[str, Any]]) -> dict[str, Any]:
    exponents = [track.lyapunov for track in tracks if track.lyapunov is not None and not math.isnan(track.lyapunov)]
    lyapunov = float(np.median(exponents)) if exponents else math.nan
    row = {"lyapunov": lyapunov, "timesteps": _longest(tracks)}
    if not reach:  # no gradient came: there is no horizon, and none that lies beyond what was seen
        return {**row, "horizon": math.nan, "horizon_censored": False, "decay": math.nan}
    median = [r["p50"] for r in reach]
    below = [lag for lag, value in enumerate(median) if value < FLOOR]
    horizon = below[0] if below else len(median) - 1
    return {**row, "horizon": horizon, "horizon_censored": not below, "decay": _decay(median)}


def _decay(median: list[float]) -> float:
    lags = [lag for lag, value in enumerate(median) if value >= FLOOR]
    if len(lags) < 2:
        return math.nan
    return float(np.polyfit(lags, [math.log10(median[lag]) for lag in lags], 1)[0])


# ---------------------------------------------------------------------------------------------------------------------
# Holding a run to the truth

EXACT = ("horizon", "horizon_censored", "timesteps", "sequences", "nonfinite", "se")
ROWS = {  # what names a row of each table beside the key, and what is compared in it
    "timesteps": (["quantity", "t"], STATISTICS),
    "reach": (["lag"], STATISTICS),
    "gates": (["gate", "t"], ["low", "high", "mean"]),
    "units": (["gate", "unit"], ["low", "high"]),
    "weights": (["gate"], ["spectral_radius", "spectral_norm", "orthogonality"]),
    "layers": ([], ["horizon", "horizon_censored", "decay", "lyapunov", "timesteps"]),
}


def assert_agrees(run: Any, *expected: dict[str, pd.DataFrame], rtol: float = 1e-10, quantities: str = "full") -> None:
    """The run holds exactly the rows of `expected`, within `rtol` of each quantity's maximum over t and sequences."""
    for table, (names, columns) in ROWS.items():
        want = pd.concat([tables[table] for tables in expected], ignore_index=True)
        if quantities == "core" and table == "timesteps":
            want = want[want["quantity"].isin(CORE)]
        if quantities == "core" and table == "layers":
            columns = [column for column in columns if column != "lyapunov"]
        _assert_rows(table, run.frame(table), want, KEY + names, columns, rtol)
    spectra = pd.concat([tables["spectra"] for tables in expected], ignore_index=True)
    if quantities == "full":
        _assert_spectra(run.frame("spectra"), spectra, rtol)


def _assert_rows(table, got: pd.DataFrame, want: pd.DataFrame, key: list[str], columns: list[str], rtol: float) -> None:
    """Column by column in numpy: pandas would take ten times as long for tables this small."""
    rows, wanted = _keys(got, key), _keys(want, key)
    places = {row: place for place, row in enumerate(rows)}
    assert len(places) == len(rows), f"{table}: rows that are there twice, {len(rows) - len(places)} of {len(rows)}"
    missing, extra = sorted(set(wanted) - set(rows)), sorted(set(rows) - set(wanted))
    assert not missing, f"{table}: {len(missing)} rows are missing, such as {missing[:5]}"
    assert not extra, f"{table}: {len(extra)} rows too many, such as {extra[:5]}"
    order = [places[row] for row in wanted]
    if not wanted:
        return
    scale = _numbers(want, "scale") if "scale" in want else None
    for column in columns + [c for c in EXACT if c in want and c not in columns]:
        mine, truth = _numbers(got, column)[order], _numbers(want, column)
        unit = np.maximum(1.0, np.abs(truth)) if scale is None else scale
        with np.errstate(invalid="ignore"):  # infinities that are equal
            close = np.abs(mine - truth) <= (0.0 if column in EXACT else rtol) * unit
        wrong = ~(close | (mine == truth) | (np.isnan(mine) & np.isnan(truth)))
        shown = [f"{wanted[k]}: got {mine[k]!r}, want {truth[k]!r}" for k in np.flatnonzero(wrong)[:8]]
        assert not wrong.any(), f"{table}.{column}: {wrong.sum()} of {len(wrong)} rows differ\n" + "\n".join(shown)


def _keys(frame: pd.DataFrame, key: list[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(frame[name].tolist() for name in key), strict=True)) if len(frame) else []


def _numbers(frame: pd.DataFrame, column: str) -> np.ndarray:
    """As floats, with None as NaN."""
    return np.array([math.nan if value is None else float(value) for value in frame[column].tolist()])


def _assert_spectra(got: pd.DataFrame, want: pd.DataFrame, rtol: float) -> None:
    """Eigenvalues as multisets: each expected one is taken by the nearest of what was got."""
    found, expected = _by_gate(got), _by_gate(want)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        left = dict(found[key])
        assert sorted(left) == list(range(len(values))), f"spectra {key}: {sorted(left)}"
        for value in values.values():
            nearest = min(left, key=lambda index: abs(left[index] - value))  # noqa: B023
            distance = abs(left.pop(nearest) - value)
            assert distance <= rtol * max(1.0, abs(value)), f"spectra {key}: {value} is not in {found[key]}"


def _by_gate(spectra: pd.DataFrame) -> dict[tuple[Any, ...], dict[int, complex]]:
    gates: dict[tuple[Any, ...], dict[int, complex]] = {}
    for key, index, real, imag in zip(
        _keys(spectra, [*KEY, "gate"]), *(spectra[name].tolist() for name in ("index", "real", "imag")), strict=True
    ):
        gates.setdefault(key, {})[index] = complex(real, imag)
    return gates
