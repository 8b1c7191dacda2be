"""The initialisers: exactly what they set, what they leave, whom they refuse, and that they act."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gradscope import GradscopeError
from gradscope.cells import (
    GRUCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LayerNormRNNCell,
    LinearCell,
    LSTMCell,
    Recurrent,
    RNNCell,
    chrono_,
    forget_bias_,
    identity_,
    orthogonal_,
)

H = 5
RNNS: dict[str, Callable[[], nn.Module]] = {
    "nn.RNN": lambda: nn.RNN(3, H, 2, bidirectional=True),
    "nn.RNNCell": lambda: nn.RNNCell(3, H),
    "RNNCell": lambda: RNNCell(3, H, nonlinearity="relu"),
    "LinearCell": lambda: LinearCell(3, H, bias=True),
    "LayerNormRNNCell": lambda: LayerNormRNNCell(3, H),
    "Recurrent RNN": lambda: Recurrent(RNNCell, 3, H, 2, bidirectional=True),
}
LSTMS: dict[str, Callable[[], nn.Module]] = {
    "nn.LSTM": lambda: nn.LSTM(3, H, 2, bidirectional=True),
    "nn.LSTMCell": lambda: nn.LSTMCell(3, H),
    "LSTMCell": lambda: LSTMCell(3, H),
    "LayerNormLSTMCell": lambda: LayerNormLSTMCell(3, H),
    "Recurrent LSTM": lambda: Recurrent(LSTMCell, 3, H, 2, bidirectional=True),
    "Recurrent nn.LSTMCell": lambda: Recurrent(nn.LSTMCell, 3, H),
}
GRUS: dict[str, Callable[[], nn.Module]] = {
    "nn.GRU": lambda: nn.GRU(3, H, 2, bidirectional=True),
    "nn.GRUCell": lambda: nn.GRUCell(3, H),
    "GRUCell": lambda: GRUCell(3, H, reset="before"),
    "LayerNormGRUCell": lambda: LayerNormGRUCell(3, H),
    "Recurrent GRU": lambda: Recurrent(GRUCell, 3, H, 2, bidirectional=True),
}
ALL = {**RNNS, **LSTMS, **GRUS}
I, F, G, O = range(4)  # noqa: E741
R, Z, N = range(3)


def named(module: nn.Module, what: str) -> list[Tensor]:
    return [value for name, value in module.state_dict().items() if name.startswith(what)]


def totals(module: nn.Module) -> list[Tensor]:
    """b_ih + b_hh of every layer and direction, [G, H] each."""
    pairs = zip(named(module, "bias_ih"), named(module, "bias_hh"), strict=True)
    found = [(a + b).view(-1, H) for a, b in pairs]
    assert found
    return found


def changed(module: nn.Module, initialise: Callable[[nn.Module], nn.Module]) -> set[str]:
    """The kinds of parameters that an initialiser writes to."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert initialise(module) is module
    after = module.state_dict()
    return {name.split("_l")[0] for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("name", ALL)
def test_orthogonal(name: str) -> None:
    module = ALL[name]()
    assert changed(module, orthogonal_) == {"weight_hh"}
    for weight in named(module, "weight_hh"):
        blocks = weight.view(-1, H, H)
        for block in blocks:
            torch.testing.assert_close(block.T @ block, torch.eye(H), rtol=0, atol=1e-12)
        assert len(blocks) < 2 or not torch.equal(blocks[0], blocks[1])


def test_orthogonal_with_a_projection_and_in_half_precision() -> None:
    projected = orthogonal_(nn.LSTM(3, H, proj_size=2))
    for block in projected.weight_hh_l0.view(4, H, 2):
        torch.testing.assert_close(block.T @ block, torch.eye(2), rtol=0, atol=1e-12)
    half = orthogonal_(nn.GRU(3, H, dtype=torch.bfloat16))
    for block in half.weight_hh_l0.double().view(3, H, H):
        torch.testing.assert_close(block.T @ block, torch.eye(H), rtol=0, atol=0.02)


@pytest.mark.parametrize("name", RNNS)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_identity(name: str, scale: float) -> None:
    module = RNNS[name]()
    assert changed(module, lambda m: identity_(m, scale)) - {"bias_ih", "bias_hh"} == {"weight_hh"}
    for weight in named(module, "weight_hh"):
        assert torch.equal(weight, scale * torch.eye(H))
    assert not any(bias.any() for bias in named(module, "bias"))


@pytest.mark.parametrize("name", LSTMS)
@pytest.mark.parametrize("value", [1.0, -0.3])
def test_forget_bias_is_the_sum_of_both(name: str, value: float) -> None:
    module = LSTMS[name]()
    before = totals(module)
    assert changed(module, lambda m: forget_bias_(m, value)) <= {"bias_ih", "bias_hh"}
    for old, new in zip(before, totals(module), strict=True):
        assert (new[F] == value).all()
        assert torch.equal(new[[I, G, O]], old[[I, G, O]])


def test_forget_bias_is_one_by_default_and_read_by_torch() -> None:
    """With W = U = 0 and an input gate that is shut, nn.LSTM multiplies its cell by sigmoid(1) at every step."""
    lstm = forget_bias_(nn.LSTM(3, H))
    with torch.no_grad():
        lstm.weight_ih_l0.zero_()
        lstm.weight_hh_l0.zero_()
        lstm.bias_ih_l0[:H] = -1e3
    c_0 = torch.randn(1, 2, H)
    _, (_, c_n) = lstm(torch.randn(4, 2, 3), (torch.randn(1, 2, H), c_0))
    torch.testing.assert_close(c_n, c_0 / (1 + math.exp(-1)) ** 4, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LSTMS)
def test_chrono_lstm(name: str) -> None:
    module = LSTMS[name]()
    before = totals(module)
    assert changed(module, lambda m: chrono_(m, 50)) <= {"bias_ih", "bias_hh"}
    for old, new in zip(before, totals(module), strict=True):
        assert (new[F] >= 0).all() and (new[F] <= math.log(49)).all()
        assert torch.equal(new[I], -new[F]) and len(new[F].unique()) == H
        assert torch.equal(new[[G, O]], old[[G, O]])


@pytest.mark.parametrize("name", GRUS)
def test_chrono_gru(name: str) -> None:
    module = GRUS[name]()
    before = totals(module)
    assert changed(module, lambda m: chrono_(m, 50)) <= {"bias_ih", "bias_hh"}
    for old, new in zip(before, totals(module), strict=True):
        assert (new[Z] >= 0).all() and (new[Z] <= math.log(49)).all() and len(new[Z].unique()) == H
        assert torch.equal(new[[R, N]], old[[R, N]])


def test_chrono_is_uniform_before_the_logarithm() -> None:
    lstm = chrono_(LSTMCell(1, 2_000), 101)
    u = (lstm.bias_ih + lstm.bias_hh).detach().view(4, -1)[F].exp()
    assert u.min() >= 1 and u.max() <= 100
    expected = torch.linspace(1, 100, len(u))
    assert (u.sort().values - expected).abs().max() < 99 * 1.95 / len(u) ** 0.5  # Kolmogorov-Smirnov at 0.1 %


def test_layers_and_directions_draw_their_own() -> None:
    first, second, *_ = totals(chrono_(nn.LSTM(3, H, bidirectional=True), 50))
    assert not torch.equal(first[F], second[F])


def test_the_same_seed_gives_the_same_draw() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(orthogonal_(chrono_(nn.GRU(3, H), 20)).state_dict())
    assert all(torch.equal(value, drawn[1][name]) for name, value in drawn[0].items())


def test_parameters_keep_their_identity_and_their_gradient() -> None:
    lstm = nn.LSTM(3, H)
    before = list(lstm.parameters())
    chrono_(forget_bias_(orthogonal_(lstm)), 9)
    assert all(a is b and a.requires_grad and a.is_leaf for a, b in zip(lstm.parameters(), before, strict=True))
    lstm(torch.randn(2, 1, 3))[0].sum().backward()
    assert lstm.weight_hh_l0.grad is not None


def test_one_parameter_for_both_biases_counts_twice() -> None:
    cell = nn.LSTMCell(3, H)
    cell.bias_hh = cell.bias_ih
    assert (totals(forget_bias_(cell, 0.8))[0][F] == 0.8).all()
    new = totals(chrono_(cell, 30))[0]
    assert torch.equal(new[I], -new[F]) and (new[F] > 0).all() and (new[F] <= math.log(29)).all()


def test_cells_shared_between_layers() -> None:
    shared = LSTMCell(H, H)
    rnn = Recurrent(lambda *_: shared, H, H, 2)
    chrono_(rnn, 30)
    new = (shared.bias_ih + shared.bias_hh).view(4, H)
    assert torch.equal(new[I], -new[F])


@pytest.mark.parametrize(
    "module", [nn.LSTM(3, H, bias=False), LSTMCell(3, H, bias=False), nn.LSTMCell(3, H, bias=False)]
)
def test_without_biases(module: Any) -> None:
    orthogonal_(module)
    with pytest.raises(GradscopeError, match="forget_bias_.*bias=True"):
        forget_bias_(module)
    with pytest.raises(GradscopeError, match="chrono_.*bias=True"):
        chrono_(module, 10)


def test_identity_needs_no_biases() -> None:
    rnn = identity_(nn.RNN(3, H, bias=False))
    assert torch.equal(rnn.weight_hh_l0, torch.eye(H))


@pytest.mark.parametrize("name", [*RNNS, *GRUS])
def test_forget_bias_wants_an_lstm(name: str) -> None:
    with pytest.raises(GradscopeError, match="no forget gate: for a GRU use chrono_"):
        forget_bias_(ALL[name]())


@pytest.mark.parametrize("name", RNNS)
def test_chrono_wants_gates(name: str) -> None:
    with pytest.raises(GradscopeError, match="for an RNN use orthogonal_ or identity_"):
        chrono_(RNNS[name](), 10)


@pytest.mark.parametrize("name", [*LSTMS, *GRUS])
def test_identity_wants_no_gates(name: str) -> None:
    with pytest.raises(GradscopeError, match="has gates: use orthogonal_"):
        identity_(ALL[name]())


@pytest.mark.parametrize("t_max", [1.9, -3, math.nan])
def test_chrono_wants_two_steps(t_max: float) -> None:
    with pytest.raises(GradscopeError, match="at least 2"):
        chrono_(nn.LSTM(3, H), t_max)


@pytest.mark.parametrize("initialise", [orthogonal_, identity_, forget_bias_, lambda m: chrono_(m, 10)])
def test_other_modules_are_refused(initialise: Any) -> None:
    with pytest.raises(GradscopeError, match=r"got Sequential: pass the recurrent layer"):
        initialise(nn.Sequential(nn.LSTM(3, H)))


def test_computed_weights_are_refused() -> None:
    lstm = nn.LSTM(3, H)
    parametrizations.orthogonal(lstm, "weight_hh_l0")
    with pytest.raises(GradscopeError, match="weight_hh_l0 of .*computed from other parameters"):
        orthogonal_(lstm)


def test_refused_modules_are_left_as_they_were() -> None:
    lstm = nn.LSTM(3, H, bias=False)
    before = lstm.weight_hh_l0.clone()
    for initialise in (forget_bias_, identity_):
        with pytest.raises(GradscopeError):
            initialise(lstm)
    assert torch.equal(lstm.weight_hh_l0, before)


# that they act: how much of a gradient at the end of a sequence is left at its beginning


def reach(rnn: nn.Module, steps: int = 40) -> float:
    """||dL/dh_0|| for a random dL/dh_T of norm 1, by autograd through the whole state."""
    generator = torch.Generator().manual_seed(1)
    x = 0.1 * torch.randn(steps, 1, 3, generator=generator)
    h_0 = torch.zeros(1, 1, 16, requires_grad=True)
    c_0 = torch.zeros(1, 1, 16, requires_grad=True)
    gated = any("LSTM" in type(m).__name__ for m in rnn.modules())
    output, _ = rnn(x, (h_0, c_0) if gated else h_0)
    v = nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
    leaves = [h_0, c_0] if gated else [h_0]
    return torch.cat([g.flatten() for g in torch.autograd.grad(output[-1, 0] @ v, leaves)]).norm().item()


def shrinking(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
    return module


def test_an_orthogonal_rnn_reaches_further() -> None:
    rnn = shrinking(nn.RNN(3, 16))
    before = reach(rnn)
    assert before < 1e-15
    assert reach(orthogonal_(rnn)) > 1e-3


def test_an_orthogonal_linear_network_loses_nothing() -> None:
    linear = orthogonal_(Recurrent(LinearCell, 3, 16))
    assert reach(linear) == pytest.approx(1, rel=1e-12)
    assert reach(identity_(linear, 0.9)) == pytest.approx(0.9**40, rel=1e-12)


def test_irnn_loses_nothing_while_its_units_are_on() -> None:
    rnn = identity_(nn.RNN(3, 16, nonlinearity="relu"))
    with torch.no_grad():
        rnn.weight_ih_l0.abs_()
    h_0 = torch.ones(1, 1, 16, requires_grad=True)
    output, _ = rnn(torch.rand(40, 1, 3), h_0)
    (gradient,) = torch.autograd.grad(output[-1].sum(), h_0)
    assert torch.equal(gradient, torch.ones_like(gradient))


def test_an_lstm_whose_gates_open_reaches_further() -> None:
    lstm = shrinking(nn.LSTM(3, 16))
    reaches = [reach(initialise(lstm)) for initialise in (lambda m: m, forget_bias_, lambda m: chrono_(m, 80))]
    assert reaches[0] < 1e-9 and reaches[1] > 1e3 * reaches[0] and reaches[2] > 1e3 * reaches[1]


def test_cells_in_the_place_of_an_rnn_reach_further() -> None:
    """Each network as it comes, beside the RNN that fails."""
    failing = reach(shrinking(Recurrent(RNNCell, 3, 16)))
    for cell in (LSTMCell, GRUCell, LayerNormRNNCell, LayerNormLSTMCell, LayerNormGRUCell):
        assert reach(shrinking(Recurrent(cell, 3, 16))) > 1e3 * failing, cell
