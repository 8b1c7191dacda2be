"""A sink of the user's, in a thread of its own: neither its failures nor its hanging reach the training."""

from __future__ import annotations

import os
import queue
import threading
from typing import Protocol

from gradscope.errors import RecordError
from gradscope.types import Batch

PATIENCE_S = 0.1
"""How long the training waits for a sink that had nothing else to do."""
WAITING, RECORDED = 4096, 16
"""Steps that may wait for a sink, a recorded one counting as many; those that come then are left out."""
FEW = 32
"""Steps, counted like that, which a sink is waited for: of trainings with quick steps many come at once."""
CLOSE_S = 10.0
"""How long `close` waits for it."""


class Sink(Protocol):
    """Something that is given every step's rows."""

    def write(self, batch: Batch) -> None:
        """Take the rows of one optimizer step."""
        ...

    def close(self) -> None:
        """Write out what is left."""
        ...


class Apart:
    """Hands batches to a sink in its thread, in order; all calls of the sink, `close` too, are made there.

    A sink that is quick has taken what it was given when `settle` returns, as if it had been called at once. One that
    hangs costs the training `PATIENCE_S`, once. What it raises is raised by the next `settle` or `close`, and it is
    given the next batch all the same. A forked process does not call it.

    Args:
        sink: the user's.
        close_s: see `CLOSE_S`; by default the sink's own `close_s`, if it has one.
    """

    def __init__(self, sink: Sink, *, close_s: float | None = None) -> None:
        """See the class."""
        self._sink = sink
        self._close_s: float = getattr(sink, "close_s", CLOSE_S) if close_s is None else close_s
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._given = self._taken = self._lost = self._settled = 0  # each changed by one thread only
        self._progress = threading.Condition()
        self._errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._owner, self._closed = os.getpid(), False

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return type(self._sink).__name__

    def write(self, batch: Batch) -> None:
        """Put a batch into the queue, if there is room."""
        if self._closed or os.getpid() != self._owner:
            return
        if self._given - self._taken >= WAITING:
            self._lost += 1
            return
        self._given += _weight(batch)
        self._put(batch)

    def settle(self, *, was_idle: bool) -> None:
        """Wait a little for the sink, unless it was still busy before; raise what it raised.

        Raises:
            RecordError: it has failed, or steps had to be left out.
        """
        few, self._settled = self._given - self._settled <= FEW, self._given
        if was_idle and few and self._thread is not None and os.getpid() == self._owner:
            with self._progress:
                self._progress.wait_for(lambda: self.idle, PATIENCE_S)
        if self._lost:
            lost, self._lost = self._lost, 0
            raise RecordError(f"the sink {self.name} does not keep up: {lost} steps were left out for it")
        self._raise()

    @property
    def idle(self) -> bool:
        """Whether it has taken all that it was given."""
        return self._given == self._taken

    def close(self) -> None:
        """Let the sink take what is left and close it, and wait for that.

        Raises:
            RecordError: it has failed, or is not ready in time; it is left to itself then.
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
                f"the sink {self.name} has not finished within {self._close_s:.3g} s; {left} steps wait for it, and "
                "the process does not wait any longer"
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
            self._errors.get()  # later ones are of the same kind, or will come again
        raise RecordError(f"the sink {self.name} failed: {type(error).__name__}: {error}") from error

    def _run(self) -> None:
        """The thread: calls the sink until there is None in the queue."""
        while (batch := self._queue.get()) is not None:
            try:
                self._sink.write(batch)
            except BaseException as error:  # whatever it is, it must not end the thread
                self._errors.put(error)
            with self._progress:
                self._taken += _weight(batch)
                self._progress.notify_all()
        try:
            self._sink.close()
        except BaseException as error:
            self._errors.put(error)


def _weight(batch: Batch) -> int:
    return RECORDED if any(rows.table == "layers" for rows in batch.rows) else 1
