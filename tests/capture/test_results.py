"""What is seen of a fused layer whose results are changed, in other precisions, or that is not what it looks like."""

from __future__ import annotations

import warnings
from typing import Any

import cases
import oracles
import pytest
import torch
from capture.idioms import CELLS, all_of, data, lstm, truth, watch
from cases import unpacked
from processors import needs
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gradscope


def assert_silent(run: gradscope.Run) -> None:
    """Nothing is claimed: whatever rows there are hold no number."""
    for table in ("timesteps", "reach"):
        assert run.frame(table)[oracles.STATISTICS].isna().all(axis=None), run.frame(table)


# -- what users do to results


@pytest.mark.parametrize("family", CELLS)
def test_in_place_writes_before_the_backward(family: str) -> None:
    """To the output and the final states, where autograd allows it: what is recorded is what was."""
    module, x = CELLS[family](3, 4, 2, dtype=torch.float64), data()
    expected = truth(module, x, lambda out, h, c: cases.uneven(out * 2.0) + cases.uneven(h * 3.0, 1))
    with watch(module) as scope:
        out, h_n, _ = unpacked(module(x))
        loss = cases.uneven(out.mul_(2.0)) + cases.uneven(h_n.mul_(3.0), 1)
        loss.backward()
    oracles.assert_agrees(scope.run, expected)


def test_in_place_writes_before_the_step() -> None:
    """Buffers that a loop uses again: input, initial state and results are overwritten once the backward is done."""
    module, x, h = lstm(num_layers=2), data(), (data(2, 3, 4), data(2, 3, 4))
    expected = truth(module, x, hx=h)
    with watch(module) as scope:
        out, states = module(x, h)
        cases.uneven(out).backward()
        with torch.no_grad():
            for tensor in (x, *h, out, *states):
                tensor.zero_()
    oracles.assert_agrees(scope.run, expected)


def test_packed_output_unpacked_by_the_user() -> None:
    """Lengths that the packing sorts, batch first, then the usual picking of the last valid step."""
    module, x, lengths = lstm(batch_first=True, bidirectional=True), data(4, 6, 3), torch.tensor([3, 6, 1, 4])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)

    def loss(output: Any, h_n: Tensor, c_n: Tensor | None) -> Tensor:
        rows, sizes = pad_packed_sequence(output, batch_first=True)
        return cases.uneven(rows[torch.arange(4), sizes - 1])

    with watch(module) as scope:
        loss(*unpacked(module(packed))).backward()
    oracles.assert_agrees(scope.run, truth(module, packed, loss))


def test_hooks_that_change_gradients() -> None:
    """A tensor hook of the user's on the output, that clips what enters: the kernel is given its result."""
    module, x = lstm(), data()
    with watch(module) as scope:
        out, _ = module(x)
        out.register_hook(lambda grad: grad.clamp(-0.1, 0.1))
        cases.uneven(out).backward()
    (want,) = (truth(module, x)["timesteps"] for _ in range(1))
    got = scope.run.frame("timesteps", quantity="grad_h_direct")
    unclipped = want[want["quantity"] == "grad_h_direct"]["p50"]
    if got["p50"].notna().all():
        assert got["p90"].max() <= 0.2 + 1e-12 < unclipped.max()  # four units of at most 0.1
    else:
        assert len(scope.run.frame("notes")) > 0


@pytest.mark.filterwarnings("ignore")
def test_compiled() -> None:
    """Behind `torch.compile` a layer is either seen as ever, or said not to be."""
    module, x = lstm(), data()
    with watch(module, strict=False) as scope:
        output = torch.compile(lambda rows: 1.0 * module(rows)[0], backend="eager")(x)
        cases.uneven(output).backward()
    if scope.run.frame("notes").empty:
        oracles.assert_agrees(scope.run, truth(module, x))
    else:
        assert_silent(scope.run)


# -- precision


@pytest.mark.parametrize("family", CELLS)
@pytest.mark.parametrize("how", ["autocast", "model"])
def test_bfloat16(family: str, how: str) -> None:
    close_in_bfloat16(family, how, onednn=False)


@needs("LSTM in bfloat16")
def test_bfloat16_in_onednn() -> None:
    close_in_bfloat16("lstm", "autocast", onednn=True)


def close_in_bfloat16(family: str, how: str, *, onednn: bool) -> None:
    """Close to the truth for the rounded weights and inputs, as far as eight bits go: a few percent."""
    torch.manual_seed(3)
    module = CELLS[family](3, 4).to(torch.bfloat16).to(torch.float32 if how == "autocast" else torch.bfloat16)
    x = data().to(torch.bfloat16)
    with watch(module) as scope, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with torch.backends.mkldnn.flags(enabled=onednn), torch.autocast("cpu", torch.bfloat16, how == "autocast"):
            loss = all_of(*unpacked(module(x if how == "model" else x.float())))
        loss.backward()
    want = truth(module, x)["timesteps"].set_index(["quantity", "t"])
    got = scope.run.frame("timesteps").set_index(["quantity", "t"])
    assert set(got.index) == set(want.index)
    difference = (got["p50"] - want["p50"]).abs() / want["scale"]
    assert (difference <= 0.05).all(), difference[~(difference <= 0.05)]
    assert 0 < scope.run.frame("layers")["residual"].max() < 0.05


@pytest.mark.filterwarnings("ignore::gradscope.errors.GradscopeWarning")
@pytest.mark.parametrize("family", CELLS)
def test_float16(family: str) -> None:
    module, x = CELLS[family](3, 4, dtype=torch.float16), data().half()
    with watch(module, strict=False) as scope:
        all_of(*unpacked(module(x))).backward()
    want = truth(module, x)["timesteps"].set_index(["quantity", "t"])
    got = scope.run.frame("timesteps").set_index(["quantity", "t"])
    difference = (got["p50"] - want["p50"]).abs() / want["scale"]
    assert (difference <= 0.01).all() or len(scope.run.frame("notes")) > 0


def test_autocast_around_everything() -> None:
    """Forward, loss and attach under autocast: the analysis itself is not cast down."""
    module, x = lstm(num_layers=2), data()
    with torch.autocast("cpu", torch.bfloat16), watch(module) as scope:
        out, _ = module(x)
        loss = cases.uneven(out)
        loss.backward()
    layers = scope.run.frame("layers")
    assert len(layers) == 2
    timesteps = scope.run.frame("timesteps", quantity="grad_h")
    assert timesteps["p50"].notna().all() or len(scope.run.frame("notes")) > 0


def test_default_dtype_and_grad_mode_do_not_matter() -> None:
    module, x = lstm(), data()
    with watch(module) as scope:
        loss = all_of(*unpacked(module(x)))
        torch.set_default_dtype(torch.float16)
        try:
            with torch.no_grad():
                loss.backward()
        finally:
            torch.set_default_dtype(torch.float32)
    oracles.assert_agrees(scope.run, truth(module, x))


# -- layers that are not what they look like


class OtherOrder(nn.LSTM):
    """An LSTM whose file format keeps its gates as o, f, g, i: sorted before the kernel is called."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        kept = list(self._flat_weights)
        self._flat_weights = self.sorted_weights()
        try:
            return super().forward(x, hx)
        finally:
            self._flat_weights = kept

    def sorted_weights(self) -> list[Tensor]:
        return [torch.cat([w.chunk(4)[k] for k in (3, 1, 2, 0)]) for w in self._flat_weights]

    def _weights_have_changed(self) -> bool:
        return False


def test_gates_in_another_order_are_those_of_the_kernel() -> None:
    """Either right in terms of the kernel, or not a number and a reason."""
    module, x = OtherOrder(3, 4, dtype=torch.float64), data()
    used = dict(zip(module._flat_weights_names, module.sorted_weights(), strict=True))
    with watch(module, strict=False) as scope:
        all_of(*unpacked(module(x))).backward()
    if len(scope.run.frame("notes")) == 0:
        oracles.assert_agrees(scope.run, truth(module, x, weights=used))
    else:
        assert_silent(scope.run)


class OwnKernelCall(nn.LSTM):
    """Calls torch's kernel itself, with a list of weights that is not the module's own."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        zeros = x.new_zeros(1, x.shape[1], self.hidden_size)
        weights = [torch.cat([w.chunk(4)[k] for k in (3, 1, 2, 0)]) for w in self._flat_weights]
        output, h, c = torch._VF.lstm(x, (zeros, zeros), weights, True, 1, 0.0, self.training, False, False)
        return output, (h, c)


class Peephole(nn.LSTM):
    """An LSTM by name, with a loop of its own, whose gates look at the cell state."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.peep = nn.Parameter(torch.full((3, self.hidden_size), 0.5, dtype=self.weight_hh_l0.dtype))

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        h = c = x.new_zeros(x.shape[1], self.hidden_size)
        rows = []
        for step in x:
            pre = step @ self.weight_ih_l0.T + self.bias_ih_l0 + h @ self.weight_hh_l0.T + self.bias_hh_l0
            i, f, g, o = pre.chunk(4, dim=1)
            i, f = torch.sigmoid(i + self.peep[0] * c), torch.sigmoid(f + self.peep[1] * c)
            c = f * c + i * torch.tanh(g)
            h = torch.sigmoid(o + self.peep[2] * c) * torch.tanh(c)
            rows.append(h)
        return torch.stack(rows), (h[None], c[None])


class OwnLoop(nn.GRU):
    """A GRU by name that calls the real one step by step, and mixes the states in between."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        h, rows = x.new_zeros(1, x.shape[1], self.hidden_size), []
        for step in x:
            _, h = super().forward(step[None], 0.5 * h + 0.5 * h.mean(-1, keepdim=True))
            rows.append(h[0])
        return torch.stack(rows), h


@pytest.mark.filterwarnings("ignore::gradscope.errors.GradscopeWarning")
@pytest.mark.parametrize("odd", [Peephole, OwnKernelCall])
def test_forwards_of_their_own_are_never_guessed(odd: type[nn.LSTM]) -> None:
    module = odd(3, 4, dtype=torch.float64)
    with watch(module, strict=False) as scope:
        all_of(*unpacked(module(data()))).backward()
    assert_silent(scope.run)
    notes = scope.run.frame("notes")
    assert len(notes) > 0 and set(notes["module"]) == {""} and (notes["reason"].str.len() > 20).all()


@pytest.mark.filterwarnings("ignore::gradscope.errors.GradscopeWarning")
def test_a_loop_around_the_kernel_shows_each_call() -> None:
    """Whatever is claimed is true of the single kernel calls: one step each."""
    module = OwnLoop(3, 4, dtype=torch.float64)
    with watch(module, strict=False) as scope:
        all_of(*unpacked(module(data()))).backward()
    layers = scope.run.frame("layers")
    assert len(scope.run.frame("notes")) > 0 or len(layers) > 0
    finite = scope.run.frame("timesteps")["p50"].notna()
    if finite.any() and layers["timesteps"].max() > 1:
        pytest.fail("a chain across calls was claimed though the states are changed in between")


@pytest.mark.filterwarnings("ignore::gradscope.errors.GradscopeWarning")
def test_beside_a_layer_that_is_none_the_others_are_seen() -> None:
    model, x = nn.ModuleDict({"odd": Peephole(3, 4, dtype=torch.float64), "plain": lstm()}), data()
    with watch(model, strict=False) as scope:
        (all_of(*unpacked(model["odd"](x))) + all_of(*unpacked(model["plain"](x)))).backward()
    rows = scope.run.frame("timesteps", module="plain")
    assert rows["p50"].notna().all() and len(rows) == 11 * 5
    assert set(scope.run.frame("notes")["module"]) == {"odd"}


# -- errors at attach


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(3, 4)), {nn.LSTM})


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.LSTM(3, 4))


REFUSED = {
    "no recurrent layer": (lambda: nn.Sequential(nn.Linear(3, 4)), {}, "recurrent"),
    "not a module": (lambda: [nn.LSTM(3, 4)], {}, "Module"),
    "quantized": (quantized, {}, "quantized"),
    "scripted": (scripted, {}, "script"),
    "scripted inside": (lambda: nn.Sequential(nn.Linear(3, 3), scripted()), {}, "script"),
    "quantized beside a plain one": (lambda: nn.Sequential(nn.LSTM(3, 3), *quantized()), {}, "quantized"),
    "include matches nothing": (lambda: nn.Sequential(nn.LSTM(3, 4)), {"include": ["encoder*"]}, "encoder"),
    "exclude matches nothing": (lambda: nn.Sequential(nn.LSTM(3, 4)), {"exclude": ["encoder*"]}, "encoder"),
    "exclude leaves nothing": (lambda: nn.Sequential(nn.LSTM(3, 4)), {"exclude": ["*"]}, ""),
    "unknown quantity": (lambda: nn.LSTM(3, 4), {"quantities": ["grad_hh"]}, "grad_hh"),
    "unknown set": (lambda: nn.LSTM(3, 4), {"quantities": "everything"}, "everything"),
    "interval of zero": (lambda: nn.LSTM(3, 4), {"every": 0}, "every"),
    "no sequences": (lambda: nn.LSTM(3, 4), {"max_sequences": 0}, "max_sequences"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_at_attach(what: str) -> None:
    """With a message that names the culprit and says what to do."""
    make, arguments, named = REFUSED[what]
    model = make()
    with pytest.raises(gradscope.GradscopeError) as caught:
        gradscope.attach(model, **arguments)
    assert named.lower() in str(caught.value).lower()
    assert len(str(caught.value)) > 40


def test_an_unknown_quantity_is_answered_with_the_known() -> None:
    with pytest.raises(gradscope.GradscopeError, match="grad_h_direct"):
        gradscope.attach(nn.LSTM(3, 4), quantities=["grad_direct"])


def test_a_single_pattern_may_be_a_string() -> None:
    """As `fnmatch` users write it; and it matches the root itself by the empty name."""
    model, x = nn.Sequential(lstm()), data()
    with watch(model, include="0") as scope:
        all_of(*unpacked(model(x))).backward()
    assert set(scope.run.frame("layers")["module"]) == {"0"}
