"""Where loops keep their states: in one tensor, in a buffer of all sequences, in a list, behind a checkpoint."""

from __future__ import annotations

import warnings

import pytest
import torch
from cases import uneven
from chains.hold import CELLS, HIDDEN, INPUT, a_cell, a_layer, assert_same_tables, data, each, h_of, hold, straight
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.observe.following import CARRIED

TIME, BATCH = 6, 4
ACTIVE = [[0, 1, 2, 3], [1, 3], [0, 3], [3, 1, 0], [2], [2, 3]]


def ways_of_active():
    ways = {row: [] for row in range(BATCH)}
    for call, rows in enumerate(ACTIVE):
        for place, row in enumerate(rows):
            ways[row].append((call, place))
    return [[(0, ways[row]) for row in range(BATCH)]]


@pytest.mark.parametrize("how", ["index_put", "scatter", "where"])
@pytest.mark.parametrize("kind", CELLS)
def test_only_some_sequences_move(kind, how):
    """All states are kept in one tensor; a call takes those whose turn it is, in any order."""

    def put(whole, rows, part):
        if how == "index_put":
            whole = whole.clone()
            whole[rows] = part
            return whole
        index = rows.unsqueeze(1).expand(-1, HIDDEN)
        if how == "scatter":
            return whole.scatter(0, index, part)
        mask = torch.zeros(BATCH, 1, dtype=torch.bool).index_fill(0, rows, True)
        return torch.where(mask, torch.zeros_like(whole).index_copy(0, rows, part), whole)

    def loop(cell, backward):
        x, whole, seen = data(TIME, BATCH, INPUT), torch.zeros(2, BATCH, HIDDEN, dtype=torch.float64).unbind(), []
        whole = whole if kind == "lstm" else whole[0]
        for t, rows in enumerate(map(torch.tensor, ACTIVE)):
            state = cell(x[t, rows], each(lambda s, rows=rows: s[rows], whole))
            seen.append(uneven(h_of(state), t))
            if kind == "lstm":
                whole = tuple(put(w, rows, s) for w, s in zip(whole, state, strict=True))
            else:
                whole = put(whole, rows, state)
        backward(torch.stack(seen).sum() + uneven(h_of(whole)))

    hold(a_cell(kind), loop, ways_of_active())


@pytest.mark.parametrize("how", ["cat", "stack"])
def test_parts_in_one_tensor(how):
    def loop(cell, backward):
        x, both = data(TIME, BATCH, INPUT), None
        for t in range(TIME):
            if both is None:
                state = None
            else:
                state = both.chunk(2, 1) if how == "cat" else both.unbind()
            new = cell(x[t], state)
            both = torch.cat(new, 1) if how == "cat" else torch.stack(new)
        backward(uneven(both))

    hold(a_cell("lstm"), loop, [straight(TIME, BATCH)])


def test_layers_in_one_tensor():
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.ModuleList([a_cell("gru"), a_cell("gru", HIDDEN), a_cell("rnn_tanh", HIDDEN)])

    def loop(net, backward):
        x, states = data(TIME, BATCH, INPUT), torch.zeros(3, BATCH, HIDDEN, dtype=torch.float64)
        for t in range(TIME):
            below, new = x[t], []
            for layer, cell in enumerate(net.cells):
                below = cell(below, states[layer])
                new.append(below)
            states = torch.stack(new)
        backward(uneven(states))

    hold(Stack(), loop, {f"cells.{k}": [straight(TIME, BATCH)] for k in range(3)})


def test_all_states_in_one_tensor_and_the_last_taken_from_it():
    def loop(cell, backward):
        x, states = data(TIME, BATCH, INPUT), torch.zeros(1, BATCH, HIDDEN, dtype=torch.float64)
        for t in range(TIME):
            states = torch.cat([states, cell(x[t], states[-1]).unsqueeze(0)])
        backward(uneven(states))

    hold(a_cell("gru"), loop, [straight(TIME, BATCH)])


def test_long_loop():
    def loop(cell, backward):
        x, state, seen = data(60, 1, INPUT), None, []
        for t in range(60):
            state = cell(x[t], state)
            seen.append(state)
        backward(uneven(torch.stack(seen[::7])) + uneven(seen[-1]))

    hold(a_cell("gru"), loop, [straight(60, 1)])


def test_skips_over_a_timestep():
    """Every state is that of two calls before (as in a dilated network): two chains in turns."""

    def loop(cell, backward):
        x, states = data(TIME, BATCH, INPUT), [None, None]
        for t in range(TIME):
            states.append(cell(x[t], states[-2]))
        backward(uneven(torch.stack(states[-3:])))

    ways = [[(0, [(t, row) for t in range(k, TIME, 2)]) for row in range(BATCH)] for k in range(2)]
    hold(a_cell("gru"), loop, ways)


def test_last_calls_without_a_gradient_are_no_part():
    """A chain ends with its last call that gradient reached."""

    def loop(cell, backward):
        x, state, seen = data(TIME, BATCH, INPUT), None, []
        for t in range(TIME):
            state = cell(x[t], state)
            seen.append(state)
        backward(uneven(h_of(seen[3])))

    hold(a_cell("gru"), loop, [straight(4, BATCH)])


@pytest.mark.parametrize("kind", ["cell", "layer"])
def test_state_from_a_graph_that_is_gone(kind):
    """Used for a forward after its backward: torch complains if a backward goes there, and nobody else does."""
    module = a_cell("gru") if kind == "cell" else a_layer("gru")
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    x = data(BATCH, INPUT) if kind == "cell" else data(1, BATCH, INPUT)
    with gradscope.attach(module, every=1, strict=True) as scope:
        state = module(x)
        state = state if kind == "cell" else state[1]
        kept = (state * data(*state.shape)).clamp(-2, 2)
        uneven(kept).backward()
        optimizer.step()
        module(x, kept)
        optimizer.zero_grad()
        uneven(h_of(module(x, kept.detach()))).backward()
        optimizer.step()
    assert len(scope.run.frame("layers")) == 2
    assert scope.run.frame("notes").empty


@pytest.mark.parametrize("kind", CELLS)
def test_checkpointed_steps(kind):
    """Run again within backward: what was recorded of the first run is what counts."""

    def loop(cell, backward):
        x, state = data(TIME, BATCH, INPUT), None
        for t in range(TIME):
            if state is None:
                state = cell(x[t])
            else:
                state = checkpoint(cell, x[t], state, use_reentrant=False)
        backward(uneven(h_of(state)))

    def plain(cell, backward):
        x, state = data(TIME, BATCH, INPUT), None
        for t in range(TIME):
            state = cell(x[t], state)
        backward(uneven(h_of(state)))

    expected = hold(a_cell(kind), plain, [straight(TIME, BATCH)])
    torch.manual_seed(0)
    first = a_cell(kind)
    torch.manual_seed(0)
    second = a_cell(kind)
    runs = []
    for cell, run in ((first, plain), (second, loop)):
        with gradscope.attach(cell, every=1, quantities="full", strict=True) as scope:
            run(cell, lambda loss: loss.backward())
        runs.append(scope.run)
    assert expected.frame("notes").empty
    assert_same_tables(*runs)


class OwnLSTM(nn.LSTMCell):
    """With a forward of its own."""

    def forward(self, x, state):
        h, c = state
        i, f, g, o = (x @ self.weight_ih.T + h @ self.weight_hh.T).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("kind", ["cell", "layer", "own"])
def test_carried_over_between_recorded_steps(kind, carried):
    """Truncated backpropagation is noted also where not every step is recorded, and once."""
    own = OwnLSTM(INPUT, HIDDEN, dtype=torch.float64)
    module = {"cell": a_cell("lstm"), "layer": a_layer("lstm"), "own": own}[kind]
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    shape = (1, BATCH, HIDDEN) if kind == "layer" else (BATCH, HIDDEN)
    state = start = tuple(torch.full(shape, 0.1, dtype=torch.float64) for _ in range(2))
    with gradscope.attach(module, every=3, max_sequences=2, strict=True) as scope:
        for _ in range(7):
            optimizer.zero_grad()
            state = each(torch.Tensor.detach, state) if carried else start
            for x in data(3, BATCH, INPUT).split(1) if kind == "layer" else data(3, BATCH, INPUT):
                result = module(x, state)
                state = result[1] if kind == "layer" else result
            uneven(state[0]).backward()
            optimizer.step()
    notes = scope.run.frame("notes")
    assert notes["reason"].tolist() == [CARRIED] * carried
    assert notes["step"].tolist() == [3] * carried


def test_burn_in():
    """Steps without a graph before those with one are none of the chain's."""
    cell = a_cell("gru")
    with gradscope.attach(cell, every=1, strict=True) as scope:
        state = None
        with torch.no_grad():
            for x in data(3, BATCH, INPUT):
                state = cell(x, state)
        for x in data(2, BATCH, INPUT):
            state = cell(x, state)
        uneven(state).backward()
    assert scope.run.frame("layers")["timesteps"].tolist() == [2]


def test_low_precision():
    """Rows are followed in 16-bit numbers as well, also where there are more of them than such numbers tell apart."""
    rows, order = 300, torch.randperm(300, generator=torch.Generator().manual_seed(0))
    cell = nn.GRUCell(INPUT, HIDDEN, dtype=torch.bfloat16)
    x = data(3, rows, INPUT).bfloat16()
    with warnings.catch_warnings(), gradscope.attach(cell, every=1, strict=True) as scope:
        state = cell(x[0])
        state = cell(x[1], state[order] * 0.5)
        state = cell(x[2], state * (data(rows, 1) < 1).bfloat16())
        uneven(state).backward()
    layers = scope.run.frame("layers")
    assert layers[["chain", "timesteps"]].values.tolist() == [[0, 3]]
    assert scope.run.frame("notes").empty
