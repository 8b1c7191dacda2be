"""Which sequences a cell's calls go on with: branches, beams, reordering, early ends, resets, and several at once."""

from __future__ import annotations

import pytest
import torch
from cases import uneven
from chains.hold import CELLS, HIDDEN, INPUT, a_cell, data, each, h_of, hold, straight
from torch import nn

from gradscope.observe.following import DETACHED

TIME, BATCH = 6, 4
KINDS = ["lstm", "gru"]


def test_stacked_cells():
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = a_cell("lstm"), a_cell("gru", HIDDEN)

    def loop(net, backward):
        x, low, high, seen = data(TIME, BATCH, INPUT), None, None, []
        for t in range(TIME):
            low = net.low(x[t], low)
            high = net.high(low[0], high)
            seen.append(high)
        backward(uneven(torch.stack(seen[1::2])))

    hold(Stack(), loop, {"low": [straight(TIME, BATCH)], "high": [straight(TIME, BATCH)]})


@pytest.mark.parametrize("kind", CELLS)
def test_two_interleaved_sequences(kind):
    def loop(cell, backward):
        x, y = data(TIME, BATCH, INPUT), data(TIME, 2, INPUT, seed=2)
        one, other = None, None
        for t in range(TIME):
            one = cell(x[t], one)
            other = cell(y[t], other)
        backward(uneven(h_of(one)) + uneven(h_of(other), 1))

    ways = [[(0, [(2 * t + k, row) for t in range(TIME)]) for row in range(n)] for k, n in enumerate((BATCH, 2))]
    hold(a_cell(kind), loop, ways)


@pytest.mark.parametrize("kind", CELLS)
def test_encoder_and_decoder_share_a_cell(kind):
    """With a state handed over, and with one that begins anew."""

    def loop(cell, backward, handed=True):
        x, state, seen = data(TIME, BATCH, INPUT), None, []
        for t in range(TIME):
            state = cell(x[t], state)
        state = state if handed else each(torch.zeros_like, state)
        for t in range(3):
            state = cell(x[-t], state)
            seen.append(h_of(state))
        backward(uneven(torch.stack(seen)) + (0 if handed else uneven(x)))

    hold(a_cell(kind), loop, [straight(TIME + 3, BATCH)])
    alone = [(0, [(TIME + t, row) for t in range(3)]) for row in range(BATCH)]

    def apart(cell, backward):
        def both(loss):
            first = cell(data(BATCH, INPUT, seed=9))
            backward(loss + uneven(h_of(first)))

        loop(cell, both, handed=False)

    hold(a_cell(kind), apart, [alone, [(0, [(TIME + 3, row)]) for row in range(BATCH)]])


@pytest.mark.parametrize("kind", CELLS)
def test_two_calls_go_on_from_one_state(kind):
    """The second branch is a chain of its own, and what comes back from it enters the first from outside."""

    def loop(cell, backward):
        x, state, seen = data(TIME, BATCH, INPUT), None, []
        for t in range(3):
            state = cell(x[t], state)
        for branch in range(2):
            here = state
            for t in range(3):
                here = cell(x[t] * (branch + 1), here)
                seen.append(h_of(here))
        backward(uneven(torch.stack(seen)))

    first = [(0, [(call, row) for call in range(6)]) for row in range(BATCH)]
    second = [(0, [(call, row) for call in range(6, 9)]) for row in range(BATCH)]
    hold(a_cell(kind), loop, [first, second])


@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_at_every_step(kind):
    """Scheduled sampling with a look ahead: every state is gone on from twice."""

    def loop(cell, backward):
        x, state, seen = data(TIME, BATCH, INPUT), None, []
        for t in range(TIME):
            state = cell(x[t], state)
            seen.append(h_of(cell(-x[t], state)))
        backward(uneven(torch.stack(seen)) + uneven(h_of(state)))

    # the trials come first, and the states that are gone on with afterwards begin chains of their own
    ways = [[(0, [(2 * t, row), (2 * t + 1, row)]) for row in range(BATCH)] for t in range(TIME)]
    hold(a_cell(kind), loop, ways)


@pytest.mark.parametrize("how", ["repeat_interleave", "index", "gather", "expand"])
@pytest.mark.parametrize("kind", KINDS)
def test_beam(kind, how):
    """Each row goes on in the first of its copies; the others begin in the same chain."""
    source = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])

    def spread(state):
        if how == "repeat_interleave":
            return state.repeat_interleave(2, 0)
        if how == "index":
            return state[source]
        if how == "gather":
            return state.gather(0, source.unsqueeze(1).expand(-1, HIDDEN))
        return state.unsqueeze(1).expand(-1, 2, -1).reshape(2 * BATCH, HIDDEN)

    def loop(cell, backward):
        x, state, seen = data(TIME, 2 * BATCH, INPUT), None, []
        for t in range(TIME):
            state = cell(x[t] if t >= 3 else x[t, :BATCH], state)
            if t == 2:
                state = each(spread, state)
            seen.append(uneven(h_of(state), t))
        backward(torch.stack(seen).sum())

    ways = []
    for row in range(BATCH):
        ways.append((0, [(t, row) for t in range(3)] + [(t, 2 * row) for t in range(3, TIME)]))
        ways.append((3, [(t, 2 * row + 1) for t in range(3, TIME)]))
    hold(a_cell(kind), loop, [ways])


def test_beam_of_some_of_the_sequences():
    """No more are analysed than was said, and those that are go on in the first of their copies."""

    def loop(cell, backward):
        x, state, seen = data(TIME, 2 * BATCH, INPUT), None, []
        for t in range(TIME):
            state = cell(x[t] if t >= 3 else x[t, :BATCH], state)
            state = each(lambda s: s.repeat_interleave(2, 0), state) if t == 2 else state
            seen.append(uneven(h_of(state), t))
        backward(torch.stack(seen).sum())

    ways = [(0, [(t, row) for t in range(3)] + [(t, 2 * row) for t in range(3, TIME)]) for row in (0, 3)]
    hold(a_cell("lstm"), loop, [ways], max_sequences=2)
    ways = [(0, [(t, row) for t in range(3)] + [(t, 2 * row) for t in range(3, TIME)]) for row in (0, 2, 3)]
    hold(a_cell("lstm"), loop, [ways], max_sequences=3)
    hold(a_cell("lstm"), loop, [[(0, [(t, 0) for t in range(TIME)])]], max_sequences=1)


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("kind", CELLS)
def test_reordered(kind, limit):
    """The same sequences are followed wherever they go."""
    order = torch.tensor([2, 0, 3, 1])

    def loop(cell, backward):
        x, state, seen = data(TIME, BATCH, INPUT), None, []
        for t in range(TIME):
            state = cell(x[t], state)
            seen.append(h_of(state))
            state = each(lambda s: s[order], state)
        backward(uneven(torch.stack(seen)))

    ways, place = [], list(range(BATCH))
    for t in range(TIME):
        ways.append([(t, row) for row in place])
        place = [order.tolist().index(row) for row in place]
    columns = [(0, list(way)) for way in zip(*ways, strict=True)]
    columns = columns if limit is None else [columns[0], columns[3]]
    hold(a_cell(kind), loop, [columns], max_sequences=limit)


@pytest.mark.parametrize("how", ["slice", "split", "narrow", "mask"])
@pytest.mark.parametrize("kind", KINDS)
def test_shrinking_batch(kind, how):
    sizes = [4, 4, 3, 2, 2, 1]

    def cut(state, n):
        if how == "slice":
            return state[:n]
        if how == "split":
            return state.split([n, len(state) - n])[0]
        return state.narrow(0, 0, n) if how == "narrow" else state[torch.arange(len(state)) < n]

    def loop(cell, backward):
        x, state, seen = data(TIME, BATCH, INPUT), None, []
        for t, n in enumerate(sizes):
            state = None if state is None else each(lambda s, n=n: cut(s, n), state)
            state = cell(x[t, :n], state)
            seen.append(uneven(h_of(state), t))
        backward(torch.stack(seen).sum())

    ways = [(0, [(t, row) for t in range(sum(n > row for n in sizes))]) for row in range(BATCH)]
    hold(a_cell(kind), loop, [ways])


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_sequences_that_end_early(kind, last):
    """`torch.where(running, new, old)`: what is computed and thrown away is no timestep."""
    lengths = torch.tensor([6, 2, 4, 1])

    def loop(cell, backward):
        x, state, seen = data(TIME, BATCH, INPUT), None, []
        for t in range(TIME):
            running = (t < lengths).unsqueeze(1)
            new = cell(x[t], state)
            if state is None:
                state = new
            elif isinstance(new, tuple):
                state = tuple(torch.where(running, n, o) for n, o in zip(new, state, strict=True))
            else:
                state = torch.where(running, new, state)
            seen.append(h_of(state) if last else torch.where(running, h_of(new), 0))
        backward(uneven(seen[-1]) if last else uneven(torch.stack(seen)))

    ways = [(0, [(t, row) for t in range(length)]) for row, length in enumerate(lengths.tolist())]
    run = hold(a_cell(kind), loop, [ways])
    found = run.frame("timesteps", quantity="state").set_index("t")["sequences"]
    assert found.tolist() == [4, 3, 2, 2, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_that_end_early_by_arithmetic(kind):
    """`running * new + (1 - running) * old`, as it was written before torch had `where`."""
    lengths = torch.tensor([6, 2, 4, 1])

    def loop(cell, backward):
        x, state = data(TIME, BATCH, INPUT), None
        for t in range(TIME):
            running = (t < lengths).unsqueeze(1).double()
            new = cell(x[t], state)
            if state is None:
                state = new
            elif isinstance(new, tuple):
                state = tuple(running * n + (1 - running) * o for n, o in zip(new, state, strict=True))
            else:
                state = running * new + (1 - running) * state
        backward(uneven(h_of(state)))

    ways = [(0, [(t, row) for t in range(length)]) for row, length in enumerate(lengths.tolist())]
    hold(a_cell(kind), loop, [ways])


DONE = {(1, 0), (1, 2), (3, 2), (4, 0), (4, 1), (4, 2), (4, 3)}


def resets(batch, time, done, rows=None):
    """The ways of a chain in which sequence b begins anew after the steps t with (t, b) in `done`."""
    ways = []
    for row in range(batch) if rows is None else rows:
        cuts = [0, *sorted(t + 1 for t, b in done if b == row), time]
        ways += [(a, [(t, row) for t in range(a, b)]) for a, b in zip(cuts, cuts[1:], strict=False) if b > a]
    return ways


@pytest.mark.parametrize("limit", [None, 2, 1])
@pytest.mark.parametrize("loss", ["all", "last"])
@pytest.mark.parametrize("kind", CELLS)
def test_reset_masks(kind, loss, limit):
    """As in reinforcement learning; after step 4 all sequences begin anew, which begins a chain."""

    def loop(cell, backward):
        x, state, seen = data(TIME + 2, BATCH, INPUT), None, []
        for t in range(TIME + 2):
            state = cell(x[t], state)
            seen.append(h_of(state))
            done = torch.tensor([[float((t, b) in DONE)] for b in range(BATCH)], dtype=torch.float64)
            state = each(lambda s, done=done: s * (1 - done), state)
        backward(uneven(torch.stack(seen) if loss == "all" else seen[-1]))

    rows = {None: [0, 1, 2, 3], 2: [0, 3], 1: [0]}[limit]
    first = resets(BATCH, 5, DONE, rows)
    second = [(0, [(t, row) for t in range(5, TIME + 2)]) for row in rows]
    hold(a_cell(kind), loop, [first, second], max_sequences=limit)


@pytest.mark.parametrize("kind", KINDS)
def test_new_sequences_in_the_places_of_ended_ones(kind):
    """A state with some rows replaced by zeros from elsewhere."""

    def loop(cell, backward):
        x, state, seen = data(TIME, BATCH, INPUT), None, []
        for t in range(TIME):
            if state is not None:
                done = torch.tensor([(t - 1, b) in DONE and t < 5 for b in range(BATCH)])
                state = each(lambda s, done=done: torch.where(done.unsqueeze(1), torch.zeros_like(s), s), state)
            state = cell(x[t], state)
            seen.append(h_of(state))
        backward(uneven(torch.stack(seen)))

    hold(a_cell(kind), loop, [resets(BATCH, TIME, {d for d in DONE if d[0] < 4})])


@pytest.mark.parametrize("kind", KINDS)
def test_batch_that_grows(kind):
    """New sequences join those that are there."""

    def loop(cell, backward):
        x, state, seen = data(TIME, BATCH, INPUT), None, []
        for t in range(TIME):
            rows = 2 if t < 3 else BATCH
            if t == 3:
                state = each(lambda s: torch.cat([s, torch.zeros(2, HIDDEN, dtype=s.dtype)]), state)
            state = cell(x[t, :rows], state)
            seen.append(uneven(h_of(state), t))
        backward(torch.stack(seen).sum())

    ways = [(0, [(t, row) for t in range(TIME)]) for row in range(2)]
    hold(a_cell(kind), loop, [ways + [(3, [(t, row) for t in range(3, TIME)]) for row in (2, 3)]])


@pytest.mark.parametrize("kind", KINDS)
def test_two_batches_become_one(kind):
    """Sequences of two chains go on together: in the first chain, where those of the second begin at that timestep."""

    def loop(cell, backward):
        x = data(TIME, BATCH, INPUT)
        one, other = cell(x[0, :2]), cell(x[1, 2:])
        if kind == "lstm":
            state = tuple(torch.cat(parts) for parts in zip(one, other, strict=True))
        else:
            state = torch.cat([one, other])
        for t in range(2, TIME):
            state = cell(x[t], state)
        backward(uneven(h_of(state)))

    first = [(0, [(0, row), *((t, row) for t in range(2, TIME))]) for row in range(2)]
    joined = [(1, [(t, row) for t in range(2, TIME)]) for row in (2, 3)]
    hold(a_cell(kind), loop, [first + joined, [(0, [(1, 0)]), (0, [(1, 1)])]])


def test_some_rows_detached():
    """A row whose state comes detached begins anew."""

    def loop(cell, backward):
        x, state, seen = data(TIME, BATCH, INPUT), None, []
        for t in range(TIME):
            state = cell(x[t], state)
            seen.append(state)
            if t == 2:
                state = torch.cat([state[:2], state[2:].detach()])
        backward(uneven(torch.stack(seen)))

    hold(a_cell("gru"), loop, [resets(BATCH, TIME, {(2, 2), (2, 3)})])


def test_every_state_detached():
    def loop(cell, backward):
        x, state, seen = data(3, BATCH, INPUT), None, []
        for t in range(3):
            state = cell(x[t], None if state is None else state.detach())
            seen.append(state)
        backward(uneven(torch.stack(seen)))

    hold(a_cell("gru"), loop, [[(0, [(t, row)]) for row in range(BATCH)] for t in range(3)], notes=[DETACHED])
