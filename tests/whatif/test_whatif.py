"""What-if against remedies that are typed in by hand, and a training that does not notice."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.whatif import UNCHANGED, WhatIf

KEY = ["module", "layer", "direction", "chain"]
REACH = [*KEY, "lag", "p10", "p50", "p90", "mean", "sequences", "nonfinite"]
MEASURED = [*KEY, "timesteps", "horizon", "horizon_censored", "decay"]


class Net(nn.Module):
    """Something on both sides of the recurrence, with buffers and dropout that draw and change in every call."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.norm, self.encoder, self.head = nn.BatchNorm1d(3), encoder, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        scaled = self.norm(x.transpose(1, 2)).transpose(1, 2)
        output = self.encoder(nn.functional.dropout(scaled, 0.2, self.training))[0]
        return self.head(output[-1])


class Looped(nn.Module):
    """A cell in a loop that carries its state from batch to batch."""

    def __init__(self, cell: nn.RNNCell) -> None:
        super().__init__()
        self.cell, self.state = cell, None

    def forward(self, x: Tensor) -> Tensor:
        state: Tensor | None = self.state
        for step in x:
            state = self.cell(step, state)
        self.state = state  # type: ignore[assignment]
        return state  # type: ignore[return-value]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def batch(T: int = 18) -> tuple[Tensor, Tensor]:
    return torch.randn(T, 5, 3), torch.tensor([0, 1, 1, 0, 1])


def tried(model: nn.Module, given: Any = None, measure: Any = loss) -> WhatIf:
    with gradscope.attach(model) as scope:
        return scope.whatif(batch() if given is None else given, measure)


# --- the oracle: the code of a remedy, typed


def typed(model: nn.Module, code: str, given: Any) -> gradscope.Run:
    """What a run records that begins, from where the random stream stands, with a line of code on a copy."""
    names: dict[str, Any] = {"torch": torch, "gradscope": gradscope, "model": copy.deepcopy(model)}
    stream = torch.get_rng_state()
    exec(code, names)
    torch.set_rng_state(stream)
    with gradscope.attach(names["model"], every=1) as scope:
        loss(names["model"], given).backward()
    torch.set_rng_state(stream)
    return scope.run


ENCODERS = {
    "tanh": lambda: nn.RNN(3, 6),
    "relu": lambda: nn.RNN(3, 6, nonlinearity="relu"),
    "lstm": lambda: nn.LSTM(3, 6, num_layers=2, dropout=0.1),
    "gru": lambda: nn.GRU(3, 6, bias=True),
    "both ways": lambda: nn.RNN(3, 3, bidirectional=True),
    "no bias": lambda: nn.RNN(3, 6, bias=False),
    "deep": lambda: nn.GRU(3, 6, num_layers=3),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_prediction_is_what_the_typed_remedy_gives(name: str) -> None:
    model, given = Net(ENCODERS[name]()), batch()
    found = tried(model, given)
    assert found.layers["note"].eq("").all()
    codes = found.layers["code"].unique()
    assert len(codes) >= 4
    for code in codes:
        run = typed(model, code, given)
        for table, columns, predicted in (("reach", REACH, found.reach), ("layers", MEASURED, found.layers)):
            mine = predicted.loc[predicted["code"] == code, columns].reset_index(drop=True)
            expected = run.frame(table)[columns].reset_index(drop=True)
            pd.testing.assert_frame_equal(mine, expected, check_dtype=False, rtol=0, atol=0)
        above = run.frame("timesteps", quantity="grad_h_direct").groupby(KEY)["mean"].sum()
        enters = found.layers[found.layers["code"] == code].set_index(KEY)["enters"]
        np.testing.assert_allclose(enters.sort_index(), above.sort_index(), rtol=1e-12)


def test_connections_around_the_layers_bring_the_gradient_down_a_stack() -> None:
    found = tried(Net(nn.LSTM(3, 6, num_layers=6)))
    lowest = found.layers.groupby("code", sort=False).first()["enters"]
    (bridged,) = [code for code in lowest.index if "residual" in code]
    assert lowest[bridged] > 100 * lowest[""]


class Last(nn.Module):
    """Whether the last step but one was above zero, from the end of a deep stack."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.LSTM(2, 12, num_layers=8), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[0][-1])[:, 0]


def learnt(model: nn.Module, steps: int = 100) -> float:
    """Share of right answers over the last of some steps."""
    optimizer, right = torch.optim.Adam(model.parameters(), 5e-3), list[float]()
    for _ in range(steps):
        x = torch.randn(12, 32, 2)
        y, answer = (x[-2, :, 0] > 0).float(), model(x)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(answer, y).backward()
        optimizer.step()
        right.append(((answer > 0) == (y > 0)).float().mean().item())
    return sum(right[-20:]) / 20


@pytest.mark.parametrize("seed", [0, 1])
def test_what_brings_the_gradient_down_a_stack_lets_it_learn(seed: int) -> None:
    torch.manual_seed(seed)
    stuck, mended = Last(), Last()
    found = tried(mended, torch.randn(12, 32, 2), lambda model, x: model(x).square().mean())
    (code,) = {code for code in found.layers["code"] if "residual" in code}
    exec(code, {"torch": torch, "gradscope": gradscope, "model": mended})
    assert learnt(stuck) < 0.65 and learnt(mended) > 0.8


def test_a_cell_in_a_loop_and_a_model_that_is_the_layer_itself() -> None:
    cell, layer = Looped(nn.RNNCell(3, 6)), nn.GRU(3, 6)
    x = torch.randn(12, 4, 3)
    looped = tried(cell, x, lambda model, x: model(x).sum())
    itself = tried(layer, x, lambda model, x: model(x)[0][-1].sum())
    orthogonal = looped.layers.set_index("code").loc["torch.nn.init.orthogonal_(model.cell.weight_hh)"]
    unchanged = looped.layers.set_index("remedy").loc[UNCHANGED]
    assert orthogonal["left"] > 100 * unchanged["left"]
    assert "model = gradscope.cells.Recurrent(gradscope.cells.LayerNormGRUCell, 3, 6)" in set(itself.layers["code"])
    assert itself.layers["note"].eq("").all()


def test_what_the_frames_say_of_reach() -> None:
    found = tried(Net(nn.RNN(3, 6)))
    for row in found.layers.to_dict("records"):
        lags = found.reach[(found.reach["code"] == row["code"]) & (found.reach["module"] == row["module"])]
        assert row["left"] == lags.loc[lags["lag"].idxmax(), "p50"]
        assert row["peak"] == lags["p50"].max()
        assert lags["lag"].max() == row["timesteps"] - 1


def test_remedies_of_the_findings_come_first() -> None:
    model = Net(nn.LSTM(3, 6))
    with torch.no_grad():
        model.encoder.bias_ih_l0.chunk(4)[1].fill_(-12.0)  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with gradscope.attach(model, every=1) as scope:
        for _ in range(4):
            optimizer.zero_grad()
            loss(model, batch()).backward()
            optimizer.step()
        assert scope.run.findings()[0].code == "saturated_gate"
        found = scope.whatif(batch(), loss)
    first = found.layers.iloc[1]
    assert first["code"].startswith("model.encoder.reset_parameters()")
    assert first["horizon"] > 4 * found.layers.iloc[0]["horizon"]


# --- a training that does not notice


def trained(asking: bool) -> dict[str, Any]:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    model = Net(nn.LSTM(3, 6, num_layers=2, dropout=0.3))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses: list[float] = []
    with gradscope.attach(model, every=1) as scope:
        for _ in range(3):
            optimizer.zero_grad()
            value = loss(model, batch())
            value.backward()
            if asking:
                given = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(5)), torch.tensor([0, 1])
                scope.whatif(given, loss)
            losses.append(value.item())
            optimizer.step()
    tables = ("timesteps", "reach", "gates", "weights", "layers", "clips", "notes")
    steps = scope.run.frame("steps").drop(columns=["overhead_s", "step_s"])
    return {
        "losses": losses,
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": [p.grad for p in model.parameters()],
        "streams": [torch.rand(3), random.random(), np.random.rand(2)],  # noqa: NPY002
        "tables": {**{name: scope.run.frame(name) for name in tables}, "steps": steps},
    }


def test_the_training_does_not_notice() -> None:
    without, asked = trained(False), trained(True)
    for name, table in without.pop("tables").items():
        pd.testing.assert_frame_equal(asked["tables"][name], table, rtol=0, atol=0)
    asked.pop("tables")
    torch.testing.assert_close(asked, without, rtol=0, atol=0)


def test_a_batch_that_wants_gradients_gets_none() -> None:
    x, y = batch()
    x.requires_grad_()
    tried(Net(nn.RNN(3, 6)), (x, y))
    assert x.grad is None


def test_a_carried_state_stays_where_it_is() -> None:
    model = Looped(nn.RNNCell(3, 6))
    state = model(torch.randn(4, 2, 3))
    tried(model, torch.randn(6, 2, 3), lambda model, x: model(x).sum())
    assert model.state is state
    assert state.grad_fn is not None


def test_it_works_where_gradients_are_off() -> None:
    with torch.no_grad():
        assert len(tried(Net(nn.RNN(3, 6))).layers) > 4


# --- what cannot be tried


def test_a_module_that_does_not_fit_is_said_to() -> None:
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.RNN(3, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x)[1].square().sum()  # of an LSTM this is a pair

    found = tried(Squared(), torch.randn(7, 2, 3), lambda model, x: model(x))
    notes = found.layers.set_index("code")["note"]
    assert notes["model.encoder = torch.nn.LSTM(3, 6)"].startswith("AttributeError: 'tuple' object")
    assert notes["model.encoder = torch.nn.GRU(3, 6)"] == ""
    assert repr(found).count("the trial failed") == 1
    assert "the trial failed" in found._repr_html_()


def test_other_modules_are_left_out_of_a_row() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.RNN(3, 4), nn.LSTM(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)[0])[0][-1].sum()

    layers = tried(Two(), torch.randn(7, 2, 3), lambda model, x: model(x)).layers
    assert set(layers.loc[layers["remedy"] == UNCHANGED, "module"]) == {"first", "second"}
    changed = layers[layers["remedy"] != UNCHANGED]
    assert all(module.split(".")[0] == name for module, name in zip(changed["module"], changed["changed"], strict=True))
    assert set(changed["changed"]) == {"first", "second"}


@pytest.mark.parametrize(
    ("measure", "told"),
    [
        (lambda model, given: model(given[0]), r"not a tensor of shape \[5, 2\]"),
        (lambda model, given: 3.0, "not a float"),
        (lambda model, given: model(given[0]).sum().detach(), "without one"),
    ],
)
def test_a_loss_has_to_be_one(measure: Any, told: str) -> None:
    with pytest.raises(gradscope.GradscopeError, match=told):
        tried(Net(nn.RNN(3, 6)), measure=measure)


def test_a_loss_of_the_attached_model_is_refused_and_leaves_no_gradient() -> None:
    model = Net(nn.RNN(3, 6))
    loss(model, batch()).backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with pytest.raises(gradscope.GradscopeError, match="which is a copy"):
        tried(model, measure=lambda _, given: loss(model, given))
    torch.testing.assert_close([p.grad for p in model.parameters()], before, rtol=0, atol=0)


def test_a_model_that_cannot_be_copied() -> None:
    model = Net(nn.RNN(3, 6))
    model.stream = (i for i in range(3))  # type: ignore[assignment]
    with pytest.raises(gradscope.GradscopeError, match="a copy of the model"):
        tried(model)


def test_a_closed_scope() -> None:
    with gradscope.attach(Net(nn.RNN(3, 6))) as scope:
        pass
    with pytest.raises(gradscope.GradscopeError, match="closed"):
        scope.whatif(batch(), loss)
