"""A small training that something happens to, run without a scope and with one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gradscope
from gradscope.record import ParquetStore, existing

STEPS = 10
AT = 5
"""When it happens: some steps are in the folder by then, and some are to come."""
EVERY = 2


class Often(ParquetStore):
    """A store that flushes every second step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, flush_steps=2, **options)


class Net(nn.Module):
    """A fused layer, a cell in a loop, a cell of one's own, and things that draw random numbers."""

    def __init__(self, hidden: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, hidden, layers, dropout=0.2 if layers > 1 else 0.0)
        self.cell, self.own = nn.LSTMCell(hidden, hidden), Own(hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x)
        state, own = None, None
        for row in output[-3:]:
            state, own = self.cell(row, state), self.own(row, own)
        return self.head(nn.functional.dropout(output, 0.1).mean(0) + (0.0 if state is None else state[0] + own))


class Own(nn.Module):
    """A user's cell, which a test can break."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear, self.broken = nn.Linear(2 * hidden, hidden), ""

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        if self.broken == "raises":
            raise ZeroDivisionError("the user's cell")
        state = torch.zeros_like(x) if state is None else state
        new = torch.tanh(self.linear(torch.cat([x, state], 1)))
        return new[:, :1].expand_as(new) * 1.0 if self.broken == "odd" else new


@dataclass
class Stage:
    """What a fault can reach.

    Attributes:
        model: what is trained.
        batches: its inputs, one for each step.
        before: by step, what happens before it.
        spoil: by step, what is done to the loss.
        logdir: of the scope; None without one.
        scope: likewise.
        seen: the bits after every step.
        undo: what is done when all is over, however it ended.
    """

    model: Net
    batches: list[Tensor]
    logdir: Path | None = None
    scope: gradscope.Scope | None = None
    before: dict[int, Callable[[Stage], Any]] = field(default_factory=dict)
    spoil: dict[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    seen: list[bytes] = field(default_factory=list)
    undo: Callable[[], Any] = lambda: None

    def train(self) -> None:
        """The loop."""
        optimizer = torch.optim.Adam(self.model.parameters(), 0.01)
        for step, x in enumerate(self.batches):
            self.before.get(step, lambda stage: None)(self)
            optimizer.zero_grad()
            loss = self.spoil.get(step, lambda loss: loss)(self.model(x).square().mean())
            loss.backward()
            optimizer.step()
            self.look()

    def look(self) -> None:
        """Keep the bits of everything."""
        tensors = [*self.model.parameters(), *self.model.buffers(), torch.get_rng_state()]
        tensors += [p.grad for p in self.model.parameters() if p.grad is not None]
        self.seen += [t.detach().contiguous().numpy().tobytes() for t in tensors]


@dataclass(frozen=True)
class Outcome:
    """How a training went.

    Attributes:
        bits: all that it has left behind.
        error: how it ended, if not at its end.
        warned: what gradscope has warned of.
        run: what is in the folder.
    """

    bits: Sequence[bytes]
    error: BaseException | None
    warned: list[str]
    run: gradscope.Run | None = None


def stage(hidden: int = 4, length: int = 4, batch: int = 2, steps: int = STEPS, layers: int = 2) -> Stage:
    torch.manual_seed(3)
    return Stage(Net(hidden, layers), [torch.randn(length, batch, 3) for _ in range(steps)])


def bare(make: Callable[[], Stage]) -> Outcome:
    one = make()
    torch.manual_seed(4)
    return Outcome(one.seen, _ended(one.train), [])


def scoped(make: Callable[[], Stage], logdir: Path, monkeypatch: Any, **options: Any) -> Outcome:
    """With a scope that writes to a folder, closed as a `with` closes it."""
    monkeypatch.setattr(existing, "ParquetStore", Often)
    one = make()
    one.logdir = logdir
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        torch.manual_seed(4)

        def train() -> None:
            with gradscope.attach(one.model, logdir, **{"every": EVERY, **options}) as one.scope:
                one.train()

        error = _ended(train)
        one.undo()
    ours = [str(w.message) for w in warned if issubclass(w.category, gradscope.GradscopeWarning)]
    return Outcome(one.seen, error, ours, gradscope.load(logdir))


def _ended(train: Callable[[], None]) -> BaseException | None:
    try:
        train()
    except BaseException as error:
        return error
    return None
