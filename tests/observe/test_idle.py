"""Steps that are neither recorded nor looked at: next to nothing happens, and nothing that grows."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.nn.utils.rnn import pack_sequence
from torch.optim import SGD, Adam, AdamW
from torch.utils._python_dispatch import TorchDispatchMode

import gradscope
from gradscope.observe.losses import Losses
from gradscope.observe.schedule import Looks
from gradscope.record.recorder import Recorder, reference

ALLOWED = {"aten.detach.default", "aten._local_scalar_dense.default"}
OPERATIONS, CALLS = 6, 50
MORE_CALLS = {"two optimizers": 40, "accumulation": 15, "GradScaler": 85}
"""Two steps, two backward passes, four events of the scaler."""
Step = Callable[[], Any]


class Counting(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


class OwnCell(nn.Module):
    """A cell of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(3, 5), nn.Linear(5, 5, bias=False)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(self.w(x) + self.u(state))


class Looped(nn.Module):
    """A cell in a Python loop."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[1], 5)
        for t in range(len(x)):
            state = self.cell(x[t], state)
        return state


def plain(model: nn.Module, optimizer: Any, clip: Callable[[Any], Any] = lambda p: None, T: int = 6) -> Step:
    def step() -> None:
        optimizer.zero_grad()
        output = model(torch.ones(T, 2, 3))
        loss = (output[0] if isinstance(output, tuple) else output).square().mean()
        loss.backward()
        clip(model.parameters())
        optimizer.step()

    return step


def scaled(model: nn.Module) -> Step:
    optimizer, scaler = SGD(model.parameters(), 0.01), GradScaler("cpu", init_scale=8.0)

    def step() -> None:
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(6, 2, 3))[0].square().mean()).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return step


def accumulated(model: nn.Module) -> Step:
    optimizer = SGD(model.parameters(), 0.01)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(2):
            (model(torch.ones(6, 2, 3))[0].square().mean() / 2).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def two_optimizers(model: Any) -> Step:
    steps = [plain(part, SGD(part.parameters(), 0.01)) for part in model]

    def step() -> None:
        for each in steps:
            each()

    return step


def packed(model: nn.Module) -> Step:
    optimizer = SGD(model.parameters(), 0.01)

    def step() -> None:
        optimizer.zero_grad()
        model(pack_sequence([torch.ones(5, 3), torch.ones(2, 3)]))[0].data.square().mean().backward()
        optimizer.step()

    return step


def by_norm(parameters: Any, **options: Any) -> None:
    clip_grad_norm_(parameters, 1.0, **options)


LOOPS: dict[str, tuple[Callable[[], Any], Callable[[Any], Step]]] = {
    "SGD": (lambda: nn.LSTM(3, 5), lambda m: plain(m, SGD(m.parameters(), 0.01))),
    "Adam": (lambda: nn.GRU(3, 5), lambda m: plain(m, Adam(m.parameters()))),
    "Adam, one by one": (lambda: nn.RNN(3, 5), lambda m: plain(m, AdamW(m.parameters(), foreach=False))),
    "clipped by norm": (lambda: nn.LSTM(3, 5), lambda m: plain(m, SGD(m.parameters(), 0.01), by_norm)),
    "clipped by norm, one by one": (
        lambda: nn.LSTM(3, 5),
        lambda m: plain(m, SGD(m.parameters(), 0.01), lambda p: by_norm(p, foreach=False)),
    ),
    "clipped by value": (
        lambda: nn.LSTM(3, 5),
        lambda m: plain(m, SGD(m.parameters(), 0.01), lambda p: clip_grad_value_(p, 1e-3)),
    ),
    "GradScaler": (lambda: nn.GRU(3, 5), scaled),
    "accumulation": (lambda: nn.GRU(3, 5), accumulated),
    "two optimizers": (lambda: nn.ModuleList([nn.GRU(3, 5), nn.LSTM(3, 5)]), two_optimizers),
    "a cell in a loop": (lambda: Looped(OwnCell()), lambda m: plain(m, SGD(m.parameters(), 0.01), by_norm, T=60)),
    "torch's cell in a loop": (
        lambda: Looped(nn.GRUCell(3, 5)),
        lambda m: plain(m, SGD(m.parameters(), 0.01), by_norm, T=60),
    ),
    "a packed stack": (lambda: nn.LSTM(3, 5, 2, bidirectional=True), packed),
}


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is looked at, and none of those that are counted hands rows on."""
    monkeypatch.setattr(Looks, "due", lambda looks, step: False)
    monkeypatch.setattr(Looks, "following", lambda looks, step: step + 10**6)
    monkeypatch.setattr("gradscope.record.recorder.WAITING_S", 1e9)


def operations(step: Step) -> Counter[str]:
    with Counting() as counting:
        step()
    return counting.counts


def calls(step: Step) -> Counter[str]:
    """Calls of Python functions, by name and file."""
    found: Counter[str] = Counter()

    def count(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            found[f"{frame.f_code.co_name} {frame.f_code.co_filename}"] += 1

    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(None)
    return found


def added(name: str, measure: Callable[[Step], Counter[str]]) -> Counter[str]:
    """What a scope adds to an idle step."""
    build, loop = LOOPS[name]
    torch.manual_seed(0)
    model = build()
    step = loop(model)
    for _ in range(12):
        step()
    bare = measure(step)
    with gradscope.attach(model, every=10**9, strict=True) as scope:
        for _ in range(12):
            step()
        watched = measure(step)
        assert scope.run.frame("steps")["recorded"].sum() <= 2
    watched.subtract(bare)
    return Counter({what: count for what, count in watched.items() if count})


@pytest.mark.parametrize("name", LOOPS)
def test_no_operation_but_detach_and_reading_a_number(name: str) -> None:
    found = added(name, operations)
    assert set(found) <= ALLOWED and 0 < found.total() <= OPERATIONS, found


@pytest.mark.parametrize("name", LOOPS)
def test_python_calls_are_bounded(name: str) -> None:
    found = added(name, calls)
    assert found.total() <= CALLS + MORE_CALLS.get(name, 0), found


def deep(step: Step, depth: int) -> Step:
    """The same from far down the stack."""
    return (lambda: deep(step, depth - 1)()) if depth else step


@pytest.mark.parametrize("what", ["modules", "parameters", "calls of a cell", "stack"])
def test_nothing_grows(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def sized(size: int) -> int:
        wide = nn.ModuleList([nn.GRU(3, 5), *(nn.LSTM(3, 5) for _ in range(size * (what == "modules")))])
        many = nn.ParameterList(torch.ones(1) for _ in range(size * (what == "parameters")))
        cell = Looped(OwnCell())
        model: Any = nn.ModuleList([wide, many, cell])
        optimizer = SGD(model.parameters(), 0.01)
        length = size if what == "calls of a cell" else 3

        def step() -> None:
            optimizer.zero_grad()
            (model[0][0](torch.ones(4, 2, 3))[0].sum() + cell(torch.ones(length, 2, 3)).sum()).backward()
            by_norm(model.parameters())
            optimizer.step()

        monkeypatch.setitem(LOOPS, "sized", (lambda: model, lambda m: step))
        return added("sized", lambda step: calls(deep(step, size if what == "stack" else 0))).total()

    assert sized(40) == sized(3)


@pytest.mark.parametrize("family", [nn.LSTM, nn.GRU])
def test_torch_is_as_it_was_on_idle_steps(family: type[nn.RNNBase]) -> None:
    """What receives calls is there on recorded steps, and in the first call after one."""
    kernels = {name: getattr(torch._VF, name) for name in ("lstm", "gru", "gru_cell")}
    model, cell = family(3, 5), OwnCell()
    forward = OwnCell.forward
    optimizer = SGD([*model.parameters(), *cell.parameters()], 0.01)
    exchanged: list[bool] = []

    def step() -> None:
        optimizer.zero_grad()
        loss = cell(torch.ones(2, 3), model(torch.ones(4, 2, 3))[0][-1]).sum()
        same = [getattr(torch._VF, name) is kernel for name, kernel in kernels.items()]
        exchanged.append(not all(same) or OwnCell.forward is not forward)
        loss.backward()
        optimizer.step()

    with gradscope.attach(nn.ModuleList([model, cell]), every=4):
        for _ in range(9):
            step()
    assert exchanged == [True, False, False, False] * 2 + [True]
    assert OwnCell.forward is forward


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_numbers_that_only_a_flush_reads_make_the_same_rows(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device, where steps after the one that is lost are recorded only once a flush has found it."""

    def train(steps: int = 18) -> list[Any]:
        torch.manual_seed(0)
        model = nn.LSTM(3, 5)
        optimizer, x = SGD(model.parameters(), 0.01), torch.ones(6, 2, 3)
        with gradscope.attach(model, every=10**9, strict=True) as scope:
            for number in range(steps):
                optimizer.zero_grad()
                (model(x * (value if number == steps - 1 else 1.0))[0].square().mean() * (number + 1)).backward()
                by_norm(model.parameters())
                optimizer.step()
        columns = ["step", "loss", "nonfinite", "optimizer", "skipped"]
        return [scope.run.frame("steps")[columns], scope.run.frame("clips")]

    here = train()
    monkeypatch.setattr(Losses, "of", lambda losses, roots: tuple((reference(root),) for root in roots))
    monkeypatch.setattr("gradscope.observe.ledger.keep", reference)
    monkeypatch.setattr("gradscope.observe.ending.known", lambda values: False)
    there = train()
    for one, other in zip(here, there, strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert list(here[0]["nonfinite"]) == [0] * 17 + [int(value != 1.0)]


def test_rows_wait_a_second_at_most() -> None:
    batches: list[int] = []

    class Sink:
        def write(self, batch: gradscope.Batch) -> None:
            batches.append(batch.step)

        def close(self) -> None: ...

    recorder = Recorder([Sink()], since=100.0)
    assert not recorder.add(0, [], at=100.9)
    assert recorder.add(1, [], at=1e9 + 101.1) and not batches
    recorder.drain()
    assert batches == [0, 1]
