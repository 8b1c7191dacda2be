"""The sink: takes a step's rows from the training in no time, and writes them from its own thread, many at once."""

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
"""Blocks of rows that may wait for the thread; some 25 a recorded step and layer, of a few kilobytes each."""
GATHER_S = 0.5
"""How long steps gather before the thread wakes: waking it takes more from the training than taking a step's rows."""
PATIENCE_S = 0.05
"""How long a training step may be held up when the thread cannot keep up."""
CLOSE_S = 120.0


class TensorBoardSink:
    """Writes what the Gradscope tab of TensorBoard shows, to `<logdir>/gradscope` or with the user's own writer.

    `write` only appends to a list, which the thread empties twice a second. Where the thread cannot keep up, recorded
    steps are left out, which the tab says. A failure in the thread is warned about once, and said in the tab; training
    goes on.

    Args:
        logdir: run folder.
        writer: an open `torch.utils.tensorboard.SummaryWriter`, which is then given everything instead. It computes
            checksums in Python, which holds training up by some milliseconds per recorded step.
        findings: says what the run shows so far. Called in the thread after 4, 8, 16, ... recorded steps, later where
            it would take more than 0.5 % of the time, and at the end; it must be safe to call while training writes.

    Raises:
        GradscopeError: neither folder nor writer, a writer of another kind, or the folder cannot be written.
    """

    quick = True

    def __init__(
        self, logdir: str | os.PathLike[str] | None = None, *, writer: Any = None, findings: Findings | None = None
    ) -> None:
        self._writing = Writing(*_destination(logdir, writer), findings)
        self._waiting: deque[Batch] = deque()
        self._put = self._taken = 0  # blocks of rows; each changed by one thread only
        self._bell, self._hurry = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._owner, self._closed, self._warned = os.getpid(), False, False
        atexit.register(self.close)

    def write(self, batch: Batch) -> None:
        """Take the rows of one optimizer step; its arrays must not be changed afterwards."""
        if self._closed or os.getpid() != self._owner:
            return
        if self._writing.failure and not self._warned:
            self._warn()
        if self._put - self._taken > WAITING // 4 and not self._room():
            batch = Batch(batch.step, tuple(rows for rows in batch.rows if rows.table not in FAMILIES))
        self._put += len(batch.rows)
        self._waiting.append(batch)
        if not self._bell.is_set():
            self._ring()

    def _ring(self) -> None:
        """Say that something waits."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gradscope-tensorboard", daemon=True)
            self._thread.start()
        self._bell.set()

    def _room(self) -> bool:
        """Have the thread hurry, and wait a little for it if very much waits; whether there is room then."""
        self._hurry.set()
        end = time.perf_counter() + PATIENCE_S
        while self._put - self._taken > WAITING and time.perf_counter() < end:
            time.sleep(0.001)
        return self._put - self._taken <= WAITING

    def close(self) -> None:
        """Write what is left. Closing again does nothing."""
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
            self._writing.failure = self._writing.failure or f"the event file was not finished within {CLOSE_S:.0f} s"
        if self._writing.failure and not self._warned:
            self._warn()

    def _warn(self) -> None:
        self._warned = True
        reason = f"TensorBoard data: {self._writing.failure}; training goes on, and other records are not affected"
        warnings.warn(reason, GradscopeWarning, stacklevel=3)

    def _run(self) -> None:
        """The thread: writes until the sink is closed."""
        while not self._closed:
            if self._bell.wait(1.0 if self._writing.waiting else None):
                self._hurry.wait(GATHER_S)
                self._hurry.clear()
                self._bell.clear()
            self._take()
        self._take()
        self._writing.close()

    def _take(self) -> None:
        """Take what waits now."""
        for _ in range(len(self._waiting)):
            batch = self._waiting.popleft()
            self._writing.guarded(self._writing.take, batch)
            self._taken += len(batch.rows)
        self._writing.guarded(self._writing.flush_if_due)


def _destination(logdir: str | os.PathLike[str] | None, writer: Any) -> tuple[EventFile | SharedWriter, bytes | None]:
    """Where to write, and what the session before said of itself."""
    if writer is not None:
        return SharedWriter(writer), None
    if logdir is None:
        raise GradscopeError("TensorBoardSink needs a logdir to write to, or a SummaryWriter: writer=...")
    folder = Path(logdir) / "gradscope"
    try:
        before = last_json(folder, STATE)
        return EventFile(folder), before
    except OSError as error:
        raise GradscopeError(
            f"TensorBoard data cannot be written to {folder} ({error}); choose another logdir"
        ) from error
