"""Numbers that are not finite, and the identities of the mathematics."""

from __future__ import annotations

import math

import cases
import oracles
import pytest
import torch
from cases import Built, Case
from families.jobs import recorded, truth_of
from torch import Tensor, nn

# -- non-finite values


def test_nonfinite_gradients_are_counted_and_left_out() -> None:
    """One sequence of three has an infinite loss gradient: it is counted, and the other two are summed up."""
    built = cases.build(Case("rnn_tanh", lengths=(6, 6, 6), loss="output"))

    def loss(output: Tensor, h_n: Tensor, c_n: Tensor | None) -> Tensor:
        scale = torch.tensor([1.0, math.inf, 1.0], dtype=output.dtype)
        return (output * scale[:, None]).sum()

    built.loss = loss
    run = recorded(built)
    rows = run.frame("timesteps", quantity="grad_h").set_index("t").sort_index()
    assert rows["nonfinite"].tolist() == [1] * 6
    assert rows["sequences"].tolist() == [3] * 6
    want = truth_of(built)["timesteps"]
    want = want[want["quantity"] == "grad_h"].set_index("t").sort_index()
    assert rows["mean"].to_numpy() == pytest.approx(want["mean"].to_numpy(), rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", cases.FACTORS["kind"])
def test_nonfinite_states(kind: str, bad: float) -> None:
    """One sequence goes wrong at t = 2: it is what the kernel makes of it, and the others stay exact."""
    built = cases.build(Case(kind, 2))
    built.input[2, 1] = bad
    run = recorded(built)
    oracles.assert_agrees(run, truth_of(built))
    states = run.frame("timesteps", quantity="state", layer=0).set_index("t")
    assert states["nonfinite"].sort_index()[:2].tolist() == [0, 0]
    assert states["p50"].notna().all()


def proportional(factor: float, dtype: torch.dtype, start: float, time: int) -> Built:
    """A ReLU network that multiplies its three equal states by `factor` at every step, from `start` on."""
    built = cases.build(Case("rnn_relu", time=time, lengths=(time, time), hidden=3, dtype=dtype))
    for parameter in built.module.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(built.module.bias_ih_l0, start)
    with torch.no_grad():
        built.module.weight_hh_l0.copy_(factor * torch.eye(3))
    built.loss = lambda output, h_n, c_n: output[-1].sum()
    return built


@pytest.mark.parametrize(("factor", "start", "time"), [(0.3, 1.0, 60), (2.0, 1e-3, 100)])
def test_range_of_float32(factor: float, start: float, time: int) -> None:
    """Sizes of 1e-31 and 1e+30, whose squares are out of float32's range, are right to the last."""
    run = recorded(proportional(factor, torch.float32, start, time))
    powers = [factor**lag for lag in range(time)]
    for quantity, last in (("grad_h", math.sqrt(3)), ("gain", 1.0)):
        sizes = run.frame("timesteps", quantity=quantity).sort_values("t", ascending=False)["p50"]
        assert sizes.tolist() == pytest.approx([last * power for power in powers], rel=1e-3)
    assert run.frame("reach").sort_values("lag")["p50"].tolist() == pytest.approx(powers, rel=1e-3)
    sizes = run.frame("timesteps", quantity="weight_grad").sort_values("t")["p50"][1:]
    assert (sizes > 0).all() and sizes.map(math.isfinite).all()


@pytest.mark.parametrize(
    ("factor", "dtype", "start", "time"),
    [
        (0.5, torch.float64, 1.0, 1200),
        (2.0, torch.float64, 1e-300, 1200),
        (0.5, torch.float32, 1.0, 200),
        (2.0, torch.float32, 1e-30, 200),
    ],
)
def test_lyapunov_beyond_the_range_of_floats(factor: float, dtype: torch.dtype, start: float, time: int) -> None:
    """2 ** 1200 is no float64, and 2 ** -200 no float32: the exponent is ln 2 all the same."""
    row = recorded(proportional(factor, dtype, start, time)).frame("layers")
    assert row["lyapunov"].item() == pytest.approx(math.log(factor), rel=1e-5)


# -- MATH.md section 1


@pytest.fixture
def last_step_lstm() -> Built:
    return cases.build(Case("lstm", time=12, loss="last"))


def test_hooks_on_the_output_would_see_zeros(last_step_lstm: Built) -> None:
    """Loss on the last of 12 steps: nothing enters from above before it, and the total is nowhere zero."""
    run = recorded(last_step_lstm)
    direct, total = (
        run.frame("timesteps", quantity=quantity).set_index("t")["p50"].sort_index()
        for quantity in ("grad_h_direct", "grad_h")
    )
    assert direct[:-1].tolist() == [0.0] * 11
    assert direct[11] == total[11] > 0
    assert (total > 0).all()
    assert total[0] < 0.1 * total[11]
    oracles.assert_agrees(run, truth_of(last_step_lstm))


def test_forget_bias_five_over_a_hundred_steps() -> None:
    """The product of the h-blocks says that nothing comes through; through (h, c) plenty does."""
    built = cases.build(Case("lstm", time=100, lengths=(100, 100), loss="last"))
    with torch.no_grad():
        built.module.bias_hh_l0[cases.HIDDEN : 2 * cases.HIDDEN] = 5.0
    run = recorded(built)
    blocks = run.frame("timesteps", quantity="jacobian_h").sort_values("t")["p50"][1:]
    gain = run.frame("timesteps", quantity="gain", t=0)["p50"].item()
    assert math.log10(blocks).sum() < -40 if isinstance(blocks, float) else blocks.map(math.log10).sum() < -40
    assert gain > 0.01
    assert run.frame("layers")["horizon_censored"].item()
    oracles.assert_agrees(run, truth_of(built))


def carousel(time: int = 40) -> nn.LSTM:
    """An LSTM whose forget gate is exactly 1 in float64."""
    module = nn.LSTM(cases.INPUT, cases.HIDDEN, dtype=torch.float64)
    forget = slice(cases.HIDDEN, 2 * cases.HIDDEN)
    with torch.no_grad():
        module.weight_ih_l0[forget] = 0.0
        module.weight_hh_l0[forget] = 0.0
        module.bias_ih_l0[forget] = 1000.0
    return module


@pytest.mark.parametrize("loss", ["c_n", "last"])
def test_constant_error_carousel(loss: str) -> None:
    """f = 1 and no loss before T: what the cell path carries neither decays nor grows."""
    built = cases.build(Case("lstm", time=40, loss=loss))
    built.module = carousel()
    run = recorded(built)
    assert run.frame("timesteps", quantity="jacobian_c")["p50"].tolist() == [1.0] * 40
    with torch.no_grad():
        built.module.weight_hh_l0.zero_()  # now the cell path is the only one
    run = recorded(built)
    sizes = run.frame("timesteps", quantity="grad_c").sort_values("t")["p50"].to_numpy()
    assert sizes == pytest.approx(sizes[-1], rel=1e-12) and sizes[-1] > 0
    reach = run.frame("reach").sort_values("lag")["p50"].to_numpy()[1:]
    assert reach == pytest.approx(reach[0], rel=1e-12) and reach[0] > 0.01
    assert run.frame("layers")["horizon_censored"].item()


def test_uncarried_by_contrast() -> None:
    """The same network with f = 1/2 held forgets by half with every step."""
    built = cases.build(Case("lstm", time=12, loss="c_n"))
    built.module = carousel()
    with torch.no_grad():
        built.module.weight_hh_l0.zero_()
        built.module.bias_ih_l0[cases.HIDDEN : 2 * cases.HIDDEN] = -built.module.bias_hh_l0[
            cases.HIDDEN : 2 * cases.HIDDEN
        ]
    run = recorded(built)
    reach = run.frame("reach").sort_values("lag")["p50"].to_numpy()
    assert reach == pytest.approx([0.5**lag for lag in range(12)], rel=1e-12)
    assert run.frame("layers")["decay"].item() == pytest.approx(math.log10(0.5))
    assert (run.frame("layers")["horizon"].item(), run.frame("layers")["horizon_censored"].item()) == (10, False)


def test_decay_is_the_slope_of_the_spectral_radius() -> None:
    """A linear regime (ReLU, positive, U = 1.5 I) grows by log10(1.5) per lag: an exploding gradient."""
    built = cases.build(Case("rnn_relu", time=8, loss="last"))
    with torch.no_grad():
        built.module.weight_hh_l0.copy_(1.5 * torch.eye(cases.HIDDEN))
        built.module.weight_ih_l0.fill_(0.0)
        built.module.bias_ih_l0.fill_(1.0)
        built.module.bias_hh_l0.fill_(0.0)
    row = recorded(built).frame("layers").iloc[0]
    assert row["decay"] == pytest.approx(math.log10(1.5))
    assert row["lyapunov"] == pytest.approx(math.log(1.5))
    assert row["horizon_censored"] and row["horizon"] == 7
