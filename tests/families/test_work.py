"""What is not asked for is not computed, and what is asked for does not depend on what else is."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradscope
from gradscope.families import blocks, generic, measure, stack
from gradscope.families.lstm import LSTM
from gradscope.families.work import CORE, ECONOMY, FULL, NEEDS
from gradscope.observe.quantities import TABLES

T, B = 7, 5


class OwnCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(4, 6), nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(self.w(x) + self.u(state))


class Loop(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        state, found = x.new_zeros(B, 6), []
        for each in x:
            state = self.cell(each, state)
            found.append(state)
        return torch.stack(found), None


SPEC = gradscope.CellSpec(gates=lambda cell, x, state: {"hidden": cell(x, state)}, blocks={"u.weight": ("hidden",)})
MODELS = {
    "lstm": lambda: nn.LSTM(4, 6, 2, bidirectional=True, proj_size=2, dtype=torch.float64),
    "gru": lambda: nn.GRU(4, 6, dtype=torch.float64),
    "rnn": lambda: nn.RNN(4, 6, 2, dtype=torch.float64),
    "own cell": lambda: Loop(OwnCell()).double(),
}


def run_of(kind: str, quantities: Any, loss: str = "every", sequences: int | None = 16) -> gradscope.Run:
    torch.manual_seed(0)
    model = MODELS[kind]()
    cells = {OwnCell: SPEC} if kind == "own cell" else None
    with gradscope.attach(
        model, every=1, quantities=quantities, max_sequences=sequences, strict=True, cells=cells
    ) as scope:
        out = model(torch.randn(T, B, 4, dtype=torch.float64))[0]
        (out if loss == "every" else out[-1]).square().sum().backward()
    return scope.run


@pytest.mark.parametrize("kind", MODELS)
def test_each_quantity_alone_is_what_it_is_among_all(kind: str) -> None:
    whole = run_of(kind, "full")
    for name in NEEDS:
        alone = run_of(kind, [name])
        for table in ("timesteps", *sorted(TABLES)):
            expected = whole.frame(table)
            if table == "timesteps":
                expected = expected[expected["quantity"] == name].reset_index(drop=True)
            elif table != name:
                expected = expected.iloc[:0]
            assert_frame_equal(alone.frame(table), expected, rtol=1e-9, atol=1e-12)
        assert (alone.frame("layers")["residual"] < 1e-10).all() and alone.frame("notes").empty


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("loss", ["every", "last"])
def test_economy_is_a_part_of_core(kind: str, loss: str) -> None:
    core, economy = run_of(kind, "core", loss, 4), run_of(kind, "economy", loss)
    for table in ("reach", "gates", "layers"):
        assert_frame_equal(economy.frame(table), core.frame(table), rtol=1e-9, atol=1e-12)
    wanted = pd.concat([core.frame("timesteps", quantity=name) for name in ECONOMY[:2]])
    assert len(economy.frame("timesteps")) == len(wanted) and economy.frame("weights").empty


@pytest.mark.parametrize(
    ("quantities", "limit", "analysed"),
    [("economy", 16, 4), ("economy", None, 4), ("economy", 3, 3), (ECONOMY, 16, B), ("core", 16, B)],
)
def test_economy_analyses_four_sequences(quantities: Any, limit: int | None, analysed: int) -> None:
    run = run_of("gru", quantities, sequences=limit)
    assert set(run.frame("timesteps")["sequences"]) == {analysed}
    assert run.meta["arguments"]["max_sequences"] == (min(limit or 4, 4) if quantities == "economy" else limit)


@pytest.mark.parametrize("name", NEEDS)
def test_nothing_else_is_computed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    done: set[str] = set()

    def seen(part: str, place: Any, function: str) -> None:
        original = getattr(place, function)

        def called(*given: Any, **named: Any) -> Any:
            done.add(part)
            return original(*given, **named)

        monkeypatch.setattr(place, function, called)

    seen("scan", LSTM, "scan")
    seen("anchors", measure, "pick_anchors")
    seen("sizes", LSTM, "sizes")
    seen("saturation", LSTM, "activations")
    seen("blocks", blocks, "singular_values")
    seen("products", stack, "measure_products")
    run_of("lstm", [name])
    parts = {*NEEDS[name].split()} - {"eigenvalues"}
    assert done - ({"scan"} if "products" in parts else set()) == parts  # products are carried back by the same scan


def test_an_own_cell_is_asked_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in ("Saturation", "measure_square_blocks"):
        monkeypatch.setattr(generic, function, None)
    monkeypatch.setattr(generic._Measuring, "_sizes", None)
    assert len(run_of("own cell", ["grad_h"]).frame("timesteps")) == T


@pytest.mark.parametrize("kind", MODELS)
def test_findings_are_silent_without_what_they_need(kind: str) -> None:
    known = {f.code for f in run_of(kind, "full").findings()} | {"healthy", "too_few_records"}
    for quantities in ("economy", *([name] for name in CORE + FULL)):
        assert {f.code for f in run_of(kind, quantities).findings()} <= known


class Operations(TorchDispatchMode):
    """Counts what torch dispatches, views too."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(kind: str, timesteps: int, quantities: str | None) -> int:
    """Of a step, and of bringing its rows to the host."""
    model = getattr(nn, kind)(8, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(timesteps, 8, 8)

    def step() -> None:
        optimizer.zero_grad()
        model(x)[0][-1].square().sum().backward()
        optimizer.step()

    if quantities is None:
        step()
        with Operations() as bare:
            step()
        return bare.count
    with gradscope.attach(model, every=1, quantities=quantities, strict=True) as scope:
        step()
        scope.run.frame("steps")
        with Operations() as recorded:
            step()
            scope.run.frame("steps")
    return recorded.count


OPERATIONS = {"LSTM": (6, 400), "GRU": (3, 440), "RNN": (2, 370)}
"""For each timestep, and for each record besides; a GPU is bound by them."""


@pytest.mark.parametrize("timesteps", [32, 65, 128, 256])
@pytest.mark.parametrize("kind", OPERATIONS)
def test_operations_of_a_record(kind: str, timesteps: int) -> None:
    each, once = OPERATIONS[kind]
    for quantities, share in {"core": 1.0, "economy": 0.85}.items():
        extra = operations(kind, timesteps, quantities) - operations(kind, timesteps, None)
        assert extra <= each * timesteps + share * once, quantities
