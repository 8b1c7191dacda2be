"""Loops through whole trainings: the same bits with a scope and without, and nothing of it stays."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import pytest
import torch
from cases import uneven
from chains.hold import INPUT, a_cell, assert_same_tables, data, each, h_of, hold, straight
from loop.loops import Loop, assert_same_bits, observe
from torch import Tensor, nn

import gradscope
from gradscope.observe.following import CARRIED, DETACHED, MIXED

TIME, BATCH = 5, 2


class Net(nn.Module):
    """A cell or a layer in a loop of its own."""

    def __init__(self, loop, cell=None) -> None:
        super().__init__()
        self.embed, self.cell = nn.Linear(3, 4), cell or nn.LSTMCell(4, 5)
        self.second, self.head = nn.GRUCell(5, 5), nn.Linear(5, 2)
        self.loop = loop

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.loop(self, self.embed(x))).square().mean()


def plain(net, x, change=lambda t, state, old: state, cell=None):
    state, seen = None, []
    for t in range(len(x)):
        new = (cell or net.cell)(x[t], state)
        state = change(t, new, state)
        seen.append(h_of(state))
    return torch.stack(seen)


def masks(t, state, old):
    done = (torch.rand(len(h_of(state)), 1) < 0.3).float()
    return each(lambda s: s * (1 - done), state)


def zoneout(t, state, old):
    keep = torch.rand(5) < 0.5
    return state if old is None else tuple(torch.where(keep, n, o) for n, o in zip(state, old, strict=True))


def scheduled(net, x):
    """Teacher forcing or not, drawn at every step."""
    state, seen = None, []
    for t in range(len(x)):
        given = x[t] if not seen or torch.rand(()) < 0.5 else seen[-1][:, :4]
        state = net.cell(given, state)
        seen.append(state[0])
    return torch.stack(seen)


def stacked(net, x):
    low, high, seen = None, None, []
    for t in range(len(x)):
        low = net.cell(x[t], low)
        high = net.second(nn.functional.dropout(low[0], 0.3), high)
        seen.append(high)
    return torch.stack(seen)


def in_place(net, x):
    state, seen = None, []
    for t in range(len(x)):
        state = net.second(nn.functional.pad(x[t], (0, 1)), state)
        state[torch.arange(len(state)) == t % len(state)] = 0
        seen.append(state)
    return torch.stack(seen)


def pieces(net, x):
    output, state = [], None
    for part in x.split(1):
        out, state = net.cell(part, state)
        output.append(out)
    return torch.cat(output)


def stopped(t, state, old):
    running = torch.tensor([[True], [t < 2]])
    return state if old is None else tuple(torch.where(running, n, o) for n, o in zip(state, old, strict=True))


LOOPS = {
    "plain": plain,
    "masks": lambda net, x: plain(net, x, masks),
    "zoneout": lambda net, x: plain(net, x, zoneout),
    "dropout": lambda net, x: plain(net, x, lambda t, s, old: each(lambda p: nn.functional.dropout(p, 0.3), s)),
    "layer norm": lambda net, x: plain(net, x, lambda t, s, old: each(lambda p: nn.functional.layer_norm(p, (5,)), s)),
    "detached": lambda net, x: plain(net, x, lambda t, s, old: each(torch.Tensor.detach, s) if t % 2 else s),
    "scheduled": scheduled,
    "stacked": stacked,
    "in place": in_place,
    "beam": lambda net, x: plain(net, x[0].expand(4, -1, -1), lambda t, s, old: each(lambda p: p[[1, 0]], s)),
    "noise": lambda net, x: plain(net, x, lambda t, s, old: each(lambda p: p + torch.randn_like(p) / 9, s)),
    "forward": lambda net, x: plain(net, x, cell=net.cell.forward),
    "early stop": lambda net, x: plain(net, x, stopped),
}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("limit", [16, 1])
def test_bit_for_bit(name, limit):
    def train(loop: Loop) -> None:
        optimizer = torch.optim.Adam(loop.model.parameters(), 0.01)
        for _ in range(3):
            loop.backward(TIME)
            torch.nn.utils.clip_grad_norm_(loop.model.parameters(), 1e9)
            optimizer.step()

    seen = {}
    for attached in (False, True):
        torch.manual_seed(0)
        loop = Loop(Net(LOOPS[name]))
        torch.manual_seed(1)
        scope = None
        if attached:
            scope = gradscope.attach(loop.model, every=1, quantities="full", strict=True, max_sequences=limit)
        train(loop)
        if scope is not None:
            scope.close()
            assert len(scope.run.frame("layers")["step"].unique()) == 3
        loop.look()
        seen[attached] = loop.seen
    assert_same_bits(seen[False], seen[True])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 2])
def test_bit_for_bit_in_pieces(kind, layers):
    def train(loop: Loop) -> None:
        optimizer = torch.optim.SGD(loop.model.parameters(), 0.1)
        for _ in range(3):
            loop.backward(TIME)
            loop.step(optimizer)

    torch.manual_seed(0)
    observe(train, lambda: Net(pieces, kind(4, 5, layers, dropout=0.5 * (layers > 1))), quantities="full")


def test_truncated_backpropagation():
    """A state carried over from step to step, detached; noted once."""

    def train(loop: Loop) -> None:
        optimizer, state = torch.optim.SGD(loop.model.parameters(), 0.1), None
        for _ in range(3):
            loop.look()
            loop.model.zero_grad()
            state = each(torch.Tensor.detach, state) if state else None
            seen = []
            for x in torch.randn(TIME, BATCH, 4):
                state = loop.model.cell(x, state)
                seen.append(state[0])
            torch.stack(seen).square().sum().backward()
            optimizer.step()

    seen = []
    for attached in (False, True):
        torch.manual_seed(0)
        loop = Loop(Net(plain))
        scope = gradscope.attach(loop.model, include="cell", every=1, strict=True) if attached else None
        train(loop)
        loop.look()
        seen.append(loop.seen)
    scope.close()
    assert_same_bits(*seen)
    assert scope.run.frame("notes")["reason"].tolist() == [CARRIED]
    layers = scope.run.frame("layers")
    assert layers[["step", "chain", "timesteps"]].values.tolist() == [[s, 0, TIME] for s in range(3)]


def test_several_backward_passes():
    """Each loss by itself, through a graph that is kept: the sum of all."""

    def loop(cell, backward):
        x, state, seen = data(TIME, BATCH, INPUT), None, []
        for t in range(TIME):
            state = cell(x[t], state)
            seen.append(uneven(state[0], t))
        if backward.__name__ == "kept":
            for part in seen[::2]:
                part.backward(retain_graph=True)
        else:
            backward(torch.stack(seen[::2]).sum())

    def kept(loss):
        raise AssertionError

    cell = a_cell("lstm")
    expected = hold(copy.deepcopy(cell), loop, [straight(TIME, BATCH)])
    with gradscope.attach(cell, every=1, quantities="full", strict=True) as scope:
        loop(cell, kept)
    assert_same_tables(scope.run, expected)


def test_the_graph_of_the_gradient():
    """`create_graph`, and a penalty on it that goes through the cell a second time."""
    cell = a_cell("gru")
    x = data(TIME, BATCH, INPUT)
    with gradscope.attach(cell, every=1, strict=True) as scope:
        state = None
        for t in range(TIME):
            state = cell(x[t], state)
        loss = uneven(state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch advises against create_graph in backward()
            loss.backward(create_graph=True)
    assert scope.run.frame("notes").empty
    for p in cell.parameters():
        p.grad = None


def test_autograd_grad_does_not_count():
    def loop(cell, backward):
        x, state = data(TIME, BATCH, INPUT), None
        for t in range(TIME):
            state = cell(x[t], state)
        torch.autograd.grad(uneven(h_of(state), 3), list(cell.parameters()), retain_graph=True)
        backward(uneven(h_of(state)))

    cell = a_cell("lstm")
    with gradscope.attach(cell, every=1, quantities="full", strict=True) as scope:
        loop(cell, lambda loss: loss.backward())
    plain_cell = copy.deepcopy(cell)

    def only(cell, backward):
        x, state = data(TIME, BATCH, INPUT), None
        for t in range(TIME):
            state = cell(x[t], state)
        backward(uneven(h_of(state)))

    for p in plain_cell.parameters():
        p.grad = None
    expected = hold(plain_cell, only, [straight(TIME, BATCH)])
    assert_same_tables(scope.run, expected)


def test_gradient_accumulation():
    """The first micro-batch is recorded, as with layers."""
    torch.manual_seed(0)
    net, seen = Net(plain), []
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with gradscope.attach(net, every=1, include="cell", strict=True) as scope:
        for _ in range(3):
            loss = net(torch.randn(TIME, BATCH, 3))
            loss.backward()
        optimizer.step()
        seen.append(scope.run.frame("layers"))
    assert seen[0][["step", "chain", "timesteps"]].values.tolist() == [[0, 0, TIME]]
    assert (seen[0]["residual"] < 1e-5).all()


def test_hooks_of_the_user_fire_as_often():
    def fired(attached):
        counts = []
        cell = a_cell("lstm")
        scope = gradscope.attach(cell, every=1, strict=True) if attached else None
        x, state = data(TIME, BATCH, INPUT), None
        for t in range(TIME):
            state = cell(x[t], state)
            for part in state:
                part.register_hook(lambda g, t=t: counts.append((t, float(g.sum()))))
            state = tuple(part * 0.5 for part in state)
            state[0].grad_fn.register_hook(lambda i, o, t=t: counts.append((t, float(o[0].sum()))))
        uneven(state[0]).backward()
        if scope is not None:
            scope.close()
        return counts

    torch.manual_seed(0)
    without = fired(False)
    torch.manual_seed(0)
    assert fired(True) == without
    assert len(without) == 3 * TIME


def test_gradients_that_a_hook_of_the_user_changes():
    """What the hook takes away is missing on the way back: the gradients are not given, the states are."""

    def loop(cell, backward):
        x, state = data(TIME, BATCH, INPUT), None
        for t in range(TIME):
            state = cell(x[t], state)
            if t == 2:
                state.register_hook(lambda g: g.clamp(-0.01, 0.01))
        backward(uneven(state))

    cell = a_cell("gru")
    with gradscope.attach(cell, every=1, strict=True) as scope:
        loop(cell, lambda loss: loss.backward())
    (reason,) = scope.run.frame("notes")["reason"]
    assert reason.startswith("the rebuilt gradient")
    assert scope.run.frame("timesteps", quantity="grad_h")["p50"].isna().all()
    assert scope.run.frame("timesteps", quantity="state")["p50"].notna().all()


@pytest.mark.parametrize("kind", ["cell", "layer"])
def test_forward_without_backward_keeps_nothing(kind):
    """The graph goes with its last result, whether the next step begins or not."""
    net = Net(plain) if kind == "cell" else Net(pieces, nn.LSTM(4, 5))
    with gradscope.attach(net, every=1, strict=True) as scope:
        out = net(torch.randn(TIME, BATCH, 3))
        result, calls = weakref.ref(out), [weakref.ref(o) for o in observed_calls()]
        assert len(calls) >= TIME
        gc.disable()  # references alone have to do
        try:
            del out
            assert result() is None
            assert not any(call() for call in calls)
        finally:
            gc.enable()
        assert scope.run.frame("layers").empty


def observed_calls():
    return [o for o in gc.get_objects() if type(o).__name__ == "ObservedCall"]


def test_nothing_is_left_after_close():
    gc.collect()
    assert not observed_calls()
    net = Net(plain)
    with gradscope.attach(net, every=1, strict=True):
        loss = net(torch.randn(TIME, BATCH, 3))
        loss.backward()
    net.zero_grad()
    del loss
    gc.collect()
    assert not observed_calls()
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch._VF.lstm_cell.__module__ is None or "gradscope" not in torch._VF.lstm_cell.__module__


def test_notes_are_said_once_a_step():
    net = Net(LOOPS["zoneout"])
    with gradscope.attach(net, every=1, include="cell", strict=True) as scope:
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(2):
            net.zero_grad()
            net(torch.randn(TIME, BATCH, 3)).backward()
            optimizer.step()
    notes = scope.run.frame("notes")
    assert notes[["step", "reason"]].values.tolist() == [[0, MIXED], [1, MIXED]]
    assert DETACHED not in notes["reason"].tolist()
