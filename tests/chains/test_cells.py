"""Cells called in a loop: every family, bias, layout and initial state; losses on the last step, all, some, or on c."""

from __future__ import annotations

import pytest
import torch
from cases import uneven
from chains.hold import CELLS, HIDDEN, INPUT, a_cell, a_layer, assert_same_tables, data, each, h_of, hold, straight

import gradscope

TIME, BATCH = 6, 3


def losses(states):
    """By name, a loss of all states of a loop."""
    hidden = [h_of(s) for s in states]
    return {
        "last": lambda: uneven(hidden[-1]),
        "all": lambda: uneven(torch.stack(hidden)),
        "some": lambda: uneven(torch.stack(hidden[1::2])),
        "c": lambda: uneven(states[-1][1]),
        "c_and_h": lambda: uneven(torch.stack([s[1] for s in states[::2]])) + uneven(hidden[-1]),
    }


def loop_of(loss, hx=None, batch=(BATCH,), time=TIME):
    def loop(cell, backward):
        like = next(cell.parameters())
        x = data(time, *batch, INPUT).to(like)
        state, states = hx, []
        if hx is not None:
            state = tuple(s.to(like) for s in hx) if isinstance(hx, tuple) else hx.to(like)
        for t in range(time):
            state = cell(x[t], state)
            states.append(state)
        backward(losses(states)[loss]())

    return loop


def initial(kind, batch=(BATCH,)):
    h, c = data(*batch, HIDDEN, seed=5), data(*batch, HIDDEN, seed=6)
    return (h, c) if kind == "lstm" else h


@pytest.mark.parametrize("loss", ["last", "all", "some"])
@pytest.mark.parametrize("kind", CELLS)
def test_losses(kind, loss):
    hold(a_cell(kind), loop_of(loss), [straight(TIME, BATCH)])


@pytest.mark.parametrize("loss", ["c", "c_and_h"])
def test_losses_on_the_cell_state(loss):
    hold(a_cell("lstm"), loop_of(loss), [straight(TIME, BATCH)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_bias_precision_and_initial_state(kind, bias, dtype):
    cell = a_cell(kind, bias=bias, dtype=dtype)
    hold(cell, loop_of("all", initial(kind)), [straight(TIME, BATCH)], rtol=1e-9 if dtype == torch.float64 else 2e-4)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_unbatched(kind, given):
    hold(a_cell(kind), loop_of("some", initial(kind, ()) if given else None, ()), [straight(TIME, 1)])


@pytest.mark.parametrize("kind", CELLS)
def test_one_call(kind):
    hold(a_cell(kind), loop_of("all", time=1), [straight(1, BATCH)])


@pytest.mark.parametrize("kind", CELLS)
def test_initial_state_that_is_learnt(kind):
    def loop(cell, backward):
        start = initial(kind)
        learnt = tuple(s.requires_grad_() for s in start) if kind == "lstm" else start.requires_grad_()
        state, x = learnt, data(TIME, BATCH, INPUT)
        for t in range(TIME):
            state = cell(x[t], state)
        backward(uneven(h_of(state)))

    hold(a_cell(kind), loop, [straight(TIME, BATCH)])


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_some_of_the_sequences(limit):
    rows = {1: [0], 2: [0, 6], 4: [0, 2, 4, 6]}[limit]
    hold(a_cell("lstm"), loop_of("all", batch=(7,)), [straight(TIME, 7, rows)], max_sequences=limit)


def test_wide_states_and_a_single_unit():
    hold(a_cell("lstm", hidden=1), loop_of("all"), [straight(TIME, BATCH)])
    hold(a_cell("gru", hidden=9), loop_of("last"), [straight(TIME, BATCH)])


@pytest.mark.parametrize("frozen", ["weight_ih", "weight_hh", "all_but_input"])
def test_frozen_weights(frozen):
    """What cannot be told by the weights' gradients is told by the graph all the same."""

    def loop(cell, backward):
        x, state = data(TIME, BATCH, INPUT).requires_grad_(), None
        for t in range(TIME):
            state = cell(x[t], state)
        backward(uneven(h_of(state)))

    cell = a_cell("gru")
    for name, parameter in cell.named_parameters():
        parameter.requires_grad_(name != frozen if frozen != "all_but_input" else name == "weight_ih")
    hold(cell, loop, [straight(TIME, BATCH)])


@pytest.mark.parametrize("kind", CELLS)
def test_same_as_the_fused_layer(kind):
    """A cell in a loop and the fused layer with its weights, by truncated backpropagation, the last piece shorter."""
    layer, cell = a_layer(kind), a_cell(kind)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})

    def fused(x, state):
        return layer(x, state)

    def unrolled(x, state):
        state, seen = None if state is None else each(lambda s: s[0], state), []
        for row in x:
            state = cell(row, state)
            seen.append(h_of(state))
        return torch.stack(seen), each(lambda s: s.unsqueeze(0), state)

    runs = []
    for module, forward in ((layer, fused), (cell, unrolled)):
        optimizer, state = torch.optim.SGD(module.parameters(), 0.05), None
        with gradscope.attach(module, every=1, quantities="full", strict=True) as scope:
            for x in data(11, BATCH, INPUT).split(4):
                optimizer.zero_grad()
                output, state = forward(x, None if state is None else each(torch.Tensor.detach, state))
                uneven(output).backward()
                optimizer.step()
        runs.append(scope.run)
    assert runs[0].frame("layers")["timesteps"].tolist() == [4, 4, 3]
    assert_same_tables(*runs, rel=1e-10)


@pytest.mark.parametrize("loss", ["last", "some"])
@pytest.mark.parametrize("kind", CELLS)
def test_a_gradient_that_vanishes_in_float32(kind, loss):
    """By much more than a factor that is kept aside between pieces of time; what autograd had of it confirms that."""
    time, cell = 80, a_cell(kind, dtype=torch.float32)
    with torch.no_grad():
        cell.weight_hh.mul_(0.2)
    run = hold(cell, loop_of(loss, time=time), [straight(time, BATCH)], rtol=2e-4)
    grad_h = run.frame("timesteps", quantity="grad_h").set_index("t")["p50"]
    if loss == "last":
        assert grad_h[0] < 2.0**-20 * grad_h[time - 1]


class OneNode(torch.autograd.Function):
    """Both results of an LSTM's step from one node of the graph, as torch's kernel for GPUs has them."""

    @staticmethod
    def forward(ctx, gates, c):
        i, f, g, o = gates.chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        new = f * c + i * g
        ctx.save_for_backward(i, f, g, o, c, new)
        return o * new.tanh(), new

    @staticmethod
    def backward(ctx, grad_h, grad_c):
        i, f, g, o, c, new = ctx.saved_tensors
        total = grad_c + grad_h * o * (1 - new.tanh() ** 2)
        parts = total * g * i * (1 - i), total * c * f * (1 - f), total * i * (1 - g * g)
        return torch.cat([*parts, grad_h * new.tanh() * o * (1 - o)], 1), total * f


@pytest.mark.parametrize("loss", ["last", "all", "c_and_h"])
def test_both_results_from_one_node(loss, monkeypatch):
    def fused(x, state, w_ih, w_hh, b_ih, b_hh):
        return OneNode.apply(x @ w_ih.T + state[0] @ w_hh.T + b_ih + b_hh, state[1])

    monkeypatch.setattr(torch._VF, "lstm_cell", fused)
    hold(a_cell("lstm"), loop_of(loss), [straight(TIME, BATCH)])
