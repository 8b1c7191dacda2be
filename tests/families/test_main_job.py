"""The numbers of a recorded call, held to the oracle over the case table."""

from __future__ import annotations

import random

import cases
import oracles
import pytest
import torch
from cases import Built, Case
from families.jobs import recorded, truth_of


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
        "weights": [*key, "gate", "spectral_radius", "spectral_norm", "orthogonality", "update"],
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
