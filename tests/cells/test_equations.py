"""The cells against the papers' equations, one unit at a time in numpy, and against torch.func."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacfwd, jacrev, jvp, vjp, vmap

from gradscope import GradscopeError
from gradscope.cells import (
    Cell,
    GRUCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LayerNormRNNCell,
    LinearCell,
    LSTMCell,
    RNNCell,
)

BATCH, INPUT, HIDDEN = 3, 2, 4
MAKERS: dict[str, Callable[[bool], Cell]] = {
    "linear": lambda bias: LinearCell(INPUT, HIDDEN, bias),
    "tanh": lambda bias: RNNCell(INPUT, HIDDEN, bias),
    "relu": lambda bias: RNNCell(INPUT, HIDDEN, bias, nonlinearity="relu"),
    "gelu": lambda bias: RNNCell(INPUT, HIDDEN, bias, nonlinearity="gelu"),
    "lstm": lambda bias: LSTMCell(INPUT, HIDDEN, bias),
    "gru_after": lambda bias: GRUCell(INPUT, HIDDEN, bias),
    "gru_before": lambda bias: GRUCell(INPUT, HIDDEN, bias, reset="before"),
    "ln_rnn": lambda bias: LayerNormRNNCell(INPUT, HIDDEN, bias),
    "ln_lstm": lambda bias: LayerNormLSTMCell(INPUT, HIDDEN, bias),
    "ln_gru": lambda bias: LayerNormGRUCell(INPUT, HIDDEN, bias),
}


def made(name: str, bias: bool = True) -> Cell:
    """A cell with nothing at its neutral value."""
    cell = MAKERS[name](bias)
    for parameter in cell.parameters():
        nn.init.normal_(parameter)
    return cell


def state_of(cell: Cell, *shape: int) -> Any:
    h, c = torch.randn(*shape, HIDDEN), torch.randn(*shape, HIDDEN)
    return (h, c) if isinstance(cell, LSTMCell) else h


# What follows is one sequence, scalar by scalar, with the names of the papers.


def sigma(a: float) -> float:
    return 1 / (1 + math.exp(-a))


def dots(matrix: np.ndarray, vector: np.ndarray) -> list[float]:
    return [sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix]


def ln(a: list[float], gain: np.ndarray) -> list[float]:
    mu = sum(a) / len(a)
    variance = sum((v - mu) ** 2 for v in a) / len(a)
    return [g * (v - mu) / math.sqrt(variance + 1e-5) for g, v in zip(gain, a, strict=True)]


def plus(*vectors: Any) -> list[float]:
    return [sum(values) for values in zip(*vectors, strict=True)]


class Paper:
    """The parameters of a cell as arrays; zeros for biases that are not there."""

    def __init__(self, cell: Cell) -> None:
        self.p = {name: value.detach().numpy() for name, value in cell.named_parameters()}
        self.w, self.u = self.p["weight_ih"], self.p["weight_hh"]
        self.b, self.b_ = (self.p.get(name, np.zeros(len(self.w))) for name in ("bias_ih", "bias_hh"))

    def linear(self, x: np.ndarray, h: np.ndarray) -> list[float]:
        return plus(dots(self.w, x), self.b, dots(self.u, h), self.b_)

    def tanh(self, x: np.ndarray, h: np.ndarray) -> list[float]:
        return [math.tanh(a) for a in self.linear(x, h)]

    def relu(self, x: np.ndarray, h: np.ndarray) -> list[float]:
        return [max(a, 0.0) for a in self.linear(x, h)]

    def gelu(self, x: np.ndarray, h: np.ndarray) -> list[float]:
        return [a * (1 + math.erf(a / math.sqrt(2))) / 2 for a in self.linear(x, h)]

    def lstm_from(self, a: list[float], c: np.ndarray, read: Callable[[list[float]], list[float]]) -> Any:
        n = len(c)
        cells = [sigma(a[n + j]) * c[j] + sigma(a[j]) * math.tanh(a[2 * n + j]) for j in range(n)]
        return [sigma(a[3 * n + j]) * math.tanh(v) for j, v in enumerate(read(cells))], cells

    def lstm(self, x: np.ndarray, state: Any) -> Any:
        h, c = state
        return self.lstm_from(self.linear(x, h), c, lambda cells: cells)

    def ln_lstm(self, x: np.ndarray, state: Any) -> Any:
        h, c = state
        from_x = plus(ln(dots(self.w, x), self.p["gain_ih"]), self.b)
        from_h = plus(ln(dots(self.u, h), self.p["gain_hh"]), self.b_)
        shift = self.p.get("bias_c", np.zeros(len(c)))
        return self.lstm_from(plus(from_x, from_h), c, lambda cells: plus(ln(cells, self.p["gain_c"]), shift))

    def ln_rnn(self, x: np.ndarray, h: np.ndarray) -> list[float]:
        total = plus(dots(self.w, x), dots(self.u, h))
        return [math.tanh(a) for a in plus(ln(total, self.p["gain"]), self.b, self.b_)]

    def gru_after(self, x: np.ndarray, h: np.ndarray) -> list[float]:
        return self.gru_from(plus(dots(self.w, x), self.b), plus(dots(self.u, h), self.b_), h)

    def gru_from(self, from_x: list[float], from_h: list[float], h: np.ndarray) -> list[float]:
        n, new = len(h), []
        for j in range(n):
            r, z = sigma(from_x[j] + from_h[j]), sigma(from_x[n + j] + from_h[n + j])
            candidate = math.tanh(from_x[2 * n + j] + r * from_h[2 * n + j])
            new.append(z * h[j] + (1 - z) * candidate)
        return new

    def gru_before(self, x: np.ndarray, h: np.ndarray) -> list[float]:
        n = len(h)
        from_x, from_h = plus(dots(self.w, x), self.b), plus(dots(self.u, h), self.b_)
        r = np.array([sigma(from_x[j] + from_h[j]) for j in range(n)])
        inner = plus(dots(self.u[2 * n :], r * h), self.b_[2 * n :])
        z = [sigma(from_x[n + j] + from_h[n + j]) for j in range(n)]
        return [z[j] * h[j] + (1 - z[j]) * math.tanh(from_x[2 * n + j] + inner[j]) for j in range(n)]

    def ln_gru(self, x: np.ndarray, h: np.ndarray) -> list[float]:
        n, parts = 2 * len(h), []
        for product, gain, shift in (
            (dots(self.w, x), self.p["gain_ih"], self.b),
            (dots(self.u, h), self.p["gain_hh"], self.b_),
        ):
            parts.append(plus(ln(product[:n], gain[:n]) + ln(product[n:], gain[n:]), shift))
        return self.gru_from(*parts, h)


def rows(state: Any) -> list[Any]:
    """Sequence by sequence."""
    if isinstance(state, Tensor):
        return list(state.numpy())
    return list(zip(*(rows(s) for s in state), strict=True))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("bias", [True, False])
def test_equations(name: str, bias: bool) -> None:
    cell = made(name, bias)
    x, state = torch.randn(BATCH, INPUT), state_of(cell, BATCH)
    with torch.no_grad():
        got = rows(cell(x, state))
    for b in range(BATCH):
        want = getattr(Paper(cell), name)(x[b].numpy(), rows(state)[b])
        np.testing.assert_allclose(np.array(got[b]), np.array(want), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MAKERS)
def test_an_absent_state_is_zero(name: str) -> None:
    cell = made(name)
    x = torch.randn(BATCH, INPUT)
    zeros = cell.initial_state(x)
    for mine, other in zip(flat(cell(x)), flat(cell(x, zeros)), strict=True):
        assert torch.equal(mine, other)
    assert all(not z.any() and z.shape == (BATCH, HIDDEN) for z in flat(zeros))


def flat(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else list(state)


NAMES = {
    Cell: ["hidden"],
    LSTMCell: ["input", "forget", "output", "candidate", "hidden"],
    GRUCell: ["reset", "update", "candidate", "hidden"],
}


@pytest.mark.parametrize("name", MAKERS)
def test_gates_are_those_of_the_step(name: str) -> None:
    cell = made(name)
    x, state = torch.randn(BATCH, INPUT), state_of(cell, BATCH)
    gates = cell.gates(x, state)
    family = next(kind for kind in (LSTMCell, GRUCell, Cell) if isinstance(cell, kind))
    assert list(gates) == NAMES[family]
    assert {*cell.blocks} == {*gates} - {"hidden"} or cell.blocks == ("hidden",)
    assert all(gate.shape == (BATCH, HIDDEN) for gate in gates.values())
    new = cell(x, state)
    assert torch.equal(gates["hidden"], flat(new)[0])
    if isinstance(cell, LSTMCell):
        c = gates["forget"] * state[1] + gates["input"] * gates["candidate"]
        torch.testing.assert_close(c, new[1], rtol=1e-13, atol=1e-13)
    if isinstance(cell, GRUCell):
        h = gates["update"] * state + (1 - gates["update"]) * gates["candidate"]
        torch.testing.assert_close(h, new, rtol=1e-13, atol=1e-13)
    for parameter in cell.recurrent:
        assert cell.get_parameter(parameter).shape == (len(cell.blocks) * HIDDEN, HIDDEN)


@pytest.mark.parametrize("name", [name for name in MAKERS if "ln" not in name])
def test_blocks_are_in_the_stated_order(name: str) -> None:
    """Pushing one block's bias up moves that gate, and no other that does not depend on it."""
    cell = made(name)
    x, state = torch.randn(BATCH, INPUT), state_of(cell, BATCH)
    before = cell.gates(x, state)
    for k, gate in enumerate(cell.blocks):
        with torch.no_grad():
            cell.bias_ih[k * HIDDEN : (k + 1) * HIDDEN] += 1.5
        after = cell.gates(x, state)
        moved = {other for other in cell.blocks if not torch.equal(before[other], after[other])}
        assert moved == ({"reset", "candidate"} if gate == "reset" else {gate})
        assert (after[gate] >= before[gate]).all() or name == "gelu"
        with torch.no_grad():
            cell.bias_ih[k * HIDDEN : (k + 1) * HIDDEN] -= 1.5
        before = cell.gates(x, state)


@pytest.mark.parametrize("name", MAKERS)
def test_a_mask_hides_units_from_u_and_nothing_else(name: str) -> None:
    """A masked unit's column of U might as well be zero; the carousel and the leak still see it."""
    cell, hidden = made(name), 1
    x, state = torch.randn(BATCH, INPUT), state_of(cell, BATCH)
    mask = torch.full((BATCH, HIDDEN), 2.0)
    mask[:, hidden] = 0
    got, gates = cell(x, state, mask), cell.gates(x, state, mask)
    weight = cell.weight_hh.detach() * mask[0]
    want = functional_call(cell, {"weight_hh": weight}, (x, state))
    for mine, other in zip(flat(got), flat(want), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    assert torch.equal(gates["hidden"], flat(got)[0])


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)  # torch, when forward AD loads
@pytest.mark.parametrize("name", MAKERS)
def test_torch_func_agrees_with_autograd(name: str) -> None:
    cell = made(name)
    x, state = torch.randn(BATCH, INPUT), state_of(cell, BATCH)

    def step(state: Any, x: Tensor) -> Any:
        return torch.cat(flat(cell(x, state)), -1)

    by_func = vmap(jacrev(step))(state, x)
    forward = vmap(jacfwd(step))(state, x)
    for b in range(BATCH):
        alone = tuple(s[b].clone().requires_grad_() for s in flat(state))
        new = step(alone if isinstance(state, tuple) else alone[0], x[b])
        want = [torch.stack([torch.autograd.grad(v, s, retain_graph=True)[0] for v in new]) for s in alone]
        for jacobians in (by_func, forward):
            for mine, other in zip(flat(jacobians), want, strict=True):
                torch.testing.assert_close(mine[b], other, rtol=1e-12, atol=1e-12)
    assert_transposed(lambda s: step(s, x), state)


def assert_transposed(step: Callable[[Any], Tensor], state: Any) -> None:
    """<w, J v> = <J^T w, v>."""
    v = tuple(torch.randn_like(s) for s in state) if isinstance(state, tuple) else torch.randn_like(state)
    new, pushed = jvp(step, (state,), (v,))
    w = torch.randn_like(new)
    (pulled,) = vjp(step, state)[1](w)
    both = sum((a * b).sum() for a, b in zip(flat(pulled), flat(v), strict=True))
    torch.testing.assert_close((w * pushed).sum(), both, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_of_the_parameters(name: str) -> None:
    """Two steps through `gradcheck`: finite differences know no autograd."""
    cell = made(name)
    x, state = torch.randn(1, INPUT), state_of(cell, 1)
    parameters = dict(cell.named_parameters())

    def run(*values: Tensor) -> Tensor:
        given = dict(zip(parameters, values, strict=True))
        between = functional_call(cell, given, (x, state))
        return torch.cat(flat(functional_call(cell, given, (x, between))))

    assert torch.autograd.gradcheck(run, tuple(p.detach().requires_grad_() for p in parameters.values()))


def test_the_linear_network_multiplies_by_u() -> None:
    cell = LinearCell(0, HIDDEN)
    h = torch.randn(BATCH, HIDDEN)
    power = torch.linalg.matrix_power(cell.weight_hh.detach(), 5)
    for x in (None, torch.empty(BATCH, 0)):
        state = h
        for _ in range(5):
            state = cell(x, state)
        torch.testing.assert_close(state, h @ power.T, rtol=1e-12, atol=1e-12)
    with pytest.raises(GradscopeError, match="neither input nor state"):
        cell(None)


def test_layer_norm_does_not_see_the_scale_of_the_weights() -> None:
    cell = LayerNormRNNCell(INPUT, 32)
    x, h = torch.randn(BATCH, INPUT), torch.randn(BATCH, 32)
    before = cell(x, h)
    with torch.no_grad():
        cell.weight_ih.mul_(50)
        cell.weight_hh.mul_(50)
    torch.testing.assert_close(cell(x, h), before, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["ln_rnn", "ln_lstm", "ln_gru"])
def test_layer_norm_starts_neutral(name: str) -> None:
    for name_, value in MAKERS[name](True).named_parameters():
        assert name_.startswith("weight") or (value == float(name_.startswith("gain"))).all()
    cell = MAKERS[name](False)
    assert not any("bias" in name_ for name_, _ in cell.named_parameters())


@pytest.mark.parametrize("name", MAKERS)
def test_parameters_can_be_drawn_again(name: str) -> None:
    cell = MAKERS[name](True)
    before = {key: value.clone() for key, value in cell.state_dict().items()}
    cell.reset_parameters()
    for key, value in cell.state_dict().items():
        neutral = name.startswith("ln") and not key.startswith("weight")
        assert torch.equal(value, before[key]) == neutral
        assert neutral or value.abs().max() <= HIDDEN**-0.5


def test_unknown_options_are_refused() -> None:
    with pytest.raises(GradscopeError, match=r"'elu'.*'tanh', 'relu', 'gelu'"):
        RNNCell(2, 3, nonlinearity="elu")
    with pytest.raises(GradscopeError, match="'between'"):
        GRUCell(2, 3, reset="between")


def test_device_and_dtype() -> None:
    for maker in (LinearCell, RNNCell, LSTMCell, GRUCell, LayerNormRNNCell, LayerNormLSTMCell, LayerNormGRUCell):
        cell = maker(2, 3, device="meta", dtype=torch.float16)
        assert {(p.device.type, p.dtype) for p in cell.parameters()} == {("meta", torch.float16)}
