"""The rules on what goes in and comes out, on hand-made records."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from diagnose.made import FALLS, STALLS, T, Training, key
from diagnose.test_detached import WITHIN

from gradscope.diagnose import Tables
from gradscope.diagnose.rules.misread import misread_output
from gradscope.diagnose.rules.no_gradient import no_gradient
from gradscope.diagnose.rules.single import single_timestep
from gradscope.diagnose.rules.unscaled import unscaled_input
from gradscope.types.notes import DISABLED, FROZEN, NO_GRADIENT

# --- no gradient


def unheard(share: float = 1.0, module: str = "decoder") -> Training:
    made = Training()
    made.loss = STALLS
    noted = made.records[: round(share * len(made.records))]
    made.notes = [{"step": step, **key(module, -1, "", -1), "reason": NO_GRADIENT} for step in noted]
    return made


@pytest.mark.parametrize(("share", "found"), [(1.0, True), (0.875, False), (0.25, False)])
def test_a_module_that_is_called_and_gets_no_gradient(share: float, found: bool) -> None:
    findings = no_gradient(unheard(share).seen())
    assert bool(findings) is found
    for finding in findings:
        assert finding.severity == "critical" and finding.layer_key == ("decoder", 0, "forward", 0)
        assert "model.decoder" in finding.remedies[0].code


@pytest.mark.parametrize(("loss", "severity"), [(STALLS, "critical"), (FALLS, "info")])
def test_a_module_that_is_called_with_gradients_disabled(loss: list[float], severity: str) -> None:
    """On purpose, perhaps, where a read-out alone is trained and the training learns."""
    made = unheard()
    made.loss = loss
    made.notes = [{**note, "reason": DISABLED} for note in made.notes]
    (finding,) = no_gradient(made.seen())
    assert finding.severity == severity and "no_grad" in finding.explanation + finding.remedies[0].title


@pytest.mark.parametrize(("loss", "severity"), [(STALLS, "warning"), (FALLS, "info")])
def test_a_module_whose_parameters_require_no_gradient(loss: list[float], severity: str) -> None:
    made = unheard()
    made.loss, made.notes = loss, [{**note, "reason": FROZEN} for note in made.notes]
    (finding,) = no_gradient(made.seen())
    assert finding.severity == severity and "requires_grad_(True)" in finding.remedies[0].code


def test_it_is_worth_a_warning_in_a_training_that_learns() -> None:
    made = unheard()
    made.loss = FALLS
    assert [finding.severity for finding in no_gradient(made.seen())] == ["warning"]


def test_a_module_that_gets_gradient_in_other_steps_is_none() -> None:
    assert not no_gradient(unheard(1.0, "encoder").seen())


@pytest.mark.parametrize(
    ("direct", "found"),
    [
        ([0.0] * 8, 0),
        ([1.0] * 8, None),
        ([1.0, 1.0] + [0.0] * 6, 32),
        ([0.0] * 7 + [1.0], None),
        ([1.0] * 7 + [0.0], None),
    ],
)
def test_a_gradient_that_is_exactly_zero(direct: list[float], found: int | None) -> None:
    made = Training()
    made.direct, made.loss = direct, STALLS
    findings = no_gradient(made.seen())
    assert [finding.evidence["since"] for finding in findings] == ([] if found is None else [found])
    for finding in findings:
        first = "sigmoid" if not found else "ReLU"
        assert finding.severity == "critical" and first in finding.remedies[0].title


def test_pieces_that_a_detached_state_cuts_off_are_told_by_that() -> None:
    made = Training()
    made.direct, made.loss = [0.0] * 8, STALLS
    made.notes = [{"step": step, **key(), "reason": WITHIN} for step in made.records]
    assert not no_gradient(made.seen())


def test_gradient_in_another_chain_counts() -> None:
    """The loss may read the last of many calls alone."""
    made = Training()
    made.loss, made.chains = STALLS, 2
    frames = dict(made.tables())
    late = frames["timesteps"].assign(chain=1)
    silent = frames["timesteps"].assign(mean=0.0)
    modules = made.seen().modules
    assert no_gradient(Tables({**frames, "timesteps": silent}, modules))
    assert not no_gradient(Tables({**frames, "timesteps": pd.concat([silent, late])}, modules))


def test_gradients_that_are_small_are_not_zero() -> None:
    made = Training()
    made.direct, made.loss = [1e-30] * 8, STALLS
    assert not no_gradient(made.seen())


# --- single timesteps


def single(chains: int = 1, weight: float = 0.0) -> Training:
    made = Training()
    made.timesteps, made.chains, made.weight_grad, made.loss = 1, chains, weight, STALLS
    made.enters, made.longest_lag = {0: 1.0}, 0
    return made


@pytest.mark.parametrize(("timesteps", "found"), [(1, True), (2, False)])
def test_sequences_of_one_timestep(timesteps: int, found: bool) -> None:
    made = single()
    made.timesteps = timesteps
    assert bool(single_timestep(made.seen())) is found


@pytest.mark.parametrize(("chains", "first"), [(1, "whole sequences"), (24, "pass the state")])
def test_calls_that_do_not_go_on_from_each_other(chains: int, first: str) -> None:
    (finding,) = single_timestep(single(chains).seen())
    assert first in finding.remedies[0].title and finding.evidence["chains"] == chains
    assert finding.severity == "critical"


# --- input out of scale


def saturated(low: float, high: float, family: str = "lstm") -> Training:
    made = Training(family)
    made.loss = STALLS
    for gate in made.gates.values():
        gate.update(low=low, high=high)
    return made


@pytest.mark.parametrize(
    ("low", "high", "family", "found"),
    [
        (0.3, 0.31, "lstm", True),
        (0.3, 0.29, "lstm", False),
        (0.5, 0.4, "gru", True),
        (0.4, 0.4, "rnn_tanh", True),
        (0.95, 0.05, "lstm", False),
        (0.88, 0.12, "lstm", True),
    ],
)
def test_gates_at_both_limits_at_the_first_timestep(low: float, high: float, family: str, found: bool) -> None:
    findings = unscaled_input(saturated(low, high, family).seen())
    assert bool(findings) is found
    for finding in findings:
        assert (finding.severity, finding.evidence["kind"]) == ("warning", "saturates")
        assert finding.remedies[0].code.startswith("x = (x - ")


@pytest.mark.parametrize(("later", "drawn", "found"), [(0.9, True, True), (0.2, True, False), (0.9, False, False)])
def test_input_that_comes_out_of_scale_on_the_way(later: float, drawn: bool, found: bool) -> None:
    """Fresh recurrent weights cannot saturate the gates, as a counter in the input can."""
    made = saturated(0.05, 0.05)
    made = made.as_drawn() if drawn else made
    made.norm = made.norm if drawn else [2.0] * 8
    frames = dict(made.tables())
    after = [frames["gates"].assign(t=t, low=later / 2, high=later / 2) for t in range(1, 9)]
    tables = Tables({**frames, "gates": pd.concat([frames["gates"], *after])}, made.seen().modules)
    assert [finding.evidence["kind"] for finding in unscaled_input(tables)] == (["grows"] if found else [])


def test_input_out_of_scale_is_a_fault_even_in_a_training_that_learns() -> None:
    made = saturated(0.3, 0.4)
    made.loss = FALLS
    (finding,) = unscaled_input(made.seen())
    assert finding.severity == "warning" and "It learns in spite of this" in finding.explanation


def test_it_is_not_the_input_where_weights_are_large_themselves_or_a_state_was_there() -> None:
    made = saturated(0.5, 0.4)
    made.radius = [2.1] * 8
    assert not unscaled_input(made.seen())


@pytest.mark.parametrize(("p90", "found"), [(0.5024, True), (0.5026, False)])
def test_states_that_are_the_same_whatever_comes_in(p90: float, found: bool) -> None:
    made = Training()
    made.loss, made.state = STALLS, (0.5, 0.5, p90)
    findings = unscaled_input(made.seen())
    assert bool(findings) is found
    assert all(finding.evidence["kind"] == "invisible" for finding in findings)


@pytest.mark.parametrize(("size", "found"), [(17.0, False), (19.0, True)])
def test_relu_states_that_are_huge_at_once(size: float, found: bool) -> None:
    made = Training("rnn_relu")
    made.loss, made.state = STALLS, (size / 2, size, size * 2)
    assert bool(unscaled_input(made.seen())) is found


# --- answers read in the wrong place


def form(made: Training) -> list[str]:
    return [finding.evidence["form"] for finding in misread_output(made.seen())]


def stalled(**changes: Any) -> Training:
    made = Training()
    made.loss = STALLS
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_an_answer_read_at_the_end_is_read_right() -> None:
    assert not form(stalled())


@pytest.mark.parametrize(
    ("lag", "enters", "found"),
    [
        (0, {T - 1: 1.0}, ["start"]),
        (2, {T - 1: 1.0}, ["start"]),
        (3, {T - 1: 1.0}, []),
        (0, dict.fromkeys(range(T), 1.0), []),
    ],
)
def test_a_reverse_state_read_after_one_token(lag: int, enters: dict[int, float], found: list[str]) -> None:
    made = stalled(longest_lag=lag, enters=enters, where=key(direction="reverse"))
    assert form(made) == found
    for finding in misread_output(made.seen()):
        assert finding.severity == "warning" and "torch.cat([h_n[-2], h_n[-1]], -1)" in finding.remedies[0].code


def test_a_reverse_state_that_is_of_little_use_is_a_fact_where_the_loss_falls() -> None:
    made = stalled(longest_lag=0, where=key(direction="reverse"), loss=FALLS)
    assert [finding.severity for finding in misread_output(made.seen())] == ["info"]


@pytest.mark.parametrize(
    "changes", [{"longest_lag": 0}, {"enters": dict.fromkeys(range(T), 1.0), "some_sequences": 0.1}], ids=str
)
def test_what_nobody_means_is_wrong_also_where_the_loss_falls(changes: dict[str, Any]) -> None:
    made = stalled(loss=FALLS, **changes)
    assert [finding.severity for finding in misread_output(made.seen())] == ["warning"]


@pytest.mark.parametrize(("some", "found"), [(0.1, ["batch"]), (1.0, [])])
def test_the_batch_taken_for_time(some: float, found: list[str]) -> None:
    made = stalled(enters=dict.fromkeys(range(T), 1.0), some_sequences=some)
    assert form(made) == found
    assert all("batch_first" in finding.remedies[0].code for finding in misread_output(made.seen()))


@pytest.mark.parametrize(("there", "found"), [(4, ["ended"]), (5, [])])
def test_an_answer_read_where_most_sequences_have_ended(there: int, found: list[str]) -> None:
    assert form(stalled(ended={T - 1: there})) == found


@pytest.mark.parametrize(
    ("constant_from", "horizon", "loss", "found"),
    [
        (11, 5.0, STALLS, ["padding"]),
        (13, 5.0, STALLS, []),
        (11, 20.0, STALLS, []),
        (11, 5.0, FALLS, []),
    ],
)
def test_an_answer_read_from_padding(constant_from: int, horizon: float, loss: list[float], found: list[str]) -> None:
    made = stalled(constant_from=constant_from, horizon=[horizon] * 8, loss=loss)
    assert form(made) == found
    for finding in misread_output(made.seen()):
        assert "pack_padded_sequence" in finding.remedies[0].code


def test_batches_that_are_padded_to_their_longest_end_elsewhere_each_time() -> None:
    made = stalled(constant_from=8, horizon=[5.0] * 8, shorter=[0, 1, 2, 3, 0, 1, 2, 3])
    assert form(made) == ["padding"]


@pytest.mark.parametrize(("constant_from", "found"), [(11, ["padding"]), (T, [])])
def test_a_stack_that_brings_up_next_to_nothing_has_no_constant_input(constant_from: int, found: list[str]) -> None:
    """The lowest layer sees the input itself."""
    upper = stalled(constant_from=11, horizon=[5.0] * 8, where=key(layer=1))
    lower = stalled(constant_from=constant_from, horizon=[5.0] * 8)
    whole, more = upper.tables(), lower.tables()
    each = ("steps", "clips", "notes")
    tables = {name: frame if name in each else pd.concat([frame, more[name]]) for name, frame in whole.items()}
    assert [finding.evidence["form"] for finding in misread_output(Tables(tables))] == found


def test_weights_too_small_to_remember_make_the_state_constant_as_well() -> None:
    assert not form(stalled(constant_from=11, horizon=[3.0] * 8, radius=[0.1] * 8))
