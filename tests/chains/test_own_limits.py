"""Cells of one's own that cannot be treated, or are none."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import forks
import pytest
import torch
from cases import uneven
from chains.forms import Decaying, EntityAware, Graph, InADict, OneStep, OtherNames, StateFirst, StepMethod, TurnedRound
from chains.hold import data
from chains.named import HIDDEN, INPUT, MinGRU, PeepholeLSTM
from chains.own_loops import BATCH, TIME, run_loop
from torch import Tensor, nn

import gradscope
from gradscope import CellSpec


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
    Normed: "differ from autograd's",
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
        assert [r for r in reasons if "cannot differentiate the cell twice" not in r] == [] and len(reasons) == lost
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
            optimizer.zero_grad()
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
        (
            [Stateless],
            "Stateless.forward takes x; a cell takes its state as well.*If Stateless.forward loops",
        ),
        ({MinGRU: CellSpec(state="hx")}, "MinGRU.forward has no argument 'hx'; it has x, state.*state=\"state\""),
        ({MinGRU: CellSpec(state=("state", "c"))}, "MinGRU.forward has no argument 'c'"),
        ({MinGRU: CellSpec(method="one")}, "MinGRU has no method 'one'. Its signature suggests cells={MinGRU: "),
        ([PeepholeLSTM], "no module of the class PeepholeLSTM"),
        ({MinGRU: "state"}, "MinGRU needs a gradscope.CellSpec; got str"),
        ([torch.tanh], "is not a class of modules"),
    ],
)
def test_refused_at_attach(cells, message):
    with pytest.raises(gradscope.GradscopeError, match=message):
        gradscope.attach(nn.ModuleList([MinGRU(), Stateless()]), cells=cells)


def typed(message: str, *kinds: type[nn.Module]) -> dict[type[nn.Module], CellSpec]:
    """What a message has its reader pass as `cells=`."""
    line = re.search(r"cells=(\{.+?\)\})", message)
    assert line, message
    return eval(line[1], {"gradscope": gradscope, **{kind.__name__: kind for kind in kinds}})


@pytest.mark.parametrize("kind", [Decaying, Graph, OneStep, StateFirst, StepMethod, TurnedRound])
def test_what_is_not_recognised_says_what_to_type(kind):
    """The line works as it stands."""
    torch.manual_seed(0)
    cell = kind()
    with pytest.raises(gradscope.GradscopeError) as refused:
        gradscope.attach(cell)
    with gradscope.attach(cell, every=1, strict=True, cells=typed(str(refused.value), kind)) as scope:
        run_loop(cell, "all")[0].backward()
    assert scope.run.frame("notes").empty, scope.run.frame("notes")["reason"].tolist()
    assert scope.run.frame("layers")["timesteps"].tolist() == [TIME]
    assert scope.run.frame("layers")["residual"].max() < 1e-12


def test_a_loop_in_forward_says_what_to_edit():
    with pytest.raises(gradscope.GradscopeError, match="make the body of the loop a method of EntityAware") as refused:
        gradscope.attach(nn.Sequential(EntityAware()))
    assert typed(str(refused.value), EntityAware) == {EntityAware: CellSpec(method="step")}


def test_a_state_that_is_taken_for_an_argument_says_what_to_type():
    """What comes back from one call at the next is the surest sign."""
    torch.manual_seed(0)
    cell = OtherNames()
    with gradscope.attach(cell, every=1, cells=[OtherNames]) as scope:
        run_loop(cell, "all")[0].backward()
    reasons = scope.run.frame("notes")["reason"].tolist()
    assert len(reasons) == 1 and "comes back as its argument 'fast'" in reasons[0], reasons
    cell.zero_grad()
    with gradscope.attach(cell, every=1, strict=True, cells=typed(reasons[0], OtherNames)) as scope:
        run_loop(cell, "all")[0].backward()
    assert scope.run.frame("notes").empty and scope.run.frame("layers")["residual"].max() < 1e-12


@pytest.mark.parametrize("result", ["h_n", ("h_n", "c"), ("h_n", 7), 0])
def test_a_result_that_is_not_there_is_said(result):
    cell = InADict()
    optimizer = torch.optim.SGD(cell.parameters(), 0.1)
    with gradscope.attach(cell, every=1, strict=True, cells={InADict: CellSpec(result=result)}) as scope:
        run_loop(cell, "all")[0].backward()
        optimizer.step()
    assert "a call of InADict was not recorded" in scope.run.frame("notes")["reason"].iloc[0]


SCRIPTED = """
import sys, torch, gradscope
from torch import Tensor

class Cell(torch.jit.ScriptModule):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.eye(3))

    @torch.jit.script_method
    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(x + state @ self.w)

cell, state = Cell(), torch.zeros(2, 3)
with gradscope.attach(cell, every=1) as scope:
    for _ in range(4):
        state = cell(torch.ones(2, 3), state)
    state.sum().backward()
print(scope.run.frame("layers")["timesteps"].tolist(), len(scope.run.frame("notes")))
"""


@pytest.mark.parametrize("jit", ["0", "1"])
def test_script_methods_are_seen_where_torch_runs_them_as_python(jit, tmp_path):
    """As torch is loaded it reads the variable; TorchScript reads the source of the class."""
    path = tmp_path / "train.py"
    path.write_text(SCRIPTED)
    if jit == "0":
        done = subprocess.run(
            [sys.executable, path], capture_output=True, text=True, env={**os.environ, "PYTORCH_JIT": jit}
        )
        assert done.stdout == "[4] 0\n", done.stderr
    else:
        err = forks.code(f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')", tmp_path).err
        assert "Cell is compiled by TorchScript" in err and "Set PYTORCH_JIT=0" in err, err


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
    assert len(reasons) == 1 and "the spec's transition is not the cell's" in reasons[0], reasons
    assert scope.run.frame("reach")["mean"].isna().all()
