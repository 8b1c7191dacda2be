"""Remedies as they are typed: in the names of the user's model, and only where they can be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diagnose.made import STALLS, Training
from torch import nn

import gradscope
from gradscope.diagnose import Tables
from gradscope.diagnose.rules.exploding import exploding_gradient
from gradscope.diagnose.rules.saturated import saturated_gate
from gradscope.diagnose.rules.vanishing import vanishing_gradient
from gradscope.types import Finding
from gradscope.whatif.trials import candidates


def seen(made: Training, known: dict[str, Any]) -> Tables:
    return Tables(made.tables(), {"encoder": known} if known else {})


def faulty(family: str) -> dict[str, Training]:
    shut, small, large = Training(family), Training(family), Training(family)
    for gate in shut.gates.values():
        gate.update(low=0.5, high=0.5)
    shut.loss = small.loss = STALLS
    small.horizon, large.peak = [3.0] * 8, [1e5] * 8
    return {"saturated_gate": shut, "vanishing_gradient": small, "exploding_gradient": large}


RULES = {rule.__name__: rule for rule in (saturated_gate, vanishing_gradient, exploding_gradient)}


def found(code: str, family: str, known: dict[str, Any]) -> Finding:
    (finding,) = RULES[code](seen(faulty(family)[code], known))
    return finding


MODULES = {
    "rnn_tanh": nn.RNN(3, 4, num_layers=2, bias=False, batch_first=True),
    "rnn_relu": nn.RNN(3, 4, nonlinearity="relu", bidirectional=True),
    "lstm": nn.LSTM(3, 4, dropout=0.0, num_layers=2),
    "gru": nn.GRUCell(3, 4),
}


class Model(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder


def known(module: nn.Module) -> dict[str, Any]:
    with gradscope.attach(Model(module)) as scope:
        return scope.run.meta["layers"]["encoder"]


@pytest.mark.parametrize(
    ("family", "code"), [(f, c) for f in MODULES for c in RULES if (f, c) != ("rnn_relu", "saturated_gate")]
)
def test_what_changes_the_model_can_be_typed(family: str, code: str) -> None:
    finding = found(code, family, known(MODULES[family]))
    changing = [remedy for remedy in finding.remedies if remedy.apply is not None]
    assert changing and (changing[0] is finding.remedies[0] or finding.severity == "info")
    for remedy in changing:
        model = Model({"gru": nn.GRUCell}.get(family, type(MODULES[family]))(3, 4))
        exec(remedy.code, {"torch": torch, "gradscope": gradscope, "model": model})


@pytest.mark.parametrize("family", MODULES)
def test_what_is_put_in_a_modules_place_is_the_same_typed_or_applied(family: str) -> None:
    module = MODULES[family].double().eval()
    shape = torch.ones(5, 3) if family == "gru" else torch.ones(5, 2, 3)
    swaps = [
        c.remedy for c in candidates(seen(Training(family), known(module)), []) if "model.encoder =" in c.remedy.code
    ]
    assert len(swaps) == {"rnn_tanh": 4, "rnn_relu": 3, "lstm": 2, "gru": 1}[family]  # connections around stacks alone
    for remedy in swaps:
        names: dict[str, Any] = {"torch": torch, "gradscope": gradscope, "model": Model(module)}
        torch.manual_seed(2)
        exec(remedy.code, names)
        torch.manual_seed(2)
        assert remedy.apply is not None
        made = remedy.apply(module)
        assert made is not None and not made.training
        assert repr(made) == repr(names["model"].encoder)
        typed, applied = names["model"].encoder.eval()(shape), made(shape.double())
        assert applied[0].dtype == torch.float64
        torch.testing.assert_close(applied[0].float(), typed[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("code", RULES)
@pytest.mark.parametrize("what", [{}, {"class": "MyCell", "input_size": 3, "hidden_size": 4}])
def test_of_a_module_that_nobody_knows_nothing_is_said_that_it_may_not_have(what: dict[str, Any], code: str) -> None:
    for remedy in found(code, "gru", what).remedies:
        assert "encoder." not in remedy.code and "(model.encoder" not in remedy.code
    assert candidates(seen(Training("gru"), what), []) == []


def test_connections_go_around_the_layers_of_stacks_and_of_nothing_else() -> None:
    def offered(family: str, module: nn.Module) -> list[str]:
        return [
            c.remedy.code for c in candidates(seen(Training(family), known(module)), []) if "skip=" in c.remedy.code
        ]

    assert not offered("lstm", nn.LSTM(3, 4)) and not offered("gru", nn.GRUCell(3, 4))
    assert not offered("lstm", nn.LSTM(3, 4, num_layers=2, proj_size=2))
    relu = nn.RNN(3, 4, num_layers=3, nonlinearity="relu", bidirectional=True)
    (code,) = offered("rnn_relu", relu)
    given = '3, 4, num_layers=3, bidirectional=True, nonlinearity="relu", skip="residual"'
    assert code == f"model.encoder = gradscope.cells.Recurrent(torch.nn.RNNCell, {given})"


def test_what_is_normalised_is_not_normalised_again() -> None:
    layer = {"class": "LayerNormLSTMCell", "input_size": 3, "hidden_size": 4}
    assert not any("LayerNorm" in c.remedy.code for c in candidates(seen(Training("lstm"), layer), []))
    projected = known(nn.LSTM(3, 4, proj_size=2))
    assert not any("LayerNorm" in c.remedy.code for c in candidates(seen(Training("lstm"), projected), []))
