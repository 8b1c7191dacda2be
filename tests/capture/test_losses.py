"""What is seen of a fused layer under the losses and backward passes of people's code."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any

import cases
import oracles
import pytest
import torch
from capture.idioms import CELLS, all_of, data, lstm, truth, watch
from cases import Case, unpacked
from torch import nn
from torch.utils.checkpoint import checkpoint

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
    models, x = [lstm(num_layers=2), lstm(num_layers=2)], data(16, 3, 3)

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
