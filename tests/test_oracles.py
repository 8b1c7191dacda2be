"""The oracle on its own: against the fused modules, finite differences, cell loops and results known by hand."""

from __future__ import annotations

import math

import cases
import numpy as np
import oracles
import pandas as pd
import pytest
import torch
from cases import Case
from torch import Tensor, nn

ALL = [*cases.COVERING, *cases.DROPOUT, *cases.SPECIAL]
FAMILIES = [Case(kind, bias=bias, hx="given") for kind in cases.FACTORS["kind"] for bias in (True, False)]


def close(got: Tensor, want: Tensor, rtol: float = 1e-12) -> bool:
    return bool((got - want).abs().max() <= rtol * max(1.0, float(want.detach().abs().max())))


def grad_of(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


@pytest.mark.parametrize("case", ALL, ids=str)
def test_unrolled_is_the_fused_module(case: Case) -> None:
    """Outputs, states, loss and every gradient, under the same dropout masks."""
    built = cases.build(case)
    parts = built.forward()
    loss = built.loss(*parts)
    loss.backward()
    truth = oracles.examine(built.call())
    for got, want in zip((truth.output, truth.h_n, truth.c_n), parts, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert type(got) is type(want)
            assert close(cases.values_of(got), cases.values_of(want))
    assert close(truth.loss, loss)
    for name, weight in built.module.named_parameters():
        assert close(grad_of(truth.weights[name]), grad_of(weight)), name


@pytest.mark.parametrize("case", ALL, ids=str)
def test_contributions_add_up_to_the_weight_gradient(case: Case) -> None:
    """The sum over t and sequences of e_t h_{t-1}^T is `weight_hh.grad` of the fused module."""
    built = cases.build(case)
    built.backward()
    for layer in oracles.examine(built.call()).layers:
        total = sum(
            torch.outer(grad_of(step.recurrent), step.h_before) for track in layer.tracks for step in track.steps
        )
        suffix = "_reverse" if layer.direction == "reverse" else ""
        assert close(total, grad_of(getattr(built.module, f"weight_hh_l{layer.layer}{suffix}")))


@pytest.mark.parametrize("case", ALL, ids=str)
def test_jacobians_carry_the_total_gradient(case: Case) -> None:
    """delta_t = g_t + J_{t+1}^T delta_{t+1}, its h part being what autograd retained at h_t."""
    built = cases.build(case)
    built.forward()
    for layer in oracles.examine(built.call()).layers:
        for track in layer.tracks:
            carried = 0.0
            for t in reversed(track.order):
                delta = oracles.joined(*track.entering(t)) + carried
                assert close(delta[: len(track.steps[t].h)], grad_of(track.steps[t].h))
                carried = track.jacobians[t].T @ delta


def test_gradient_of_the_initial_state() -> None:
    """And that of the input: the same as the fused module's, for sequences that the packing permutes."""
    built = cases.build(Case("lstm_proj", 2, True, layout="packed_unsorted", hx="given_grad"))
    data = built.input.data.requires_grad_()
    built.input = built.input._replace(data=data)
    built.backward()
    truth = oracles.examine(built.call())
    order = built.input.sorted_indices
    for got, want in zip(truth.initial, built.hx, strict=True):
        assert close(got.grad, want.grad[:, order])
    rows = [truth.inputs[b].grad[t] for t, n in enumerate(built.input.batch_sizes.tolist()) for b in range(n)]
    assert close(torch.stack(rows), data.grad)


# -- finite differences on a second implementation, in numpy


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def numpy_run(kind: str, weights: dict[str, np.ndarray], x: np.ndarray, h: np.ndarray, c: np.ndarray, bumps: dict):
    """Outputs and cell states of one sequence; `bumps` adds to c_t before h_t is formed, and to h_t."""
    W, U, R = weights["weight_ih_l0"], weights["weight_hh_l0"], weights.get("weight_hr_l0")
    b, d = weights.get("bias_ih_l0", 0.0), weights.get("bias_hh_l0", 0.0)
    outputs, cells = [], []
    for t in range(len(x)):
        u, v = W @ x[t] + b, U @ h + d
        if kind.startswith("lstm"):
            i, f, g, o = np.split(u + v, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g) + bumps.get(("c", t), 0.0)
            h = sigmoid(o) * np.tanh(c)
            h = h if R is None else R @ h
        elif kind == "gru":
            (ur, uz, un), (vr, vz, vn) = np.split(u, 3), np.split(v, 3)
            z = sigmoid(uz + vz)
            h = (1 - z) * np.tanh(un + sigmoid(ur + vr) * vn) + z * h
        else:
            h = np.tanh(u + v) if kind == "rnn_tanh" else np.maximum(u + v, 0.0)
        h = h + bumps.get(("h", t), 0.0)
        outputs.append(h)
        cells.append(c)
    return np.stack(outputs), cells[-1]


def numpy_loss(output: np.ndarray, c_n: np.ndarray) -> float:
    return float((np.cos(np.arange(output.size)) * output.ravel() ** 2).sum() + (c_n**2).sum())


def torch_loss(output: Tensor, h_n: Tensor, c_n: Tensor | None) -> Tensor:
    flat = output.reshape(-1)
    loss = (torch.cos(torch.arange(len(flat), dtype=flat.dtype)) * flat**2).sum()
    return loss if c_n is None else loss + (c_n**2).sum()


def central(change, width: int, at: tuple[str, int], eps: float = 1e-6) -> np.ndarray:
    """d change / d bump, unit by unit."""
    columns = []
    for unit in np.eye(width) * eps:
        columns.append((change({at: unit}) - change({at: -unit})) / (2 * eps))
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_finite_differences(case: Case) -> None:
    """dL/dh_t and dL/dc_t by nudging h_t and c_t; ds_t/ds_{t-1} and ds_T/ds_t by nudging states."""
    case = cases.replace(case, layout="unbatched")
    built = cases.build(case)
    truth = oracles.examine(oracles.Call(built.module, built.input, torch_loss, built.hx))
    weights = {name: weight.detach().numpy() for name, weight in built.module.named_parameters()}
    h0, c0 = (s[0].numpy() for s in (built.hx if case.is_lstm else (built.hx, torch.zeros_like(built.hx))))
    x, (track,) = built.input.numpy(), truth.layers[0].tracks

    def loss(bumps: dict) -> np.ndarray:
        output, cell = numpy_run(case.kind, weights, x, h0, c0, bumps)
        return np.array(numpy_loss(output, cell if case.is_lstm else np.zeros(1)))

    def state_after(t: int, h: np.ndarray, c: np.ndarray) -> np.ndarray:
        output, cell = numpy_run(case.kind, weights, x[t : t + 1], h, c, {})
        return np.concatenate([output[-1], cell]) if case.is_lstm else output[-1]

    for t, step in enumerate(track.steps):
        found = central(loss, len(h0), ("h", t))
        assert found == pytest.approx(grad_of(step.h).numpy(), abs=1e-7)
        if case.is_lstm:
            assert central(loss, len(c0), ("c", t)) == pytest.approx(grad_of(step.c).numpy(), abs=1e-7)
        h, c = step.h_before.detach().numpy(), c0 if step.c is None else step.c_before.detach().numpy()
        blocks = [central(lambda b: state_after(t, h + b["s", 0], c), len(h), ("s", 0))]  # noqa: B023
        if case.is_lstm:
            blocks.append(central(lambda b: state_after(t, h, c + b["s", 0]), len(c), ("s", 0)))  # noqa: B023
        assert np.concatenate(blocks, axis=1) == pytest.approx(track.jacobians[t].numpy(), abs=1e-8)


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_products_are_the_derivative_of_the_last_state(case: Case) -> None:
    """ds_T/ds_t from autograd through the whole rest of the sequence, not from the product of the steps."""
    built = cases.build(cases.replace(case, layout="unbatched"))
    (track,) = oracles.examine(oracles.Call(built.module, built.input, torch_loss, built.hx)).layers[0].tracks
    for t, step in enumerate(track.steps):
        size = len(step.h)

        def finish(state: Tensor, t: int = t, size: int = size) -> Tensor:
            h, c = state[:size], state[size:] if case.is_lstm else None
            for later in track.steps[t + 1 :]:
                after = track.cell(later.x.detach(), h, c)
                h, c = after.h, after.c
            return oracles.joined(h, c)

        state = oracles.joined(step.h, step.c).detach()
        assert close(track.products[t], torch.autograd.functional.jacobian(finish, state))


def test_cell_gradient_is_the_textbook_one() -> None:
    """It has the path through h_t of the same step, which autograd on an LSTMCell's returned c leaves out."""
    torch.manual_seed(0)
    module, x = nn.LSTM(3, 4, dtype=torch.float64), torch.randn(5, 1, 3, dtype=torch.float64)
    (track,) = oracles.examine(oracles.Call(module, x, lambda out, h, c: (out[-1] ** 2).sum())).layers[0].tracks
    last = track.steps[-1]
    through_h = grad_of(last.h) * last.gates["output"] * (1 - torch.tanh(last.c) ** 2)
    assert close(grad_of(last.c), through_h.detach())
    assert float(through_h.detach().norm()) > 0.01


# -- the tables


def linear_rnn(eigenvalues: tuple[float, float]) -> nn.RNN:
    """A ReLU network that stays positive, so that its Jacobian is the diagonal `eigenvalues`."""
    module = nn.RNN(1, 2, nonlinearity="relu", dtype=torch.float64)
    with torch.no_grad():
        module.weight_hh_l0.copy_(torch.diag(torch.tensor(eigenvalues)))
        module.weight_ih_l0.fill_(1.0)
        module.bias_ih_l0.fill_(0.0)
        module.bias_hh_l0.fill_(0.0)
    return module


def linear_tables(length: int, loss=None) -> dict[str, pd.DataFrame]:
    module, x = linear_rnn((0.5, 0.5)), torch.ones(length, 2, 1, dtype=torch.float64)
    return oracles.frames(oracles.examine(oracles.Call(module, x, loss or (lambda out, h, c: out[-1].sum()))))


def test_linear_network_by_hand() -> None:
    """Eigenvalues 1/2: gradients, gains and reach halve with every step."""
    tables = linear_tables(5)
    median = tables["timesteps"].pivot(index="t", columns="quantity", values="p50")
    halves = [0.5**k for k in range(5)]
    assert median["grad_h"].tolist() == pytest.approx([math.sqrt(2) * half for half in halves[::-1]])
    assert median["grad_h_direct"].tolist() == pytest.approx([0, 0, 0, 0, math.sqrt(2)])
    assert median["jacobian"].tolist() == median["jacobian_h"].tolist() == median["jacobian_max"].tolist() == [0.5] * 5
    assert median["gain"].tolist() == pytest.approx(halves[::-1])
    assert tables["reach"]["p50"].tolist() == pytest.approx(halves)
    row = tables["layers"].iloc[0]
    assert (row["horizon"], row["horizon_censored"], row["timesteps"]) == (4, True, 5)
    assert row["decay"] == pytest.approx(math.log10(0.5))
    assert row["lyapunov"] == pytest.approx(math.log(0.5))
    weights = tables["weights"].iloc[0]
    assert (weights["spectral_radius"], weights["spectral_norm"]) == (0.5, 0.5)
    assert weights["orthogonality"] == pytest.approx(0.75)


def test_horizon_is_the_first_lag_below_the_floor() -> None:
    row = linear_tables(14)["layers"].iloc[0]
    assert (row["horizon"], row["horizon_censored"]) == (10, False)  # 2 ** -10 < 1e-3


def test_no_gradient_gives_no_reach() -> None:
    tables = linear_tables(4, lambda out, h, c: 0.0 * out.sum())
    assert tables["reach"].empty
    assert math.isnan(tables["layers"]["horizon"][0])


def test_reverse_runs_from_each_sequence_s_own_end() -> None:
    """Packed lengths 3 and 1: the long one's first reverse step is at t = 2, the short one's at t = 0."""
    case = Case("rnn_tanh", bidirectional=True, layout="packed", lengths=(1, 3), time=3, hx="given")
    built = cases.build(case)
    reverse = oracles.examine(built.call()).layers[1]
    long, short = reverse.tracks
    h0 = built.hx[1]
    assert (long.order, short.order) == ([2, 1, 0], [0])
    assert torch.equal(long.steps[2].h_before.detach(), h0[0])
    assert torch.equal(short.steps[0].h_before.detach(), h0[1])
    assert long.steps[1].h_before is long.steps[2].h


@pytest.mark.parametrize(
    ("positions", "anchors"),
    [([4], [4]), ([1, 3], [1, 3]), ([0, 1, 2], [0, 1, 2]), ([0, 1, 2, 3], [0, 1, 3]), (list(range(12)), [3, 7, 11])],
)
def test_anchors(positions: list[int], anchors: list[int]) -> None:
    assert oracles.choose_anchors(positions) == anchors


@pytest.mark.parametrize(
    ("batch", "most", "chosen"),
    [(3, None, [0, 1, 2]), (3, 16, [0, 1, 2]), (5, 2, [0, 4]), (6, 3, [0, 3, 5]), (4, 1, [0])],
)
def test_analysed_sequences(batch: int, most: int | None, chosen: list[int]) -> None:
    assert oracles.choose_sequences(batch, most) == chosen


def test_statistics_leave_out_and_count_what_is_not_finite() -> None:
    found = oracles.statistics([1.0, math.inf, 2.0, math.nan, 3.0])
    assert found == {"p10": pytest.approx(1.2), "p50": 2.0, "p90": pytest.approx(2.8), "mean": 2.0} | {
        "sequences": 5,
        "nonfinite": 2,
    }


def test_saturation_by_hand() -> None:
    """A forget gate held open, an input gate held closed, a candidate at -1."""
    module = nn.LSTM(1, 2, dtype=torch.float64)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
        module.bias_ih_l0.copy_(torch.tensor([-9, -9, 9, 9, -9, -9, 0, 0.0]))
    x = torch.zeros(3, 2, 1, dtype=torch.float64)
    tables = oracles.frames(oracles.examine(oracles.Call(module, x, lambda out, h, c: out.sum())))
    shares = tables["gates"].groupby("gate")[["low", "high"]].mean()
    assert shares.T.to_dict("list") == {
        "candidate": [1, 0], "forget": [0, 1], "hidden": [0, 0], "input": [1, 0], "output": [0, 0],
    }  # fmt: skip
    assert len(tables["units"]) == 10 and len(tables["gates"]) == 15


# -- the comparison itself must be able to fail


class Recorded:
    def __init__(self, tables: dict[str, pd.DataFrame]) -> None:
        self.tables = tables

    def frame(self, table: str) -> pd.DataFrame:
        return self.tables[table].copy()


@pytest.mark.parametrize(
    ("table", "column"), [(t, c) for t, (_, columns) in oracles.ROWS.items() for c in columns] + [("spectra", "real")]
)
def test_a_wrong_number_is_noticed(table: str, column: str) -> None:
    truth = linear_tables(5)
    oracles.assert_agrees(Recorded(truth), truth)
    wrong = truth[table].copy()
    wrong[column] = wrong[column].astype(float)
    wrong.loc[0, column] += 1e-6
    with pytest.raises(AssertionError):
        oracles.assert_agrees(Recorded({**truth, table: wrong}), truth)


@pytest.mark.parametrize("table", oracles.ROWS)
def test_a_missing_row_is_noticed(table: str) -> None:
    truth = linear_tables(5)
    with pytest.raises((AssertionError, KeyError)):
        oracles.assert_agrees(Recorded({**truth, table: truth[table].iloc[1:]}), truth)


# -- the cases


def test_covering_has_every_possible_pair() -> None:
    def has(case: Case, pair: frozenset) -> bool:
        return all(getattr(case, name) == level for name, level in pair)

    assert all(any(has(case, pair) for case in cases.COVERING) for pair in cases.pairs())
    assert len(cases.COVERING) < 50
    assert cases.COVERING == cases.covering()
    assert len({str(case) for case in ALL}) == len(ALL)


@pytest.mark.parametrize("case", cases.DROPOUT, ids=str)
def test_dropout_really_drops(case: Case) -> None:
    """The masks hold zeros, twos, and zeros at padding; without them the outputs differ."""
    built = cases.build(case)
    output, _, _ = built.forward()
    (mask,) = built.call().masks
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    without = oracles.examine(oracles.Call(built.module, built.input, built.loss, built.hx)).output
    assert not close(cases.values_of(without), cases.values_of(output), 1e-3)
