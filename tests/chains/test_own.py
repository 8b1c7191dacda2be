"""Cells of one's own, named in `cells=`: ten of them against autograd, and what cannot be treated."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import uneven
from chains.hold import data
from chains.named import HIDDEN, INPUT, LRU, NAMED, SRU, CoupledLSTM, IndRNN, Liquid, MinGRU, Own, PeepholeLSTM
from chains.own_truth import assert_agrees, follow
from torch import Tensor, nn

import gradscope
from gradscope import CellSpec

TIME, BATCH = 6, 3


def new_state(cell: Own, result: Any) -> Any:
    return result[1] if isinstance(cell, (SRU, CoupledLSTM)) else result


def losses(outputs: list[Tensor], loss: str, row: int) -> Tensor:
    """Row by row, so that a sequence alone has the loss that it had in the batch."""
    picked = {"last": outputs[-1:], "all": outputs, "some": outputs[1::2]}[loss]
    return torch.stack([uneven(o, seed=7 * row + t) for t, o in enumerate(picked)]).sum()


def run_loop(cell: Own, loss: str, more: list[Any] | None = None, batch: int = BATCH) -> tuple[Tensor, list[Any]]:
    x, state, seen = data(TIME, batch, INPUT), cell.initial(batch), []
    for t in range(TIME):
        result = cell(x[t], state, *([] if more is None else [more[t]]))
        state = new_state(cell, result)
        seen.append(cell.read(state))
    return sum(losses([o[b] for o in seen], loss, b) for b in range(batch)), seen


def truth(cell: Own, loss: str, more: list[Any] | None = None, batch: int = BATCH) -> list[Any]:
    x, twin = data(TIME, batch, INPUT), copy.deepcopy(cell)

    def of(b: int) -> Any:
        rest = [] if more is None else [[m[b : b + 1] for m in more]]
        return follow(twin, x[:, b : b + 1], lambda o: losses([y[0] for y in o], loss, b), rest)

    return [of(b) for b in range(batch)]


def hold(cell: Own, spec: CellSpec, loss: str = "all", more: list[Any] | None = None, rtol: float = 1e-9) -> Any:
    bare = copy.deepcopy(cell)
    run_loop(bare, loss, more)[0].backward()
    with gradscope.attach(cell, every=1, quantities="full", strict=True, cells={type(cell): spec}) as scope:
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
            result = self.cell(row, state)
            state = new_state(self.cell, result)
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


# What cannot be treated


class Normed(nn.Module):
    """The sequences of a batch see each other."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(INPUT + hidden, hidden).double(), nn.BatchNorm1d(hidden).double()

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.mix(torch.cat([x, state], 1))))


class Random(Normed):
    """Noise in the new state."""

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        new = torch.tanh(self.mix(torch.cat([x, state], 1)))
        return new + torch.randn_like(new) / 4


class NoDerivative(Normed):
    """Its derivative was written by hand, for one time only."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square() / 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return ctx.saved_tensors[0] * gradient

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return self.Square.apply(torch.tanh(self.mix(torch.cat([x, state], 1))))


class Hides(Normed):
    """Gives back what has not the form of the state."""

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(self.mix(torch.cat([x, state], 1))).sum()


UNTREATABLE = {
    Normed: "differ from those of autograd",
    Random: "it draws random numbers",
    Hides: "a call of Hides was not recorded: its state has to be a tensor",
}


@pytest.mark.parametrize("kind", UNTREATABLE)
def test_what_cannot_be_treated_says_what_is_missing(kind):
    """The Jacobians are not given, nor what follows from them; what autograd itself has given is."""
    torch.manual_seed(0)
    cell = kind(HIDDEN)
    optimizer = torch.optim.SGD(cell.parameters(), 0.1)
    states = [torch.zeros(BATCH, HIDDEN, dtype=torch.float64)]
    with gradscope.attach(cell, every=1, quantities="full", cells=[kind]) as scope:
        for x in data(1 if kind is Hides else TIME, BATCH, INPUT):
            states.append(cell(x, states[-1]))
            states[-1].retain_grad()
        uneven(states[-1]).backward()
        optimizer.step()
    reasons = scope.run.frame("notes")["reason"].tolist()
    assert len(reasons) == 1 and UNTREATABLE[kind] in reasons[0], reasons
    values = scope.run.frame("timesteps").set_index("quantity")["mean"]
    if kind is not Hides:
        assert values[values.index.str.startswith(("jacobian", "gain"))].isna().all()
        assert scope.run.frame("reach")["mean"].isna().all()
        expected = [float(s.grad.norm(dim=1).mean()) for s in states[1:]]
        assert values["grad_h"].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("hidden", [HIDDEN, 80])
def test_a_second_derivative_is_needed_for_the_full_set_of_wide_states_alone(hidden):
    torch.manual_seed(0)
    cell = NoDerivative(hidden)
    for quantities in ("core", "full"):
        with gradscope.attach(cell, every=1, quantities=quantities, cells=[NoDerivative]) as scope:
            state = torch.zeros(BATCH, hidden, dtype=torch.float64)
            for x in data(TIME, BATCH, INPUT):
                state = cell(x, state)
            uneven(state).backward()
        cell.zero_grad()
        reasons = scope.run.frame("notes")["reason"].tolist()
        lost = quantities == "full" and hidden > 64
        assert [r for r in reasons if "derivative cannot be taken again" not in r] == [] and len(reasons) == lost
        values = scope.run.frame("timesteps", quantity="jacobian")["mean"]
        assert len(values) == TIME and values.isna().all() == lost and values.isna().any() == lost


class Whole(nn.Module):
    """Takes a state, and all steps at once: no cell, though it looks like one (as the sLSTM of `xlstm` does)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(INPUT, HIDDEN, dtype=torch.float64))

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        return (x @ self.w).cumsum(0).flatten()


def test_what_looks_like_a_cell_and_is_none_is_said_once():
    model = Whole()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.attach(model, every=1) as scope:
        for _ in range(3):
            uneven(model(data(TIME, BATCH, INPUT))).backward()
            optimizer.step()
    notes = scope.run.frame("notes")
    assert notes["step"].tolist() == [0]
    assert notes["reason"].str.startswith("Whole.forward takes a state, but it was not recorded as a cell").all()


class Stateless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([Stateless], "Stateless.forward takes x; a cell takes its state as well"),
        ({MinGRU: CellSpec(state="hx")}, "MinGRU.forward has no argument 'hx'; it has x, state"),
        ([PeepholeLSTM], "no module of the class PeepholeLSTM"),
        ({MinGRU: "state"}, "MinGRU needs a gradscope.CellSpec; got str"),
        ([torch.tanh], "is no class of modules"),
    ],
)
def test_refused_at_attach(cells, message):
    with pytest.raises(gradscope.GradscopeError, match=message):
        gradscope.attach(nn.ModuleList([MinGRU(), Stateless()]), cells=cells)


WRONG = {
    "gates": (
        CellSpec(gates=lambda cell, x, state: {"update": x.sum()}),
        "CellSpec.gates: ValueError: 'update' has to",
    ),
    "blocks": (CellSpec(blocks={"v": ("z", "n")}), "CellSpec.blocks: KeyError: 'v'"),
    "transition": (CellSpec(transition=lambda cell, x, state: x), "CellSpec.transition: RuntimeError"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_spec_is_named(name):
    spec, message = WRONG[name]
    cell = MinGRU()
    with gradscope.attach(cell, every=1, cells={MinGRU: spec}) as scope:
        run_loop(cell, "last")[0].backward()
    reasons = scope.run.frame("notes")["reason"].tolist()
    assert len(reasons) == 1 and message in reasons[0], reasons


def test_a_transition_that_is_not_the_cells():
    """The total gradients would not be autograd's: what depends on them is not given."""
    torch.manual_seed(0)
    cell = MinGRU()
    wrong = CellSpec(transition=lambda cell, x, state: 1.1 * cell.kept(x, state))
    with gradscope.attach(cell, every=1, cells={MinGRU: wrong}) as scope:
        run_loop(cell, "last")[0].backward()
    reasons = scope.run.frame("notes")["reason"].tolist()
    assert len(reasons) == 1 and "the transition given is not that of the cell" in reasons[0], reasons
    assert scope.run.frame("reach")["mean"].isna().all()
