"""What a loop does to the state between two calls of a cell: masks, dropout, scaling, writes in place, detaching."""

from __future__ import annotations

import pytest
import torch
from cases import uneven
from chains.hold import CELLS, HIDDEN, INPUT, a_cell, data, each, h_of, hold, straight
from torch import nn

from gradscope.observe.following import DETACHED, MIXED

TIME, BATCH = 6, 3


def loop_with(change, loss="all"):
    """A loop that does something to the state of each step; `change(t, state, before)`."""

    def loop(cell, backward):
        x, state, states = data(TIME, BATCH, INPUT).to(next(cell.parameters())), None, []
        for t in range(TIME):
            after = cell(x[t], state)
            states.append(h_of(after))
            state = change(t, after, state)
        backward(uneven(torch.stack(states) if loss == "all" else states[-1]))

    return loop


def keep(seed, *shape, p=0.6):
    """A dropout mask, scaled, that keeps the first unit: where all are dropped the sequence begins anew."""
    kept = data(*shape, seed=seed).abs() < p
    kept[..., 0] = True
    return kept.double() / p


CHANGES = {
    "variational dropout": lambda t, s, before: each(lambda part: part * keep(3, BATCH, HIDDEN).to(part), s),
    "fresh dropout": lambda t, s, before: each(lambda part: part * keep(t, BATCH, HIDDEN).to(part), s),
    "scaled": lambda t, s, before: each(lambda part: 0.9 * part, s),
    "scaled by time": lambda t, s, before: each(lambda part: part * (t + 1) / TIME, s),
    "clamped": lambda t, s, before: each(lambda part: part.clamp(-0.8, 0.8), s),
    "squashed": lambda t, s, before: each(torch.tanh, s),
    "noise added": lambda t, s, before: each(lambda part: part + data(BATCH, HIDDEN, seed=t).to(part) / 10, s),
    "viewed": lambda t, s, before: each(lambda part: part.reshape(1, -1).view(BATCH, HIDDEN).contiguous().clone(), s),
    "to bool mask": lambda t, s, before: each(lambda p: p.masked_fill(keep(t, BATCH, HIDDEN) == 0, 0), s),
    "multiplied in place": lambda t, s, before: each(lambda part: part.clone().mul_(0.8), s),
}


@pytest.mark.parametrize("loss", ["all", "last"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_elementwise(kind, change, loss):
    hold(a_cell(kind), loop_with(CHANGES[change], loss), [straight(TIME, BATCH)])


@pytest.mark.parametrize("kind", CELLS)
def test_torch_dropout(kind):
    """The module's own dropout, whose mask is found by its derivative; in float64 both loops draw the same."""
    drop = nn.Dropout(0.4)
    hold(a_cell(kind, hidden=12), loop_with(lambda t, s, before: each(drop, s)), [straight(TIME, BATCH)])


@pytest.mark.parametrize("kind", CELLS)
def test_changed_state_is_read_out(kind):
    """The loss sees the masked state, which is not what the call returned."""

    def loop(cell, backward):
        x, state, seen = data(TIME, BATCH, INPUT), None, []
        for t in range(TIME):
            state = each(lambda part, t=t: part * keep(t, BATCH, HIDDEN), cell(x[t], state))
            seen.append(h_of(state))
        backward(uneven(torch.stack(seen[::2])) + uneven(seen[-1]))

    hold(a_cell(kind), loop, [straight(TIME, BATCH)])


@pytest.mark.parametrize("part", [0, 1])
def test_dropout_on_one_part(part):
    def change(t, state, before):
        return tuple(s * keep(t, BATCH, HIDDEN) if p == part else s for p, s in enumerate(state))

    hold(a_cell("lstm"), loop_with(change), [straight(TIME, BATCH)])


@pytest.mark.parametrize("part", [0, 1])
def test_one_part_detached(part):
    def change(t, state, before):
        return tuple(s.detach() if p == part else s for p, s in enumerate(state))

    hold(a_cell("lstm"), loop_with(change), [straight(TIME, BATCH)])


@pytest.mark.parametrize("kind", CELLS)
def test_detached_every_so_often(kind):
    def change(t, state, before):
        return each(torch.Tensor.detach, state) if t % 3 == 2 else state

    ways = [[(0, [(3 * k + t, row) for t in range(3)]) for row in range(BATCH)] for k in range(2)]
    hold(a_cell(kind), loop_with(change), ways, notes=[DETACHED])


@pytest.mark.parametrize("kind", CELLS)
def test_the_state_is_the_input_too(kind):
    """Gradient goes back by both ways, and only one of them is the recurrence."""

    def loop(cell, backward):
        state, states = each(lambda s: s, (data(BATCH, INPUT), data(BATCH, INPUT, seed=2))), []
        state = state if kind == "lstm" else state[0]
        for _ in range(TIME):
            state = cell(h_of(state), state)
            states.append(h_of(state))
        backward(uneven(torch.stack(states)))

    hold(a_cell(kind, INPUT, INPUT), loop, [straight(TIME, BATCH)])


def test_the_state_is_the_input_too_without_batch_and_bias():
    def loop(cell, backward):
        state = data(INPUT)
        for _ in range(TIME):
            state = cell(state, state)
        backward(uneven(state))

    hold(a_cell("gru", INPUT, INPUT, bias=False), loop, [straight(TIME, 1)])


@pytest.mark.parametrize("kind", CELLS)
def test_output_fed_back_through_a_readout(kind):
    """As a decoder does; the way through the input is not the recurrence."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = a_cell(kind)
            self.out = nn.Linear(HIDDEN, INPUT, dtype=torch.float64)

    def loop(model, backward):
        x, state, outputs = data(BATCH, INPUT), None, []
        for _ in range(TIME):
            state = model.cell(x, state)
            x = model.out(h_of(state))
            outputs.append(x)
        backward(uneven(torch.stack(outputs)))

    hold(Decoder(), loop, {"cell": [straight(TIME, BATCH)]})


def written(how):
    def change(t, state, before):
        def write(part):
            part = part.clone() if how == "clone" else part
            part[torch.arange(BATCH) == t % BATCH] = 0
            return part

        return each(write, state)

    return change


def resets(batch, time, done):
    """The ways of a chain in which sequence b begins anew after the steps t with (t, b) in `done`."""
    ways = []
    for row in range(batch):
        cuts = [0, *sorted(t + 1 for t, b in done if b == row), time]
        spans = [(a, b) for a, b in zip(cuts, cuts[1:], strict=False) if b > a]
        ways += [(a, [(t, row) for t in range(a, b)]) for a, b in spans]
    return [ways]


@pytest.mark.parametrize("kind", ["lstm", "rnn_tanh"])
def test_rows_zeroed_in_place(kind):
    """A write to a clone, of what the call has returned."""
    done = {(t, t % BATCH) for t in range(TIME - 1)}
    hold(a_cell(kind), loop_with(written("clone"), "last"), resets(BATCH, TIME, done))


def test_rows_of_the_result_itself_zeroed():
    """GRU's result is not needed for its own backward, and may be overwritten; the loss sees what was written."""
    done = {(t, t % BATCH) for t in range(TIME - 1)}

    def loop(cell, backward):
        x, state = data(TIME, BATCH, INPUT), None
        for t in range(TIME):
            state = cell(x[t], state)
            if t < TIME - 1:
                state = written("itself")(t, state, None)
        backward(uneven(state))

    hold(a_cell("gru"), loop, resets(BATCH, TIME, done))


def test_result_multiplied_in_place():
    def loop(cell, backward):
        x, state, states = data(TIME, BATCH, INPUT), None, []
        for t in range(TIME):
            state = cell(x[t], state)
            state.mul_(keep(t, BATCH, HIDDEN))
            states.append(state)
        backward(uneven(torch.stack(states)))

    hold(a_cell("gru"), loop, [straight(TIME, BATCH)])


@pytest.mark.parametrize("kind", ["gru", "rnn_tanh"])
def test_buffer_of_states(kind):
    """H[t] = h, and the next state is read from there."""

    def loop(cell, backward):
        x, buffer = data(TIME, BATCH, INPUT), torch.zeros(TIME + 1, BATCH, HIDDEN, dtype=torch.float64)
        for t in range(TIME):
            buffer[t + 1] = cell(x[t], buffer[t].clone())  # a view of it would be overwritten before its backward
        backward(uneven(buffer[1:]))

    hold(a_cell(kind), loop, [straight(TIME, BATCH)])


@pytest.mark.parametrize("kind", CELLS)
def test_learnt_scale(kind):
    """The state is multiplied by a parameter: a factor like any other."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = a_cell(kind)
            self.scale = nn.Parameter(torch.full((HIDDEN,), 0.7, dtype=torch.float64))

    def loop(net, backward):
        x, state = data(TIME, BATCH, INPUT), None
        for t in range(TIME):
            state = each(lambda s: s * net.scale, net.cell(x[t], state))
        backward(uneven(h_of(state)))

    hold(Net(), loop, {"cell": [straight(TIME, BATCH)]})


MIXING = {
    "zoneout": lambda t, s, old: each2(lambda a, b: torch.where(data(BATCH, HIDDEN, seed=t) > 0, a, b), s, old),
    "residual": lambda t, s, old: each2(lambda a, b: a + 0.5 * b, s, old),
    "layer norm": lambda t, s, old: each(lambda part: nn.functional.layer_norm(part, (HIDDEN,)), s),
    "linear": lambda t, s, old: each(lambda part: part @ data(HIDDEN, HIDDEN), s),
    "flipped units": lambda t, s, old: each(lambda part: part.flip(1), s),
    "rolled": lambda t, s, old: each(lambda part: part.roll(1, 1), s),
    "mean of rows": lambda t, s, old: each(lambda part: part.mean(0, keepdim=True).expand(BATCH, -1), s),
    "h and c exchanged": lambda t, s, old: (s[1], s[0]) if isinstance(s, tuple) else s.flip(1),
    "softmax": lambda t, s, old: each(lambda part: part.softmax(1), s),
    "cumulated": lambda t, s, old: each(lambda part: part.cumsum(1), s),
}


def each2(function, new, old):
    if old is None:
        return new
    return tuple(map(function, new, old)) if isinstance(new, tuple) else function(new, old)


@pytest.mark.parametrize("change", MIXING)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_what_mixes_units_or_calls_ends_the_chain(kind, change):
    """Each call is a chain of its own; that there was a way from one to the next is noted."""
    from_the_second = change in ("zoneout", "residual")  # the first change has nothing to blend with
    ways = [straight_at(call) for call in range(TIME)]
    if from_the_second:
        ways = [[(0, [(0, row), (1, row)]) for row in range(BATCH)], *(straight_at(call) for call in range(2, TIME))]
    hold(a_cell(kind), loop_with(MIXING[change]), ways, notes=[MIXED])


def straight_at(call):
    return [(0, [(call, row)]) for row in range(BATCH)]
