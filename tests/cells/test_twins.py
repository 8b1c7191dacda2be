"""The twins of torch's modules: the same parameters, the same numbers, outputs to gradients, to 1e-12 in float64."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from gradscope.cells import GRUCell, LSTMCell, Recurrent, RNNCell

TIME, BATCH, INPUT, HIDDEN = 5, 4, 3, 6
FUSED: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "tanh": (nn.RNN, RNNCell, {}),
    "relu": (nn.RNN, RNNCell, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, LSTMCell, {}),
    "gru": (nn.GRU, GRUCell, {}),
}
SHAPES = list(itertools.product(FUSED, (1, 3), (False, True), (True, False)))
LAYOUTS = ("time_first", "batch_first", "unbatched", "packed", "packed_unsorted")


def pair(family: str, layers: int = 2, bidirectional: bool = True, bias: bool = True, **more: Any) -> tuple[Any, Any]:
    fused, cell, options = FUSED[family]
    common = dict(options, bidirectional=bidirectional, bias=bias, **more)
    theirs, ours = fused(INPUT, HIDDEN, layers, **common), Recurrent(cell, INPUT, HIDDEN, layers, **common)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def sequences(layout: str) -> tuple[Tensor, Any]:
    """Values that want a gradient, and the input made of them."""
    shape = {"unbatched": (TIME, INPUT), "batch_first": (BATCH, TIME, INPUT)}.get(layout, (TIME, BATCH, INPUT))
    x = torch.randn(*shape, requires_grad=True)
    if not layout.startswith("packed"):
        return x, x
    lengths = [5, 4, 4, 1] if layout == "packed" else [1, 4, 5, 2]
    return x, pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=layout == "packed")


def states(module: nn.Module, layout: str) -> Any:
    slots = module.num_layers * (1 + module.bidirectional)
    shape = (slots, HIDDEN) if layout == "unbatched" else (slots, BATCH, HIDDEN)
    h_0, c_0 = (torch.randn(*shape, requires_grad=True) for _ in range(2))
    return (h_0, c_0) if isinstance(module, nn.LSTM) else h_0


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, PackedSequence):
        return [result.data]
    return [result] if isinstance(result, Tensor) else [t for part in result for t in tensors(part)]


def numbers(module: nn.Module, x: Tensor, given: Any, hx: Any) -> list[Tensor]:
    """Outputs, final states, and the gradients of inputs, initial states and parameters."""
    results = tensors(module(given, hx) if hx is not None else module(given))
    loss = sum(((k + 1) * r).sin().sum() for k, r in enumerate(results))
    leaves = [x, *(tensors(hx) if hx is not None else ()), *module.parameters()]
    return [*results, *torch.autograd.grad(loss, leaves, retain_graph=True)]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("family", "layers", "bidirectional", "bias"), SHAPES)
def test_families(family: str, layers: int, bidirectional: bool, bias: bool) -> None:
    theirs, ours = pair(family, layers, bidirectional, bias)
    x, given = sequences("packed_unsorted")
    hx = states(theirs, "packed_unsorted")
    assert_same(numbers(ours, x, given, hx), numbers(theirs, x, given, hx))


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_hx", [False, True])
def test_layouts(family: str, layout: str, with_hx: bool) -> None:
    theirs, ours = pair(family, batch_first=layout == "batch_first")
    x, given = sequences(layout)
    hx = states(theirs, layout) if with_hx else None
    assert_same(numbers(ours, x, given, hx), numbers(theirs, x, given, hx))
    for mine, other in zip(tensors(ours(given, hx)), tensors(theirs(given, hx)), strict=True):
        assert mine.shape == other.shape


@pytest.mark.parametrize("layout", ["packed", "packed_unsorted"])
def test_packed_output_is_packed_alike(layout: str) -> None:
    theirs, ours = pair("gru")
    _, given = sequences(layout)
    mine, other = ours(given)[0], theirs(given)[0]
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        a, b = getattr(mine, field), getattr(other, field)
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("family", FUSED)
def test_packed_is_every_sequence_by_itself(family: str) -> None:
    _, ours = pair(family)
    lengths = [2, 5, 1, 5]
    parts = [torch.randn(length, INPUT) for length in lengths]
    output, final = ours(nn.utils.rnn.pack_sequence(parts, enforce_sorted=False))
    for b, (part, padded) in enumerate(zip(parts, nn.utils.rnn.unpack_sequence(output), strict=True)):
        alone, alone_final = ours(part)
        torch.testing.assert_close(padded, alone, rtol=1e-12, atol=1e-12)
        for state, alone_state in zip(tensors(final), tensors(alone_final), strict=True):
            torch.testing.assert_close(state[:, b], alone_state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("family", "layers", "bidirectional", "bias"), SHAPES)
def test_state_dicts_load_both_ways(family: str, layers: int, bidirectional: bool, bias: bool) -> None:
    theirs, ours = pair(family, layers, bidirectional, bias)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    fresh, _ = pair(family, layers, bidirectional, bias)
    outer = nn.ModuleDict({"a": nn.Linear(2, 2), "rnn": ours})
    nn.ModuleDict({"a": nn.Linear(2, 2), "rnn": fresh}).load_state_dict(outer.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)
    outer.load_state_dict(nn.ModuleDict({"a": nn.Linear(2, 2), "rnn": theirs}).state_dict())


def test_what_does_not_fit_is_reported() -> None:
    ours = Recurrent(GRUCell, INPUT, HIDDEN)
    with pytest.raises(RuntimeError, match="Unexpected key.*weight_hh_l0_reverse"):
        ours.load_state_dict(nn.GRU(INPUT, HIDDEN, bidirectional=True).state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key.*weight_hh_l1"):
        ours.load_state_dict(nn.GRU(INPUT, HIDDEN, 2).state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*cells\.0\.bias_ih"):
        ours.load_state_dict(nn.GRU(INPUT, HIDDEN, bias=False).state_dict())


def test_loading_leaves_the_dictionary_alone() -> None:
    saved = nn.GRU(INPUT, HIDDEN).state_dict()
    names = list(saved)
    Recurrent(GRUCell, INPUT, HIDDEN).load_state_dict(saved)
    assert list(saved) == names


@pytest.mark.parametrize("family", FUSED)
def test_the_same_seed_gives_the_same_network(family: str) -> None:
    fused, cell, options = FUSED[family]
    made = []
    for build in (
        lambda: fused(3, 4, 2, bidirectional=True, **options),
        lambda: Recurrent(cell, 3, 4, 2, bidirectional=True, **options),
    ):
        torch.manual_seed(7)
        made.append(build())
    assert all(torch.equal(a, b) for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True))


CELLS = {
    "tanh": (nn.RNNCell, RNNCell, {}),
    "relu": (nn.RNNCell, RNNCell, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTMCell, LSTMCell, {}),
    "gru": (nn.GRUCell, GRUCell, {}),
}


@pytest.mark.parametrize("family", CELLS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
def test_cells(family: str, bias: bool, with_state: bool) -> None:
    fused, cell, options = CELLS[family]
    theirs, ours = fused(INPUT, HIDDEN, bias=bias, **options), cell(INPUT, HIDDEN, bias=bias, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    for shape in ((BATCH,), ()):
        x = torch.randn(*shape, INPUT, requires_grad=True)
        h, c = (torch.randn(*shape, HIDDEN, requires_grad=True) for _ in range(2))
        state = ((h, c) if family == "lstm" else h) if with_state else None
        assert_same(numbers(ours, x, x, state), numbers(theirs, x, x, state))


@pytest.mark.parametrize("fused", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_torchs_own_cells_can_be_stacked(fused: Any) -> None:
    layer = {nn.RNNCell: nn.RNN, nn.LSTMCell: nn.LSTM, nn.GRUCell: nn.GRU}[fused](INPUT, HIDDEN, 2)
    stack = Recurrent(fused, INPUT, HIDDEN, 2)
    stack.load_state_dict(layer.state_dict())
    x = torch.randn(TIME, BATCH, INPUT)
    for mine, other in zip(tensors(stack(x)), tensors(layer(x)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_copies_and_pickles_are_networks_of_their_own() -> None:
    _, ours = pair("lstm")
    x = torch.randn(TIME, BATCH, INPUT)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert list(other.state_dict()) == list(ours.state_dict())
        assert torch.equal(other(x)[0], ours(x)[0])
        with torch.no_grad():
            next(other.parameters()).add_(1)
        assert not torch.equal(other(x)[0], ours(x)[0])
