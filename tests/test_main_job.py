"""The main job: every quantity of the contract, for every kind of fused call, is what the oracle says."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import cases
import oracles
import pandas as pd
import pytest
import torch
from cases import Built, Case
from torch import Tensor, nn

import gradscope


def recorded(built: Built, **arguments) -> gradscope.Run:
    """One forward and backward of the case under a scope."""
    options = {"quantities": "full", "every": 1, "max_sequences": None, "strict": True} | arguments
    with gradscope.attach(built.module, **options) as scope:
        built.backward()
    return scope.run


def truth_of(built: Built, **options) -> dict[str, pd.DataFrame]:
    return oracles.frames(oracles.examine(built.call()), **options)


@pytest.mark.parametrize("case", [*cases.COVERING, *cases.SPECIAL], ids=str)
def test_float64(case: Case) -> None:
    """Within 1e-10 of each quantity's maximum over t and sequences, with nothing to note."""
    built = cases.build(case)
    run = recorded(built)
    oracles.assert_agrees(run, truth_of(built), rtol=1e-10)
    assert run.frame("layers")["residual"].max() <= 1e-10
    assert run.frame("notes").empty


@pytest.mark.parametrize("case", cases.DROPOUT, ids=str)
def test_dropout_between_layers(case: Case) -> None:
    """The lower layers are those of the kernel's own mask, which the test draws anew by its own means."""
    built = cases.build(case)
    run = recorded(built)
    truth = oracles.examine(built.call())
    output, _, _ = built.forward_again()
    assert torch.allclose(cases.values_of(truth.output), cases.values_of(output), rtol=0, atol=1e-12)
    oracles.assert_agrees(run, oracles.frames(truth), rtol=1e-10)
    assert run.frame("notes").empty


@pytest.mark.parametrize("case", cases.COVERING, ids=str)
def test_float32(case: Case) -> None:
    """Within 1e-3 of each quantity's maximum of the same computation in float32."""
    built = cases.build(cases.in_float32(case))
    run = recorded(built)
    oracles.assert_agrees(run, truth_of(built), rtol=1e-3)
    assert run.frame("layers")["residual"].max() <= 1e-4


@pytest.mark.parametrize("kind", cases.FACTORS["kind"])
def test_core(kind: str) -> None:
    """`core` is the same without what is marked full."""
    built = cases.build(Case(kind, 2, True))
    run = recorded(built, quantities="core")
    oracles.assert_agrees(run, truth_of(built), quantities="core")
    assert set(run.frame("timesteps")["quantity"]) <= set(oracles.CORE)
    assert run.frame("spectra").empty
    assert run.frame("layers")["lyapunov"].isna().all()


@pytest.mark.parametrize("quantity", oracles.FULL)
def test_one_quantity_alone(quantity: str) -> None:
    built = cases.build(Case("lstm", 2, layout="packed_unsorted"))
    rows = recorded(built, quantities=[quantity]).frame("timesteps", quantity=quantity)
    want = truth_of(built)["timesteps"]
    want = want[want["quantity"] == quantity]
    key = [*oracles.KEY, "t"]
    got, want = (frame.set_index(key).sort_index() for frame in (rows, want))
    assert got.index.equals(want.index)
    assert got["p50"].to_numpy() == pytest.approx(want["p50"].to_numpy(), rel=1e-9)


@pytest.mark.parametrize("most", [1, 2, 3, 16])
@pytest.mark.parametrize("layout", ["batch_first", "packed_unsorted"])
def test_max_sequences(most: int, layout: str) -> None:
    """Evenly spaced over the batch, which for a packed one is ordered by length."""
    built = cases.build(Case("gru", 2, True, layout=layout, dropout=0.5, lengths=(2, 6, 4, 4, 1)))
    run = recorded(built, max_sequences=most)
    oracles.assert_agrees(run, truth_of(built, max_sequences=most))


class Frames:
    """Some tables, read as a run is."""

    def __init__(self, tables: dict[str, pd.DataFrame]) -> None:
        self.frame = tables.__getitem__


def any_case(seed: int) -> Case:
    """Sizes, lengths and dropout of no particular kind."""
    draw = random.Random(seed)
    levels = cases._filled({"dropout": 0.0}, draw)
    time = draw.randint(1, 9)
    lengths = (time, *(draw.randint(1, time) for _ in range(draw.randint(0, 19))))
    sizes = {"time": time, "lengths": lengths, "hidden": draw.choice([4, 5, 9]), "name": f"seed_{seed}"}
    if levels["layers"] > 1:
        sizes["dropout"] = draw.choice([0.0, 0.1, 0.9, 1.0])
    return Case(**{**levels, **sizes})


@pytest.mark.parametrize("seed", range(16))
def test_any_size(seed: int) -> None:
    """Drawn at random, with the default number of sequences."""
    built = cases.build(any_case(seed), seed)
    run = recorded(built, max_sequences=16)
    oracles.assert_agrees(run, truth_of(built, max_sequences=16))
    assert run.frame("notes").empty


def test_frame_filters() -> None:
    built = cases.build(Case("lstm", 2, True))
    run = recorded(built)
    every = run.frame("timesteps")
    some = run.frame("timesteps", quantity="grad_c", layer=1, direction="reverse")
    want = every[(every["quantity"] == "grad_c") & (every["layer"] == 1) & (every["direction"] == "reverse")]
    assert len(some) == len(want) == cases.TIME
    assert some.reset_index(drop=True)["p50"].equals(want.reset_index(drop=True)["p50"])


def test_columns_are_the_contract_s() -> None:
    built = cases.build(Case("lstm", loss="last"))
    run = recorded(built)
    key, statistics = oracles.KEY, oracles.STATISTICS
    want = {
        "timesteps": [*key, "t", "quantity", *statistics, "se", "sequences", "nonfinite"],
        "reach": [*key, "lag", *statistics, "sequences", "nonfinite"],
        "gates": [*key, "t", "gate", "low", "high", "mean"],
        "units": [*key, "gate", "unit", "low", "high"],
        "weights": [*key, "gate", "spectral_radius", "spectral_norm", "orthogonality"],
        "spectra": [*key, "gate", "index", "real", "imag"],
        "layers": [*key, "horizon", "horizon_censored", "decay", "lyapunov", "residual", "timesteps"],
        "notes": [*key, "reason"],
    }
    assert {name: set(run.frame(name).columns) for name in want} == {
        name: set(columns) for name, columns in want.items()
    }


# -- wide layers: largest singular values and gains are no longer exact


def wide(kind: str) -> Built:
    return cases.build(Case(kind, hidden=72, time=5, lengths=(5, 5), loss="last"))


@pytest.mark.parametrize("kind", ["rnn_tanh", "lstm", "gru"])
def test_wide_largest_singular_values(kind: str) -> None:
    """n > 64: to 1e-2, at up to 32 timesteps and 4 sequences; everything in closed form stays exact."""
    built = wide(kind)
    run = recorded(built)
    want = truth_of(built)["timesteps"].set_index(["quantity", "t"])
    got = run.frame("timesteps").set_index(["quantity", "t"])
    for quantity in ("jacobian", "jacobian_h", "grad_h", "weight_grad"):
        assert got.loc[quantity]["p50"].sort_index().to_numpy() == pytest.approx(
            want.loc[quantity]["p50"].sort_index().to_numpy(), rel=1e-9
        )
    largest = got.loc["jacobian_max"]
    assert list(largest.index.sort_values()) == list(range(5))
    for t, row in largest.iterrows():
        assert row["p90"] == pytest.approx(want.loc[("jacobian_max", t), "p90"], rel=1e-2)


def test_wide_singular_values_are_sampled() -> None:
    """At 32 timesteps, evenly spaced and both ends among them, of 4 sequences; Frobenius sizes everywhere."""
    built = cases.build(Case("rnn_tanh", hidden=66, time=40, lengths=(40,) * 7, loss="last"))
    run = recorded(built)
    rows = run.frame("timesteps", quantity="jacobian_max")
    assert len(rows) == 32 and {0, 39} <= set(rows["t"]) and set(rows["sequences"]) == {4}
    everywhere = run.frame("timesteps", quantity="jacobian")
    assert len(everywhere) == 40 and set(everywhere["sequences"]) == {7}


@pytest.mark.parametrize("kind", ["rnn_tanh", "lstm", "gru"])
def test_wide_gain_within_three_standard_errors(kind: str) -> None:
    """Of the estimates at every t of several networks; eight probes leave a few percent to Student's tails."""
    outside, worst = [], 0.0
    for seed in range(4):
        built = cases.build(Case(kind, hidden=66, time=4, lengths=(4, 4, 4), loss="last"), seed)
        got = recorded(built).frame("timesteps", quantity="gain").set_index("t")
        want = truth_of(built)["timesteps"]
        want = want[want["quantity"] == "gain"].set_index("t")
        assert list(got.index.sort_values()) == list(range(4))
        assert (got["se"].drop(3) > 0).all()
        difference = (got["mean"] - want["mean"]).abs()
        outside += (difference > 3 * got["se"] + 1e-12).tolist()
        worst = max(worst, float((difference / want["mean"]).max()))
    assert sum(outside) <= 1 and len(outside) == 16
    assert worst < 0.3


def test_sixty_four_is_still_exact() -> None:
    built = cases.build(Case("lstm", hidden=32, time=4, lengths=(4, 4), loss="last"))
    oracles.assert_agrees(recorded(built), truth_of(built))


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


# -- more than one step, module and optimizer


def test_steps_are_counted_by_the_optimizer() -> None:
    """Five optimizer steps, every second one recorded, each with the weights that its forward used."""
    built = cases.build(Case("gru", 2))
    optimizer = torch.optim.SGD(built.module.parameters(), lr=0.1)
    expected = []
    with gradscope.attach(built.module, quantities="full", every=2, max_sequences=None) as scope:
        for step in range(5):
            optimizer.zero_grad()
            built.backward()
            if step % 2 == 0:
                expected.append(truth_of(built, step=step))
            optimizer.step()
    oracles.assert_agrees(scope.run, *expected)


@pytest.mark.parametrize("every", [3, lambda step: step in (0, 4)], ids=["interval", "callable"])
def test_every(every: int | Callable[[int], bool]) -> None:
    built = cases.build(Case("rnn_tanh"))
    optimizer = torch.optim.Adam(built.module.parameters())
    with gradscope.attach(built.module, every=every) as scope:
        for _ in range(6):
            optimizer.zero_grad()
            built.backward()
            optimizer.step()
    assert sorted(set(scope.run.frame("timesteps")["step"])) == ([0, 3] if isinstance(every, int) else [0, 4])


def test_defaults() -> None:
    """One line and nothing else: step 0 is recorded, with the core quantities."""
    built = cases.build(Case("gru", 2))
    optimizer = torch.optim.SGD(built.module.parameters(), lr=0.0)
    scope = gradscope.attach(built.module)
    for _ in range(3):
        optimizer.zero_grad()
        built.backward()
        optimizer.step()
    scope.close()
    first = {name: scope.run.frame(name, step=0) for name in oracles.ROWS}
    oracles.assert_agrees(Frames({**first, "spectra": pd.DataFrame()}), truth_of(built), quantities="core")


def test_first_step() -> None:
    built = cases.build(Case("rnn_tanh"))
    optimizer = torch.optim.SGD(built.module.parameters(), lr=0.1)
    with gradscope.attach(built.module, every=5, first_step=9) as scope:
        for _ in range(3):
            built.backward()
            optimizer.step()
    assert set(scope.run.frame("timesteps")["step"]) == {10}


class Tagger(nn.Module):
    """A bidirectional encoder, a decoder inside a Sequential, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(3, 4, bidirectional=True, dtype=torch.float64)
        self.inner = nn.ModuleDict({"decoder": nn.GRU(8, 3, num_layers=2, dtype=torch.float64)})
        self.head = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        encoded, _ = self.encoder(x)
        decoded, _ = self.inner["decoder"](encoded)
        return self.head(decoded)


def test_every_recurrent_layer_at_any_depth() -> None:
    """Each is held to an oracle of its own, the encoder's loss being all that follows it."""
    torch.manual_seed(0)
    model, x = Tagger(), torch.randn(5, 3, 3, dtype=torch.float64)
    with gradscope.attach(model, quantities="full", every=1, max_sequences=None) as scope:
        cases.uneven(model(x)).backward()
    decoder = model.inner["decoder"]
    encoded, _ = model.encoder(x)
    above = oracles.Call(decoder, encoded.detach(), lambda out, h, c: cases.uneven(model.head(out)))
    below = oracles.Call(model.encoder, x, lambda out, h, c: cases.uneven(model.head(decoder(out)[0])))
    oracles.assert_agrees(
        scope.run,
        oracles.frames(oracles.examine(above), module="inner.decoder"),
        oracles.frames(oracles.examine(below), module="encoder"),
    )
    assert sorted(tuple(key) for key in scope.run.layers) == [
        ("encoder", 0, "forward", 0),
        ("encoder", 0, "reverse", 0),
        ("inner.decoder", 0, "forward", 0),
        ("inner.decoder", 1, "forward", 0),
    ]


@pytest.mark.parametrize(
    ("patterns", "modules"),
    [
        ({"include": ["inner.*"]}, {"inner.decoder"}),
        ({"exclude": ["*decoder"]}, {"encoder"}),
        ({"include": ["*"], "exclude": ["enc*"]}, {"inner.decoder"}),
    ],
)
def test_include_and_exclude(patterns: dict, modules: set[str]) -> None:
    model, x = Tagger(), torch.randn(5, 3, 3, dtype=torch.float64)
    with gradscope.attach(model, every=1, **patterns) as scope:
        model(x).sum().backward()
    assert set(scope.run.frame("layers")["module"]) == modules
