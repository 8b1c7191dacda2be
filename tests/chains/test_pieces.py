"""Fused layers called piece by piece: one step at a time, in chunks, packed, in several chains."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
from cases import uneven
from chains.hold import HIDDEN, INPUT, LAYERS, a_layer, assert_same_tables, data, each, h_of, hold, record, straight
from oracles import Call
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gradscope
from gradscope.observe.following import CHANGED, DETACHED

TIME, BATCH = 6, 3
CUTS = {"steps": [1] * TIME, "chunks": [2, 1, 3], "one": [TIME], "long and short": [5, 1]}


def chunks(cuts, batch=BATCH, seed=1):
    return data(sum(cuts), batch, INPUT, seed=seed).split(cuts)


def rollout(cuts, loss="all", change=lambda k, state: state):
    def loop(rnn, backward):
        state, outputs = None, []
        batch_first = getattr(getattr(rnn, "module", rnn), "batch_first", False)
        for k, piece in enumerate(chunks(cuts)):
            output, state = rnn(piece.transpose(0, 1) if batch_first else piece, state)
            outputs.append(output.transpose(0, 1) if batch_first else output)
            state = change(k, state)
        whole = torch.cat(outputs)
        values = {"all": whole, "last": whole[-1], "some": whole[1::2], "h_n": h_of(state)}
        backward(uneven(values[loss]))

    return loop


@pytest.mark.parametrize("loss", ["all", "last", "some", "h_n"])
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_one_layer(kind, cuts, loss):
    hold(a_layer(kind), rollout(CUTS[cuts], loss), [straight(len(CUTS[cuts]), BATCH)])


@pytest.mark.parametrize("loss", ["all", "last", "h_n"])
@pytest.mark.parametrize("cuts", ["steps", "chunks"])
@pytest.mark.parametrize("kind", LAYERS)
def test_two_layers(kind, cuts, loss):
    layer = a_layer(kind, num_layers=2, batch_first=True)
    hold(layer, rollout(CUTS[cuts], loss), [straight(len(CUTS[cuts]), BATCH)])


@pytest.mark.parametrize("cuts", ["steps", "chunks"])
@pytest.mark.parametrize("kind", LAYERS)
def test_without_bias_and_with_some_sequences(kind, cuts):
    layer = a_layer(kind, bias=False)
    hold(layer, rollout(CUTS[cuts]), [straight(len(CUTS[cuts]), BATCH, [0, 2])], max_sequences=2)


@pytest.mark.parametrize("cuts", ["steps", "chunks"])
@pytest.mark.parametrize("kind", LAYERS)
def test_unbatched(kind, cuts):
    def loop(rnn, backward):
        state, outputs = None, []
        for piece in data(TIME, INPUT).split(CUTS[cuts]):
            output, state = rnn(piece, state)
            outputs.append(output)
        backward(uneven(torch.cat(outputs)))

    hold(a_layer(kind), loop, [straight(len(CUTS[cuts]), 1)])


@pytest.mark.parametrize("kind", LAYERS)
def test_same_as_one_call(kind):
    """Not only by the oracle: the tables of the pieces are those of the whole."""
    layer = a_layer(kind, num_layers=2)
    whole = record(copy.deepcopy(layer), rollout([TIME]))
    pieces = record(layer, rollout([1, 2, 3]))
    assert_same_tables(whole, pieces)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["rnn_tanh", "gru"])
def test_the_output_is_the_next_state(kind, batch_first):
    """With T = 1, as some decoders do; here it is the loss's as well."""

    def loop(rnn, backward):
        state, seen = None, []
        for piece in chunks([1] * TIME):
            output, _ = rnn(piece.transpose(0, 1) if batch_first else piece, state)
            state = output.transpose(0, 1) if batch_first else output
            seen.append(output.flatten())
        backward(uneven(torch.stack(seen[1::2])))

    hold(a_layer(kind, batch_first=batch_first), loop, [straight(TIME, BATCH)])


@pytest.mark.parametrize("kind", LAYERS)
def test_several_chains(kind):
    """Two rollouts in turns, and one that begins where the first ended, detached."""

    def loop(rnn, backward):
        one = other = None
        seen = []
        for a, b in zip(chunks([1] * 3), chunks([2] * 3, 2, 5), strict=True):
            first, one = rnn(a, one)
            second, other = rnn(b, other)
            seen += [first.flatten(), second.flatten()]
        third, _ = rnn(chunks([4])[0], each(torch.Tensor.detach, one))
        backward(uneven(torch.cat([*seen, third.flatten()])))

    ways = [[(0, [(2 * t + k, row) for t in range(3)]) for row in range(n)] for k, n in enumerate((BATCH, 2))]
    ways.append([(0, [(6, row)]) for row in range(BATCH)])
    hold(a_layer(kind), loop, ways, notes=[DETACHED])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", LAYERS)
def test_episodes_end_within_a_rollout(kind, layers):
    """Sequences are reset by a mask, and by one that is all ones nothing is."""
    done = {(0, 1), (2, 0), (2, 1)}

    def change(k, state):
        mask = torch.tensor([[float((k, b) not in done)] for b in range(BATCH)], dtype=torch.float64)
        return each(lambda s: s * mask, state)

    ways = []
    for row in range(BATCH):
        cuts = [0, *sorted(t + 1 for t, b in done if b == row), TIME]
        ways += [(a, [(t, row) for t in range(a, b)]) for a, b in zip(cuts, cuts[1:], strict=False)]
    hold(a_layer(kind, num_layers=layers), rollout([1] * TIME, "all", change), [ways])


def test_episodes_of_varying_length():
    """Chunks that are cut at the ends of episodes; the state goes on only within one."""
    cuts = [2, 1, 3, 2]

    def loop(rnn, backward):
        state, seen = None, []
        for k, piece in enumerate(chunks(cuts)):
            output, state = rnn(piece, state)
            seen.append(output)
            state = None if k == 1 else state
        backward(uneven(torch.cat(seen)))

    ways = [[(0, [(k, row), (k + 1, row)]) for row in range(BATCH)] for k in (0, 2)]
    hold(a_layer("lstm"), loop, ways)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_branches(kind):
    def loop(rnn, backward):
        pieces = chunks([2, 1, 1, 2])
        a, state = rnn(pieces[0])
        b, _ = rnn(pieces[1], state)
        c, after = rnn(pieces[2], state)
        d, _ = rnn(pieces[3], after)
        backward(uneven(torch.cat([a, b, c, d])))

    ways = [[(0, [(k, row), (k + 1, row)]) for row in range(BATCH)] for k in (0, 2)]
    hold(a_layer(kind), loop, ways)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_beam_and_reordering(kind):
    """Rows of the states are in the second dimension."""
    source = torch.tensor([2, 2, 0])

    def loop(rnn, backward):
        pieces = chunks([2, 1, 2])
        a, state = rnn(pieces[0])
        b, state = rnn(pieces[1], each(lambda s: s[:, source].contiguous(), state))
        c, _ = rnn(pieces[2], each(lambda s: s.index_select(1, torch.tensor([1, 0, 2])), state))
        backward(uneven(torch.cat([a, b, c])))

    ways = [(0, [(0, 2), (1, 0), (2, 1)]), (0, [(0, 1)]), (0, [(0, 0), (1, 2), (2, 2)]), (2, [(1, 1), (2, 0)])]
    hold(a_layer(kind), loop, [ways])


@pytest.mark.parametrize("kind", LAYERS)
def test_packed_chunks(kind):
    """Chunks with lengths of their own; what a sequence has less is a gap that nobody sees."""
    lengths = [torch.tensor([3, 1, 2]), torch.tensor([1, 2, 2]), torch.tensor([2, 2, 1])]

    def loop(rnn, backward):
        state, seen = None, []
        for k, part in enumerate(lengths):
            packed = pack_padded_sequence(data(3, BATCH, INPUT, seed=k), part, enforce_sorted=False)
            output, state = rnn(packed, state)
            seen.append(uneven(pad_packed_sequence(output)[0], k))
        backward(torch.stack(seen).sum() + uneven(h_of(state)))

    # the layer's own order within a chunk is by length, as torch sorts it
    orders = [torch.sort(part, descending=True)[1].tolist() for part in lengths]
    ways = [(0, [(k, orders[k].index(row)) for k in range(3)]) for row in orders[0]]
    hold(a_layer(kind), loop, [ways])


@pytest.mark.parametrize("change", ["scaled", "dropout"])
def test_a_changed_state_begins_a_chain(change):
    def act(k, state):
        return each(lambda s: 0.9 * s if change == "scaled" else s * (data(*s.shape, seed=k) < 0.5), state)

    ways = [[(0, [(k, row)]) for row in range(BATCH)] for k in range(3)]
    hold(a_layer("lstm"), rollout([2, 1, 3], "all", act), ways, notes=[CHANGED])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_bidirectional_calls_are_not_joined(kind):
    """Each is measured for itself; what came back to its results from the next call is a part of its loss."""
    layer, hidden = a_layer(kind, bidirectional=True), (2, BATCH, HIDDEN)
    states, results = [], []

    def loop(rnn, backward, seen=None):
        state, outputs = (data(*hidden), data(*hidden, seed=2)) if kind == "lstm" else data(*hidden), []
        for piece in chunks([2, 3]):
            given = state
            output, state = rnn(piece, state)
            outputs.append(output)
            if seen is not None:
                seen.append((piece, given, output, state))
                for tensor in (output, *(state if kind == "lstm" else (state,))):
                    tensor.retain_grad()
        backward(uneven(torch.cat(outputs)))

    loop(copy.deepcopy(layer), lambda loss: loss.backward(), states)
    for number, (piece, given, output, state) in enumerate(states):
        parts = state if kind == "lstm" else (state,)
        # torch adds up in `output` what goes on by h_n, too: its own gradient is that of the loss alone
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in (output, *parts)]

        def loss(output, h_n, c_n, grads=grads):
            total = (output * grads[0]).sum() + (h_n * grads[1]).sum()
            return total if c_n is None else total + (c_n * grads[2]).sum()

        truth = oracles.examine(Call(layer, piece, loss, each(torch.Tensor.detach, given)))
        results.append(oracles.frames(truth, chain=number))
    with gradscope.attach(layer, every=1, quantities="full", strict=True) as scope:
        loop(layer, lambda loss: loss.backward())
    assert scope.run.frame("notes").empty
    oracles.assert_agrees(scope.run, *results, rtol=1e-9)


def test_projections():
    layer = nn.LSTM(INPUT, HIDDEN, proj_size=2, dtype=torch.float64)
    whole = record(copy.deepcopy(layer), rollout([TIME]))
    pieces = record(layer, rollout([1, 2, 3]))
    assert_same_tables(whole, pieces)
    assert pieces.frame("notes").empty


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_dropout_between_the_layers(kind):
    """The masks of the pieces are drawn again, each from where the stream stood."""
    layer = a_layer(kind, num_layers=2, dropout=0.5)
    run = record(layer, rollout([2, 1, 3]))
    assert run.frame("notes").empty
    assert run.frame("layers")[["layer", "chain", "timesteps"]].values.tolist() == [[0, 0, TIME], [1, 0, TIME]]
    assert (run.frame("layers")["residual"] < 1e-9).all()
