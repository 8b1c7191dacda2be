"""Gradients far below the range of float32: they are followed all the same, and never computed with as subnormals."""

from __future__ import annotations

from collections.abc import Iterator

import cases
import numpy as np
import oracles
import pytest
import torch
from cases import Case
from families.jobs import recorded as recorded_case
from families.jobs import truth_of
from torch import nn

import gradscope
from gradscope.families import measure, scan

T, B, H = 200, 3, 4


@pytest.fixture(params=["pieces", "one piece"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces, as of a large layer, and all of time in one piece, where only the scan goes span by span."""
    size = 64 if request.param == "pieces" else T
    monkeypatch.setattr(measure, "pieces", lambda layer, gates: scan.backwards(len(layer.output), size))


@pytest.mark.parametrize("case", cases.COVERING, ids=str)
def test_spans(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a scan is broken off and taken up again changes nothing."""
    monkeypatch.setattr(scan, "SPAN_STEPS", 2)
    monkeypatch.setattr(measure, "pieces", lambda layer, gates: [(0, len(layer.output))])
    built = cases.build(case)
    oracles.assert_agrees(recorded_case(built), truth_of(built), rtol=1e-10)


def relu_rnn(factor: float) -> nn.RNN:
    """h_t = factor h_{t-1} + x_t for positive x: every step Jacobian is factor times the identity."""
    rnn = nn.RNN(H, H, nonlinearity="relu", bias=False)
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(torch.eye(H))
        rnn.weight_hh_l0.copy_(factor * torch.eye(H))
    return rnn


def recorded(rnn: nn.RNN, times: list[int]) -> gradscope.Run:
    """One step whose loss is on h at these times."""
    with gradscope.attach(rnn, every=1, strict=True) as scope:
        rnn(torch.ones(T, B, H))[0][times].sum().backward()
    return scope.run


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("times", [[T - 1], [T // 2, T - 1]], ids=["last step", "two steps"])
def test_reach_is_followed_beyond_the_range_of_float32(times: list[int]) -> None:
    factor = 0.5  # powers of two: exact, and 2**-199 at the longest lag, far below the smallest float32, 2**-149
    reach = recorded(relu_rnn(factor), times).frame("reach")
    np.testing.assert_allclose(reach.p50, factor ** reach.lag.astype(float), rtol=1e-12)
    assert len(reach) == T


@pytest.mark.usefixtures("pieces")
def test_total_gradients_are_those_of_the_sum() -> None:
    factor, times = 0.5, [T // 2, T - 1]
    frame = recorded(relu_rnn(factor), times).frame("timesteps", quantity="grad_h").sort_values("t")
    t = frame.t.to_numpy()
    expected = sum(np.where(t <= at, factor ** (at - t).clip(0).astype(float), 0) for at in times) * H**0.5
    seen = expected > 1e-25  # of a sum, what is nearly subnormal is dropped
    np.testing.assert_allclose(frame.p50.to_numpy()[seen], expected[seen], rtol=1e-6)
    assert (frame.p50.to_numpy()[~seen] <= 1e-25).all()


@pytest.fixture
def subnormals_are_0() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("torch cannot take subnormals as 0 on this processor")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("subnormals_are_0")
def test_units_of_a_relu_that_are_0_are_counted() -> None:
    rnn = relu_rnn(0.5)
    with gradscope.attach(rnn, every=1, strict=True) as scope:
        rnn(torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(T, B, H))[0].sum().backward()
    gates = scope.run.frame("gates")
    assert gates["low"].tolist() == [0.5] * T and (gates["high"] == 0).all()


@pytest.mark.usefixtures("pieces")
def test_what_overflows_in_the_kernel_is_counted_as_such() -> None:
    frame = recorded(relu_rnn(16.0), [T - 1]).frame("timesteps", quantity="grad_h").sort_values("t")
    overflown = 16.0 ** (T - 1 - frame.t.astype(float)) > torch.finfo(torch.float32).max
    assert (frame.nonfinite[overflown] == B).all()
    assert (frame.nonfinite[~overflown] == 0).all()
