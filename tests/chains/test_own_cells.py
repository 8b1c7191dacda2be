"""Cells of one's own, held to the truth."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from chains.forms import NEW, EntityAware, StepMethod, StepOfEntityAware
from chains.hold import data
from chains.named import INPUT, LRU, NAMED, IndRNN, Liquid, MinGRU, Own, PeepholeLSTM
from chains.own_loops import BATCH, TIME, losses, run_loop
from chains.own_truth import assert_agrees, follow
from torch import Tensor, nn

import gradscope
from gradscope import CellSpec


def truth(cell: Own, loss: str, more: list[Any] | None = None, batch: int = BATCH) -> list[Any]:
    x, twin = data(TIME, batch, INPUT), copy.deepcopy(cell)

    def of(b: int) -> Any:
        rest = [] if more is None else [[m[b : b + 1] for m in more]]
        return follow(twin, x[:, b : b + 1], lambda o: losses([y[0] for y in o], loss, b), rest)

    return [of(b) for b in range(batch)]


def hold(cell: Own, spec: CellSpec | None, loss: str = "all", more: list[Any] | None = None, rtol: float = 1e-9) -> Any:
    bare = copy.deepcopy(cell)
    run_loop(bare, loss, more)[0].backward()
    cells = None if spec is None else {type(cell): spec}
    with gradscope.attach(cell, every=1, quantities="full", strict=True, cells=cells) as scope:
        run_loop(cell, loss, more)[0].backward()
    for mine, theirs in zip(cell.parameters(), bare.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)
    assert scope.run.frame("notes").empty, scope.run.frame("notes")["reason"].tolist()
    assert scope.run.frame("layers")["residual"].max() < 1e-12
    assert_agrees(scope.run, truth(cell, loss, more), rtol=rtol)
    return scope.run


@pytest.mark.parametrize("loss", ["last", "all", "some"])
@pytest.mark.parametrize("name", NAMED)
def test_ten_cells(name, loss):
    torch.manual_seed(0)
    kind, spec = NAMED[name]
    hold(kind(), spec, loss)


@pytest.mark.parametrize("loss", ["last", "some"])
@pytest.mark.parametrize("name", NEW)
def test_forms_of_public_code(name, loss):
    torch.manual_seed(0)
    kind, spec = NEW[name]
    hold(kind(), spec, loss)


@pytest.mark.parametrize("name", ["SRU", "minGRU", "LRU"])
def test_a_transition_that_is_given_and_one_that_is_found_are_the_same(name):
    torch.manual_seed(1)
    kind, spec = NAMED[name]
    cell = kind()
    assert spec.transition is not None
    hold(copy.deepcopy(cell), spec)
    hold(cell, CellSpec())


@pytest.mark.parametrize("name", NAMED)
def test_totals_are_autograds_where_the_state_is_one_tensor(name):
    """The standard itself: what follows from Jacobians is what the whole loop's graph gives."""
    torch.manual_seed(0)
    cell = NAMED[name][0]()
    states, forward = [], cell.step

    def step(*args: Any) -> Any:
        states.append(forward(*args))
        for part in states[-1] if isinstance(states[-1], tuple) else states[-1:]:
            part.retain_grad()
        return states[-1]

    cell.step = step
    run_loop(cell, "all")[0].backward()
    del cell.step
    for b, one in enumerate(truth(cell, "all")):
        for t, total in enumerate(one.totals):
            first = states[t][0] if isinstance(states[t], tuple) else states[t]
            gradient = torch.view_as_real(first.grad) if first.is_complex() else first.grad
            assert torch.allclose(total[: one.widths[t][0]], gradient[b].flatten(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["peephole LSTM", "coupled-gate LSTM", "IndRNN"])
def test_gates(name):
    torch.manual_seed(0)
    kind, spec = NAMED[name]
    cell = kind()
    run = hold(cell, spec)
    x, state, found = data(TIME, BATCH, INPUT), cell.initial(BATCH), []
    for t in range(TIME):
        if isinstance(cell, PeepholeLSTM):
            found.append(cell.gates(x[t], state))
        elif isinstance(cell, IndRNN):
            found.append({"hidden": cell(x[t], state)})
        else:
            found.append({"forget": cell.forget(torch.cat([x[t], state[0]], 1))})
        state = cell.step(x[t], state)
    table = run.frame("gates").set_index(["gate", "t"])
    assert set(table.index) == {(gate, t) for gate in found[0] for t in range(TIME)}
    for (gate, t), row in table.iterrows():
        values = found[t][gate]
        low, high = {"hidden": (1e-300, 1e300), "candidate": (-0.9, 0.9)}.get(gate, (0.1, 0.9))
        assert row["mean"] == pytest.approx(float(values.detach().mean()), rel=1e-12)
        assert row["low"] == pytest.approx(float((values.detach() < low).double().mean()), abs=1e-12)
        assert row["high"] == pytest.approx(float((values.detach() > high).double().mean()), abs=1e-12)


def test_blocks():
    torch.manual_seed(0)
    cell = PeepholeLSTM()
    rows = hold(cell, NAMED["peephole LSTM"][1]).frame("weights").set_index("gate")
    for gate, block in zip("ifgo", cell.u.detach().chunk(4), strict=True):
        assert rows.loc[gate, "spectral_norm"] == pytest.approx(float(torch.linalg.matrix_norm(block, 2)), rel=1e-9)
        radius = float(torch.linalg.eigvals(block).abs().max())
        assert rows.loc[gate, "spectral_radius"] == pytest.approx(radius, rel=1e-9)


def test_further_arguments():
    """The liquid cell's elapsed time, a number for each sequence."""
    torch.manual_seed(0)
    hold(Liquid(), CellSpec(), more=[data(BATCH, 1, seed=t).abs() for t in range(TIME)])


class Widening(Own):
    """A state that gets wider with every step."""

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        wider = nn.functional.pad(torch.tanh(state @ self.u[: state.shape[1], : state.shape[1]].T), (0, 1), value=0.5)
        return wider + (x @ self.w[: wider.shape[1]].T) / 2

    def initial(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1, dtype=torch.float64)


def test_transitions_that_are_not_square():
    torch.manual_seed(0)
    hold(Widening(hidden=8), CellSpec())


def test_states_of_more_dimensions():
    """A state [B, channels, places], as of a convolutional cell."""

    class Convolution(Own):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv1d(2, 2, 3, padding=1, dtype=torch.float64)

        def initial(self, batch: int) -> Tensor:
            return torch.zeros(batch, 2, INPUT, dtype=torch.float64)

        def step(self, x: Tensor, state: Tensor) -> Tensor:
            return torch.tanh(self.mix(state) * 1.5 + x.unsqueeze(1))

        def read(self, state: Tensor) -> Tensor:
            return state.flatten(1)

    torch.manual_seed(0)
    hold(Convolution(), CellSpec())


def test_wide_states_rest_on_probes_with_their_error():
    torch.manual_seed(0)
    cell = NAMED["GRU, reset before"][0](hidden=80)
    with gradscope.attach(cell, every=1, quantities="full", strict=True, cells=[type(cell)]) as scope:
        run_loop(cell, "last")[0].backward()
    found = truth(cell, "last")
    rows = scope.run.frame("timesteps").set_index(["quantity", "t"])
    for quantity in ("jacobian", "jacobian_h", "gain"):
        for t in range(TIME - (quantity == "gain")):
            row, exact = rows.loc[quantity, t], sum(one.measure(t)[quantity] for one in found) / BATCH
            assert 0 < row["se"] < 0.5 * exact
            assert abs(row["mean"] - exact) < 5 * row["se"], (quantity, t, row["mean"], exact)
    for t in range(TIME):
        exact = sum(one.measure(t)["jacobian_max"] for one in found) / BATCH
        assert rows.loc["jacobian_max", t]["mean"] == pytest.approx(exact, rel=1e-2)
    reach = scope.run.frame("reach")["mean"].tolist()
    assert reach == pytest.approx([sum(one.reach[k] for one in found) / BATCH for k in range(TIME)], rel=1e-9)


def test_wide_diagonals_are_exact():
    torch.manual_seed(0)
    hold(LRU(hidden=70), NAMED["LRU"][1])
    hold(MinGRU(hidden=70), NAMED["minGRU"][1])


class Layer(nn.Module):
    """Somebody's whole layer, with a loop of its own over a cell."""

    def __init__(self, cell: Own) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state, seen = self.cell.initial(x.shape[1]), []
        for row in x:
            state = self.cell.advance(row, state)
            seen.append(self.cell.read(state))
        return torch.stack(seen)


@pytest.mark.parametrize("name", NAMED)
def test_known_by_their_signature_in_a_layer_of_its_own_loop(name):
    """Without a word in `cells=`: all ten have the signature."""
    torch.manual_seed(0)
    layer = Layer(NAMED[name][0]())
    with gradscope.attach(layer, every=1, quantities="full", strict=True) as scope:
        seen = layer(data(TIME, BATCH, INPUT))
        sum(losses([o[b] for o in seen], "all", b) for b in range(BATCH)).backward()
    assert scope.run.frame("notes").empty
    assert_agrees(scope.run, truth(layer.cell, "all"), "cell")


class KeptTwice(Own):
    """Keeps its parameters in a dictionary of its own as well, and uses these (as `ncps` does)."""

    def __init__(self) -> None:
        super().__init__()
        self.own = {"w": self.w, "u": self.u}

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(x @ self.own["w"].T + state @ self.own["u"].T)


def test_parameters_that_are_kept_in_a_second_place():
    """They are stepped before the analysis: it has to go by what they were when the cell was called."""
    torch.manual_seed(0)
    cell = KeptTwice()
    expected, optimizer = truth(cell, "all"), torch.optim.SGD(cell.parameters(), 0.5)
    with gradscope.attach(cell, every=1, quantities="full", strict=True, cells=[KeptTwice]) as scope:
        run_loop(cell, "all")[0].backward()
        optimizer.step()
    assert scope.run.frame("notes").empty
    assert_agrees(scope.run, expected)


class Gated(Own):
    """A gate comes back beside the state that was made with it."""

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        return self(x, state)[0]

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        gate = torch.sigmoid(x @ self.w.T + state @ self.u.T)
        return gate * state + (1 - gate) * torch.tanh(self.b), {"gate": gate}

    def advance(self, x: Tensor, state: Tensor, *more: Any) -> Tensor:
        return self(x, state)[0]


def test_gates_that_come_back_are_no_way_out():
    torch.manual_seed(0)
    hold(Gated(), None)


def test_a_method_that_the_loop_in_forward_calls():
    """Whole layers: what `forward` is given and gives, and its gradients, are the same bit by bit."""
    torch.manual_seed(0)
    x, x_s = data(TIME, BATCH, INPUT), data(BATCH, INPUT, seed=1)
    layer, bare = StepOfEntityAware(), EntityAware()
    bare.load_state_dict(layer.state_dict())
    with gradscope.attach(layer, every=1, strict=True, cells={StepOfEntityAware: CellSpec(method="one")}) as scope:
        seen = layer(x, x_s)
        seen.square().sum().backward()
    bare(x, x_s).square().sum().backward()
    assert torch.equal(seen, bare(x, x_s))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(layer.parameters(), bare.parameters(), strict=True))
    assert scope.run.frame("notes").empty and scope.run.frame("layers")["timesteps"].tolist() == [TIME]
    assert scope.run.frame("layers")["residual"].max() < 1e-12


def test_a_method_and_the_positions_of_the_same_module():
    torch.manual_seed(0)
    layer = StepMethod()
    cells = {StepMethod: CellSpec(method="_step")}
    with gradscope.attach(layer, every=1, quantities="full", strict=True, cells=cells, positions={"": 0}) as scope:
        seen = layer(data(TIME, BATCH, INPUT))
        sum(losses([o[b] for o in seen], "all", b) for b in range(BATCH)).backward()
    assert scope.run.frame("notes").empty
    layers = scope.run.frame("layers").sort_values("direction")
    assert layers["timesteps"].tolist() == [TIME, TIME], layers
    assert layers["residual"].max() < 1e-12
