"""The promise: training under a scope is bit for bit the training without, and nothing of a scope outlives it."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import pickle
import random
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import FunctionType, ModuleType
from typing import Any

import cases
import numpy as np
import pytest
import torch
from cases import Case
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.nn.utils.rnn import PackedSequence

import gradscope


class Net(nn.Module):
    """A recurrent layer in a model that draws random numbers wherever models do, and has buffers."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.rnn = cases.build_module(case)
        width = (self.rnn.proj_size or self.rnn.hidden_size) * (1 + case.bidirectional)
        self.norm = nn.BatchNorm1d(width, dtype=case.dtype)
        self.head = nn.Linear(width, 2, dtype=case.dtype)

    def forward(self, x: Tensor | PackedSequence) -> Tensor:
        hx = cases._build_hx(self.case)  # drawn anew at every call
        output, states = self.rnn(x, hx)
        rows = cases.values_of(output).flatten(0, -2)
        result = self.head(nn.functional.dropout(self.norm(rows), 0.2, self.training))
        last = states[-1] if isinstance(states, tuple) else states
        return result.square().mean() + cases.uneven(last) / 10


def optimizers() -> dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]:
    return {
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05),
        "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.05),
    }


def bits(model: nn.Module, loss: Tensor) -> list[Tensor]:
    """All that a step leaves behind: copies of the loss, parameters, gradients, buffers and random-number states."""
    tensors = [loss.detach(), *model.parameters(), *model.buffers()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    numbers = [hash(random.getstate()), hash(np.random.get_state()[1].tobytes())]
    return [t.detach().clone() for t in (*tensors, torch.get_rng_state(), torch.tensor(numbers))]


def train(case: Case, scoped: bool, optimizer: str = "sgd", steps: int = 4, **arguments: Any) -> list[Tensor]:
    torch.manual_seed(7)
    model, x = Net(case), cases.build(case).input
    torch.manual_seed(8)
    trainer = optimizers()[optimizer](list(model.parameters()))
    scope = gradscope.attach(model, strict=True, **arguments) if scoped else None
    seen = []
    for _ in range(steps):
        trainer.zero_grad()
        loss = model(x)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trainer.step()
        seen += bits(model, loss)
    if scope is not None:
        scope.close()
        assert len(scope.run.frame("timesteps")) > 0
    return seen


def assert_same_bits(bare: list[Tensor], seen: list[Tensor]) -> None:
    assert len(bare) == len(seen)
    different = [k for k, (a, b) in enumerate(zip(bare, seen, strict=True)) if not torch.equal(a, b)]
    assert not different, f"{len(different)} of {len(bare)} tensors differ, the first at {different[0]}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", cases.COVERING, ids=str)
def test_training_is_bit_for_bit_the_same(case: Case, dtype: torch.dtype) -> None:
    """Recorded steps and others in turn, with both quantity sets."""
    case = cases.replace(case, dtype=dtype)
    bare = train(case, scoped=False)
    assert_same_bits(bare, train(case, scoped=True, quantities="full", every=2, max_sequences=None))
    assert_same_bits(bare, train(case, scoped=True, quantities="core", every=1, max_sequences=2))


@pytest.mark.parametrize("optimizer", optimizers())
def test_optimizers(optimizer: str) -> None:
    case = Case("lstm", 2, True, dropout=0.5, dtype=torch.float32)
    bare = train(case, scoped=False, optimizer=optimizer)
    assert_same_bits(bare, train(case, scoped=True, optimizer=optimizer, quantities="full", every=1))


@pytest.mark.parametrize("kind", cases.FACTORS["kind"])
def test_wide_layers(kind: str) -> None:
    """Beyond 64 units, where singular values and gains take probes: random numbers of their own."""
    case = Case(kind, 2, True, dropout=0.5, hidden=66, dtype=torch.float32)
    bare = train(case, scoped=False, steps=2)
    assert_same_bits(bare, train(case, scoped=True, steps=2, quantities="full", every=1))


def test_gradients_are_laid_out_as_ever() -> None:
    """Strides, and how often they were written."""
    built, seen = cases.build(Case("lstm", 2, True)), []
    for scoped in (False, True):
        built.module.zero_grad()
        with gradscope.attach(built.module, every=1) if scoped else nullcontext():
            built.backward()
        seen.append([(p.grad.stride(), p.grad._version) for p in built.module.parameters()])
    assert seen[0] == seen[1]


def test_the_comparison_can_fail() -> None:
    """One random number more or less is seen."""
    case = Case("lstm", 2, dropout=0.5)
    seen = train(case, scoped=False)
    assert_same_bits(seen, train(case, scoped=False))
    with pytest.raises(AssertionError):
        assert_same_bits(seen, train(cases.replace(case, dropout=0.4), scoped=False))


def lbfgs(scoped: bool) -> list[Tensor]:
    torch.manual_seed(7)
    case = Case("gru", 2)
    model, x = Net(case).eval(), cases.build(case).input
    model.rnn.train()
    trainer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)

    def closure() -> Tensor:
        trainer.zero_grad()
        loss = model(x)
        loss.backward()
        return loss

    scope = gradscope.attach(model, every=1, strict=True) if scoped else None
    seen = [tensor for _ in range(3) for tensor in bits(model, trainer.step(closure))]
    if scope is not None:
        scope.close()
        assert set(scope.run.frame("timesteps")["step"]) == {0, 1, 2}
    return seen


def test_closures_of_lbfgs() -> None:
    """Several forward and backward passes within one optimizer step, which is one step of the record."""
    assert_same_bits(lbfgs(False), lbfgs(True))


def penalised(scoped: bool) -> list[Tensor]:
    """A gradient penalty: `autograd.grad` with a graph, and a backward through it."""
    torch.manual_seed(7)
    case = Case("gru")
    model, x = Net(case), cases.build(case).input.requires_grad_()
    trainer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = gradscope.attach(model, every=1) if scoped else None
    seen = []
    for _ in range(3):
        trainer.zero_grad()
        loss = model(x)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        total = loss + slope.square().sum()
        total.backward()
        trainer.step()
        seen += [*bits(model, total), x.grad.clone()]
    if scope is not None:
        scope.close()
    return seen


@pytest.mark.filterwarnings("ignore::gradscope.errors.GradscopeWarning")
def test_gradient_penalty() -> None:
    assert_same_bits(penalised(False), penalised(True))


def test_the_graph_is_the_user_s_own() -> None:
    """No node of ours between theirs, and outputs of the same types."""
    built = cases.build(Case("lstm", 2, True, layout="packed_unsorted"))
    bare = built.forward()
    with gradscope.attach(built.module, every=1):
        seen = built.forward()
        built.loss(*seen).backward()

    def nodes(parts: tuple[Any, ...]) -> list[str]:
        return [type(cases.values_of(part).grad_fn).__name__ for part in parts]

    assert nodes(bare) == nodes(seen)
    assert list(map(type, bare)) == list(map(type, seen))


def test_the_user_s_own_hooks_still_run() -> None:
    """Forward hooks that replace the output, tensor hooks, and full backward hooks, in their order."""
    built, heard = cases.build(Case("lstm")), []

    def double(module: nn.Module, inputs: Any, result: Any) -> Any:
        heard.append("forward")
        result[0].register_hook(lambda grad: heard.append("tensor"))
        return 2 * result[0], result[1]

    built.module.register_forward_hook(double)
    built.module.register_full_backward_hook(lambda *_: heard.append("backward"))
    built.input.requires_grad_()
    with gradscope.attach(built.module, every=1):
        built.backward()
    assert heard == ["forward", "tensor", "backward"] or heard == ["forward", "backward", "tensor"]


# -- nothing remains

OPTIMIZER = sys.modules[torch.optim.Optimizer.__module__]
PLACES: list[Any] = [
    torch,
    torch._VF,
    torch.Tensor,
    torch._C._functions,
    torch.autograd,
    torch.autograd.graph,
    torch.amp.grad_scaler,
    torch.amp.GradScaler,
    nn.Module,
    nn.RNNBase,
    nn.RNN,
    nn.LSTM,
    nn.GRU,
    nn.RNNCellBase,
    nn.RNNCell,
    nn.LSTMCell,
    nn.GRUCell,
    nn.functional,
    nn.modules.module,
    nn.modules.rnn,
    nn.utils,
    clip_grad,
    OPTIMIZER,
    torch.optim.Optimizer,
    torch.optim.SGD,
    sys.modules["copy"],
    pickle,
]


class Is:
    """A thing by its identity; kept alive, so that no other takes its place in memory."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Is) and self.value is other.value

    __hash__ = None


def fingerprint(value: Any, depth: int = 0) -> Any:
    """What a thing is: its identity, and for containers and functions also what they hold."""
    if depth == 2:
        return Is(value)
    if isinstance(value, dict):
        return Is(value), [
            (key if isinstance(key, str) else Is(key), fingerprint(item, depth + 1)) for key, item in value.items()
        ]
    if isinstance(value, list | tuple | set):
        return Is(value), [fingerprint(item, depth + 1) for item in value]
    if isinstance(value, FunctionType):
        cells = [Is(cell.cell_contents) for cell in value.__closure__ or () if _is_filled(cell)]
        return Is(value), Is(value.__code__), cells, list(vars(value))
    return Is(value)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def surroundings(*models: nn.Module) -> dict[tuple[str, str], Any]:
    """Everything that a scope could have touched, in torch, in the models, and on their tensors."""
    seen: dict[tuple[str, str], Any] = {}
    for place in PLACES:
        for name, value in vars(place).items():
            if not isinstance(value, ModuleType) and name not in ("__warningregistry__", "__builtins__"):
                seen[str(place), name] = fingerprint(value)
    for number, model in enumerate(models):
        for name, module in model.named_modules():
            for attribute, value in vars(module).items():
                seen[f"model {number} {name}", attribute] = fingerprint(value)
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            hooks = [tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None)]
            seen[f"model {number} {name}", "hooks"] = [list(hook) for hook in hooks if hook]
            seen[f"model {number} {name}", "attributes"] = sorted(vars(tensor))
    seen["sys", "hooks"] = (sys.excepthook, sys.gettrace(), sys.getprofile(), list(gc.callbacks))
    return seen


@pytest.fixture
def pair() -> Iterator[tuple[nn.Module, nn.Module]]:
    """Two models that have been trained for a step, and afterwards are as they were then."""
    models = Net(Case("lstm", 2, dropout=0.5)), Net(Case("gru", 2, True))
    for model in models:
        one_step(model)
    before = surroundings(*models)
    yield models
    gc.collect()
    after = surroundings(*models)
    assert before.keys() == after.keys()
    changed = [place for place in before if before[place] != after[place]]
    assert not changed


def one_step(model: nn.Module, x: Any = None) -> torch.optim.Optimizer:
    x = cases.build(model.case).input if x is None else x
    trainer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(x).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    nn.utils.clip_grad_value_(model.parameters(), 1.0)
    trainer.step()
    trainer.zero_grad()
    return trainer


def test_the_check_of_remains_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of thing that a careless library leaves behind is seen."""
    model = Net(Case("gru"))
    one_step(model)
    before = surroundings(model)
    leftovers: list[Callable[[], Any]] = [
        lambda: nn.modules.module.register_module_forward_hook(lambda *_: None).remove,
        lambda: OPTIMIZER.register_optimizer_step_post_hook(lambda *_: None).remove,
        lambda: model.rnn.register_forward_hook(lambda *_: None).remove,
        lambda: model.rnn.weight_hh_l0.register_hook(lambda grad: None).remove,
        lambda: monkeypatch.setattr(torch._VF, "gru", lambda *_: None, raising=False) or monkeypatch.undo,
        lambda: monkeypatch.setattr(clip_grad, "_clip_grads_with_norm_", print) or monkeypatch.undo,
        lambda: monkeypatch.setattr(model.rnn, "_gradscope", 1, raising=False) or monkeypatch.undo,
    ]
    for leave in leftovers:
        remove = leave()
        assert surroundings(model) != before
        remove()
        assert surroundings(model) == before


def test_nothing_remains(pair: tuple[nn.Module, nn.Module]) -> None:
    with gradscope.attach(pair[0], every=1):
        one_step(pair[0])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_nothing_remains_in_whatever_order(pair: tuple[nn.Module, nn.Module], order: tuple[int, ...]) -> None:
    """Three scopes, two of them on one model, each of which goes on recording until it is closed itself."""
    models = pair[0], pair[1], pair[0]
    scopes = [gradscope.attach(model, every=1, strict=True) for model in models]
    for position, number in enumerate(order):
        for model in pair:
            one_step(model)
        scopes[number].close()
        scopes[number].close()  # idempotent
        assert len(set(scopes[number].run.frame("layers")["step"])) == position + 1
    for model in pair:
        one_step(model)
    assert sorted(len(set(scope.run.frame("layers")["step"])) for scope in scopes) == [1, 2, 3]


class Interrupted(Exception):
    """Ours alone, so that nothing else is taken for it."""


@pytest.mark.parametrize("moment", ["before", "after forward", "within backward", "after backward", "within step"])
def test_nothing_remains_when_the_loop_raises(pair: tuple[nn.Module, nn.Module], moment: str) -> None:
    model = pair[0]
    trainer, x = torch.optim.SGD(model.parameters(), lr=0.01), cases.build(model.case).input

    def stop(at: str) -> None:
        if at == moment:
            raise Interrupted

    def closure() -> None:
        stop("within step")

    with pytest.raises(Interrupted), gradscope.attach(model, every=1, strict=True):
        stop("before")
        loss = model(x)
        loss.register_hook(lambda grad: stop("within backward"))
        stop("after forward")
        loss.backward()
        stop("after backward")
        trainer.step(closure)
    trainer.zero_grad()


def test_nothing_remains_on_tensors() -> None:
    """Neither the input, nor what a call gave out, keeps a hook."""
    built = cases.build(Case("lstm", 2, hx="given_grad"))
    built.input.requires_grad_()
    with gradscope.attach(built.module, every=1):
        parts = built.forward()
        built.loss(*parts).backward(retain_graph=True)
        unused = built.forward()
    for tensor in (built.input, *built.hx, *parts, *unused):
        assert not tensor._backward_hooks
        assert not vars(tensor)


def test_closed_between_forward_and_backward() -> None:
    """The backward runs as ever and records nothing."""
    built = cases.build(Case("gru", 2))
    built.backward()
    want = [p.grad.clone() for p in built.module.parameters()]
    built.module.zero_grad()
    scope = gradscope.attach(built.module, every=1, strict=True)
    parts = built.forward()
    scope.close()
    built.loss(*parts).backward()
    assert all(map(torch.equal, want, (p.grad for p in built.module.parameters())))
    assert scope.run.frame("timesteps").empty


def test_an_attach_that_fails_leaves_nothing_behind() -> None:
    model = Net(Case("gru"))
    one_step(model)
    before = surroundings(model)
    with pytest.raises(gradscope.GradscopeError):
        gradscope.attach(model, quantities=["nonsense"])
    with pytest.raises(gradscope.GradscopeError):
        gradscope.attach(model, include=["nothing"])
    assert surroundings(model) == before


# -- copies, files and compilers while a scope is attached


@pytest.fixture
def attached() -> Iterator[tuple[nn.Module, gradscope.Scope]]:
    model = Net(Case("lstm", 2, dropout=0.5))
    one_step(model)
    with gradscope.attach(model, every=1, strict=True) as scope:
        model(cases.build(model.case).input).backward()
        yield model, scope


def test_a_deep_copy_is_free(attached: tuple[nn.Module, gradscope.Scope]) -> None:
    """It records nothing, trains like the original, and the original goes on recording."""
    model, scope = attached
    twin = copy.deepcopy(model)
    assert surroundings(twin).keys() == surroundings(model).keys()
    rows = len(scope.run.frame("timesteps"))
    one_step(twin)
    assert len(scope.run.frame("timesteps")) == rows
    model.zero_grad()
    one_step(model)
    assert len(scope.run.frame("timesteps")) >= rows


@pytest.mark.parametrize("write", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_of_a_recorded_model_is_as_one_of_a_bare_one(write: Callable[[nn.Module], nn.Module]) -> None:
    bare = Net(Case("lstm", 2))
    one_step(bare)
    expected = {name: sorted(vars(module)) for name, module in write(bare).named_modules()}
    with gradscope.attach(bare, every=1):
        one_step(bare)
        found = {name: sorted(vars(module)) for name, module in write(bare).named_modules()}
    assert found == expected


def test_saving_and_loading(attached: tuple[nn.Module, gradscope.Scope]) -> None:
    model, _ = attached
    whole, weights = io.BytesIO(), io.BytesIO()
    torch.save(model, whole)
    torch.save(model.state_dict(), weights)
    for file in (whole, weights):
        file.seek(0)
    again = torch.load(whole, weights_only=False)
    state = torch.load(weights, weights_only=True)
    again.load_state_dict(state)
    assert type(again) is Net
    assert all(map(torch.equal, again.parameters(), model.parameters()))
    assert list(state) == list(model.state_dict())
    one_step(again)


def test_pickles_are_byte_for_byte_the_same() -> None:
    model = Net(Case("gru"))
    one_step(model)
    bare = pickle.dumps(model)
    with gradscope.attach(model, every=1):
        assert pickle.dumps(model) == bare


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_scripting_and_tracing_other_models(attached: tuple[nn.Module, gradscope.Scope], kind: type) -> None:
    """torch.jit finds the kernels as it always does."""
    other, x = nn.Sequential(kind(3, 4)), torch.randn(5, 2, 3)
    want, _ = other(x)
    for made in (torch.jit.script(other), torch.jit.trace(other, x)):
        assert torch.equal(made(x)[0], want)


def test_exporting_another_model(attached: tuple[nn.Module, gradscope.Scope]) -> None:
    other, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(5, 3)
    assert torch.equal(torch.export.export(other, (x,)).module()(x), other(x))


# -- nothing is kept alive


class Sentinel:
    """A hook in the user's graph: alive as long as the graph is."""

    def __call__(self, grad: Tensor) -> None:
        return None


def through(model: nn.Module, x: Tensor) -> tuple[Any, weakref.ref[Sentinel]]:
    """The model's result on an input with a node behind it, and a witness of that node."""
    sentinel, leaf = Sentinel(), x.detach().requires_grad_()
    node = leaf * 1.0
    node.register_hook(sentinel)
    return model(node), weakref.ref(sentinel)


@pytest.mark.parametrize("kind", ["rnn_tanh", "lstm", "gru"])
def test_forwards_without_a_backward_are_let_go(kind: str) -> None:
    """Within a recorded step, as soon as the user has let go, without waiting for the step's end."""
    built = cases.build(Case(kind, 2))
    with gradscope.attach(built.module, every=1) as scope:
        result, witness = through(built.module, built.input)
        output = weakref.ref(result[0])
        assert witness() is not None and output() is not None
        del result
        gc.collect()
        assert witness() is None and output() is None
        assert scope.run.frame("timesteps").empty


@pytest.mark.parametrize("kind", ["rnn_tanh", "lstm", "gru"])
def test_graphs_are_let_go_after_the_step(kind: str) -> None:
    built = cases.build(Case(kind, 2))
    trainer = torch.optim.SGD(built.module.parameters(), lr=0.1)
    with gradscope.attach(built.module, every=1) as scope:
        result, witness = through(built.module, built.input)
        output = weakref.ref(result[0])
        result[0].sum().backward()
        trainer.step()
        del result
        gc.collect()
        assert witness() is None and output() is None
        assert len(scope.run.frame("timesteps")) > 0


def test_unwatched_steps_keep_nothing() -> None:
    built = cases.build(Case("lstm", 2))
    with gradscope.attach(built.module, every=1000) as scope:
        scope.pause()
        result, witness = through(built.module, built.input)
        del result
        assert witness() is None  # not even a cycle


@pytest.mark.filterwarnings("ignore")  # isinstance on everything wakes lazy modules
@pytest.mark.parametrize("every", [1, 1000])
def test_steps_pile_up_no_tensors(every: int) -> None:
    built = cases.build(Case("lstm", 2))
    optimizer = torch.optim.SGD(built.module.parameters(), lr=0.0)

    def tensors_after(steps: int) -> int:
        for _ in range(steps):
            built.module.zero_grad()
            built.backward()
            optimizer.step()
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, Tensor)]
        return sum(tensor.requires_grad or tensor.dim() > 1 for tensor in tensors)  # rows are kept, states are not

    with gradscope.attach(built.module, every=every):
        few = tensors_after(3)
        assert tensors_after(20) <= few


def test_a_closed_scope_and_its_run_keep_no_model_alive() -> None:
    model = Net(Case("gru"))
    with gradscope.attach(model, every=1) as scope:
        one_step(model)
    run, witness = scope.run, weakref.ref(model.rnn)
    del model, scope
    gc.collect()
    assert witness() is None
    assert len(run.frame("timesteps")) > 0
