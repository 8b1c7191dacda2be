"""Values that are not finite, put where they are known to be, are found there: step, layer, direction, gate, timestep.

One row of the table is one injection. That the kernel itself is not finite where the row says so is checked first, for
what a kernel does with numbers that overflow is its own affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gradscope
from gradscope.types import LayerKey, Origin

T, B, D, H = 6, 3, 2, 4
NAN, INF = math.nan, math.inf
KINDS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
GATES = {
    "rnn": ("hidden",),
    "lstm": ("input", "forget", "candidate", "output"),
    "gru": ("reset", "update", "candidate"),
}
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclass
class Scene:
    """A model, its input, and a loss of its output."""

    model: nn.Module
    x: Tensor
    hx: Any = None
    loss: Callable[[Tensor], Tensor] = lambda output: output.square().mean()

    def backward(self) -> None:
        output = self.model(self.x, self.hx) if self.hx is not None else self.model(self.x)
        self.loss(output[0]).backward()


def scene(kind: str, **options: Any) -> Scene:
    torch.manual_seed(1)
    return Scene(KINDS[kind](D, H, **options), torch.randn(T, B, D))


def born(one: Scene) -> tuple[LayerKey, Origin]:
    """Where the record of one step says that it began."""
    with gradscope.attach(one.model, every=1, max_sequences=None, strict=True) as scope:
        one.backward()
    found = [
        (LayerKey(*row[:4]), origin)
        for row in scope.run.frame("notes")[[*LayerKey._fields, "reason"]].itertuples(index=False)
        if (origin := Origin.read(row.reason)) is not None
    ]
    assert len(found) == 1
    return found[0]


def place(key: LayerKey, origin: Origin) -> tuple[Any, ...]:
    return key.layer, key.direction, origin.phase, origin.what, origin.gate, origin.t


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("kind", KINDS)
def test_in_an_input(kind: str, value: float, bidirectional: bool) -> None:
    one = scene(kind, num_layers=2, bidirectional=bidirectional)
    one.x[3, 1, 0] = value
    key, origin = born(one)
    assert place(key, origin) == (0, "forward", "forward", "input", "", 3)
    assert (origin.sequences, origin.analysed) == (1, B)


@pytest.mark.parametrize("suffix", ["l0", "l1", "l1_reverse"])
@pytest.mark.parametrize("parameter", PARAMETERS)
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_gate_s_weights(kind: str, parameter: str, suffix: str) -> None:
    for number, gate in enumerate(GATES[kind]):
        one = scene(kind, num_layers=2, bidirectional=True)
        with torch.no_grad():
            getattr(one.model, f"{parameter}_{suffix}")[number * H + 1] = NAN
        direction = "reverse" if suffix.endswith("reverse") else "forward"
        assert place(*born(one)) == (int(suffix[1]), direction, "forward", parameter, gate, None)


def test_in_a_projection() -> None:
    one = Scene(nn.LSTM(D, H, proj_size=2), torch.randn(T, B, D))
    with torch.no_grad():
        one.model.weight_hr_l0[0, 0] = INF
    assert place(*born(one)) == (0, "forward", "forward", "weight_hr", "", None)


@pytest.mark.parametrize("which", [0, 1])
def test_in_an_initial_state(which: int) -> None:
    one = scene("lstm", bidirectional=True)
    states = torch.zeros(2, B, H), torch.zeros(2, B, H)
    states[which][1, 2, 0] = NAN
    one.hx = states
    assert place(*born(one)) == (0, "reverse", "forward", "initial state", "", T - 1)


def test_in_a_state_that_overflows_in_the_forward_pass() -> None:
    """A ReLU network whose state grows by 1e20 a step, in sequence 1 only."""
    one = Scene(nn.RNN(1, H, nonlinearity="relu", bias=False), torch.zeros(T, B, 1))
    with torch.no_grad():
        one.model.weight_ih_l0.fill_(1.0)
        one.model.weight_hh_l0.copy_(1e20 * torch.eye(H))
    one.x[2, 1] = 1.0
    output = one.model(one.x)[0]
    assert output[3].isfinite().all() and output[4, 1].isinf().all() and output[4, 0].isfinite().all()
    key, origin = born(one)
    assert place(key, origin) == (0, "forward", "forward", "state", "hidden", 4)
    assert origin.sequences == 1


def test_in_a_state_that_overflows_in_float16() -> None:
    one = Scene(nn.RNN(D, H, nonlinearity="relu").half(), torch.ones(T, B, D, dtype=torch.float16))
    one.loss = lambda output: output.float().sum()
    with torch.no_grad():
        for parameter in one.model.parameters():
            parameter.fill_(30)
    output = one.model(one.x)[0]
    assert output[1].isfinite().all() and not output[2].isfinite().any()
    key, origin = born(one)
    assert (key.layer, origin.phase, origin.what, origin.t) == (0, "forward", "state", 2)


@pytest.mark.parametrize("t", [0, 4, T - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_in_the_loss_at_one_timestep(kind: str, t: int) -> None:
    """The root of zero: the value is fine, its derivative is not."""
    one = scene(kind, num_layers=2)
    one.loss = lambda output: (output[t] - output[t].detach()).abs().sqrt().sum() + output.sum()
    assert place(*born(one)) == (1, "forward", "backward", "gradient from above", "", t)


def test_in_the_loss_itself() -> None:
    one = scene("gru")
    one.loss = lambda output: output.square().mean() * NAN
    assert place(*born(one)) == (0, "forward", "backward", "gradient from above", "", T - 1)


def test_zero_times_infinity_on_the_way_back() -> None:
    """`where` shields the value, not the derivative: it is NaN at every t but the chosen one; the last comes first."""
    one = scene("lstm")
    one.loss = lambda output: torch.where(torch.arange(T).view(-1, 1, 1) == 2, output * INF, output).nan_to_num().sum()
    key, origin = born(one)
    assert (origin.phase, origin.what, origin.t) == ("backward", "gradient from above", T - 1)


def test_on_the_way_back_through_time() -> None:
    """States of 1e-35 that grow by 1e4 a step, and a gradient that does the same from where it enters."""
    one = Scene(nn.RNN(1, H, nonlinearity="relu", bias=False, num_layers=2), torch.zeros(13, B, 1))
    with torch.no_grad():
        one.model.weight_ih_l0.fill_(1.0)
        one.model.weight_hh_l0.copy_(1e4 * torch.eye(H))
        one.model.weight_ih_l1.copy_(torch.eye(H))
        one.model.weight_hh_l1.zero_()
    one.x[0] = 1e-35
    one.loss = lambda output: output[12].sum()
    assert one.model(one.x)[0].isfinite().all()
    assert place(*born(one)) == (0, "forward", "backward", "recurrence", "hidden", 2)


@pytest.mark.parametrize("t", [0, 3])
def test_in_the_input_of_a_cell(t: int) -> None:
    cell, x = nn.LSTMCell(D, H), torch.randn(T, B, D)
    x[t, 1, 0] = NAN
    assert place(*born(Scene(Unrolled(cell), x))) == (0, "forward", "forward", "input", "", t)


class Unrolled(nn.Module):
    """A cell in a loop, whose state something may be done to at one timestep."""

    def __init__(self, cell: nn.Module, at: int = -1, change: Callable[[Any], Any] = lambda state: state) -> None:
        super().__init__()
        self.cell, self.at, self.change = cell, at, change

    def forward(self, x: Tensor) -> tuple[Tensor]:
        state, outputs = None, []
        for t in range(len(x)):
            state = self.cell(x[t], state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
            if t == self.at:
                state = self.change(state)
        return (torch.stack(outputs),)


def test_in_a_state_between_two_calls() -> None:
    one = Scene(Unrolled(nn.GRUCell(D, H), 2, lambda h: h * INF), torch.randn(T, B, D))
    key, origin = born(one)
    assert (key.module, origin.phase, origin.t) == ("cell", "forward", 0 if key.chain else 3)
    assert origin.what in ("state between calls", "initial state")


class Gated(nn.Module):
    """A user's cell, one gate of which takes the logarithm of zero at one timestep."""

    def __init__(self, bad: str) -> None:
        super().__init__()
        self.inner, self.gate, self.bad = nn.Linear(D + H, H), nn.Linear(D + H, H), bad

    def gates(self, x: Tensor, state: Tensor) -> dict[str, Tensor]:
        both = torch.cat([x, state], 1)
        found = {"gate": torch.sigmoid(self.gate(both)), "candidate": torch.tanh(self.inner(both))}
        broken = (x[:, :1] > 100).to(x.dtype)
        found[self.bad] = found[self.bad] + broken * torch.log(1 - broken)
        return found

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        state = x.new_zeros(len(x), H) if state is None else state
        found = self.gates(x, state)
        return found["gate"] * state + (1 - found["gate"]) * found["candidate"]


@pytest.mark.parametrize("gate", ["gate", "candidate"])
def test_in_a_gate_of_a_cell_of_one_s_own(gate: str) -> None:
    x = torch.randn(T, B, D)
    x[4, 0, 0] = 101.0
    model = Unrolled(Gated(gate))
    spec = gradscope.CellSpec(
        gates=lambda cell, x, state=None: cell.gates(x, x.new_zeros(len(x), H) if state is None else state)
    )
    with gradscope.attach(model, every=1, strict=True, cells={Gated: spec}) as scope:
        model(x)[0].sum().backward()
    (origin,) = filter(None, map(Origin.read, scope.run.frame("notes")["reason"]))
    assert (origin.phase, origin.what, origin.gate, origin.t) == ("forward", "state", gate, 4)


def test_in_the_weights_of_a_cell_of_one_s_own() -> None:
    model = Unrolled(Gated("gate"))
    with torch.no_grad():
        model.cell.inner.bias[1] = NAN
    assert place(*born(Scene(model, torch.randn(T, B, D))))[2:] == ("forward", "inner.bias", "", None)


def test_the_first_of_two_modules_is_named() -> None:
    """What the encoder made reaches the decoder as its input."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.z_encoder, self.a_decoder = nn.GRU(D, H), nn.LSTM(H, H)

        def forward(self, x: Tensor) -> Tensor:
            return self.a_decoder(self.z_encoder(x)[0])

    model, x = Pair(), torch.randn(T, B, D)
    x[2, 0, 0] = NAN
    key, origin = born(Scene(model, x))
    assert key.module == "z_encoder" and (origin.what, origin.t) == ("input", 2)
    key, origin = born(Scene(model, torch.randn(T, B, D), loss=lambda output: output.sum() * NAN))
    assert key.module == "a_decoder" and origin.phase == "backward"


# --- the finding, and what a sparse schedule still has


def train(model: nn.Module, steps: int, spoil: Callable[[int, Tensor], Tensor], rate: float = 0.01) -> None:
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for step in range(steps):
        optimizer.zero_grad()
        (model(spoil(step, torch.randn(T, B, D)))[0].square().mean()).backward()
        optimizer.step()


def poisoned(at: int) -> Callable[[int, Tensor], Tensor]:
    def spoil(step: int, x: Tensor) -> Tensor:
        return x.index_fill(0, torch.tensor([3]), NAN) if step == at else x

    return spoil


def the_finding(run: gradscope.Run) -> gradscope.Finding:
    (found,) = [finding for finding in run.findings() if finding.code == "nonfinite_gradient"]
    return found


def test_the_finding_names_what_the_record_shows() -> None:
    model = nn.LSTM(D, H, num_layers=2)
    with gradscope.attach(model, every=1, strict=True) as scope:
        train(model, 12, poisoned(9))
    found = the_finding(scope.run)
    assert found.layer_key == LayerKey("", 0, "forward", 0)
    expected = {"born_step": 9, "phase": "forward", "what": "input", "timesteps": (3, 3), "steps": (9, 11)}
    assert {name: found.evidence[name] for name in expected} == expected
    assert [row[0] for row in found.evidence["before"]] == [6, 7, 8]
    assert all(math.isfinite(number) for row in found.evidence["before"] for number in row)
    told = (
        "they begin in the forward pass of model, layer 0, forward: input at t = 3 of sequence 0, in 3 of 3 sequences"
    )
    assert f"At step 9 {told}" in found.explanation
    assert found.title.endswith("which begin in the forward pass")


def test_a_sparse_schedule_records_the_steps_after_and_tells_whose_gradients_they_were() -> None:
    model = nn.GRU(D, H)
    with gradscope.attach(model, every=8, strict=True) as scope:
        train(model, 40, poisoned(21))
    recorded = scope.run.frame("steps", recorded=True)["step"].tolist()
    assert recorded == [0, 8, 16, 22, 23, 24, 32]
    notes = scope.run.frame("notes", step=21)["reason"].tolist()
    assert notes == [
        "gradients are not finite at the optimizer: weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0; "
        "its weights were still finite"
    ]
    found = the_finding(scope.run)
    assert "born_step" not in found.evidence  # the next record shows weights that are lost, and not how it came
    assert "gradscope did not record step 21" in found.explanation and "still finite" in found.explanation
    assert [row[0] for row in found.evidence["before"]] == [0, 8, 16]
    assert any("step >= 19" in remedy.code for remedy in found.remedies)


def test_a_step_that_was_not_recorded_is_not_read_off_the_next() -> None:
    """Here the weights stay; the record of the step after has a birth of its own, which need not be the first one's."""
    model, optimizer = nn.GRU(D, H), None
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with gradscope.attach(model, every=100, strict=True) as scope:
        for step in range(30):
            optimizer.zero_grad()
            x = torch.randn(T, B, D)
            if step in (10, 11):
                x[5, 0, 1] = NAN
            model(x)[0].sum().backward()
            for parameter in model.parameters():
                if not parameter.grad.isfinite().all():
                    parameter.grad = torch.full_like(parameter.grad, NAN) if step == 10 else parameter.grad
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            with torch.no_grad():
                for parameter, old in zip(model.parameters(), before, strict=True):
                    parameter.copy_(torch.where(parameter.isfinite(), parameter, old))
    found = the_finding(scope.run)
    assert "born_step" not in found.evidence and found.evidence["steps"] == (10, 11)
    assert "its weights were still finite" in found.evidence["parameters"]
    assert scope.run.frame("notes", step=11)["reason"].str.contains("input, at t = 5").any()


def test_with_a_budget_a_jump_of_the_norm_is_recorded_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the norm that clipping measures at every step."""
    monkeypatch.setattr("gradscope.observe.schedule.ALLOWANCE_S", 0.0)
    model = nn.GRU(D, H)
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    with gradscope.attach(model, budget=1e-9, strict=True) as scope:
        for step in range(40):
            optimizer.zero_grad()
            (model(torch.randn(T, B, D))[0].square().mean() * (1e4 if step >= 30 else 1.0)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e9)
            optimizer.step()
    assert scope.run.frame("steps", recorded=True)["step"].tolist() == [0, 31]


def test_steps_that_a_scaler_skips_raise_no_alarm() -> None:
    model = nn.GRU(D, H)
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with gradscope.attach(model, every=100, strict=True) as scope:
        for _ in range(4):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(T, B, D))[0].square().sum() * 1e5).backward()
            scaler.step(optimizer)
            scaler.update()
    steps = scope.run.frame("steps")
    assert steps["skipped"].any() and steps["recorded"].tolist() == [True, False, False, False]


@given(
    phase=st.sampled_from(["forward", "backward"]),
    what=st.sampled_from([*PARAMETERS, "input", "state", "state between calls", "recurrence", "cell.inner.bias"]),
    gate=st.sampled_from(["", "forget", "input+output"]),
    t=st.none() | st.integers(0, 10**6),
    sequence=st.none() | st.integers(0, 10**6),
    sequences=st.integers(0, 10**6),
    entire=st.booleans(),
)
def test_a_note_is_read_as_it_was_written(
    phase: Any, what: str, gate: str, t: int | None, sequence: int | None, sequences: int, entire: bool
) -> None:
    origin = Origin(phase, what, gate, t, sequence, sequences, 10**6, entire)
    assert Origin.read(origin.reason) == origin


@given(st.text() | st.from_regex(r"values that are not finite begin in the .*", fullmatch=True))
def test_other_notes_are_not_read(text: str) -> None:
    found = Origin.read(text)
    assert found is None or found.reason == text
