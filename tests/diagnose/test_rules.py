"""Growth, saturation and dead units on hand-made records, on both sides of their thresholds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from diagnose.made import FALLS, STALLS, Training, course, key

from gradscope.diagnose import Tables
from gradscope.diagnose.rules.dead import dead_units
from gradscope.diagnose.rules.exploding import exploding_gradient
from gradscope.diagnose.rules.saturated import saturated_gate

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


@pytest.mark.parametrize(
    ("first", "early", "loss", "severity"),
    [
        (1e5, 0.9e3, FALLS, "info"),
        (1e5, 1.1e3, FALLS, "warning"),
        (0.9e4, 1.1e4, FALLS, "info"),
        (1e5, 0.9e3, STALLS, "critical"),
        (1e5, 1.1e3, STALLS, "critical"),
    ],
)
def test_growth_that_is_got_over_at_once_is_no_fault_in_a_training_that_learns(
    first: float, early: float, loss: list[float], severity: str
) -> None:
    """Growth that begins in the first record and lasts for most of the first quarter of the steps is one."""
    made = Training(records=16)
    made.peak, made.radius, made.loss = [first] + [early] * 5 + [1.0] * 10, [3.0] * 16, loss
    (finding,) = exploding_gradient(made.seen())
    assert finding.severity == severity and "orthogonal" in finding.remedies[0].code
    assert ("the initialisation causes it" in finding.explanation) is (first == 1e5 and early == 1.1e3)


def test_of_two_directions_the_one_whose_growth_lasts_is_named() -> None:
    """Even if the other begins with more."""
    made, other = Training(records=16), Training(records=16, where=key(direction="reverse"))
    made.peak, other.peak = [1e5] + [1.1e3] * 15, [1e6] + [1.0] * 15
    both = {name: pd.concat([frame, other.tables()[name]]) for name, frame in made.tables().items()}
    both["steps"] = made.tables()["steps"]
    (finding,) = exploding_gradient(Tables(both, made.seen().modules))
    assert finding.severity == "warning" and finding.layer_key.direction == "forward"  # type: ignore[union-attr]


def test_growth_that_came_with_training_is_clipped_first() -> None:
    (finding,) = exploding_gradient(exploding(course(1, 1e5), [1.0] * 8).seen())
    assert "clip_grad_norm_" in finding.remedies[0].code


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
    assert all("beyond the range of floating-point numbers" in finding.title for finding in findings)


# --- saturated


def gated(family: str, gate: str, low: float, high: float, mean: float) -> Training:
    made = Training(family)
    made.loss = STALLS
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
        ("lstm", "output", 1.0, 0.0, 0.011, False),
        ("gru", "update", 1.0, 0.0, 0.019, True),
        ("gru", "update", 1.0, 0.0, 0.021, False),
        ("lstm", "forget", 0.96, 0.0, 0.01, True),
        ("gru", "update", 0.0, 1.0, 0.98, False),
        ("gru", "update", 0.0, 1.0, 0.9977, True),  # 5 % of the state in 21 timesteps
        ("gru", "update", 0.0, 1.0, 0.9975, False),
        ("gru", "update", 0.0, 1.0, 0.99995, True),
        ("gru", "reset", 1.0, 0.0, 0.0, False),
        ("rnn_tanh", "hidden", 0.45, 0.46, 0.0, True),
        ("rnn_tanh", "hidden", 0.44, 0.45, 0.0, False),
        ("lstm", "hidden", 0.5, 0.5, 0.0, False),
    ],
)
def test_which_gates_are_saturated(family: str, gate: str, low: float, high: float, mean: float, found: bool) -> None:
    made = gated(family, gate, low, high, mean)
    findings = saturated_gate(made.seen())
    assert bool(findings) is found
    assert all(finding.evidence["gate"] == gate for finding in findings)


@pytest.mark.parametrize(("share", "found"), [(0.37, False), (0.38, True)])
def test_all_gates_at_one_limit_or_the_other(share: float, found: bool) -> None:
    made = Training("lstm")
    for gate in ("input", "forget", "output"):
        made.gates[gate] = {"low": share, "high": share, "mean": 0.5}
    findings = saturated_gate(made.seen())
    assert [finding.evidence["gate"] for finding in findings] == ["all gates"] * found


@pytest.mark.parametrize(("gate", "mean", "severity"), [("forget", 0.001, "warning"), ("input", 1e-4, "critical")])
def test_in_a_training_that_learns_a_gate_that_came_to_its_limits_is_no_more_than_a_fact(
    gate: str, mean: float, severity: str
) -> None:
    made = gated("lstm", gate, 1.0, 0.0, mean)
    assert [finding.severity for finding in saturated_gate(made.seen())] == [severity]
    made.loss = FALLS
    (finding,) = saturated_gate(made.seen())
    assert finding.severity == "warning" and "The first record shows this already" in finding.explanation
    free, shut = {"low": 0.1, "high": 0.0, "mean": 0.4}, made.gates[gate]
    later = Training("lstm", records=20)
    later.loss = FALLS
    later.gates[gate] = {"by_record": [free] + [shut] * 19}
    (finding,) = saturated_gate(later.seen())
    assert finding.severity == "info" and "Look here only if it stops falling too early" in finding.explanation


def test_what_a_network_saturates_while_its_loss_falls_far_is_a_fact() -> None:
    made = Training("lstm", records=20)
    free, shut = {"low": 0.1, "high": 0.0, "mean": 0.4}, {"low": 1.0, "high": 0.0, "mean": 0.001}
    made.gates["forget"] = {"by_record": [free] + [shut] * 19}
    made.loss = [10.0, 5.0, 2.0] + [1.0] * 117
    (finding,) = saturated_gate(made.seen())
    assert (finding.severity, finding.evidence["from_start"]) == ("info", False)
    assert "learning rate" in finding.remedies[0].title


@pytest.mark.parametrize(
    ("family", "gate", "side", "mean"),
    [("lstm", "forget", "low", 1e-3), ("lstm", "output", "low", 9e-3), ("gru", "update", "high", 0.999)],
)
@pytest.mark.parametrize(("shut", "until"), [(1, None), (2, None), (3, 32), (6, 80)])
@pytest.mark.parametrize("loss", [FALLS, STALLS])
def test_a_gate_that_is_shut_at_first_costs_the_steps_until_it_opens(
    family: str, gate: str, side: str, mean: float, shut: int, until: int | None, loss: list[float]
) -> None:
    """For a moment at the start it costs nothing: it is a fault if it lasts for most of the first quarter."""
    made = Training(family, records=13)
    at_limit = {"low": 0.0, "high": 0.0, "mean": mean} | {side: 1.0}
    made.gates[gate] = {"by_record": [at_limit] * shut + [made.gates[gate]] * (13 - shut)}
    made.loss = loss
    findings = saturated_gate(made.seen())
    assert [(finding.severity, finding.evidence["until"]) for finding in findings] == [("warning", until)] * bool(until)
    for finding in findings:
        assert finding.explanation.startswith(f"Until step {until} of 192") and finding.evidence["from_start"] is True
        assert finding.remedies[0].code.startswith("model.encoder.reset_parameters()")


@pytest.mark.parametrize(
    ("first", "shut", "late", "until"),
    [(1.0, 6, 0.8, 80), (1.0, 1, 0.8, None), (0.97, 6, 0.8, None), (1.0, 6, 0.95, -1)],
    ids=["leaves its limits", "leaves them at once", "large input", "stays"],
)
@pytest.mark.parametrize("loss", [FALLS, STALLS])
def test_a_state_that_begins_at_its_limits(
    first: float, shut: int, late: float, until: int | None, loss: list[float]
) -> None:
    made = Training("rnn_tanh", records=13)
    shares = [first] * shut + [late] * (13 - shut)
    made.gates["hidden"] = {"by_record": [{"low": x / 2, "high": x / 2, "mean": 0.0} for x in shares]}
    made.loss = loss
    found = [(finding.severity, finding.evidence.get("until", -1)) for finding in saturated_gate(made.seen())]
    assert found == ([("warning", until)] if until is not None else [])


def test_a_gate_that_opens_and_was_not_shut_at_first_is_no_fault() -> None:
    made = gated("lstm", "forget", 1.0, 0.0, 0.001)
    shut, opened = {"low": 1.0, "high": 0.0, "mean": 0.001}, {"low": 0.2, "high": 0.0, "mean": 0.4}
    made.gates["forget"] = {"by_record": [opened] + [shut] * 3 + [opened] * 4}
    assert not saturated_gate(made.seen())


def test_a_gate_that_shows_nothing_needs_no_longer_memory() -> None:
    (finding,) = saturated_gate(gated("lstm", "output", 1.0, 0.0, 0.0003).seen())
    assert "gradscope.cells.forget_bias_(model.encoder, 2.0)" in finding.remedies[0].code


def test_what_a_saturated_gate_says() -> None:
    (finding,) = saturated_gate(gated("lstm", "forget", 1.0, 0.0, 0.0003).seen())
    assert "the layer forgets its cell state" in finding.explanation
    assert "gradscope.cells.chrono_(model.encoder, t_max=21)" in finding.remedies[0].code  # it forgot everything
    assert "LayerNormLSTMCell" in finding.remedies[1].code
    assert finding.evidence["from_start"] is True


# --- dead units


@pytest.mark.parametrize(
    ("family", "share", "found"), [("rnn_relu", 0.84, False), ("rnn_relu", 0.86, True), ("rnn_tanh", 1.0, False)]
)
def test_dead_units(family: str, share: float, found: bool) -> None:
    made = Training(family)
    made.dead, made.loss = share, STALLS
    assert bool(dead_units(made.seen())) is found


@pytest.mark.parametrize(("family", "size", "found"), [("", 0.0, True), ("", 1e-9, False), ("gru", 0.0, False)])
def test_a_cell_of_ones_own_whose_state_is_zero_is_dead(family: str, size: float, found: bool) -> None:
    """gradscope does not know that it has a ReLU in it. A GRU's state stays at zero if its update gate keeps it."""
    made = Training(family)
    made.state, made.loss = (0.0, 0.0, size), STALLS
    findings = dead_units(made.seen())
    assert [finding.severity for finding in findings] == (["critical"] if found else [])
    assert all("torch.nn.LSTMCell" in finding.remedies[0].code for finding in findings)


@pytest.mark.parametrize(("loss", "severity"), [(FALLS, "info"), (STALLS, "warning")])
def test_dead_units_are_no_fault_where_the_rest_learns(loss: list[float], severity: str) -> None:
    made = Training("rnn_relu")
    made.dead, made.loss = 0.9, loss
    assert [finding.severity for finding in dead_units(made.seen())] == [severity]


@pytest.mark.parametrize(("loss", "severity"), [(FALLS, "warning"), (STALLS, "critical")])
def test_where_all_units_are_dead_the_loss_falls_without_them(loss: list[float], severity: str) -> None:
    made = Training("rnn_relu")
    made.dead, made.loss = 1.0, loss
    assert [finding.severity for finding in dead_units(made.seen())] == [severity]


@pytest.mark.parametrize(("low", "found"), [(0.9985, False), (0.9995, True)])
def test_a_unit_is_dead_that_is_zero_nearly_always(low: float, found: bool) -> None:
    made = Training("rnn_relu")
    made.dead, made.loss, made.low_if_dead = 0.9, STALLS, low
    assert bool(dead_units(made.seen())) is found
