"""A value that is not finite in a sequence that is not analysed is found as well; and in modules observed by position.

Layers are held against a network of our own: unrolled in float64 one sequence and one timestep after the other, which
says where its first value that is not finite is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from reliability.test_births import GATES, KINDS, PARAMETERS, Gated, Unrolled
from torch import Tensor, nn

import gradscope
from gradscope.types import LayerKey, Origin

T, B, D, H = 5, 11, 2, 3
LIMIT = 3
ANALYSED = (0, 5, 10)
LEFT_OUT = 7
NAN, INF = math.nan, math.inf


def born(
    model: nn.Module,
    x: Any,
    loss: Callable[[Any], Tensor] = lambda out: out[0].sum(),
    between: Callable[[], Any] = lambda: None,
    **options: Any,
) -> tuple[LayerKey, Origin] | None:
    """Where the record of a step says that it began, if anywhere; `between` comes before the optimizer's step."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.attach(model, every=1, max_sequences=LIMIT, strict=True, **options) as scope:
        loss(model(x)).backward()
        between()
        optimizer.step()
    rows = scope.run.frame("notes")[[*LayerKey._fields, "reason"]].itertuples(index=False)
    found = [(LayerKey(*row[:4]), origin) for row in rows if (origin := Origin.read(row.reason)) is not None]
    assert len(found) < 2
    return found[0] if found else None


# --- the oracle


@dataclass(frozen=True)
class Spot:
    """Where the oracle finds it."""

    layer: int
    direction: str
    what: str
    gate: str
    t: int
    sequence: int


def oracle(kind: str, model: nn.Module, x: Tensor, h_0: Tensor) -> Spot | None:
    """Layer by layer, direction by direction, in the order of the recurrence; of the sequences the first."""
    width = 1 + model.bidirectional
    below = x.double()
    for layer in range(model.num_layers):
        outputs: list[Tensor] = []
        for reverse in range(width):
            suffix = f"l{layer}{'_reverse' * reverse}"
            named = {name: getattr(model, f"{name}_{suffix}").double() for name in PARAMETERS}
            order = range(T - 1, -1, -1) if reverse else range(T)
            state, output = h_0[layer * width + reverse].double(), torch.zeros(T, B, H, dtype=torch.float64)
            cell = torch.zeros_like(state)
            for place, t in enumerate(order):
                new = [unit(kind, named, below[t, b], state[b], cell[b]) for b in range(B)]
                for b, (h, c, gates) in enumerate(new):
                    bad = [gate for gate, value in gates.items() if not value.isfinite().all()]
                    what = (
                        "initial state" if place == 0 and not state[b].isfinite().all()
                        else "input" if not below[t, b].isfinite().all()
                        else "state" if bad or not h.isfinite().all() or not c.isfinite().all()
                        else ""
                    )  # fmt: skip
                    if what:
                        shown = "" if what != "state" or len(bad) == len(gates) > 1 else "+".join(bad)
                        return Spot(layer, "reverse" if reverse else "forward", what, shown, t, b)
                state, cell = torch.stack([h for h, _, _ in new]), torch.stack([c for _, c, _ in new])
                output[t] = state
            outputs.append(output)
        below = torch.cat(outputs, -1)
    return None


def unit(kind: str, w: dict[str, Tensor], x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One step of one sequence, gate by gate."""
    of_x, of_h = w["weight_ih"] @ x + w["bias_ih"], w["weight_hh"] @ h + w["bias_hh"]
    parts = {gate: (of_x[k * H : (k + 1) * H], of_h[k * H : (k + 1) * H]) for k, gate in enumerate(GATES[kind])}
    if kind == "gru":
        r, z = (torch.sigmoid(sum(parts[gate])) for gate in ("reset", "update"))  # type: ignore[arg-type]
        n = torch.tanh(parts["candidate"][0] + r * parts["candidate"][1])
        return (1 - z) * n + z * h, c, {"reset": r, "update": z, "candidate": n}
    if kind == "rnn":
        new = torch.tanh(sum(parts["hidden"]))  # type: ignore[arg-type]
        return new, c, {"hidden": new}
    i, f, o = (torch.sigmoid(sum(parts[gate])) for gate in ("input", "forget", "output"))  # type: ignore[arg-type]
    g = torch.tanh(sum(parts["candidate"]))  # type: ignore[arg-type]
    c = f * c + i * g
    return o * torch.tanh(c), c, {"input": i, "forget": f, "candidate": g, "output": o}


def plants(kind: str) -> Iterator[tuple[str, Callable[[nn.Module, Tensor, Tensor], None]]]:
    """What is put where: names, and what changes model, input and initial state."""
    for t in (0, 3):
        for value in (NAN, INF):

            def planted(model: nn.Module, x: Tensor, h_0: Tensor, t: int = t, value: float = value) -> None:
                x[t, LEFT_OUT, 1] = value

            yield f"{value} in the input at {t}", planted

    def state(model: nn.Module, x: Tensor, h_0: Tensor) -> None:
        h_0[-1, LEFT_OUT, 0] = NAN

    yield "NaN in the initial state of the last layer", state
    for number, gate in enumerate(GATES[kind]):

        def overflow(model: nn.Module, x: Tensor, h_0: Tensor, number: int = number) -> None:
            """The input makes one unit of a gate infinite, the state with the other sign."""
            with torch.no_grad():
                model.weight_ih_l0[number * H] = 1e200
                model.weight_hh_l0[number * H] = -1.7e308
            h_0.fill_(0.9)
            x[0, LEFT_OUT] = 1e200

        yield f"overflow in {gate}", overflow


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_found_where_an_unrolled_network_has_it(kind: str, bidirectional: bool) -> None:
    seen, gates = set[str](), set[str]()
    for name, plant in plants(kind):
        torch.manual_seed(2)
        model = KINDS[kind](D, H, num_layers=2, bidirectional=bidirectional).double()
        x, h_0 = torch.randn(T, B, D).double(), torch.randn(2 * (1 + bidirectional), B, H).double()
        plant(model, x, h_0)
        expected = oracle(kind, model, x, h_0)
        assert expected is not None and expected.sequence == LEFT_OUT, name
        key, origin = born(Stateful(model, h_0), x)
        found = Spot(key.layer, key.direction, origin.what, origin.gate, origin.t, origin.sequence)
        assert found == expected, name
        assert (origin.phase, origin.sequences, origin.analysed, origin.entire) == ("forward", 1, B, True)
        seen.add(origin.what)
        gates.add(origin.gate)
    assert seen == {"input", "initial state", "state"}
    assert {gate for shown in gates for gate in shown.split("+")} == {"", *GATES[kind]}


class Stateful(nn.Module):
    """A layer with its initial state."""

    def __init__(self, layer: nn.Module, h_0: Tensor) -> None:
        super().__init__()
        self.layer, self.h_0 = layer, h_0

    def forward(self, x: Tensor) -> tuple[Tensor]:
        c_0 = torch.zeros_like(self.h_0)
        return (self.layer(x, (self.h_0, c_0) if isinstance(self.layer, nn.LSTM) else self.h_0)[0],)


# --- chains of calls, and what the loop does to them


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell, nn.RNNCell])
@pytest.mark.parametrize("t", [0, 3])
def test_in_the_input_of_a_cell(cell: Any, t: int) -> None:
    x = torch.randn(T, B, D)
    x[t, LEFT_OUT, 0] = NAN
    key, origin = born(Unrolled(cell(D, H)), x)
    assert (origin.what, origin.t, origin.sequence, origin.entire) == ("input", t, LEFT_OUT, True)


def test_in_a_gate_of_a_cell_of_one_s_own() -> None:
    x = torch.randn(T, B, D)
    x[4, LEFT_OUT, 0] = 101.0
    model = Unrolled(Gated("gate"))
    spec = gradscope.CellSpec(
        gates=lambda cell, x, state=None: cell.gates(x, x.new_zeros(len(x), 4) if state is None else state)
    )
    _, origin = born(model, x, cells={Gated: spec})
    assert (origin.phase, origin.what, origin.gate, origin.t) == ("forward", "state", "gate", 4)
    assert (origin.sequence, origin.sequences, origin.analysed) == (LEFT_OUT, 1, B)


def test_in_the_second_of_two_calls_of_a_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(D, H)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            output, state = self.rnn(x[:2])
            return (torch.cat([output, self.rnn(x[2:], state)[0]]),)

    x = torch.randn(T, B, D)
    x[3, LEFT_OUT, 0] = NAN
    key, origin = born(Twice(), x)
    assert (key.chain, origin.what, origin.t, origin.sequence) == (0, "input", 3, LEFT_OUT)


def test_in_a_pack_the_longest_is_the_first() -> None:
    lengths = torch.arange(T, 0, -1).repeat_interleave(2)
    x = torch.randn(T, len(lengths), D)
    x[1, 3, 0] = NAN

    class Packing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(D, H)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths))[0].data

    _, origin = born(Packing(), x, lambda out: out.sum())
    assert (origin.what, origin.t, origin.sequence) == ("input", 1, 3)


@pytest.mark.parametrize("batch_first", [False, True])
def test_on_the_way_back(batch_first: bool) -> None:
    """The root of zero, at one timestep of one sequence."""
    model, place = nn.GRU(D, H, batch_first=batch_first), (LEFT_OUT, 3) if batch_first else (3, LEFT_OUT)

    def loss(out: Any) -> Tensor:
        row = out[0][place]
        return (row - row.detach()).abs().sqrt().sum() + out[0].sum()

    x = torch.randn(B, T, D) if batch_first else torch.randn(T, B, D)
    _, origin = born(model, x, loss)
    assert (origin.phase, origin.what, origin.t) == ("backward", "gradient from above", 3)
    assert (origin.sequence, origin.sequences, origin.analysed) == (LEFT_OUT, 1, B)


def test_what_the_loop_has_masked_away_is_found() -> None:
    """The state is NaN, and neither the loss nor its gradient is; the weights' are."""
    x = torch.randn(T, B, D)
    x[2, LEFT_OUT, 0] = NAN
    _, origin = born(nn.LSTM(D, H), x, lambda out: out[0].nan_to_num().sum())
    assert (origin.phase, origin.what, origin.t, origin.sequence) == ("forward", "input", 2, LEFT_OUT)


@pytest.mark.parametrize("reused", [False, True])
def test_what_the_loop_has_written_to_since_is_not_guessed_at(reused: bool) -> None:
    """A buffer that is filled anew before the optimizer's step: what it held is not there any more."""
    x = torch.randn(T, B, D)
    x[2, LEFT_OUT, 0] = NAN
    found = born(nn.GRU(D, H), x, between=x.zero_ if reused else lambda: None)
    assert (found is None) == reused


# --- modules that are observed by position


class Block(nn.Module):
    """A module of the user's over a sequence, and a recurrent layer on top of it."""

    def __init__(self, inner: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.block, self.rnn = Scaled(inner), nn.GRU(D, H)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.block(x)
        return self.rnn(y.nan_to_num(0.0, 0.0, 0.0))[0], y


class Scaled(nn.Module):
    """By weights, and then something else."""

    def __init__(self, inner: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.inner = nn.Parameter(torch.ones(D)), inner
        self.register_buffer("mask", torch.full((T, T), -INF).triu(1))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.inner(x * self.weight)


def of_block(model: nn.Module, x: Tensor, loss: Callable[[Any], Tensor] = lambda out: out[1].sum()) -> Any:
    found = born(model, x, loss, positions={"block": 0})
    assert found is not None and found[0] == LayerKey("block", -1, "forward", 0)
    return found[1]


@pytest.mark.parametrize("sequence", [ANALYSED[1], LEFT_OUT])
@pytest.mark.parametrize("value", [NAN, INF])
def test_in_what_a_module_was_given(sequence: int, value: float) -> None:
    x = torch.randn(T, B, D)
    x[2, sequence, 1] = value
    assert of_block(Block(), x) == Origin("forward", "input", "", 2, sequence, 1, B, True)


def test_in_a_parameter() -> None:
    model = Block()
    model.block.weight.data[0] = NAN
    assert of_block(model, torch.randn(T, B, D)) == Origin("forward", "weight", "", None, None, B, B, True)


def test_in_what_a_module_made() -> None:
    """The logarithm of zero, at one position of one sequence."""
    x = torch.rand(T, B, D) + 1
    x[3, LEFT_OUT] = 0
    assert of_block(Block(torch.log), x) == Origin("forward", "output", "", 3, LEFT_OUT, 1, B, True)


def test_in_the_gradient_that_enters_a_module() -> None:
    def loss(out: Any) -> Tensor:
        row = out[1][3, LEFT_OUT]
        return (row - row.detach()).abs().sqrt().sum() + out[1].sum()

    expected = Origin("backward", "gradient from above", "", 3, LEFT_OUT, 1, B, True)
    assert of_block(Block(), torch.randn(T, B, D), loss) == expected


def test_on_the_way_back_through_a_module() -> None:
    """The root of zero: the value is fine, its derivative is not."""
    x = torch.rand(T, B, D) + 1
    x[3, LEFT_OUT] = 0
    assert of_block(Block(torch.sqrt), x) == Origin("backward", "way back", "", 3, LEFT_OUT, 1, B, True)


def test_infinity_in_a_mask_is_no_fault_and_nan_is_one() -> None:
    model, x = Block(), torch.randn(T, B, D)
    x[2, LEFT_OUT, 1] = NAN
    assert of_block(model, x).what == "input"
    model = Block()
    model.block.mask[0, 0] = NAN
    assert of_block(model, x).what == "mask"


def test_the_first_of_a_module_and_a_layer_is_named() -> None:
    """The layer is below, and what it was given is not finite; the module only hands that on."""

    class Above(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.block = nn.GRU(D, D), Scaled(lambda y: y)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.block(self.rnn(x)[0]),)

    x = torch.randn(T, B, D)
    x[2, LEFT_OUT, 1] = NAN
    found = born(Above(), x, positions={"block": 0})
    assert found is not None and found[0].module == "rnn" and found[1].sequence == LEFT_OUT
