"""A loop run on a model under a scope and on its twin: the tables have to be the twin's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import oracles
import pytest
import torch
from chains.truth import Way, frames, twin_of
from torch import Tensor, nn

import gradscope

INPUT, HIDDEN = 3, 4
CELLS: dict[str, Callable[..., nn.RNNCellBase]] = {
    "rnn_tanh": nn.RNNCell,
    "rnn_relu": lambda *args, **kwargs: nn.RNNCell(*args, nonlinearity="relu", **kwargs),
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
}
LAYERS: dict[str, Callable[..., nn.RNNBase]] = {
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *args, **kwargs: nn.RNN(*args, nonlinearity="relu", **kwargs),
    "lstm": nn.LSTM,
    "gru": nn.GRU,
}

Backward = Callable[[Tensor], None]
Loop = Callable[[Any, Backward], None]


def a_cell(kind: str, inputs: int = INPUT, hidden: int = HIDDEN, dtype: torch.dtype = torch.float64, **kw: Any) -> Any:
    """A cell with weights large enough for gradients to be seen a few steps back."""
    return _sharpened(CELLS[kind](inputs, hidden, dtype=dtype, **kw))


def a_layer(kind: str, inputs: int = INPUT, hidden: int = HIDDEN, **kw: Any) -> Any:
    return _sharpened(LAYERS[kind](inputs, hidden, dtype=torch.float64, **kw))


def _sharpened(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    return module


def data(*shape: int, seed: int = 1) -> Tensor:
    """Random numbers in float64, that depend on the seed and the shape alone."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def h_of(state: Any) -> Tensor:
    """h, whether the state is that or (h, c)."""
    return state[0] if isinstance(state, tuple) else state


def each(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """The function of every part of a state."""
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


def straight(calls: int, batch: int, rows: Sequence[int] | None = None) -> list[Way]:
    """A chain through so many calls, each sequence in its own row."""
    return [(0, [(call, row) for call in range(calls)]) for row in (range(batch) if rows is None else rows)]


def record(model: nn.Module, loop: Loop, **arguments: Any) -> gradscope.Run:
    """What a scope makes of one pass of a loop; the gradients must be those without it."""
    bare = copy.deepcopy(model)
    torch.manual_seed(2)
    loop(bare, lambda loss: loss.backward())
    torch.manual_seed(2)
    with gradscope.attach(model, every=1, quantities="full", strict=True, **arguments) as scope:
        loop(model, lambda loss: loss.backward())
    for mine, theirs in zip(model.parameters(), bare.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)
    return scope.run


def hold(
    model: nn.Module,
    loop: Loop,
    chains: dict[str, list[list[Way]]] | list[list[Way]],
    *,
    rtol: float = 1e-9,
    notes: Sequence[str] = (),
    **arguments: Any,
) -> gradscope.Run:
    """The run agrees with the twin of the model about these chains, and has these notes and no others.

    Args:
        model: float64, or less exact.
        loop: is given the model and what to call in place of `loss.backward()`.
        chains: by module, for each chain its sequences; of the model itself where there is but one.
        rtol: relative to the largest value of a quantity.
        notes: beginnings of the expected reasons.
        arguments: of `attach`.
    """
    twin = twin_of(model)
    run = record(model, loop, **arguments)
    torch.manual_seed(2)
    loop(twin, lambda loss: loss.backward(retain_graph=True))
    expected = frames(twin, chains if isinstance(chains, dict) else {"": chains})
    reasons = run.frame("notes")["reason"].tolist()
    assert len(reasons) == len(notes), reasons
    assert all(reason.startswith(note) for reason, note in zip(sorted(reasons), sorted(notes), strict=True)), reasons
    oracles.assert_agrees(run, *expected, rtol=rtol)
    return run


def assert_same_tables(
    one: gradscope.Run, other: gradscope.Run, rel: float = 1e-9, tables: Sequence[str] = (*oracles.ROWS, "spectra")
) -> None:
    """All numbers of the layer tables but the certificate's."""
    for table in tables:
        a, b = (run.frame(table) for run in (one, other))
        assert len(a) == len(b) > 0
        for column in a.columns.difference(["residual"]):
            mine, theirs = a[column].tolist(), b[column].tolist()
            text = isinstance(mine[0], str)
            assert mine == (theirs if text else pytest.approx(theirs, rel=rel, abs=1e-12, nan_ok=True)), column
