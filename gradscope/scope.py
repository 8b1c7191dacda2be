"""The scope: what `attach` gives to a training loop."""

from __future__ import annotations

import atexit
import functools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.record import Joined, MemoryStore, ParquetStore, Source
from gradscope.record.live import Live
from gradscope.record.recent import Recent
from gradscope.record.recorder import on_host
from gradscope.record.sink_thread import Sink
from gradscope.run import Run
from gradscope.types import CellSpec

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from gradscope.observe.opening import Arguments, Parts
    from gradscope.whatif import WhatIf


def attach(
    model: nn.Module,
    logdir: str | PathLike[str] | None = None,
    *,
    every: int | Callable[[int], bool] | None = None,
    budget: float = 0.015,
    quantities: str | Iterable[str] = "core",
    max_sequences: int | None = 16,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    first_step: int = 0,
    writer: Any = None,
    sinks: Sequence[Sink] = (),
    cells: Mapping[type[nn.Module], CellSpec] | Sequence[type[nn.Module]] | None = None,
    positions: Mapping[str, int] | None = None,
    split_layers: bool = False,
    strict: bool = False,
    existing: Literal["new", "continue", "replace", "error"] = "new",
) -> Scope:
    """Record what gradients do inside every recurrent layer of a model, while it trains as before.

    Args:
        model: any module; `nn.RNN`, `nn.LSTM`, `nn.GRU`, their cells, and modules with the signature of a cell are
            found in it at any depth.
        logdir: run folder to write; None keeps everything in memory. The processes of a distributed training share one,
            and each writes its own part.
        every: record optimizer steps 0, N, 2N, ... exactly, or those for which a function of the step is true. None
            records steps 0 to 15, every 2nd up to 31, every 4th up to 63, ...: 8 to each doubling of the step, fewer
            where a record takes longer than 13 ms, as long as `budget` allows; and more often where it pays for that
            for good. The loss and every clipping call are kept for every step.
        budget: where `every` is None, gradscope may cost, in all, this share of the training time (0.015 is 1.5 %)
            and one second.
        quantities: `"core"`, `"economy"` (a third cheaper), `"full"`, or a list of names. gradscope computes nothing
            that you do not ask for.
        max_sequences: how many sequences of a batch are analysed, evenly spaced over the batch; None for all.
        include: `fnmatch` patterns over qualified names of the layers to observe.
        exclude: `fnmatch` patterns over qualified names of layers to leave out.
        first_step: number of the first step, for resumed training.
        writer: your own `SummaryWriter`, to share for TensorBoard. Without one, and with TensorBoard installed, what
            its Gradscope tab shows is written beside the tables in `logdir`.
        sinks: further takers of the rows, anything with `write(batch)` and `close()`; each is called in a thread of its
            own, so that it cannot hold up the training. One that has `begin(run)` is told first what will be recorded.
        cells: classes of your own cells, and how to observe them; see `CellSpec`.
        positions: pattern over qualified names -> time dimension, 0 or 1, of the output of any other module that turns
            a sequence into a sequence: `grad_h` is recorded at its positions, and `reach` from there to its input.
        split_layers: run a stack of layers layer by layer on a device whose kernel draws its own dropout; needed where
            a note says that the mask is hidden (cuDNN 9's is read). The training is then not the same as without the
            scope, for it draws other random numbers: a warning and a note say so.
        strict: raise where gradscope itself fails. By default the failure is noted, warned about once, and training
            goes on.
        existing: what to do where `logdir` already has the step `first_step`. `"new"` records in `runs/exp-2`,
            `runs/exp-3`, ... and a warning says so; `"continue"` goes on from the last step; `"replace"` deletes the
            earlier run; `"error"` refuses.

    Returns:
        A scope; `close` it, or use it as a context manager, and the model and torch are exactly as before.

    Raises:
        AttachError: the model has no recurrent layer that can be observed, or an argument is unusable.
        RecordError: the run folder cannot be written, or with `existing="error"` has the step already.

    >>> import torch, gradscope
    >>> model = torch.nn.LSTM(2, 8)
    >>> with gradscope.attach(model, every=1) as scope:
    ...     model(torch.ones(5, 3, 2))[0].sum().backward()
    >>> int(scope.run.frame("layers").horizon_censored.sum())
    1
    """
    from gradscope.observe.opening import Arguments, Opening  # the mathematics, not before there is a use for it

    arguments = Arguments(
        every, budget, quantities, max_sequences, include, exclude, first_step, writer, sinks, cells, positions,
        split_layers, strict, existing,
    )  # fmt: skip
    opening, folder = Opening(model, arguments), None if logdir is None else Path(logdir)
    _close_earlier(folder, existing, opening.watched.model)
    with opening.open(folder, lambda store: Run(Recent(store)).findings) as parts:
        scope = Scope(parts, arguments, folder)
    parts.begin_sinks(scope.run)
    return scope


def _close_earlier(logdir: Path | None, existing: str, model: nn.Module) -> None:
    """Close scopes whose models are gone, and one left open on the folder, as by a notebook cell that runs again.

    A scope on another model may still be recording. With `existing="new"` it goes on, and the new run goes beside it.
    """
    for scope in list(_OPEN):
        if scope._observer.tree.gone:
            scope.close()
        if logdir is None or scope._closed:
            continue
        same = scope._observer.tree.model is model and scope._asked is not None and _alike(scope._asked, logdir)
        here = scope.logdir is not None and _alike(scope.logdir, logdir)
        if (same and existing != "error") or (here and existing in ("continue", "replace")):
            scope.close()
            said = f"an earlier scope of this process was still open on {scope.logdir}: it is closed now"
            warnings.warn(said, GradscopeWarning, stacklevel=3)


def _alike(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


class Scope:
    """An attached model; made by `attach`.

    Closing it, in whatever order scopes are closed, leaves the model and torch exactly as they were. A scope that
    nobody closes lives as long as its model, held or not: it is closed when the model goes, or when Python exits.
    """

    def __init__(self, parts: Parts, arguments: Arguments, asked: Path | None = None) -> None:
        """See `attach`."""
        self._observer, self._recorder, self._store = parts.observer, parts.recorder, parts.store
        self._arguments, self._asked = arguments, asked
        self._closed, self._thread = False, threading.get_ident()
        self._of, self._at = type(self._observer.tree.model).__name__, datetime.now()
        self._pending: tuple[tuple[int, int], MemoryStore] | None = None
        self._undo = parts.listen()
        self._observer.tree.when_gone(lambda: parts.observer.begun, self._model_gone)
        _closed_at_exit()
        _OPEN[self] = None

    def step(self) -> None:
        """Say that a step is over, in a loop that has no `torch.optim.Optimizer`."""
        self._check_open("step()")
        self._observer.finish("")

    def pause(self) -> None:
        """Record nothing until `resume`; steps are still counted."""
        self._observer.paused = True

    def resume(self) -> None:
        """Record again."""
        self._observer.paused = False

    @property
    def next_step(self) -> int:
        """The number of the step that is under way: `first_step` for a training that goes on from here."""
        return self._observer.step

    @property
    def logdir(self) -> Path | None:
        """The run folder, which with `existing="new"` may be another than the one that was asked for."""
        return self._store.root.parent if isinstance(self._store, ParquetStore) else None

    @property
    def run(self) -> Run:
        """What is recorded, as it grows: a step that no optimizer has ended yet is part of it."""
        return Run(Live(self._store, weakref.ref(self)))

    def whatif(self, batch: Any, loss: Callable[[nn.Module, Any], Tensor]) -> WhatIf:
        """Try each remedy on a copy of the model: how far would the gradients of this batch reach with it?

        The remedies are those of the findings so far and the usual ones for each recurrent module, one at a time: other
        initialisations, layer normalisation, gates, residual connections. What they change begins anew and the rest of
        the copy is as far as the training is, so that the numbers are about how a training with the remedy would begin.
        The training does not notice: model, gradients, buffers and random streams stay as they are, and no copy is
        recorded.

        Args:
            batch: whatever `loss` makes of it; it is copied for each trial.
            loss: (model, batch) -> scalar tensor. It has to call the model that it is given, which is a copy.

        Returns:
            Two frames, `layers` and `reach`, with the model as it is first; printed, a line for each remedy.

        Raises:
            GradscopeError: the scope is closed, the model cannot be copied, or `loss` gives no scalar with a gradient.

        >>> import torch, gradscope
        >>> model = torch.nn.RNN(2, 8)
        >>> _ = model.weight_hh_l0.data.mul_(0.1)
        >>> with gradscope.attach(model) as scope:
        ...     found = scope.whatif(torch.ones(20, 3, 2), lambda model, x: model(x)[0][-1].sum())
        >>> float(found.layers.set_index("code").horizon["torch.nn.init.orthogonal_(model.weight_hh_l0)"])
        19.0
        """
        from gradscope.whatif import what_if

        self._check_open("whatif()")
        model = self._observer.tree.model
        if model is None:
            raise GradscopeError(
                "whatif(): the module that was attached is gone; keep it, or attach to one that you keep."
            )
        findings = self.run.findings()
        with self._observer.aside():
            return what_if(model, batch, loss, findings, partial(attach, **self._arguments.for_trials))

    def source(self) -> Source:
        """What is recorded now, with the step that is not over."""
        self._recorder.drain()
        if self._closed or not self._observer.unfinished:
            return self._store
        if self._pending is None or self._pending[0] != self._observer.progress:
            pending = MemoryStore({}, rank=self._store.ranks[0])
            pending.write(*on_host([(self._observer.step, self._observer.rows())]))
            self._pending = self._observer.progress, pending
        return Joined(self._store, self._pending[1])

    def close(self) -> Run:
        """Write out what is left, and leave model and torch as they were. Closing again does nothing.

        Returns:
            The run, which at the end of a notebook's cell is its short report.
        """
        if self._closed:
            return self.run
        self._closed = True
        _OPEN.pop(self, None)
        self._observer.tree.forget()
        try:
            self._undo.close()
            if self._observer.unfinished:
                self._observer.finish("")
        finally:
            self._pending = None
            self._observer.close()
            self._observer.guard.call(self._recorder.close)
        return self.run

    def _model_gone(self) -> None:
        """Listen no more, and close: later, if this thread or this moment may not."""
        self._undo.close()
        if self._observer.guard.busy or threading.get_ident() != self._thread:
            return  # the next `attach`, or the end of Python, closes it
        try:
            self.close()
        except Exception as failure:  # Python would print a traceback, and nobody could catch it
            warnings.warn(
                f"while the scope of a model that is gone was closed: {failure}", GradscopeWarning, stacklevel=2
            )

    def __repr__(self) -> str:
        """What is attached, since when, how many records there are, and where."""
        from gradscope.observe.about import about

        return about(self._observer, of=self._of, since=self._at, closed=self._closed, logdir=self.logdir)

    def __enter__(self) -> Self:
        """The scope itself."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Close; what the loop has raised goes on as it is, whatever fails here."""
        try:
            self.close()
        except GradscopeError as failure:
            if error is None:
                raise
            warnings.warn(f"while the scope was closed: {failure}", GradscopeWarning, stacklevel=2)

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise GradscopeError(f"{what}: this scope is closed; attach to the model again.")


_OPEN: dict[Scope, None] = {}
"""Scopes that are not closed."""


@functools.cache
def _closed_at_exit() -> None:
    """Once, for all scopes: Python never forgets the place of a function that is registered and unregistered again."""
    atexit.register(_close_all)


def _close_all() -> None:
    for scope in reversed(list(_OPEN)):
        scope.close()
