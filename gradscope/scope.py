"""`attach`, and the scope that it returns."""

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
from gradscope.record.live import Live, Recent
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
    """Record the gradients inside every recurrent layer of a model, while the model trains as before.

    Args:
        model: any module; gradscope observes `nn.RNN`, `nn.LSTM`, `nn.GRU`, their cells, and modules with the signature
            of a cell, at any depth.
        logdir: run folder to write; None keeps everything in memory. The processes of a distributed training share one
            folder, and each writes its own part.
        every: record optimizer steps 0, N, 2N, ... exactly, or the steps for which a function of the step is true. None
            records steps 0 to 15, every 2nd up to 31, every 4th up to 63, ...: 8 to each doubling of the step, fewer
            if a record takes longer than 13 ms, as long as `budget` allows; and more steps if `budget` can pay for them
            permanently. gradscope keeps the loss and every clipping call of every step.
        budget: without `every`, gradscope may cost this share of the training time (0.015 is 1.5 %) and one second.
        quantities: `"core"`, `"economy"` (less, of four sequences: for every step), `"full"`, or a list of names;
            gradscope computes no other.
        max_sequences: number of analysed sequences, evenly spaced over the batch; None for all.
        include: `fnmatch` patterns over qualified names of the layers to observe.
        exclude: `fnmatch` patterns over qualified names of layers to leave out.
        first_step: number of the first step, for resumed training.
        writer: your own `SummaryWriter`, to share for TensorBoard. Without one, and with TensorBoard installed,
            gradscope writes the data of its TensorBoard tab beside the tables in `logdir`.
        sinks: further receivers of the rows, objects with `write(batch)` and `close()`; each runs in its own thread, so
            that it cannot delay the training. gradscope first calls `begin(run)` of a sink that has it.
        cells: classes of your own cells, and how to observe them; see `CellSpec`.
        positions: pattern over qualified names -> time dimension, 0 or 1, of the output of any other module that turns
            a sequence into a sequence: its records are `grad_h` at its positions, and `reach` from there to its input.
        split_layers: run a stack of layers layer by layer on a device whose kernel draws its own dropout; needed if a
            note says that the mask is hidden (gradscope reads cuDNN 9's). The training then differs from one without
            the scope, for it draws other random numbers: a warning and a note say so.
        strict: raise if gradscope itself fails. By default a note and a warning report it, and the training goes on.
        existing: what to do if `logdir` already has the step `first_step`. `"new"` records in `runs/exp-2`,
            `runs/exp-3`, ... with a warning; `"continue"` goes on from the last step; `"replace"` deletes the earlier
            run; `"error"` refuses.

    Returns:
        A scope; `close` it, or use it as a context manager, and the model and torch are exactly as before.

    Raises:
        AttachError: the model has no observable recurrent layer, or an argument is unusable.
        RecordError: the run folder cannot be written, or with `existing="error"` has the step already.

    >>> import torch, gradscope
    >>> model = torch.nn.LSTM(2, 8)
    >>> with gradscope.attach(model, every=1) as scope:
    ...     model(torch.ones(5, 3, 2))[0].sum().backward()
    >>> int(scope.run.frame("layers").horizon_censored.sum())
    1
    """
    from gradscope.observe.opening import Arguments, Opening  # loads the mathematics, so not at import

    arguments = Arguments(
        every, budget, quantities, max_sequences, include, exclude, first_step, writer, sinks, cells, positions,
        split_layers, strict, existing,
    )  # fmt: skip
    opening = Opening(model, logdir, arguments)
    _close_earlier(opening.folder, existing, opening.watched.model)
    with opening.open(lambda store: Run(Recent(store)).findings) as parts:
        scope = Scope(parts, arguments, opening.folder)
    parts.begin_sinks(scope.run)
    return scope


def _close_earlier(logdir: Path | None, existing: str, model: nn.Module) -> None:
    """Close scopes without models, and an open scope on the same folder, as of a notebook cell that runs again.

    With `existing="new"` a scope on another model continues, and the new run gets a folder beside it.
    """
    for scope in list(_OPEN):
        if scope._observer.tree.gone:
            scope.close()
        if logdir is None or scope._closed:
            continue
        same = scope._observer.tree.model is model and _same_folder(scope._requested, logdir)
        here = _same_folder(scope.logdir, logdir)
        if (same and existing != "error") or (here and existing in ("continue", "replace")):
            scope.close()
            message = f"an earlier scope of this process was still open on {scope.logdir}: it is closed now"
            warnings.warn(message, GradscopeWarning, stacklevel=3)


def _same_folder(one: Path | None, other: Path) -> bool:
    return one is not None and one.resolve() == other.resolve()


class Scope:
    """An attached model; made by `attach`.

    After `close`, in any order of scopes, the model and torch are exactly as before. A scope closes by itself when its
    model is gone or Python exits, even if no variable refers to the scope.
    """

    def __init__(self, parts: Parts, arguments: Arguments, requested: Path | None = None) -> None:
        """See `attach`."""
        self._observer, self._recorder, self._store = parts.observer, parts.recorder, parts.store
        self._arguments, self._requested = arguments, requested
        self._closed, self._thread = False, threading.get_ident()
        self._model_class, self._since = type(self._observer.tree.model).__name__, datetime.now()
        self._pending: tuple[tuple[int, int], MemoryStore] | None = None
        self._undo = parts.listen()
        self._observer.tree.when_gone(lambda: parts.observer.clock.begun, self._model_gone)
        _close_at_exit()
        _OPEN[self] = None

    def step(self) -> None:
        """End a step, in a loop without a `torch.optim.Optimizer`."""
        self._check_open("step()")
        self._observer.finish()

    def pause(self) -> None:
        """Record nothing until `resume`; gradscope still counts steps."""
        self._observer.calls.paused = True

    def resume(self) -> None:
        """Record again."""
        self._observer.calls.paused = False

    @property
    def next_step(self) -> int:
        """The number of the current step: `first_step` for a training that continues from here."""
        return self._observer.step

    @property
    def logdir(self) -> Path | None:
        """The run folder; with `existing="new"` it may differ from the `logdir` of `attach`."""
        return self._store.root.parent if isinstance(self._store, ParquetStore) else None

    @property
    def run(self) -> Run:
        """The records so far, including the current, unfinished step."""
        return Run(Live(self._store, weakref.ref(self)))

    def whatif(self, batch: Any, loss: Callable[[nn.Module, Any], Tensor]) -> WhatIf:
        """Try each remedy on a copy of the model: how far would the gradients of this batch reach with the remedy?

        The remedies are those of the findings so far and the usual ones for each recurrent module, one at a time: other
        initialisations, layer normalisation, gates, residual connections. The changed parts of a copy begin anew, and
        the rest has the present parameters, so that the numbers describe the beginning of a training with the remedy.
        The training is not affected: model, gradients, buffers and random streams stay as they are, and gradscope
        records no copy.

        Args:
            batch: second argument of `loss`; copied for each trial.
            loss: (model, batch) -> scalar tensor. It has to call its argument `model`, which is a copy.

        Returns:
            Two frames, `layers` and `reach`, with the unchanged model first; printed, a line for each remedy.

        Raises:
            GradscopeError: the scope is closed, the model cannot be copied, or the loss is no scalar with a gradient.

        >>> import torch, gradscope
        >>> model = torch.nn.RNN(2, 8)
        >>> _ = model.weight_hh_l0.data.mul_(0.1)
        >>> with gradscope.attach(model) as scope:
        ...     trials = scope.whatif(torch.ones(20, 3, 2), lambda model, x: model(x)[0][-1].sum())
        >>> float(trials.layers.set_index("code").horizon["torch.nn.init.orthogonal_(model.weight_hh_l0)"])
        19.0
        """
        from gradscope.whatif import what_if

        self._check_open("whatif()")
        model = self._observer.tree.model
        if model is None:
            raise GradscopeError("whatif(): the attached module is gone; keep it, or attach to one that you keep.")
        findings = self.run.findings()
        with self._observer.aside():
            return what_if(model, batch, loss, findings, partial(attach, **self._arguments.for_trials))

    def source(self) -> Source:
        """The records so far as a source, with the unfinished step."""
        self._recorder.drain()
        if self._closed or not self._observer.unfinished:
            return self._store
        if self._pending is None or self._pending[0] != self._observer.progress:
            pending = MemoryStore({}, rank=self._store.ranks[0])
            pending.write(*on_host([(self._observer.step, self._observer.rows())]))
            self._pending = self._observer.progress, pending
        return Joined(self._store, self._pending[1])

    def close(self) -> Run:
        """Write the remaining records, and restore model and torch. A second `close` does nothing.

        Returns:
            The run; at the end of a notebook cell it shows its short report.
        """
        if self._closed:
            return self.run
        self._closed = True
        _OPEN.pop(self, None)
        self._observer.tree.forget()
        try:
            self._undo.close()
            if self._observer.unfinished:
                self._observer.finish()
        finally:
            self._pending = None
            self._observer.calls.discard()
            self._observer.guard.call(self._recorder.close)
        return self.run

    def _model_gone(self) -> None:
        """Stop listening, and close; later if another thread or one of our callbacks runs now."""
        self._undo.close()
        if self._observer.guard.depth or threading.get_ident() != self._thread:
            return  # the next `attach`, or the exit of Python, closes the scope
        try:
            self.close()
        except Exception as failure:  # Python would print a traceback that no code can catch
            warnings.warn(f"while gradscope closed a deleted model's scope: {failure}", GradscopeWarning, stacklevel=2)

    def __repr__(self) -> str:
        """The model, the time of `attach`, the number of records, and their place."""
        from gradscope.observe.about import about

        return about(self._observer, of=self._model_class, since=self._since, closed=self._closed, logdir=self.logdir)

    def __enter__(self) -> Self:
        """The scope itself."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Close; an exception of the loop propagates unchanged, even if closing fails."""
        try:
            self.close()
        except GradscopeError as failure:
            if error is None:
                raise
            warnings.warn(f"while gradscope closed the scope: {failure}", GradscopeWarning, stacklevel=2)

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise GradscopeError(f"{what}: this scope is closed; attach to the model again.")


_OPEN: dict[Scope, None] = {}
"""The open scopes."""


@functools.cache
def _close_at_exit() -> None:
    """Register one function for all scopes: `atexit` never reuses the slot of an unregistered function."""
    atexit.register(_close_all)


def _close_all() -> None:
    for scope in reversed(list(_OPEN)):
        scope.close()
