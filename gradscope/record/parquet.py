"""The run folder as a sink: a running training writes it, and may be killed at any moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradscope.errors import RecordError
from gradscope.record import arrow, folder, meta, parts, thin
from gradscope.record.lock import FolderLock
from gradscope.record.memory import Buffer
from gradscope.record.query import Filters, Frame, conditions
from gradscope.record.reader import FolderSource
from gradscope.record.seqlock import Seqlock
from gradscope.types import Batch

_BUFFER_BYTES = 64 * 2**20  # beyond this a flush is due, and if the flush fails the rows are dropped
DELETED = "something deleted the run folder {root} during the run: steps before {first} are gone"
_MERGE_EVERY = 64  # flushes between merges


class ParquetStore:
    """A sink that writes `<logdir>/gradscope`, and a source over the folder and the rows that wait for a flush.

    One thread of one process may write, any thread may read. A killed process loses the rows that wait for a flush,
    and nothing else: the folder holds every step up to some step, in all tables. Merges and `close` force their files
    to the disk, flushes do not: a power cut costs no more than the system has not yet written back.

    Args:
        logdir: parent of the folder `gradscope`.
        meta: contents of `run.json`; values without a JSON type become text.
        rank: rank of this process; each rank writes its own files.
        first_step: the first step to write; a folder with smaller steps is continued.
        existing: what to do if the folder has that step; see `folder.begin`. `"error"` refuses.
        flush_seconds: a `write` this long after the last flush flushes.
        flush_steps: so does a `write` that completes this many rows of `steps`.
        disk_limit: bytes for the whole run, shared evenly by its ranks; by default `GRADSCOPE_DISK_LIMIT`, or 1 GiB.
        clock: returns seconds, with any origin.

    Raises:
        RecordError: the folder cannot be written, another scope writes it, it holds something else, or it already
            has the step `first_step`.
        LoadError: the folder is a run of a newer gradscope.
    """

    def __init__(
        self,
        logdir: str | os.PathLike[str],
        meta: Mapping[str, Any],
        *,
        rank: int = 0,
        first_step: int = 0,
        existing: str = "error",
        flush_seconds: float = 30.0,
        flush_steps: int = 1000,
        disk_limit: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root, self.rank = Path(logdir) / "gradscope", rank
        self._limit = thin.size_limit(disk_limit, "GRADSCOPE_DISK_LIMIT", "1G", "disk_limit")
        self._flush_seconds, self._flush_steps, self._clock = flush_seconds, flush_steps, clock
        self._meta = dict(meta)
        self._lock, number, self.first_step = self._open(first_step, existing)
        arrow.ready()
        self._owner = os.getpid()
        self._tail = Buffer(number, self.first_step - 1)
        self._folder = FolderSource(self.root)
        self._flushed_at, self._due = clock(), flush_steps  # time of the last attempt; rows of `steps` for the next
        self.closed = False
        self._seqlock = Seqlock()

    def _open(self, first_step: int, existing: str) -> tuple[FolderLock, int, int]:
        """Lock the folder and begin the run; returns the lock, the number of the next part, and the first step."""
        known = folder.begun(self.root.parent, self.rank)
        lock = folder.claim(self.root, self.rank)
        try:
            return lock, *folder.begin(self.root, self._meta, self.rank, first_step, existing=existing, known=known)
        except BaseException:
            lock.release()
            raise

    @property
    def meta(self) -> dict[str, Any]:
        """The contents of `run.json`."""
        return self._folder.meta

    @property
    def last_step(self) -> int:
        """The newest step in the store."""
        return self._tail.last_step

    @property
    def ranks(self) -> list[int]:
        """This rank, and the ranks with files in the folder."""
        return sorted({self.rank, *self._folder.ranks})

    def tell(self, facts: Mapping[str, Any]) -> None:
        """Add facts to `run.json` during the run; rank 0 does so for all ranks."""
        self._meta |= facts
        if self.rank == 0 and not self.closed and (self.root / meta.FILE).exists():
            meta.tell(self.root, facts, self.rank)
            self._folder.meta |= meta.plain(facts)

    def write(self, batch: Batch) -> None:
        """Store all rows of one optimizer step, and flush if a flush is due.

        Raises:
            RecordError: the rows do not match their table, the store is closed, or a flush has failed.
        """
        if self.closed:
            raise RecordError(f"the store of {self.root} is closed; open a new scope to go on writing")
        self._tail.append(batch)
        if (
            self._tail.rows["steps"] >= self._due
            or self._tail.size >= _BUFFER_BYTES
            or self._clock() - self._flushed_at >= self._flush_seconds
        ):
            self.flush()

    def flush(self) -> None:
        """Write the waiting rows as one part per table, and keep the folder below its limit.

        Raises:
            RecordError: the rows cannot be written; they wait for the next flush as long as there is memory for them.
        """
        if self.closed or os.getpid() != self._owner:
            return
        self._flushed_at, self._due = self._clock(), self._tail.rows["steps"] + self._flush_steps
        with self._translated():
            self._commit()
            self._due = self._flush_steps
            files, limit = folder.Files(self.root, self.rank), self._limit // len(self.ranks)
            if self._tail.number % _MERGE_EVERY == 0 or files.size() > limit:
                parts.merge(self.root, self.rank)
            thin.to_limit(files, limit, self._note)

    def _commit(self, *, durable: bool = False) -> None:
        """Write the tail, `steps` last; then one assignment replaces it by an empty tail."""
        if not self._tail.blocks:
            return
        if not (self.root / meta.FILE).exists():
            self._begin_again()
        tail = self._tail
        for name in sorted({*tail.blocks, "steps"}, key=lambda name: name == "steps"):
            path = parts.directory(self.root, name, self.rank) / f"part-{tail.number:06}.parquet"
            parts.write(path, name, tail.table(name), durable=durable)
        self._tail = Buffer(tail.number + 1, tail.last_step)

    def _begin_again(self) -> None:
        """Begin a new folder after a deletion in mid-run, with a note."""
        blocks = [block for blocks in self._tail.blocks.values() for block in blocks]
        first = min(step for step, _, _ in blocks)
        self._lock.release()
        self._lock = folder.claim(self.root, self.rank)
        meta.begin(self.root, self._meta, self.rank, first)
        self._folder = FolderSource(self.root)
        self._tail.append(Batch(self._tail.last_step, (thin.note(DELETED.format(root=self.root, first=first)),)))

    def _note(self, reason: str) -> None:
        self._tail.append(Batch(self._tail.last_step, (thin.note(reason),)))
        self._commit()

    @contextmanager
    def _translated(self) -> Generator[None, None, None]:
        """Translate errors of the operating system, and drop the tail if it is too large."""
        try:
            with self._seqlock.changing():
                yield
        except OSError as error:
            lost = self._drop_tail(error) if self._tail.size >= _BUFFER_BYTES else "they wait for the next flush"
            raise RecordError(
                f"gradscope cannot write rows up to step {self._tail.last_step} to {self.root} ({error}); {lost}: "
                "make room or mend the permissions, or close the scope and choose another logdir"
            ) from error

    def _drop_tail(self, error: OSError) -> str:
        tail = self._tail
        for name in tail.blocks:
            (parts.directory(self.root, name, self.rank) / f"part-{tail.number:06}.parquet").unlink(missing_ok=True)
        self._tail = Buffer(tail.number, tail.last_step)
        lost = f"{tail.rows['steps']} steps up to {tail.last_step} are lost"
        self._tail.append(Batch(tail.last_step, (thin.note(f"{lost}: {error}"),)))
        return lost

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> Frame:
        """Read as `FolderSource.read`, with the rows that wait for a flush."""
        filters = filters or {}
        wanted = conditions(table, filters).get("rank")
        own = wanted is None or wanted.holds(self.rank)

        def tables() -> list[tuple[int, Any]]:
            flushed = self._folder.tables(table, filters, columns)
            tail = [self._tail.table(table)] if own else []
            return [*flushed, *((self.rank, arrow.select(table, [rows], filters, columns)) for rows in tail)]

        return arrow.frame(self._seqlock.read(tables), table, columns)

    def count(self, table: str) -> int:
        """Count the rows of a table."""
        return self._folder.count(table) + self._tail.rows[table]

    def close(self) -> None:
        """Write the waiting rows, merge the parts, and release the folder. Does nothing the second time.

        Raises:
            RecordError: the rows cannot be written; the folder is released all the same.
        """
        if self.closed or os.getpid() != self._owner:
            return
        try:
            with self._translated():
                self._commit(durable=True)
                parts.merge(self.root, self.rank)
        finally:
            self.closed = True
            self._lock.release()
