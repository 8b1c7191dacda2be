"""Each rule on hand-made records, on both sides of its thresholds."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from diagnose.made import Training, course, key

from gradscope.diagnose import Seen
from gradscope.diagnose.rules.dead import dead_units
from gradscope.diagnose.rules.exploding import exploding_gradient
from gradscope.diagnose.rules.nonfinite import nonfinite_gradient
from gradscope.diagnose.rules.saturated import saturated_gate
from gradscope.diagnose.rules.vanishing import vanishing_gradient

STALLED = course(1.0, 0.95)

# --- vanishing


def vanishing(early: float, late: float, direct: list[float] | None = None, records: int = 8) -> Training:
    made = Training(records=records)
    made.horizon = course(early, late, records)
    made.direct = direct or course(1.0, 0.95, records)
    return made


@pytest.mark.parametrize(
    ("early", "late", "found"),
    [(17, 12, True), (17, 13, False), (18, 12, False), (3, 3, True), (20, 20, False), (3, 20, False), (20, 3, False)],
)
def test_a_horizon_is_short_early_and_late(early: float, late: float, found: bool) -> None:
    assert bool(vanishing_gradient(vanishing(early, late).seen())) is found


@pytest.mark.parametrize(("left", "found"), [(0.34, False), (0.36, True)])
def test_a_short_horizon_is_no_fault_where_the_loss_gradient_falls(left: float, found: bool) -> None:
    assert bool(vanishing_gradient(vanishing(3, 3, course(1.0, left)).seen())) is found


@pytest.mark.parametrize(
    ("early", "late", "found"), [(4, 4, True), (5, 4, False), (4, 5, False), (2, 1, True), (16, 11, False)]
)
def test_where_the_loss_enters_everywhere_only_a_horizon_of_next_to_nothing_is_short(
    early: float, late: float, found: bool
) -> None:
    made = vanishing(early, late)
    made.enters = dict.fromkeys(range(21), 1.0)
    assert bool(vanishing_gradient(made.seen())) is found


@pytest.mark.parametrize(
    ("count", "share", "found"),
    [(9, 1.0, True), (10, 1.0, False), (20, 0.11, False), (20, 0.09, True)],
)
def test_the_loss_enters_everywhere_from_half_of_the_timesteps_on(count: int, share: float, found: bool) -> None:
    made = vanishing(16, 11)
    made.enters = {**dict.fromkeys(range(count), share), 20: 1.0}
    assert bool(vanishing_gradient(made.seen())) is found


def test_what_a_vanishing_finding_says() -> None:
    (finding,) = vanishing_gradient(vanishing(4, 3).seen())
    assert finding.severity == "critical"
    assert finding.layer_key == ("encoder", 0, "forward", 0)
    assert finding.evidence["horizon_early"] == 4
    assert finding.evidence["horizon_late"] == 3
    assert finding.evidence["steps"] == (0, 112)
    assert finding.evidence["loss_enters"] == 1 / 21
    assert "3 of 20 steps" in finding.title
    assert "enters at 5 % of the timesteps" in finding.explanation
    assert finding.remedies[0].code == "torch.nn.init.orthogonal_(model.encoder.weight_hh_l0)"
    assert "torch.nn.LSTM(3, 4)" in finding.remedies[1].code


@pytest.mark.parametrize(("late", "severity"), [(5, "critical"), (6, "warning")])
def test_how_bad_vanishing_is(late: float, severity: str) -> None:
    (finding,) = vanishing_gradient(vanishing(7, late).seen())
    assert finding.severity == severity


def test_two_records_are_a_hint() -> None:
    (finding,) = vanishing_gradient(vanishing(3, 3, records=2).seen())
    assert finding.severity == "info" and "too little to see a trend in; every=N" in finding.explanation
    (finding,) = vanishing_gradient(vanishing(3, 3, records=3).seen())
    assert finding.severity == "critical" and "too little" not in finding.explanation


def test_too_short_sequences_say_nothing() -> None:
    made = vanishing(1, 1)
    made.timesteps = 4
    assert not vanishing_gradient(made.seen())
    made.timesteps = 5
    assert vanishing_gradient(made.seen())


def test_nothing_vanishes_where_it_had_no_way_to_go() -> None:
    made = vanishing(0, 0)
    assert vanishing_gradient(made.seen())
    made.longest_lag = 0  # as in the reverse direction of a layer that is read at `[:, -1]`
    assert not vanishing_gradient(made.seen())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_scale_of_the_loss_does_not_matter(scale: float) -> None:
    assert vanishing_gradient(vanishing(3, 3, [scale * x for x in STALLED]).seen())
    assert not vanishing_gradient(vanishing(3, 3, [scale * x for x in course(1.0, 0.1)]).seen())


def stack(comes_down: float, layers: int = 2) -> Seen:
    """A stack whose gradient vanishes in time in every layer, and of which so much enters the lowest one."""
    parts: list[Training] = []
    for layer in range(layers):
        made = vanishing(3.0, 3.0)
        made.where = key(layer=layer)
        made.direct = [size * (1.0 if layer == layers - 1 else comes_down) for size in made.direct]
        parts.append(made)
    tables = [made.tables() for made in parts]
    whole = ("steps", "clips", "notes")
    joined = {
        name: frame if name in whole else pd.concat([t[name] for t in tables]) for name, frame in tables[0].items()
    }
    known = {"class": "RNN", "mode": "RNN_TANH", "input_size": 3, "hidden_size": 4, "num_layers": layers}
    return Seen(joined, {"encoder": known})


@pytest.mark.parametrize(("comes_down", "bridged"), [(0.09, True), (0.11, False), (2.0, False)])
def test_a_stack_that_the_gradient_does_not_come_down_is_bridged_as_well(comes_down: float, bridged: bool) -> None:
    (finding,) = vanishing_gradient(stack(comes_down))
    codes = [remedy.code for remedy in finding.remedies]
    assert finding.evidence["passed_down"] == pytest.approx(comes_down)
    assert codes[0] == "gradscope.cells.orthogonal_(model.encoder)"
    assert ('skip="residual"' in codes[-2]) is bridged is ("comes down to the lowest" in finding.explanation)
    assert len(codes) == 4 + bridged


def test_one_layer_has_nothing_to_bridge() -> None:
    (finding,) = vanishing_gradient(stack(0.01, layers=1))
    assert "passed_down" not in finding.evidence and not any("skip=" in remedy.code for remedy in finding.remedies)


# --- exploding


def exploding(peak: list[float], radius: list[float]) -> Training:
    made = Training()
    made.peak, made.radius = peak, radius
    return made


@pytest.mark.parametrize(
    ("peak", "radius", "found"),
    [
        (49, 2.1, False),
        (51, 2.1, True),
        (51, 1.9, False),
        (9.9e3, 1.0, False),
        (1.1e4, 1.0, True),
    ],
)
def test_growth_is_a_fault_with_large_weights_or_beyond_measure(peak: float, radius: float, found: bool) -> None:
    assert bool(exploding_gradient(exploding([peak] * 8, [radius] * 8).seen())) is found


def test_weights_that_became_large_by_learning_are_no_fault() -> None:
    assert not exploding_gradient(exploding(course(1, 60), course(1.0, 4.0)).seen())


def test_growth_at_the_very_start_is_seen() -> None:
    assert exploding_gradient(exploding([1e6] + [1.0] * 7, [3.0] * 8).seen())


@pytest.mark.parametrize(("radius", "found"), [(20.0, True), (1.0, False)])
def test_states_that_overflow_at_the_start(radius: float, found: bool) -> None:
    made = exploding([np.nan] * 8, [radius] * 8)
    made.first_nonfinite = 8
    findings = exploding_gradient(made.seen())
    assert bool(findings) is found
    assert all("beyond what numbers can hold" in finding.title for finding in findings)


# --- saturated


def gated(family: str, gate: str, low: float, high: float, mean: float) -> Training:
    made = Training(family)
    made.direct = STALLED
    made.gates[gate] = {"low": low, "high": high, "mean": mean}
    return made


@pytest.mark.parametrize(
    ("family", "gate", "low", "high", "mean", "found"),
    [
        ("lstm", "forget", 1.0, 0.0, 0.019, True),
        ("lstm", "forget", 1.0, 0.0, 0.021, False),
        ("lstm", "forget", 0.94, 0.0, 0.01, False),
        ("lstm", "forget", 0.0, 1.0, 0.9999, False),
        ("lstm", "input", 1.0, 0.0, 0.0009, True),
        ("lstm", "input", 1.0, 0.0, 0.0011, False),
        ("lstm", "output", 1.0, 0.0, 0.0009, True),
        ("lstm", "output", 1.0, 0.0, 0.0011, False),
        ("gru", "update", 1.0, 0.0, 0.019, True),
        ("gru", "update", 1.0, 0.0, 0.021, False),
        ("lstm", "forget", 0.96, 0.0, 0.01, True),
        ("gru", "update", 0.0, 1.0, 0.98, False),
        ("gru", "update", 0.0, 1.0, 0.99991, True),
        ("gru", "update", 0.0, 1.0, 0.99989, False),
        ("gru", "update", 0.0, 1.0, 0.99995, True),
        ("gru", "reset", 1.0, 0.0, 0.0, False),
        ("rnn_tanh", "hidden", 0.45, 0.46, 0.0, True),
        ("rnn_tanh", "hidden", 0.44, 0.45, 0.0, False),
        ("lstm", "hidden", 0.5, 0.5, 0.0, False),
    ],
)
def test_which_gates_are_saturated(family: str, gate: str, low: float, high: float, mean: float, found: bool) -> None:
    findings = saturated_gate(gated(family, gate, low, high, mean).seen())
    assert bool(findings) is found
    assert all(finding.evidence["gate"] == gate for finding in findings)


@pytest.mark.parametrize(("share", "found"), [(0.37, False), (0.38, True)])
def test_all_gates_at_one_limit_or_the_other(share: float, found: bool) -> None:
    made = Training("lstm")
    for gate in ("input", "forget", "output"):
        made.gates[gate] = {"low": share, "high": share, "mean": 0.5}
    findings = saturated_gate(made.seen())
    assert [finding.evidence["gate"] for finding in findings] == ["all gates"] * found


@pytest.mark.parametrize(("left", "found"), [(0.07, False), (0.09, True)])
def test_a_shut_gate_is_no_fault_where_training_goes_well_without_it(left: float, found: bool) -> None:
    made = gated("lstm", "forget", 1.0, 0.0, 0.001)
    made.direct = course(1.0, left)
    assert bool(saturated_gate(made.seen())) is found


def test_a_gate_that_opens_is_no_fault() -> None:
    made = gated("lstm", "forget", 1.0, 0.0, 0.001)
    shut, opened = {"low": 1.0, "high": 0.0, "mean": 0.001}, {"low": 0.2, "high": 0.0, "mean": 0.4}
    made.gates["forget"] = {"by_record": [shut] * 4 + [opened] * 4}
    assert not saturated_gate(made.seen())


def test_what_a_saturated_gate_says() -> None:
    (finding,) = saturated_gate(gated("lstm", "forget", 1.0, 0.0, 0.0003).seen())
    assert "the cell state is forgotten" in finding.explanation
    assert "gradscope.cells.forget_bias_(model.encoder, 2.0)" in finding.remedies[0].code
    assert finding.evidence["from_start"] is True


# --- dead units


@pytest.mark.parametrize(
    ("family", "share", "found"), [("rnn_relu", 0.84, False), ("rnn_relu", 0.86, True), ("rnn_tanh", 1.0, False)]
)
def test_dead_units(family: str, share: float, found: bool) -> None:
    made = Training(family)
    made.dead, made.direct = share, STALLED
    assert bool(dead_units(made.seen())) is found


@pytest.mark.parametrize(("left", "found"), [(0.49, False), (0.51, True)])
def test_dead_units_are_no_fault_where_the_rest_learns(left: float, found: bool) -> None:
    made = Training("rnn_relu")
    made.dead, made.direct = 0.9, course(1.0, left)
    assert bool(dead_units(made.seen())) is found


@pytest.mark.parametrize(("low", "found"), [(0.9985, False), (0.9995, True)])
def test_a_unit_is_dead_that_is_zero_nearly_always(low: float, found: bool) -> None:
    made = Training("rnn_relu")
    made.dead, made.direct, made.low_if_dead = 0.9, STALLED, low
    assert bool(dead_units(made.seen())) is found


# --- not finite


def test_gradients_that_are_not_finite() -> None:
    made = Training()
    made.nonfinite = [int(i >= 40) for i in range(120)]
    (finding,) = nonfinite_gradient(made.seen())
    assert finding.severity == "critical"
    before = ((0, 1.0, math.nan, 1.0), (16, 1.0, math.nan, 1.0), (32, 1.0, math.nan, 1.0))
    told = {"steps": (40, 119), "count": 80, "share": 80 / 120, "lasting": True}
    assert {name: finding.evidence[name] for name in told} == told
    np.testing.assert_equal(finding.evidence["before"], before)
    assert "step 32: 1, nan, 1." in finding.explanation
    assert "from step 40 on" in finding.title


@pytest.mark.parametrize(("bad", "severity"), [(10, "warning"), (11, "critical")])
def test_a_single_accident_is_a_warning(bad: int, severity: str) -> None:
    made = Training()
    made.grad_norm, made.skipped = [1.0] * 1000, [False] * 1000
    made.nonfinite = [int(40 <= i < 40 + bad) for i in range(1000)]
    assert [finding.severity for finding in nonfinite_gradient(made.seen())] == [severity]


def test_steps_that_a_scaler_skips_are_no_fault() -> None:
    made = Training()
    made.nonfinite = made.skipped = [i == 3 for i in range(120)]  # type: ignore[assignment]
    assert not nonfinite_gradient(made.seen())
