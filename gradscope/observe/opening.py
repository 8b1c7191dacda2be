"""Checks the arguments of `attach`, and opens what a scope consists of."""

from __future__ import annotations

import platform
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradscope.attach.processes import processes
from gradscope.attach.split import SPLITS, Splitter
from gradscope.errors import AttachError
from gradscope.observe.observer import Observer, Settings
from gradscope.observe.quantities import choose_quantities, most_sequences
from gradscope.observe.schedule import make_schedule
from gradscope.observe.watched import find_watched
from gradscope.record import MemoryStore, ParquetStore
from gradscope.record.existing import check_existing, open_store
from gradscope.record.plugins import installed_sinks
from gradscope.record.recorder import Recorder
from gradscope.record.sink_thread import Sink, SinkThread
from gradscope.types import CellSpec, Finding
from gradscope.version import __version__

Store = MemoryStore | ParquetStore


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of `attach`, which explains them."""

    every: int | Callable[[int], bool] | None
    budget: float
    quantities: str | Iterable[str]
    max_sequences: int | None
    include: str | Sequence[str] | None
    exclude: str | Sequence[str] | None
    first_step: int
    writer: Any
    sinks: Sequence[Sink]
    cells: Mapping[type[nn.Module], CellSpec] | Sequence[type[nn.Module]] | None
    positions: Mapping[str, int] | None
    split_layers: bool
    strict: bool
    existing: str

    def check(self) -> None:
        """Refuse unusable values.

        Raises:
            AttachError: `max_sequences` or `first_step` is out of range. `Opening` checks the other arguments.
        """
        limit, first = self.max_sequences, self.first_step
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise AttachError(f"max_sequences={limit!r}: expected 1 or more, or None for all sequences.")
        if not isinstance(first, int) or first < 0:
            raise AttachError(f"first_step={first!r}: expected the number of the first step, 0 or more.")

    @property
    def for_trials(self) -> dict[str, Any]:
        """Keywords of `attach` with which `whatif` observes copies of the model in the same way."""
        names = ("max_sequences", "include", "exclude", "cells", "positions", "split_layers")
        return {"every": 1, "strict": True, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, slots=True)
class Parts:
    """What a scope consists of.

    Attributes:
        observer: follows the training.
        recorder: hands rows to the store and the sinks.
        store: of the tables.
        sinks: of other packages and of the user.
        splitter: runs stacks layer by layer; None without `split_layers`.
    """

    observer: Observer
    recorder: Recorder
    store: Store
    sinks: Sequence[Sink]
    splitter: Splitter | None

    def listen(self) -> ExitStack:
        """Begin to listen to the training; closing the result ends it."""
        with ExitStack() as undo:
            if self.splitter is not None:
                undo.callback(SPLITS.listen(self.splitter).remove)
            undo.push(self.observer.listen(every_call=self.splitter is not None))
            return undo.pop_all()

    def begin_sinks(self, run: Any) -> None:
        """Tell sinks that have a `begin(run)` what will be recorded."""
        for begin in [getattr(sink, "begin", None) for sink in self.sinks]:
            if begin is not None:
                begin(run)


class Opening:
    """A model with checked arguments, before anything is written.

    Args:
        model: to observe.
        logdir: run folder to ask for; None for memory.
        arguments: the other arguments of `attach`.

    Attributes:
        watched: the model and its observed modules.
        folder: the run folder that `attach` asks for.

    Raises:
        AttachError: the model has no recurrent layer that can be observed, or an argument is unusable.
    """

    def __init__(self, model: nn.Module, logdir: str | PathLike[str] | None, arguments: Arguments) -> None:
        if not isinstance(model, nn.Module):
            raise AttachError(f"attach() takes a torch.nn.Module; got {type(model).__name__}. Pass the model itself.")
        a = self._arguments = arguments
        self.folder = None if logdir is None else Path(logdir)
        self.watched = find_watched(model, a.include, a.exclude, a.cells, a.positions)
        self._wanted, self._limit = choose_quantities(a.quantities), most_sequences(a.quantities, a.max_sequences)
        self._schedule = make_schedule(a.every, a.budget)
        a.check()
        self._rank, self._processes = processes()
        check_existing(a.existing, self._processes)

    @contextmanager
    def open(self, findings: Callable[[Store], Callable[[], list[Finding]]]) -> Generator[Parts]:
        """Open the parts of a scope; the store is closed again if something fails before the context ends.

        Args:
            findings: makes, for a store, the function that tells sinks what the run shows so far.

        Raises:
            RecordError: the folder cannot be written, or has the first step already.
        """
        a, store = self._arguments, self._store()
        try:
            first = store.first_step if isinstance(store, ParquetStore) else a.first_step
            sinks = [*self._installed(store, findings(store)), *a.sinks]
            quick = [sink for sink in sinks if getattr(sink, "quick", False)]
            recorder = Recorder((store, *quick), [SinkThread(sink) for sink in sinks if sink not in quick])
            settings = Settings(self._wanted, self._limit, first, a.strict, jumps=a.every is None)
            observer = Observer(self.watched, recorder, self._schedule, settings, store.tell)
            splitter = Splitter(self.watched.layers, observer.guard.note) if a.split_layers else None
            yield Parts(observer, recorder, store, sinks, splitter)
        except BaseException:
            store.close()
            raise

    def _store(self) -> Store:
        a, meta = self._arguments, self._meta()
        if self.folder is None:
            return MemoryStore(meta, rank=self._rank)
        return open_store(self.folder, meta, rank=self._rank, first_step=a.first_step, existing=a.existing)

    def _installed(self, store: Store, findings: Callable[[], list[Finding]]) -> list[Sink]:
        """The sinks of installed packages, if there is a folder or writer; only in the first process."""
        folder, writer = store.root.parent if isinstance(store, ParquetStore) else None, self._arguments.writer
        if writer is None and (folder is None or self._rank > 0):
            return []
        return installed_sinks(folder, writer, findings)

    def _meta(self) -> dict[str, Any]:
        a, every = self._arguments, self._arguments.every
        return {
            "processes": self._processes,
            "versions": {"gradscope": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "layers": self.watched.described,
            "arguments": {
                "every": every if isinstance(every, int) or every is None else repr(every),
                "budget": a.budget,
                "quantities": sorted(self._wanted),
                "max_sequences": self._limit,
                "first_step": a.first_step,
                "split_layers": a.split_layers,
            },
        }
