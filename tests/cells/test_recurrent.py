"""What `Recurrent` adds to its cells: skips, variational dropout, one call per timestep, errors that say what to do."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from gradscope import GradscopeError
from gradscope.cells import (
    GRUCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LayerNormRNNCell,
    LinearCell,
    LSTMCell,
    Recurrent,
    RNNCell,
)

CELLS = [LinearCell, RNNCell, LSTMCell, GRUCell, LayerNormRNNCell, LayerNormLSTMCell, LayerNormGRUCell]
TIME, BATCH, SIZE = 6, 3, 4


class Calls:
    """Every call of some modules: input, state and mask."""

    def __init__(self, *modules: nn.Module) -> None:
        self.seen: list[tuple[nn.Module, Tensor, Any, Tensor | None]] = []
        for module in modules:
            module.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen.append((module, args[0], args[1], kwargs.get("mask")))


def first(state: Any) -> Tensor:
    return state if isinstance(state, Tensor) else state[0]


@pytest.mark.parametrize("cell", CELLS)
def test_any_cell_by_hand(cell: Any) -> None:
    """Two layers, both directions: four loops over its own cells, written out."""
    rnn = Recurrent(cell, 2, SIZE, 2, bidirectional=True)
    x = torch.randn(TIME, BATCH, 2)
    output, final = rnn(x)
    below, finals = x, []
    for layer in range(2):
        sides = []
        for direction in range(2):
            state, outputs = None, {}
            for t in range(TIME) if direction == 0 else range(TIME - 1, -1, -1):
                state = rnn.cells[2 * layer + direction](below[t], state)
                outputs[t] = first(state)
            sides.append(torch.stack([outputs[t] for t in range(TIME)]))
            finals.append(first(state))
        below = torch.cat(sides, -1)
    assert torch.equal(output, below)
    assert torch.equal(first(final), torch.stack(finals))


@pytest.mark.parametrize("cell", CELLS)
def test_state_handed_on_continues_the_sequence(cell: Any) -> None:
    rnn = Recurrent(cell, 2, SIZE, 2)
    x = torch.randn(TIME, BATCH, 2)
    whole, end = rnn(x)
    start, state = rnn(x[:2])
    rest, again = rnn(x[2:], state)
    torch.testing.assert_close(torch.cat([start, rest]), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first(again), first(end), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("skip", [None, "residual", "highway"])
def test_packed_is_every_sequence_by_itself(cell: Any, skip: str | None) -> None:
    rnn = Recurrent(cell, 2 * SIZE, SIZE, 2, bidirectional=True, skip=skip)
    parts = [torch.randn(length, 2 * SIZE) for length in (2, 6, 1)]
    output, final = rnn(pack_sequence(parts, enforce_sorted=False))
    for b, (part, mine) in enumerate(zip(parts, unpack_sequence(output), strict=True)):
        alone, alone_final = rnn(part)
        torch.testing.assert_close(mine, alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(first(final)[:, b], first(alone_final), rtol=1e-12, atol=1e-12)


def test_every_cell_is_called_once_per_timestep_in_the_order_of_the_recurrence() -> None:
    rnn = Recurrent(GRUCell, 2, SIZE, 1, bidirectional=True)
    calls = Calls(*rnn.cells)
    parts = [torch.randn(length, 2) for length in (3, 6)]
    output, _ = rnn(pack_sequence(parts, enforce_sorted=False))
    assert [module for module, *_ in calls.seen] == [rnn.cells[0]] * 6 + [rnn.cells[1]] * 6
    long, short = 0, 1  # longest first
    for t, (_, x, _, _) in enumerate(calls.seen[:6]):
        assert torch.equal(x[long], parts[1][t])
    for t, (_, x, _, _) in enumerate(calls.seen[6:]):
        assert torch.equal(x[long], parts[1][5 - t])
    states = [state for _, _, state, _ in calls.seen]
    ended = unpack_sequence(output)[0][2, :SIZE]
    assert all(torch.equal(state[short], ended) for state in states[3:6])
    assert not any(state[short].any() for state in states[6:10])  # not begun: at its initial state
    assert states[10][short].any()


def test_padding_has_no_gradient_and_no_effect() -> None:
    rnn = Recurrent(RNNCell, 2, SIZE, 2, bidirectional=True)
    x = torch.randn(TIME, 2, 2, requires_grad=True)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 2]))
    output, h_n = rnn(packed)
    (gradient,) = torch.autograd.grad(output.data.sin().sum() + h_n.cos().sum(), x)
    assert not gradient[2:, 1].any()
    assert gradient[:2, 1].all() and gradient[:, 0].all()


# skips


def test_residual_adds_what_enters_a_layer() -> None:
    rnn, plain = (Recurrent(RNNCell, SIZE, SIZE, 2, skip=skip) for skip in ("residual", None))
    plain.load_state_dict(rnn.state_dict())
    x = torch.randn(TIME, BATCH, SIZE)
    under, over = (Recurrent(RNNCell, SIZE, SIZE) for _ in range(2))
    under.cells[0].load_state_dict(rnn.cells[0].state_dict())
    over.cells[0].load_state_dict(rnn.cells[1].state_dict())
    middle = x + under(x)[0]
    torch.testing.assert_close(rnn(x)[0], middle + over(middle)[0], rtol=1e-13, atol=1e-13)
    assert torch.equal(rnn(x)[1], torch.cat([under(x)[1], over(middle)[1]]))  # states are the cells' own
    assert not torch.allclose(plain(x)[0], rnn(x)[0])


def test_highway_interpolates() -> None:
    rnn = Recurrent(LSTMCell, 3, SIZE, 2, skip="highway")
    x = torch.randn(TIME, BATCH, 3)
    under, over = Recurrent(LSTMCell, 3, SIZE), Recurrent(LSTMCell, SIZE, SIZE)
    under.cells[0].load_state_dict(rnn.cells[0].state_dict())
    over.cells[0].load_state_dict(rnn.cells[1].state_dict())
    middle = under(x)[0]  # plain: 3 inputs do not fit 4 units
    weight, bias = (value for name, value in rnn.state_dict().items() if name.startswith("skips"))
    t = 1 / (1 + torch.exp(-(middle @ weight.T + bias)))
    assert (bias == -2).all()
    want = over(middle)[0] * t + middle * (1 - t)
    torch.testing.assert_close(rnn(x)[0], want, rtol=1e-13, atol=1e-13)


def test_a_closed_highway_carries_its_input() -> None:
    rnn = Recurrent(GRUCell, SIZE, SIZE, 5, skip="highway")
    for name, parameter in rnn.named_parameters():
        if name.endswith("transform.bias"):
            nn.init.constant_(parameter, -1e3)
    x = torch.randn(TIME, BATCH, SIZE)
    assert torch.equal(rnn(x)[0], x)


def test_skips_keep_torchs_names_for_the_rest() -> None:
    rnn = Recurrent(GRUCell, SIZE, SIZE, 2, skip="highway")
    skips = {"skips.0.transform.weight", "skips.0.transform.bias", "skips.1.transform.weight", "skips.1.transform.bias"}
    assert {*rnn.state_dict()} == {*nn.GRU(SIZE, SIZE, 2).state_dict()} | skips
    report = rnn.load_state_dict(nn.GRU(SIZE, SIZE, 2).state_dict(), strict=False)
    assert {*report.missing_keys} == skips and not report.unexpected_keys
    rnn.load_state_dict(rnn.state_dict())


def test_names_of_parameters_that_torch_does_not_have() -> None:
    rnn = Recurrent(LayerNormLSTMCell, 2, SIZE, 2, bidirectional=True)
    saved = {name: value.clone() for name, value in rnn.state_dict().items()}
    assert "gain_c_l1_reverse" in saved and len(saved) == 4 * 8
    other = Recurrent(LayerNormLSTMCell, 2, SIZE, 2, bidirectional=True)
    other.load_state_dict(saved)
    assert all(torch.equal(value, saved[name]) for name, value in other.state_dict().items())


# dropout


def test_one_mask_between_the_layers_for_every_sequence() -> None:
    rnn = Recurrent(RNNCell, 2, 50, 2, dropout=0.4)
    calls = Calls(rnn.cells[1])
    below = Recurrent(RNNCell, 2, 50)
    below.cells[0].load_state_dict(rnn.cells[0].state_dict())
    x = torch.randn(TIME, BATCH, 2)
    rnn(x)
    scale = torch.stack([given for _, given, _, _ in calls.seen]) / below(x)[0]
    mask = scale[0]
    torch.testing.assert_close(scale, mask.expand_as(scale), rtol=1e-12, atol=1e-12)
    kept = mask != 0
    torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / 0.6), rtol=1e-12, atol=1e-12)
    assert 0.45 < kept.double().mean() < 0.75
    assert not torch.equal(kept[0], kept[1]) and not torch.equal(kept[1], kept[2])
    calls.seen.clear()
    rnn(x)
    assert not torch.equal(calls.seen[0][1] != 0, kept)  # another call, another mask


def test_one_mask_on_the_recurrence_for_every_sequence_and_cell() -> None:
    rnn = Recurrent(LSTMCell, 2, 50, 2, bidirectional=True, recurrent_dropout=0.5)
    calls = Calls(*rnn.cells)
    rnn(torch.randn(TIME, BATCH, 2))
    masks = []
    for cell in rnn.cells:
        of_cell = [mask for module, _, _, mask in calls.seen if module is cell]
        assert len(of_cell) == TIME
        assert all(torch.equal(mask, of_cell[0]) for mask in of_cell)
        assert {*of_cell[0].unique().tolist()} == {0.0, 2.0} and of_cell[0].shape == (BATCH, 50)
        masks.extend(of_cell[0])
    assert all(not torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])


def test_packed_sequences_have_their_masks_too() -> None:
    rnn = Recurrent(GRUCell, 2, 50, 2, dropout=0.5, recurrent_dropout=0.5)
    calls = Calls(*rnn.cells)
    rnn(pack_sequence([torch.randn(length, 2) for length in (4, 2)]))
    masks = [mask for module, _, _, mask in calls.seen if module is rnn.cells[1]]
    inputs = [x != 0 for module, x, _, _ in calls.seen if module is rnn.cells[1]]
    assert all(torch.equal(mask, masks[0]) for mask in masks) and not torch.equal(masks[0][0], masks[0][1])
    assert all(torch.equal(seen[0], inputs[0][0]) for seen in inputs)


@pytest.mark.parametrize("cell", CELLS)
def test_dropped_units_carry_no_recurrent_gradient(cell: Any) -> None:
    """With everything dropped on the recurrence, U learns nothing: h reaches it nowhere."""
    rnn = Recurrent(cell, 2, SIZE, recurrent_dropout=1.0)
    output, _ = rnn(torch.randn(TIME, BATCH, 2))
    assert output.isfinite().all()
    (gradient,) = torch.autograd.grad(output.sin().sum(), rnn.cells[0].weight_hh)
    assert not gradient.any()


def test_the_leak_of_a_gru_is_not_dropped() -> None:
    """An open update gate keeps h whatever the mask: scaling h itself would let it explode."""
    rnn = Recurrent(GRUCell, 2, SIZE, recurrent_dropout=0.5)
    with torch.no_grad():
        rnn.cells[0].bias_ih[SIZE : 2 * SIZE] = 1e3
    h_0 = torch.randn(1, BATCH, SIZE)
    torch.testing.assert_close(rnn(torch.randn(200, BATCH, 2), h_0)[1], h_0, rtol=1e-12, atol=1e-12)


def test_probability_one_drops_everything_between_the_layers() -> None:
    rnn = Recurrent(RNNCell, 2, SIZE, 2, dropout=1.0)
    calls = Calls(rnn.cells[1])
    output, _ = rnn(torch.randn(TIME, BATCH, 2))
    assert output.isfinite().all() and not any(x.any() for _, x, _, _ in calls.seen)


def test_nothing_is_dropped_after_the_last_layer() -> None:
    output, h_n = Recurrent(RNNCell, 2, 50, 2, dropout=0.5)(torch.randn(TIME, BATCH, 2))
    assert output.all() and torch.equal(output[-1], h_n[1])


def test_no_dropout_in_eval_nor_at_probability_zero() -> None:
    rnn = Recurrent(LSTMCell, 2, SIZE, 2, dropout=0.5, recurrent_dropout=0.5)
    plain = Recurrent(LSTMCell, 2, SIZE, 2)
    plain.load_state_dict(rnn.state_dict())
    x = torch.randn(TIME, BATCH, 2)
    before = torch.get_rng_state()
    assert torch.equal(rnn.eval()(x)[0], plain(x)[0])  # plain is in training mode
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(rnn.train()(x)[0], plain(x)[0])


def test_dropout_keeps_the_mean() -> None:
    """A linear network is linear in its masks, each used once here: the mean over masks is the network without."""
    rnn = Recurrent(LinearCell, 2, SIZE, 2, dropout=0.3)
    x = torch.randn(TIME, 1, 2)
    mean = rnn(x.expand(TIME, 20_000, 2))[0].mean(1)
    want = rnn.eval()(x)[0][:, 0]
    torch.testing.assert_close(mean, want, rtol=0, atol=0.02 * want.abs().max().item())


# options, and what is refused


def test_options_reach_every_cell() -> None:
    rnn = Recurrent(GRUCell, 2, SIZE, 2, bidirectional=True, reset="before", bias=False, dtype=torch.float32)
    assert all(cell.reset == "before" and cell.bias_ih is None for cell in rnn.cells)
    assert {p.dtype for p in rnn.parameters()} == {torch.float32}
    assert 'reset="before"' in repr(rnn) and "bidirectional=True" in repr(rnn)
    same = Recurrent(partial(GRUCell, reset="before"), 2, SIZE)
    assert same.cells[0].reset == "before"
    with pytest.raises(TypeError, match="forget"):
        Recurrent(GRUCell, 2, SIZE, forget=1)


def test_highways_go_where_the_cells_are() -> None:
    rnn = Recurrent(GRUCell, SIZE, SIZE, skip="highway", device="meta", dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in rnn.parameters()} == {("meta", torch.float16)}


class Counter(nn.Module):
    """A cell of the user's own, which gives (output, state), its state three tensors."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(input_size, hidden_size)

    def initial_state(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.new_zeros(len(x), self.inner.out_features) for _ in range(3))

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> Any:
        a, b, c = state
        a, b, c = a + self.inner(x), b + a, c + b
        return a * c, (a, b, c)


def test_a_cell_of_ones_own() -> None:
    rnn = Recurrent(Counter, 2, SIZE, 2)
    x = torch.randn(TIME, BATCH, 2)
    output, final = rnn(x)
    state, below = tuple(torch.zeros(3, BATCH, SIZE)), []
    for t in range(TIME):
        out, state = rnn.cells[0](x[t], state)
        below.append(out)
    assert len(final) == 3 and all(torch.equal(mine[0], s) for mine, s in zip(final, state, strict=True))
    assert output.shape == (TIME, BATCH, SIZE)
    assert {*rnn.state_dict()} == {f"inner.{name}_l{k}" for name in ("weight", "bias") for k in (0, 1)}
    rnn.load_state_dict(rnn.state_dict())


class Stateless(nn.Linear):
    pass


class Wrong(Counter):
    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> Any:
        return state[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recurrent(GRUCell, 2, 3, 0), "num_layers=0"),
        (lambda: Recurrent(GRUCell, 2, 3, 2, dropout=1.5), r"dropout=1\.5.*between 0 and 1"),
        (lambda: Recurrent(GRUCell, 2, 3, recurrent_dropout=-0.1), "recurrent_dropout=-0.1"),
        (lambda: Recurrent(GRUCell, 2, 3, skip="dense"), '\'dense\'.*"residual", "highway" or None'),
        (lambda: Recurrent(GRUCell, 2, 3, skip="residual"), r"3 units.*\[2\].*input_size=3"),
        (lambda: Recurrent(nn.GRUCell, 2, 3, recurrent_dropout=0.5), "GRUCell takes no mask"),
        (lambda: Recurrent(Stateless, 2, 3), r"Stateless.*initial_state\(x\)"),
    ],
)
def test_unusable_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(GradscopeError, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rnn: rnn(torch.ones(4)), r"\[T, B, D\].*got \[4\]"),
        (lambda rnn: rnn([1.0]), "got list"),
        (lambda rnn: rnn(torch.ones(0, 1, 2)), "at least one timestep"),
        (lambda rnn: rnn(torch.ones(4, 1, 3)), "input_size=2.*3 features"),
        (
            lambda rnn: rnn(torch.ones(4, 1, 2), torch.ones(2, 1, 3)),
            r"\(a tensor \[2, 1, 3\], a.*is a tensor \[2, 1, 3\]",
        ),
        (lambda rnn: rnn(torch.ones(4, 2), (torch.ones(2, 1, 3),) * 2), r"\[2, 3\].*\[2, 1, 3\]"),
        (lambda rnn: rnn(torch.ones(4, 5, 2), (torch.ones(2, 1, 3),) * 2), r"\[2, 5, 3\].*\[2, 1, 3\]"),
    ],
)
def test_unusable_inputs_are_refused(call: Any, message: str) -> None:
    with pytest.raises(GradscopeError, match=message):
        call(Recurrent(LSTMCell, 2, 3, 2))


def test_a_cell_that_loses_its_state_is_refused() -> None:
    with pytest.raises(GradscopeError, match="a tuple of 3 tensors returned a tensor"):
        Recurrent(Wrong, 2, 3)(torch.ones(4, 1, 2))


def test_dropout_without_a_layer_above_warns() -> None:
    with pytest.warns(UserWarning, match="only one; recurrent_dropout"):
        Recurrent(GRUCell, 2, 3, dropout=0.5)
