"""What a person sees of scopes, findings and filters at a prompt and in a notebook."""

from __future__ import annotations

import pickle
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradscope
from gradscope.observe.quantities import CORE, FULL, TABLES
from gradscope.record.schema import CLOSED
from gradscope.types import Remedy


class Net(nn.Module):
    """Several layers."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.rnns = nn.ModuleList([nn.GRU(3, 3) for _ in range(layers)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for rnn in self.rnns:
            x = rnn(x)[0]
        return x


def train(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 2, 3)).square().mean().backward()
        optimizer.step()


def test_a_scope(tmp_path: Path) -> None:
    model = Net()
    scope = gradscope.attach(model, tmp_path / "exp", every=2)
    since = datetime.now().strftime("%Y-%m-%d")
    assert repr(scope).startswith(f"<Scope of Net (rnns.0: GRU, rnns.1: GRU), open, since {since} ")
    assert repr(scope).endswith(f": 0 of 0 steps recorded in {tmp_path / 'exp'}>")
    train(model, 5)
    assert f": 3 of 5 steps recorded in {tmp_path / 'exp'}>" in repr(scope)
    scope.pause()
    assert "), paused, since" in repr(scope)
    run = scope.close()
    assert "), closed, since" in repr(scope) and "3 of 5 steps" in repr(scope)
    assert len(run.frame("steps")) == 5 and "<table>" in run._repr_html_()
    assert len(scope.close().frame("steps")) == 5
    del model
    assert "Scope of Net" in repr(scope)


def test_a_scope_of_many_layers_in_memory() -> None:
    model = Net(6)
    with gradscope.attach(model, every=1, first_step=7) as scope:
        train(model, 1)
        assert "rnns.2: GRU, and 3 more), open" in repr(scope)
        assert repr(scope).endswith("1 of 1 step from step 7 recorded in memory>")


def test_a_scope_of_a_layer_itself() -> None:
    model = nn.LSTM(3, 4)
    with gradscope.attach(model) as scope:
        assert repr(scope).startswith("<Scope of LSTM (LSTM), open")


FINDING = gradscope.Finding(
    "vanishing_gradient",
    "warning",
    gradscope.LayerKey("rnn", 0, "forward", 0),
    "model.rnn: the gradient vanishes within 14 of 39 steps",
    "A long text with <b>markup</b> & more of it. " * 6,
    {"steps": 3},
    (Remedy("start from orthogonal recurrent weights", "a = 1\nb = 2"), Remedy("clip", "clip()")),
)


def test_a_finding_prints_as_a_person_reads_it() -> None:
    lines = str(FINDING).splitlines()
    assert lines[0] == "warning: vanishing_gradient: model.rnn: the gradient vanishes within 14 of 39 steps"
    assert all(line.startswith("  ") and len(line) <= 98 for line in lines[1:])
    assert lines[-5:] == [
        "  1. start from orthogonal recurrent weights",
        "       a = 1",
        "       b = 2",
        "  2. clip",
        "       clip()",
    ]
    assert repr([FINDING]) == f"[<Finding {lines[0]}>]"
    assert pickle.loads(pickle.dumps(FINDING)) == FINDING


def test_a_finding_is_a_card_in_a_notebook() -> None:
    pytest.importorskip("jinja2")
    card = FINDING._repr_html_()
    assert "warning · vanishing_gradient" in card and "rnn, layer 0" in card
    assert "&lt;b&gt;markup&lt;/b&gt; &amp; more" in card and "<b>markup" not in card
    assert "<code>a = 1\nb = 2</code>" in card


@pytest.mark.parametrize(
    ("table", "filters", "said"),
    [
        ("timesteps", {"quantity": "grad"}, "'quantity' of 'timesteps' has no value 'grad'; did you mean 'grad_h'?"),
        ("timesteps", {"quantity": ["grad_h", "jacobain"]}, "no value 'jacobain'; did you mean 'jacobian'?"),
        ("layers", {"direction": "backward"}, "no value 'backward'; it has forward, reverse$|mean 'forward'"),
        ("clips", {"kind": "norms"}, "no value 'norms'; did you mean 'norm'?"),
    ],
)
def test_a_filter_that_no_row_can_meet(tmp_path: Path, table: str, filters: Any, said: str) -> None:
    model = Net()
    with gradscope.attach(model, tmp_path, every=1) as scope:
        train(model, 1)
    for run in (scope.run, gradscope.load(tmp_path)):
        with pytest.raises(gradscope.GradscopeError, match=said):
            run.frame(table, **filters)
        assert run.frame("timesteps", quantity="gain").empty  # there is such a quantity: it was not asked for
        assert run.frame("notes", direction="").empty


def test_the_closed_set_of_quantities_is_what_attach_takes() -> None:
    assert set(CLOSED["quantity"]) == {*CORE, *FULL} - TABLES - {"lyapunov"}


@pytest.mark.parametrize("in_folder", [True, False])
def test_a_run_says_what_its_optimizers_were_made_with(tmp_path: Path, in_folder: bool) -> None:
    """Once for each that steps what is observed, also where a schedule has the first begin at 0."""
    model, other = nn.GRU(2, 3), nn.Linear(2, 3)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01), torch.optim.SGD(other.parameters(), lr=1.0)]
    warm = torch.optim.lr_scheduler.LinearLR(optimizers[0], 0.001, total_iters=4)
    with gradscope.attach(model, logdir=tmp_path / "run" if in_folder else None) as scope:
        for _ in range(3):
            (model(torch.ones(4, 1, 2))[0].sum() + other(torch.ones(1, 2)).sum()).backward()
            for optimizer in optimizers:
                optimizer.step()
            warm.step()
        live = scope.run.meta["optimizers"]
    (told,) = gradscope.load(tmp_path / "run").meta["optimizers"] if in_folder else live
    assert (told["class"], told["lr"], told["weight_decay"], list(told["betas"])) == ("AdamW", 0.01, 0.01, [0.9, 0.999])
    assert "params" not in told and len(live) == 1
    if in_folder:
        assert gradscope.load(tmp_path / "run").meta["sessions"][-1]["optimizers"] == [told]
