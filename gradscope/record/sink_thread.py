"""A thread for each user sink: neither failures nor hanging of a sink reach the training."""

from __future__ import annotations

import os
import queue
import threading
from typing import Protocol

from gradscope.errors import RecordError
from gradscope.types import Batch

PATIENCE_S = 0.1
"""How long the training waits for a sink that was idle before."""
WAITING, RECORDED = 4096, 16
"""Steps that may wait for a sink, and the steps that one recorded step counts for; the sink misses later steps."""
FEW = 32
"""The training waits for up to this many new steps, counted likewise: quick steps arrive many at once."""
CLOSE_S = 10.0
"""How long `close` waits for the sink."""


class Sink(Protocol):
    """Receives the rows of every step."""

    def write(self, batch: Batch) -> None:
        """Write the rows of one optimizer step."""
        ...

    def close(self) -> None:
        """Write the remaining rows."""
        ...


class SinkThread:
    """Calls a sink in a thread, batch after batch; the thread makes all calls of the sink, `close` too.

    A quick sink is done when `catch_up` returns, as after a direct call. A hanging sink costs the training
    `PATIENCE_S`, once. The next `catch_up` or `close` raises the sink's exceptions, and the sink still receives the
    next batch. A forked process does not call the sink.

    Args:
        sink: the user's sink.
        close_s: see `CLOSE_S`; by default the sink's own `close_s`, if it has one.
    """

    def __init__(self, sink: Sink, *, close_s: float | None = None) -> None:
        """See the class."""
        self._sink = sink
        self._close_s: float = getattr(sink, "close_s", CLOSE_S) if close_s is None else close_s
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._queued = self._written = self._missed = self._caught_up = 0  # each changed by one thread only
        self._progress = threading.Condition()
        self._errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._owner, self._closed = os.getpid(), False

    @property
    def name(self) -> str:
        """The sink's name in messages."""
        return type(self._sink).__name__

    def write(self, batch: Batch) -> None:
        """Put a batch into the queue, if there is room."""
        if self._closed or os.getpid() != self._owner:
            return
        if self._queued - self._written >= WAITING:
            self._missed += 1
            return
        self._queued += _weight(batch)
        self._put(batch)

    def catch_up(self, *, was_idle: bool) -> None:
        """Wait a little for the sink, unless it was busy before, and raise its exception.

        Raises:
            RecordError: the sink has failed, or has missed steps.
        """
        few, self._caught_up = self._queued - self._caught_up <= FEW, self._queued
        if was_idle and few and self._thread is not None and os.getpid() == self._owner:
            with self._progress:
                self._progress.wait_for(lambda: self.idle, PATIENCE_S)
        if self._missed:
            missed, self._missed = self._missed, 0
            raise RecordError(f"the sink {self.name} does not keep up: it missed {missed} steps")
        self._raise()

    @property
    def idle(self) -> bool:
        """True if the sink has written every batch of the queue."""
        return self._queued == self._written

    def close(self) -> None:
        """Let the sink write the remaining batches, close it, and wait.

        Raises:
            RecordError: the sink has failed, or is not done in time; the thread then runs on alone.
        """
        if self._closed or os.getpid() != self._owner:
            return
        self._closed = True
        self._put(None)
        assert self._thread is not None
        self._thread.join(self._close_s)
        if self._thread.is_alive():
            left = self._queue.qsize()
            raise RecordError(
                f"the sink {self.name} has not finished within {self._close_s:.3g} s; {left} steps wait for it, but "
                "the process waits no longer"
            )
        self._raise()

    def _put(self, item: Batch | None) -> None:
        self._queue.put(item)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"gradscope-{self.name}", daemon=True)
            self._thread.start()

    def _raise(self) -> None:
        if self._errors.empty():
            return
        error = self._errors.get()
        while not self._errors.empty():
            self._errors.get()  # later errors are of the same kind, or will come again
        raise RecordError(f"the sink {self.name} failed: {type(error).__name__}: {error}") from error

    def _run(self) -> None:
        """Call the sink until the queue returns None; runs in the thread."""
        while (batch := self._queue.get()) is not None:
            try:
                self._sink.write(batch)
            except BaseException as error:  # no exception may end the thread
                self._errors.put(error)
            with self._progress:
                self._written += _weight(batch)
                self._progress.notify_all()
        try:
            self._sink.close()
        except BaseException as error:
            self._errors.put(error)


def _weight(batch: Batch) -> int:
    return RECORDED if any(rows.table == "layers" for rows in batch.rows) else 1
