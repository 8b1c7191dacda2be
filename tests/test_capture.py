"""What is seen of a fused layer, idiom by idiom: the ways in which people's code calls, weighs and trains it."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import cases
import oracles
import pandas as pd
import pytest
import torch
from cases import Case, unpacked
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import gradscope

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def watch(model: nn.Module, **arguments: Any) -> gradscope.Scope:
    return gradscope.attach(
        model, **({"quantities": "full", "every": 1, "max_sequences": None, "strict": True} | arguments)
    )


def data(*shape: int) -> Tensor:
    return torch.randn(*(shape or (5, 3, 3)), dtype=torch.float64)


def lstm(**arguments: Any) -> nn.LSTM:
    return nn.LSTM(3, 4, dtype=torch.float64, **arguments)


def all_of(output: Any, h_n: Tensor, c_n: Tensor | None) -> Tensor:
    return cases.uneven(cases.values_of(output))


def truth(
    rnn: nn.RNNBase, x: Any, loss: oracles.Loss = all_of, hx: Any = None, weights: Any = None, **options: Any
) -> dict[str, pd.DataFrame]:
    return oracles.frames(oracles.examine(oracles.Call(rnn, x, loss, hx, weights=weights)), **options)


def used_weights(module: nn.RNNBase) -> dict[str, Tensor]:
    """What the kernel of the last call was given."""
    return {name: w.detach().clone() for name, w in zip(module._flat_weights_names, module._flat_weights, strict=True)}


def assert_silent(run: gradscope.Run) -> None:
    """Nothing is claimed: whatever rows there are hold no number."""
    for table in ("timesteps", "reach"):
        assert run.frame(table)[oracles.STATISTICS].isna().all(axis=None), run.frame(table)


# -- ways to call


@pytest.mark.parametrize("family", CELLS)
@pytest.mark.parametrize(
    "style",
    [
        lambda m, x, h: m(x, h),
        lambda m, x, h: m(input=x, hx=h),
        lambda m, x, h: m(x, hx=h),
        lambda m, x, h: m(hx=h, input=x),
        lambda m, x, h: m.forward(x, h),
        lambda m, x, h: m.forward(input=x, hx=h),
        lambda m, x, h: type(m).forward(m, x, h),
        lambda m, x, h: nn.Module.__call__(m, x, h),
    ],
    ids=["positional", "keywords", "mixed", "swapped", "forward", "forward_keywords", "unbound", "module_call"],
)
def test_ways_to_call(family: str, style: Callable[..., Any]) -> None:
    module, x = CELLS[family](3, 4, 2, dtype=torch.float64), data()
    h = data(2, 3, 4)
    h = (h, data(2, 3, 4)) if family == "lstm" else h
    with watch(module) as scope:
        all_of(*unpacked(style(module, x, h))).backward()
    oracles.assert_agrees(scope.run, truth(module, x, hx=h))


def test_an_instance_s_own_forward() -> None:
    """`module.forward` replaced by a closure, before and after attaching."""
    for late in (False, True):
        module, x = lstm(), data()
        inner = module.forward

        def outer(x: Tensor, inner: Callable = inner) -> Any:
            return inner(2 * x)

        if not late:
            module.forward = outer
        with watch(module) as scope:
            module.forward = outer
            all_of(*unpacked(module(x))).backward()
        oracles.assert_agrees(scope.run, truth(module, 2 * x))


def test_several_calls_of_one_module_in_a_step() -> None:
    """Each is a chain of its own, in order, though their lengths differ."""
    module, inputs = lstm(), [data(5, 3, 3), data(2, 3, 3), data(7, 1, 3)]
    with watch(module) as scope:
        sum(cases.uneven(module(x)[0], seed) for seed, x in enumerate(inputs)).backward()
    expected = [
        truth(module, x, lambda out, h, c, seed=k: cases.uneven(out, seed), chain=k) for k, x in enumerate(inputs)
    ]
    oracles.assert_agrees(scope.run, *expected)


def test_calls_without_a_gradient_are_no_chains() -> None:
    """Chains count the calls that a gradient came to."""
    module, x, y = lstm(), data(), data(4, 2, 3)
    with watch(module) as scope:
        module(data())
        first, _ = module(x)
        unused, _ = module(data())
        second, _ = module(y)
        (cases.uneven(first) + cases.uneven(second)).backward()
        del unused
    oracles.assert_agrees(scope.run, truth(module, x, chain=0), truth(module, y, chain=1))


def test_one_call_feeding_another() -> None:
    """Twice through the same weights: the first call's loss is all that follows it."""
    module, x = nn.GRU(4, 4, dtype=torch.float64), data(5, 3, 4)
    with watch(module) as scope:
        middle, _ = module(x)
        all_of(*unpacked(module(middle))).backward()
    below = truth(module, x, lambda out, h, c: cases.uneven(module(out)[0]), chain=0)
    oracles.assert_agrees(scope.run, below, truth(module, middle.detach(), chain=1))


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_step_calls(batch_first: bool) -> None:
    """Stepping a module by hand, its state detached: every call is a chain of one step."""
    module, x = lstm(batch_first=batch_first), data(3, 2, 3)
    state, expected = None, []
    total = torch.zeros((), dtype=torch.float64)
    with watch(module) as scope:
        for t in range(3):
            rows = x[t : t + 1].transpose(0, 1) if batch_first else x[t : t + 1]
            expected.append(truth(module, rows, hx=state, chain=t))
            output, state = module(rows, state)
            state = tuple(part.detach() for part in state)
            total = total + all_of(output, *state)
        total.backward()
    oracles.assert_agrees(scope.run, *expected)


# -- weights


def test_weight_tying() -> None:
    """Two modules that share their recurrent weights: each has its own rows, and neither spoils the other's check."""
    model = nn.ModuleDict({"a": lstm(), "b": lstm()})
    model["b"].weight_hh_l0 = model["a"].weight_hh_l0
    x, y = data(), data(4, 2, 3)
    with watch(model) as scope:
        (all_of(*unpacked(model["a"](x))) + all_of(*unpacked(model["b"](y)))).backward()
    oracles.assert_agrees(scope.run, truth(model["a"], x, module="a"), truth(model["b"], y, module="b"))
    assert scope.run.frame("layers")["residual"].max() <= 1e-10


def test_one_module_under_two_names() -> None:
    """It is one layer, under the first of its names."""
    model, x = nn.ModuleDict({"a": lstm()}), data()
    model["again"] = model["a"]
    with watch(model) as scope:
        all_of(*unpacked(model["again"](x))).backward()
    oracles.assert_agrees(scope.run, truth(model["a"], x, module="a"))


def test_layers_of_one_module_tied() -> None:
    module, x = nn.GRU(4, 4, 2, dtype=torch.float64), data(5, 3, 4)
    module.weight_hh_l1 = module.weight_hh_l0
    with watch(module) as scope:
        all_of(*unpacked(module(x))).backward()
    oracles.assert_agrees(scope.run, truth(module, x))


@pytest.mark.parametrize("family", CELLS)
@pytest.mark.parametrize("parametrize", [spectral_norm, weight_norm])
def test_parametrized_weights(family: str, parametrize: Callable[..., nn.Module]) -> None:
    """The weights that the kernel used; the parametrization itself is never run by us."""
    torch.manual_seed(1)
    module, x = CELLS[family](3, 4, dtype=torch.float64), data()
    module = parametrize(module, "weight_hh_l0")
    module, twin = copy.deepcopy(module), copy.deepcopy(module)
    all_of(*unpacked(twin(x))).backward()
    with watch(module) as scope:
        all_of(*unpacked(module(x))).backward()
    assert all(map(torch.equal, module.state_dict().values(), twin.state_dict().values()))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(module.parameters(), twin.parameters(), strict=True))
    oracles.assert_agrees(scope.run, truth(module, x, weights=used_weights(module)))


class WeightDrop(nn.Module):
    """Dropout on the recurrent weights: a non-leaf is set before every call, which goes past the hooks."""

    def __init__(self, inner: nn.RNNBase) -> None:
        super().__init__()
        self.inner = inner
        self.raw = nn.Parameter(inner.weight_hh_l0.detach().clone())
        del inner._parameters["weight_hh_l0"]

    def forward(self, x: Tensor) -> tuple[Any, Tensor, Tensor | None]:
        self.inner.weight_hh_l0 = nn.functional.dropout(self.raw, 0.5)
        return unpacked(self.inner.forward(x))


@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
@pytest.mark.parametrize("family", CELLS)
def test_weight_drop(family: str) -> None:
    model, x = WeightDrop(CELLS[family](3, 4, dtype=torch.float64)), data()
    with watch(model) as scope:
        all_of(*model(x)).backward()
    used = used_weights(model.inner)
    assert (used["weight_hh_l0"] == 0).any()
    oracles.assert_agrees(scope.run, truth(model.inner, x, weights=used, module="inner"))


def test_weight_drop_differs_from_call_to_call() -> None:
    """Each call of a step is held to the weights that it used itself."""
    model, x, expected = WeightDrop(lstm()), data(), []
    with watch(model) as scope:
        total = 0.0
        for chain in range(2):
            total = total + all_of(*model(x))
            expected.append(truth(model.inner, x, weights=used_weights(model.inner), module="inner", chain=chain))
        total.backward()
    oracles.assert_agrees(scope.run, *expected)


def test_weights_overwritten_before_the_step_ends() -> None:
    """`.data` written after the backward, as by a constraint, does not change what is recorded."""
    module, x = lstm(), data()
    expected = truth(module, x)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with watch(module) as scope:
        all_of(*unpacked(module(x))).backward()
        with torch.no_grad():
            module.weight_hh_l0.data.mul_(0.5)
            module.weight_ih_l0.clamp_(-0.1, 0.1)
        optimizer.step()
    oracles.assert_agrees(scope.run, expected)


@pytest.mark.parametrize("frozen", ["weight_hh_l0", "weight_ih_l0", "all below", "everything"])
def test_frozen_layers(frozen: str) -> None:
    """What does not learn still carries gradients, where anything below it or its input asks for them."""
    module, x = lstm(num_layers=2), data().requires_grad_()
    chosen = {"all below": lambda n: "_l0" in n, "everything": lambda n: True}.get(frozen, lambda n: n == frozen)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not chosen(name))
    with watch(module) as scope:
        all_of(*unpacked(module(x))).backward()
    oracles.assert_agrees(scope.run, truth(module, x))


def test_unfrozen_later() -> None:
    model, x = nn.Sequential(lstm()), data()
    model.requires_grad_(False)
    with watch(model) as scope:
        model.requires_grad_(True)
        all_of(*unpacked(model(x))).backward()
    oracles.assert_agrees(scope.run, truth(model[0], x, module="0"))


def right_or_noted(run: gradscope.Run, expected: dict[str, pd.DataFrame]) -> None:
    """Either the truth, or for gradients no number and a reason; jacobians and states are right in any case."""
    if run.frame("notes").empty:
        oracles.assert_agrees(run, expected)
        return
    got, want = (
        f.set_index(["layer", "quantity", "t"])["p50"] for f in (run.frame("timesteps"), expected["timesteps"])
    )
    assert set(got.index) == set(want.index)
    known = got.dropna()
    assert known.to_numpy() == pytest.approx(want[known.index].to_numpy(), rel=1e-9)
    assert {"jacobian", "state"} <= set(known.index.get_level_values("quantity"))


@pytest.mark.parametrize("family", CELLS)
def test_penalty_on_the_weights(family: str) -> None:
    """An L2 term in the loss adds to `weight_hh.grad` what no timestep contributed."""
    module, x = CELLS[family](3, 4, 2, dtype=torch.float64), data()
    with watch(module) as scope:
        (all_of(*unpacked(module(x))) + sum(p.square().sum() for p in module.parameters())).backward()
    right_or_noted(scope.run, truth(module, x))


@pytest.mark.parametrize("early", [True, False])
def test_hooks_on_the_weights(early: bool) -> None:
    """The clipping hook of many a tutorial, set before or after attaching."""
    module, x = lstm(), data()

    def clip(gradient: Tensor) -> Tensor:
        return gradient.clamp(-0.01, 0.01)

    if early:
        module.weight_hh_l0.register_hook(clip)
    with watch(module) as scope:
        if not early:
            module.weight_hh_l0.register_hook(clip)
        all_of(*unpacked(module(x))).backward()
    assert module.weight_hh_l0.grad.abs().max() <= 0.01
    right_or_noted(scope.run, truth(module, x))


def test_gradients_emptied_as_they_arrive() -> None:
    """`register_post_accumulate_grad_hook`, as optimizers in the backward use it."""
    module, x = lstm(num_layers=2), data()

    def take(parameter: Tensor) -> None:
        parameter.grad = None

    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(take)
    with watch(module) as scope:
        all_of(*unpacked(module(x))).backward()
    oracles.assert_agrees(scope.run, truth(module, x))


# -- losses and backward passes

LOSSES = {
    "output": lambda out, h, c: cases.uneven(out),
    "h_n": lambda out, h, c: cases.uneven(h),
    "c_n": lambda out, h, c: cases.uneven(c),
    "h_n and c_n": lambda out, h, c: cases.uneven(h) + cases.uneven(c, 1),
    "all three": lambda out, h, c: cases.uneven(out) + cases.uneven(h, 1) * cases.uneven(c, 2),
    "one entry": lambda out, h, c: out[2, 1, 0],
    "top of h_n": lambda out, h, c: cases.uneven(h[-1]),
    "reverse h_n": lambda out, h, c: cases.uneven(h[1]) + cases.uneven(c[3]),
    "views": lambda out, h, c: cases.uneven(out.view(5, 3, 2, 4)[:, :, 1].transpose(0, 1)),
    "reused": lambda out, h, c: sum(cases.uneven(out[k:], k) for k in range(4)),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_losses(loss: str, dtype: torch.dtype) -> None:
    module, x = lstm(num_layers=2, bidirectional=True).to(dtype), data().to(dtype)
    with watch(module) as scope:
        LOSSES[loss](*unpacked(module(x))).backward()
    call = oracles.Call(module, x, LOSSES[loss], dtype=dtype)
    rtol = 1e-10 if dtype == torch.float64 else 1e-3
    oracles.assert_agrees(scope.run, oracles.frames(oracles.examine(call)), rtol=rtol)


@pytest.mark.parametrize("loss", sorted(LOSSES.keys() - {"reverse h_n", "views"}))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("family", CELLS)
def test_losses_in_one_direction(family: str, loss: str, dtype: torch.dtype) -> None:
    """Here an LSTM in float32 runs on oneDNN, whose results may get no gradient at all rather than zeros."""
    if family != "lstm" and loss in ("c_n", "h_n and c_n", "all three"):
        loss = "h_n"
    module, x = CELLS[family](3, 4, 3, dtype=dtype), data().to(dtype)
    with watch(module) as scope:
        LOSSES[loss](*unpacked(module(x))).backward()
    call = oracles.Call(module, x, LOSSES[loss], dtype=dtype)
    rtol = 1e-10 if dtype == torch.float64 else 1e-3
    oracles.assert_agrees(scope.run, oracles.frames(oracles.examine(call)), rtol=rtol)


def test_several_backward_passes() -> None:
    """L is their sum: two losses on one graph, and one of them twice."""
    module, x = lstm(num_layers=2), data()
    with watch(module) as scope:
        out, (h, c) = module(x)
        cases.uneven(out).backward(retain_graph=True)
        cases.uneven(h, 1).backward(retain_graph=True)
        cases.uneven(h, 1).backward(retain_graph=True)
        cases.uneven(c, 2).backward()
    total = truth(module, x, lambda out, h, c: cases.uneven(out) + 2 * cases.uneven(h, 1) + cases.uneven(c, 2))
    oracles.assert_agrees(scope.run, total)


def test_backward_from_several_roots_and_with_a_gradient() -> None:
    module, x, v = lstm(), data(), data(5, 3, 4)
    with watch(module) as scope:
        out, (h, _) = module(x)
        torch.autograd.backward([out, h.sum()], [v, None])
    oracles.assert_agrees(scope.run, truth(module, x, lambda out, h, c: (out * v.to(out)).sum() + h.sum()))


def test_autograd_grad_is_no_part_of_the_loss() -> None:
    """Saliency maps and the like, before and after the backward."""
    module, x = lstm(num_layers=2), data().requires_grad_()
    with watch(module) as scope:
        out, (h, _) = module(x)
        torch.autograd.grad(h.square().sum(), x, retain_graph=True)
        torch.autograd.grad(out.sum(), list(module.parameters()), retain_graph=True)
        cases.uneven(out).backward(retain_graph=True)
        torch.autograd.grad(h.square().sum(), x)
    oracles.assert_agrees(scope.run, truth(module, x))


def test_autograd_grad_alone_records_nothing() -> None:
    module, x = lstm(), data().requires_grad_()
    with watch(module) as scope:
        torch.autograd.grad(module(x)[0].sum(), x)
    assert scope.run.frame("timesteps").empty


def test_backward_with_chosen_inputs() -> None:
    """`backward(inputs=...)` of something else accumulates into `.grad`, though not of the recurrent weights."""
    module, head, x = lstm(), nn.Linear(4, 1, dtype=torch.float64), data()
    with watch(module) as scope:
        head(module(x)[0]).sum().backward(inputs=list(head.parameters()))
    assert scope.run.frame("timesteps").empty
    assert module.weight_hh_l0.grad is None


@pytest.mark.parametrize("asked", ["weights", "one bias", "below", "input"])
def test_backward_into_chosen_leaves(asked: str) -> None:
    """`backward(inputs=...)` is part of L wherever it accumulates, be it through the layer only."""
    first, module, x = nn.Linear(3, 3, dtype=torch.float64), lstm(), data().requires_grad_()
    leaves = {
        "weights": list(module.parameters()),
        "one bias": [module.bias_hh_l0],
        "below": list(first.parameters()),
        "input": [x],
    }[asked]
    with watch(module) as scope:
        all_of(*unpacked(module(first(x)))).backward(inputs=leaves)
    oracles.assert_agrees(scope.run, truth(module, first(x).detach()))


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
def test_backward_with_a_graph() -> None:
    """`create_graph=True` counts like any other pass."""
    module, x = lstm(), data()
    with watch(module) as scope:
        loss = all_of(*unpacked(module(x)))
        loss.backward(create_graph=True)
    oracles.assert_agrees(scope.run, truth(module, x))
    module.zero_grad()
    del loss
    gc.collect()


@pytest.mark.filterwarnings("ignore::gradscope.errors.GradscopeWarning")
def test_double_backward_is_never_guessed() -> None:
    """A penalty on the input's gradient reaches the kernel behind the outputs' back: NaN, and a reason."""
    module, x = nn.GRU(3, 4, dtype=torch.float64), data().requires_grad_()
    with watch(module, strict=False) as scope:
        out, _ = module(x)
        (slope,) = torch.autograd.grad(cases.uneven(out), x, create_graph=True)
        (cases.uneven(out) + slope.square().sum()).backward()
    timesteps = scope.run.frame("timesteps").set_index(["quantity", "t"])
    gradients = timesteps.loc[["grad_h", "grad_h_direct", "weight_grad"]]
    assert gradients[oracles.STATISTICS].isna().all(axis=None)
    assert scope.run.frame("reach")[oracles.STATISTICS].isna().all(axis=None)
    assert len(scope.run.frame("notes")) > 0
    want = truth(module, x)["timesteps"].set_index(["quantity", "t"])  # what needs no gradient may stay, and is right
    for quantity in ("jacobian", "state"):
        found = timesteps.loc[quantity]["p50"]
        assert found.isna().all() or found.to_numpy() == pytest.approx(want.loc[quantity]["p50"].to_numpy(), rel=1e-9)


def test_gradient_accumulation() -> None:
    """The first micro-batch of every step is recorded, and only it."""
    module, batches, expected = lstm(num_layers=2), [data(k, 3, 3) for k in (5, 4, 6, 3)], []
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with watch(module) as scope:
        for number, x in enumerate(batches):
            if number % 2 == 0:
                expected.append(truth(module, x, lambda out, h, c: cases.uneven(out) / 2, step=number // 2))
            (cases.uneven(module(x)[0]) / 2).backward()
            if number % 2 == 1:
                optimizer.step()
                optimizer.zero_grad()
    oracles.assert_agrees(scope.run, *expected)
    assert scope.run.frame("layers")["residual"].max() <= 1e-10


def test_gradients_left_over_from_the_step_before() -> None:
    """A loop that never zeroes: what was in `.grad` before is no part of this step, and spoils no check."""
    module, x, expected = lstm(), data(), []
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with watch(module) as scope:
        for step in range(3):
            expected.append(truth(module, x, step=step))
            all_of(*unpacked(module(x))).backward()
            optimizer.step()
    oracles.assert_agrees(scope.run, *expected)
    assert scope.run.frame("layers")["residual"].max() <= 1e-10


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_zeroed_between_forward_and_backward(set_to_none: bool) -> None:
    module, x, expected = lstm(), data(), []
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with watch(module) as scope:
        for step in range(2):
            expected.append(truth(module, x, step=step))
            loss = all_of(*unpacked(module(x)))
            optimizer.zero_grad(set_to_none=set_to_none)
            loss.backward()
            optimizer.step()
    oracles.assert_agrees(scope.run, *expected)


def test_two_optimizers_and_two_losses() -> None:
    """Actor and critic, each with an optimizer: each module's rows carry the numbers of its own loss."""
    model, x = nn.ModuleDict({"actor": lstm(), "critic": nn.GRU(3, 4, dtype=torch.float64)}), data()
    with watch(model) as scope:
        for module in model.values():
            optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
            all_of(*unpacked(module(x))).backward()
            optimizer.step()
    timesteps = scope.run.frame("timesteps")
    for name, module in model.items():
        want = truth(module, x)["timesteps"]
        got = timesteps[timesteps["module"] == name]
        assert len(got) == len(want)
        both = [frame.sort_values(["quantity", "t"])["p50"].to_numpy() for frame in (got, want)]
        assert both[0] == pytest.approx(both[1], rel=1e-9)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_activation_checkpointing(reentrant: bool, dropout: float) -> None:
    """The forward runs twice, the second time within the backward: one chain, and the mask that counted."""
    module, x = lstm(num_layers=2, dropout=dropout), data().requires_grad_()
    built = cases.Built(Case("lstm", 2, dropout=dropout), module, x, None, all_of, torch.get_rng_state())
    with watch(module) as scope:
        output = checkpoint(lambda rows: module(rows)[0], x, use_reentrant=reentrant)
        cases.uneven(output).backward()
    oracles.assert_agrees(scope.run, oracles.frames(oracles.examine(built.call())))


def test_looking_at_the_run_while_it_grows() -> None:
    """Within a step, between two backward passes, and after: never a row twice, and always up to date."""
    module, x, expected = lstm(), data(), []
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with watch(module) as scope:
        for step in range(2):
            optimizer.zero_grad()
            output, _ = module(x)
            cases.uneven(output).backward(retain_graph=True)
            oracles.assert_agrees(scope.run, *expected, truth(module, x, step=step))
            cases.uneven(output).backward()
            expected.append(truth(module, x, lambda out, h, c: 2 * cases.uneven(out), step=step))
            oracles.assert_agrees(scope.run, *expected)
            optimizer.step()
            oracles.assert_agrees(scope.run, *expected)
    oracles.assert_agrees(scope.run, *expected)


def test_two_scopes_see_the_same() -> None:
    module, x = lstm(num_layers=2), data()
    with watch(module) as one, watch(module) as other:
        all_of(*unpacked(module(x))).backward()
    for scope in (one, other):
        oracles.assert_agrees(scope.run, truth(module, x))


def test_attached_between_forward_and_backward() -> None:
    module = lstm()
    loss = all_of(*unpacked(module(data())))
    with watch(module) as scope:
        loss.backward()
    assert scope.run.frame("timesteps").empty


def test_a_kernel_that_raises() -> None:
    """The error is torch's own, and the next call is recorded as if nothing had been."""
    module, x = lstm(num_layers=2, dropout=0.5), data()
    wrong = (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))  # float32 states
    with pytest.raises(RuntimeError) as bare:
        module(x, wrong)
    with watch(module) as scope:
        with pytest.raises(RuntimeError) as seen:
            module(x, wrong)
        built = cases.Built(Case("lstm", 2, dropout=0.5), module, x, None, all_of)
        built.backward()
    assert str(seen.value) == str(bare.value)
    oracles.assert_agrees(scope.run, oracles.frames(oracles.examine(built.call())))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_detection() -> None:
    module, x = lstm(num_layers=2), data()
    with torch.autograd.set_detect_anomaly(True), watch(module) as scope:
        all_of(*unpacked(module(x))).backward()
    oracles.assert_agrees(scope.run, truth(module, x))


def test_optimizers_of_other_parameters_make_no_step() -> None:
    model = nn.ModuleDict({"rnn": lstm(), "head": nn.Linear(4, 1, dtype=torch.float64)})
    of_head, of_rnn = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model["head"], model["rnn"]))
    with watch(model) as scope:
        for _ in range(3):
            model["head"](model["rnn"](data())[0]).sum().backward()
            of_head.step()
            of_rnn.step()
            model.zero_grad()
    assert scope.run.frame("layers")["step"].tolist() == [0, 1, 2]


def test_changes_of_the_module_while_attached() -> None:
    """Another precision, parameters flattened anew, loaded weights, and a new parameter in place of one."""
    module, x, expected = nn.LSTM(3, 4), data(), []
    changes: list[Callable[[], Any]] = [
        module.double,
        module.flatten_parameters,
        lambda: module.load_state_dict({name: 1.1 * value for name, value in module.state_dict().items()}),
        lambda: setattr(module, "weight_hh_l0", nn.Parameter(torch.eye(4, dtype=torch.float64).repeat(4, 1))),
    ]
    with watch(module) as scope:
        for step, change in enumerate(changes):
            change()
            module.zero_grad()
            expected.append(truth(module, x, step=step))
            all_of(*unpacked(module(x))).backward()
            torch.optim.SGD(module.parameters(), lr=0.1).step()
    oracles.assert_agrees(scope.run, *expected)


def test_two_threads() -> None:
    """Two models trained side by side, each with a scope of its own."""
    models, x = [lstm(num_layers=2), lstm(num_layers=2)], data(30, 3, 3)

    def train(module: nn.Module) -> None:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
        for _ in range(5):
            module.zero_grad()
            all_of(*unpacked(module(x))).backward()
            optimizer.step()

    scopes = [watch(module) for module in models]
    threads = [threading.Thread(target=train, args=(module,)) for module in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for module, scope in zip(models, scopes, strict=True):
        scope.close()
        oracles.assert_agrees(scope.run, *[truth(module, x, step=step) for step in range(5)])


def test_a_run_is_inert_data() -> None:
    """It outlives pickling."""
    module, x = lstm(), data()
    with watch(module) as scope:
        all_of(*unpacked(module(x))).backward()
    oracles.assert_agrees(pickle.loads(pickle.dumps(scope.run)), truth(module, x))


def test_strides_of_inputs_and_states() -> None:
    """An expanded initial state and a transposed input."""
    module, x, h = lstm(num_layers=2), data(3, 5, 3).transpose(0, 1), data(2, 1, 4).expand(2, 3, 4)
    with watch(module) as scope:
        all_of(*unpacked(module(x, (h, h)))).backward()
    oracles.assert_agrees(scope.run, truth(module, x, hx=(h, h)))


# -- calls that are none of training's


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("where", ["before", "between", "after"])
def test_calls_without_grad_record_nothing(context: Callable[[], Any], where: str) -> None:
    module, x = lstm(num_layers=2, dropout=0.5), data()
    built = cases.Built(Case("lstm", 2, dropout=0.5), module, x, None, all_of)

    def evaluate() -> None:
        module.eval()
        with context():
            module(data(9, 2, 3))
        module.train()

    with watch(module) as scope:
        if where == "before":
            evaluate()
        loss = all_of(*built.forward())
        if where == "between":
            evaluate()
        loss.backward()
        if where == "after":
            evaluate()
    oracles.assert_agrees(scope.run, oracles.frames(oracles.examine(built.call())))


def test_evaluation_alone_records_nothing() -> None:
    module = lstm()
    with watch(module) as scope:
        module.eval()
        module(data())
        with torch.no_grad():
            module(data())
    assert scope.run.frame("timesteps").empty
    assert scope.run.frame("notes").empty


def test_paused() -> None:
    module, x = lstm(), data()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with watch(module) as scope:
        for step in range(3):
            (scope.pause if step == 1 else scope.resume)()
            all_of(*unpacked(module(x))).backward()
            optimizer.step()
    assert 1 not in set(scope.run.frame("timesteps")["step"])
    assert 0 in set(scope.run.frame("timesteps")["step"])


def test_a_deep_copy_s_calls_are_not_the_model_s() -> None:
    """A target network, copied while attached, and trained beside the original."""
    module, x = lstm(), data()
    with watch(module) as scope:
        twin = copy.deepcopy(module)
        loss = all_of(*unpacked(module(x)))
        all_of(*unpacked(twin(data(7, 2, 3)))).backward()
        loss.backward()
    oracles.assert_agrees(scope.run, truth(module, x))


def test_modules_outside_the_model() -> None:
    """Another LSTM of the same shape, and the same model's functional call with other weights."""
    module, other, x = lstm(), lstm(), data()
    with watch(module) as scope:
        loss = all_of(*unpacked(module(x)))
        all_of(*unpacked(other(x))).backward()
        loss.backward()
    oracles.assert_agrees(scope.run, truth(module, x))


def test_functional_call() -> None:
    """`torch.func.functional_call`: the weights that were given, and the certificate knows them."""
    module, x = lstm(), data()
    given = {name: (2 * p.detach()).requires_grad_() for name, p in module.named_parameters()}
    with watch(module) as scope:
        all_of(*unpacked(torch.func.functional_call(module, given, (x,)))).backward()
    oracles.assert_agrees(scope.run, truth(module, x, weights=given))


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
    """Close to the truth for the rounded weights and inputs, as far as eight bits go: a few percent."""
    torch.manual_seed(3)
    module = CELLS[family](3, 4).to(torch.bfloat16).to(torch.float32 if how == "autocast" else torch.bfloat16)
    x = data().to(torch.bfloat16)
    with watch(module) as scope, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        # oneDNN has no bfloat16 LSTM on older processors: it raises there, with or without a scope
        with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", torch.bfloat16, how == "autocast"):
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
