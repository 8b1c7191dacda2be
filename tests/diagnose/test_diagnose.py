"""From records to findings: their order, whom they name, and trainings that are watched as they happen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pytest
import torch
from diagnose.made import FALLS, STALLS, Training
from torch import nn

import gradscope
from gradscope.diagnose import RULES, diagnose, root_causes_first
from gradscope.diagnose.frames import RECORDS, read_tables
from gradscope.diagnose.order import CAUSES, without_consequences
from gradscope.diagnose.words import number, parameter, percent, typed
from gradscope.types import Finding, LayerKey


class Recorded:
    """Frames as a run would give them."""

    def __init__(self, made: Training) -> None:
        self.tables: Mapping[str, pd.DataFrame] = made.tables()
        self.meta: dict[str, Any] = {"layers": {"encoder": {"mode": made.family.upper()}}}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def frame(self, table: str, /, **filters: Any) -> pd.DataFrame:
        self.asked.append((table, filters))
        frame = self.tables[table]
        for column, wanted in filters.items():
            frame = frame[frame[column].isin(wanted if isinstance(wanted, list) else [wanted])]
        return frame


def codes(made: Training) -> list[str]:
    return [finding.code for finding in diagnose(Recorded(made))]


@pytest.mark.parametrize("family", ["rnn_tanh", "rnn_relu", "lstm", "gru"])
def test_a_sound_training_is_healthy_and_nothing_else(family: str) -> None:
    (finding,) = diagnose(Recorded(Training(family)))
    assert (finding.code, finding.severity, finding.remedies) == ("healthy", "info", ())


def test_what_vanishes_because_a_gate_is_shut_comes_after_it() -> None:
    made = Training("lstm")
    made.loss, made.horizon = STALLS, [2.0] * 8
    made.gates["forget"] = {"low": 1.0, "high": 0.0, "mean": 0.001}
    assert codes(made) == ["saturated_gate", "vanishing_gradient"]


def test_weights_that_overflow_come_before_the_nan() -> None:
    made = Training("rnn_relu")
    made.radius, made.first_nonfinite, made.nonfinite = [20.0] * 8, 8, [1] * 120
    made.loss = [math.nan] * 120
    assert codes(made) == ["exploding_gradient", "nonfinite_gradient"]


def test_nan_in_a_training_that_was_sound_is_a_cause_of_its_own() -> None:
    nan = Finding("nonfinite_gradient", "critical", None, "", "", {})
    shut = Finding("saturated_gate", "critical", None, "", "", {"from_start": True})
    assert root_causes_first([shut, nan]) == [nan, shut]


def test_gates_that_spikes_have_saturated_come_after_them() -> None:
    spikes = Finding("missing_clipping", "warning", None, "", "", {})
    driven = Finding("saturated_gate", "critical", None, "", "", {"from_start": False})
    shut = Finding("saturated_gate", "critical", None, "", "", {"from_start": True})
    assert root_causes_first([driven, spikes]) == [spikes, driven]
    assert root_causes_first([spikes, shut]) == [shut, spikes]


def test_parameters_that_nobody_steps_come_before_what_their_layer_does_to_others() -> None:
    missing = Finding("unoptimized_parameters", "warning", None, "", "", {})
    shut = Finding("saturated_gate", "critical", None, "", "", {"from_start": True})
    assert root_causes_first([shut, missing]) == [missing, shut]


@pytest.mark.parametrize("from_start", [True, False])
def test_gradients_that_explode_late_in_a_training_that_diverged_are_what_comes_of_it(from_start: bool) -> None:
    diverged = Finding("diverged", "critical", None, "", "", {})
    explodes = Finding("exploding_gradient", "critical", None, "", "", {"from_start": from_start})
    ordered = [explodes, diverged] if from_start else [diverged, explodes]
    assert root_causes_first([diverged, explodes]) == root_causes_first([explodes, diverged]) == ordered


@pytest.mark.parametrize("module", ["encoder", "decoder"])
def test_zero_that_units_of_the_same_module_make_is_what_comes_of_them(module: str) -> None:
    evidence = {"since": 0, "steps": (0, 9)}
    zero = Finding("no_gradient", "warning", LayerKey("encoder", 0, "forward", 0), "", "", evidence)
    dead = Finding("dead_units", "critical", LayerKey(module, 1, "forward", 0), "", "", {})
    assert root_causes_first([zero, dead]) == ([dead, zero] if module == "encoder" else [zero, dead])


@pytest.mark.parametrize("since", [0, 4])
@pytest.mark.parametrize("code", ["diverged", "missing_clipping"])
def test_gradient_that_ends_in_a_training_that_diverged_is_what_comes_of_it(since: int, code: str) -> None:
    thrown = Finding(code, "critical", None, "", "", {})
    zero = Finding("no_gradient", "warning", None, "", "", {"since": since, "steps": (0, 9)})
    assert root_causes_first([zero, thrown]) == ([thrown, zero] if since else [zero, thrown])


@pytest.mark.parametrize(("fault", "fact"), [("exploding_gradient", "excessive_clipping")])
def test_a_mere_fact_is_left_out_beside_the_fault_behind_it(fault: str, fact: str) -> None:
    because, info, warning = (
        Finding(code, severity, None, "", "", {})
        for code, severity in ((fault, "warning"), (fact, "info"), (fact, "warning"))
    )
    assert without_consequences([because, info, warning]) == [because, warning]
    assert without_consequences([info]) == [info]


def test_there_is_a_rule_for_every_code() -> None:
    assert [rule.__name__ for rule in RULES] == list(CAUSES)


def test_nothing_recorded_is_no_failure() -> None:
    made = Training(records=0)
    made.grad_norm, made.nonfinite, made.skipped = [], [], []
    (finding,) = diagnose(Recorded(made))
    assert (finding.code, finding.title) == ("too_few_records", "no step is recorded")


@pytest.mark.parametrize(("records", "code"), [(1, "too_few_records"), (2, "too_few_records"), (3, "healthy")])
def test_a_verdict_rests_on_three_records(records: int, code: str) -> None:
    made = Training(records=records)
    made.horizon, made.loss = [2.0] * records, STALLS
    made.radius = [1.0] * records
    assert [finding.code for finding in diagnose(Recorded(made)) if finding.code != "vanishing_gradient"] in (
        [code],
        [],
    )
    made.horizon, made.loss = [20.0] * records, FALLS
    assert codes(made) == [code]


def test_what_another_finding_explains_is_left_out() -> None:
    made = Training("lstm")
    made.loss, made.update = STALLS, [1e-6] * 8
    assert codes(made) == ["small_updates"]
    made.gates["forget"] = {"low": 1.0, "high": 0.0, "mean": 0.001}
    assert codes(made) == ["saturated_gate"]


def test_facts_come_behind_what_is_wrong() -> None:
    fact = Finding("no_gradient", "info", None, "", "", {})
    wrong = Finding("small_updates", "warning", None, "", "", {})
    assert root_causes_first([fact, wrong]) == [wrong, fact]


def test_healthy_says_what_has_been_ruled_out_in_numbers() -> None:
    (finding,) = diagnose(Recorded(Training("lstm")))
    for told in (
        "has fallen by 98 %, from 0.842 to 0.0128",
        "all 20 steps",
        "Gates are free: at most 0 %",
        "norms are even: the largest is 1 times",
        "moves the recurrent weights by 0.1 %",
    ):
        assert told in finding.explanation, told


@pytest.mark.parametrize(
    ("update", "first"), [(1e-3, "one batch by heart"), (0.1, "lower the learning"), (1e-6, "raise")]
)
def test_healthy_says_what_to_look_at_next_where_the_loss_stalls_all_the_same(update: float, first: str) -> None:
    made = Training("gru")
    made.loss, made.update, made.grad_norm = STALLS, [update] * 8, [1.0] * 40
    made.nonfinite = made.skipped = [0] * 40  # type: ignore[assignment]
    (finding,) = diagnose(Recorded(made))
    assert finding.code == "healthy" and "stalls" in finding.title
    assert first in finding.remedies[0].title
    assert any("labels" in remedy.title for remedy in finding.remedies)


def test_a_long_run_is_read_in_part() -> None:
    recorded = Recorded(Training(records=500))
    seen = read_tables(recorded)
    assert RECORDS // 2 <= len(seen.records) <= RECORDS
    assert (seen.records[0], seen.records[-1]) == (0, 16 * 499)
    filters = dict(recorded.asked)["timesteps"]
    assert filters["step"] == seen.records
    assert "jacobian_h" not in filters["quantity"]


def test_long_sequences_are_read_in_fewer_steps() -> None:
    made = Training(records=100)
    made.timesteps = 20_000
    assert 8 <= len(read_tables(Recorded(made)).records) <= 16


@pytest.mark.parametrize(
    ("module", "expression"),
    [
        ("", "model"),
        ("encoder", "model.encoder"),
        ("layers.0.rnn", "model.layers[0].rnn"),
        ("0", "model[0]"),
        ("a-b", "model.get_submodule('a-b')"),
    ],
)
def test_modules_are_called_as_the_user_types_them(module: str, expression: str) -> None:
    assert typed(module) == expression


def test_the_expressions_that_are_typed_give_the_parameters() -> None:
    model = nn.ModuleDict(
        {"layers": nn.ModuleList([nn.GRU(2, 3, num_layers=2, bidirectional=True), nn.LSTMCell(2, 3)])}
    )
    fused, cell = LayerKey("layers.0", 1, "reverse", 0), LayerKey("layers.1", 0, "forward", 0)
    modules = {"layers.0": {"class": "GRU"}, "layers.1": {"class": "LSTMCell"}}
    scope = {"model": nn.Module()}
    scope["model"].layers = model["layers"]  # type: ignore[assignment]
    assert eval(parameter(fused, "weight_hh", modules), scope) is model["layers"][0].weight_hh_l1_reverse  # type: ignore[index]
    assert eval(parameter(cell, "bias_ih", modules), scope) is model["layers"][1].bias_ih  # type: ignore[index]


@pytest.mark.parametrize(
    ("value", "text"), [(0.123456, "0.12"), (1234.5, "1.23e+03"), (float("nan"), "nan"), (12, "12")]
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("share", "text"), [(0.0, "0 %"), (0.004, "0.4 %"), (0.523, "52 %"), (1.0, "100 %")])
def test_shares_for_people(share: float, text: str) -> None:
    assert percent(share) == text


# --- trainings that are watched


def watched(model: nn.Module, steps: int, window: int = 16) -> gradscope.Run:
    """Plain training on noise, in windows between which the state is detached."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    with gradscope.attach(model, every=1, max_sequences=4) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            loss, state = torch.zeros(()), None
            for part in torch.randn(16, 4, 3).split(window):
                output, state = model(part, state)
                state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
                loss = loss + output[-1].square().sum()
            loss.backward()
            optimizer.step()
        return scope.run


@torch.no_grad()
def filled(model: nn.LSTM, gate: int, value: float) -> nn.LSTM:
    model.bias_ih_l0.chunk(4)[gate].fill_(value)
    return model


def test_a_shut_forget_gate_is_named_and_its_remedy_opens_it() -> None:
    model = filled(nn.LSTM(3, 8), 1, -9.0)
    first = diagnose(watched(model, 6))[0]
    assert (first.code, first.evidence["gate"], first.layer_key) == (
        "saturated_gate",
        "forget",
        LayerKey("", 0, "forward", 0),
    )
    apply = first.remedies[0].apply
    assert apply is not None
    apply(model)
    biases = (model.bias_ih_l0 + model.bias_hh_l0).chunk(4)[1]  # for memories of up to 16 timesteps
    assert 0 <= biases.min() < biases.max() <= math.log(15)


def test_small_recurrent_weights_vanish_and_large_ones_explode() -> None:
    small, large = nn.RNN(3, 8), nn.RNN(3, 8, nonlinearity="relu")
    with torch.no_grad():
        small.weight_hh_l0.mul_(0.05)
        nn.init.eye_(large.weight_hh_l0).mul_(4.0)
    assert diagnose(watched(small, 4))[0].code == "vanishing_gradient"
    assert diagnose(watched(large, 4))[0].code == "exploding_gradient"


def test_every_remedy_can_be_compiled() -> None:
    model = filled(nn.LSTM(3, 8), 1, -9.0)
    for finding in diagnose(watched(model, 4)):
        for remedy in finding.remedies:
            compile(remedy.code, "<remedy>", "exec")


def test_a_state_that_is_detached_within_the_step() -> None:
    found = diagnose(watched(nn.GRU(3, 8), 4, window=4))
    assert found[0].code == "detached_state"


def test_where_the_loss_enters_at_the_start_of_a_recurrence_nothing_vanishes() -> None:
    """The last output of a bidirectional layer holds the reverse direction's first state: there is no way back."""
    rnn = torch.nn.LSTM(2, 4, bidirectional=True)
    optimizer = torch.optim.SGD(rnn.parameters(), 1e-9)
    with gradscope.attach(rnn, every=1) as scope:
        for _ in range(4):
            optimizer.zero_grad()
            rnn(torch.randn(30, 3, 2))[0][-1].sum().backward()
            optimizer.step()
    found = [f.layer_key for f in scope.run.findings() if f.code == "vanishing_gradient"]
    assert [key.direction for key in found if key] == ["forward"]
