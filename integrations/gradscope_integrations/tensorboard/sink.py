"""The sink: queues a step's rows at almost no cost to the training, and writes them in its own thread, in batches."""

from __future__ import annotations

import atexit
import os
import threading
import time
import warnings
from collections import deque
from pathlib import Path
from typing import Any

from gradscope import Batch, GradscopeError, GradscopeWarning
from gradscope_integrations.tensorboard.events import EventFile, SharedWriter, last_json
from gradscope_integrations.tensorboard.names import FAMILIES, STATE
from gradscope_integrations.tensorboard.writing import Findings, Writing

WAITING = 20_000
"""Limit on the blocks of rows in the queue; some 25 per recorded step and layer, of a few kilobytes each."""
GATHER_S = 0.5
"""Seconds for which steps gather before the thread wakes: waking it costs the training more than queueing a step."""
PATIENCE_S = 0.05
"""Limit, in seconds, on the delay of a training step when the thread cannot keep up."""
CLOSE_S = 120.0


class TensorBoardSink:
    """Writes the data of TensorBoard's Gradscope tab, to `<logdir>/gradscope` or with the user's own writer.

    `write` only appends to a queue, which the thread empties twice a second. If the thread cannot keep up, the sink
    drops recorded steps, and the tab says so. A failure in the thread causes one warning, and the tab shows it;
    training goes on.

    Args:
        logdir: run folder.
        writer: an open `torch.utils.tensorboard.SummaryWriter`, which receives everything instead. It computes
            checksums in Python, which delays training by some milliseconds per recorded step.
        findings: returns the findings of the run so far. The thread calls it after 4, 8, 16, ... recorded steps, later
            if it would take more than 0.5 % of the time, and at the end; it must be safe to call while training writes.

    Raises:
        GradscopeError: neither folder nor writer, a writer of another kind, or an unwritable folder.
    """

    quick = True

    def __init__(
        self, logdir: str | os.PathLike[str] | None = None, *, writer: Any = None, findings: Findings | None = None
    ) -> None:
        self._writing = Writing(*_destination(logdir, writer), findings)
        self._waiting: deque[Batch] = deque()
        self._put = self._written = 0  # blocks of rows; one thread changes each
        self._bell, self._hurry = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._owner, self._closed, self._warned = os.getpid(), False, False
        atexit.register(self.close)

    def write(self, batch: Batch) -> None:
        """Queue the rows of one optimizer step; the caller must not change their arrays afterwards."""
        if self._closed or os.getpid() != self._owner:
            return
        if self._writing.failure and not self._warned:
            self._warn()
        if self._put - self._written > WAITING // 4 and not self._room():
            batch = Batch(batch.step, tuple(rows for rows in batch.rows if rows.table not in FAMILIES))
        self._put += len(batch.rows)
        self._waiting.append(batch)
        if not self._bell.is_set():
            self._ring()

    def _ring(self) -> None:
        """Wake the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gradscope-tensorboard", daemon=True)
            self._thread.start()
        self._bell.set()

    def _room(self) -> bool:
        """Hurry the thread, and wait a little if the queue is full. True if there is room then."""
        self._hurry.set()
        end = time.perf_counter() + PATIENCE_S
        while self._put - self._written > WAITING and time.perf_counter() < end:
            time.sleep(0.001)
        return self._put - self._written <= WAITING

    def close(self) -> None:
        """Write the rest of the queue. Idempotent."""
        if self._closed or os.getpid() != self._owner:
            return
        self._closed = True
        atexit.unregister(self.close)
        if self._thread is None:
            self._writing.close()
            return
        self._hurry.set()
        self._bell.set()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._writing.failure = self._writing.failure or f"the event file was incomplete after {CLOSE_S:.0f} s"
        if self._writing.failure and not self._warned:
            self._warn()

    def _warn(self) -> None:
        self._warned = True
        reason = f"TensorBoard data: {self._writing.failure}; training goes on, and other records are not affected"
        warnings.warn(reason, GradscopeWarning, stacklevel=3)

    def _run(self) -> None:
        """Write until the sink is closed; the body of the thread."""
        while not self._closed:
            if self._bell.wait(1.0 if self._writing.waiting else None):
                self._hurry.wait(GATHER_S)
                self._hurry.clear()
                self._bell.clear()
            self._drain()
        self._drain()
        self._writing.close()

    def _drain(self) -> None:
        """Write the present queue."""
        for _ in range(len(self._waiting)):
            batch = self._waiting.popleft()
            self._writing.guarded(self._writing.take, batch)
            self._written += len(batch.rows)
        self._writing.guarded(self._writing.flush_if_due)


def _destination(logdir: str | os.PathLike[str] | None, writer: Any) -> tuple[EventFile | SharedWriter, bytes | None]:
    """The destination, and the last state record of the previous session."""
    if writer is not None:
        return SharedWriter(writer), None
    if logdir is None:
        raise GradscopeError("TensorBoardSink needs a logdir to write to, or a SummaryWriter: writer=...")
    folder = Path(logdir) / "gradscope"
    try:
        before = last_json(folder, STATE)
        return EventFile(folder), before
    except OSError as error:
        raise GradscopeError(f"cannot write TensorBoard data to {folder} ({error}); choose another logdir") from error
