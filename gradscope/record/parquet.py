"""The run folder as a sink: what a training writes while it runs, safe against being killed at any moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope.errors import RecordError
from gradscope.record import arrow, folder, meta, parts, thin
from gradscope.record.memory import Buffer
from gradscope.record.query import Filters, conditions
from gradscope.record.reader import FolderSource
from gradscope.record.settled import Settled
from gradscope.types import Batch

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

_BUFFER_BYTES = 64 * 2**20  # a flush is due beyond this; what cannot be flushed is given up beyond this
DELETED = "the run folder {root} was deleted while it was written: steps before {first} are gone"
_MERGE_EVERY = 64  # flushes, after which the parts so far are gathered


class ParquetStore:
    """A sink that writes `<logdir>/gradscope`, and a source over what is there and what is still to be flushed.

    For one thread that writes, of one process; any thread may read. A process that is killed loses what was not yet
    flushed, and nothing else: the folder holds every step up to some step, in all tables. Flushes are not forced
    through to the disk, merges and `close` are, so that a power cut costs no more than the system had not yet written
    back.

    Args:
        logdir: where the folder `gradscope` is, or is to be made.
        meta: what `run.json` shall say; what JSON cannot hold becomes text.
        rank: which of several processes this is; each writes its own files.
        first_step: the first step to be written; a folder with smaller ones is continued.
        existing: what to do where the folder has that step; see `folder.begin`. `"error"` refuses.
        flush_seconds: a `write` this long after the last flush flushes.
        flush_steps: so does one that makes it this many rows of `steps`.
        disk_limit: bytes for the whole run, shared evenly by its ranks; by default `GRADSCOPE_DISK_LIMIT`, or 1 GiB.
        clock: seconds, from anywhere.

    Raises:
        RecordError: the folder cannot be written, is being written by another scope, holds something else, or
            already has the step `first_step`.
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
        self._limit = thin.disk_limit(disk_limit)
        self._flush_seconds, self._flush_steps, self._clock = flush_seconds, flush_steps, clock
        self._told = dict(meta)
        known = folder.begun(Path(logdir), rank)
        self._lock = folder.claim(self.root, rank)
        try:
            number, first_step = folder.begin(self.root, meta, rank, first_step, existing=existing, known=known)
        except BaseException:
            self._lock.release()
            raise
        arrow.ready()
        self._owner, self.first_step = os.getpid(), first_step
        self._tail = Buffer(number, first_step - 1)
        self._folder = FolderSource(self.root)
        self._flushed_at, self._due = clock(), flush_steps  # when the last was tried; rows of `steps` for the next
        self._closed = False
        self._settled = Settled()

    @property
    def meta(self) -> dict[str, Any]:
        """What `run.json` says."""
        return self._folder.meta

    @property
    def last_step(self) -> int:
        """The newest step that was written."""
        return self._tail.last_step

    @property
    def closed(self) -> bool:
        """Whether nothing more will be written."""
        return self._closed

    @property
    def ranks(self) -> list[int]:
        """The ranks of the run, as far as this one can see."""
        return sorted({self.rank, *self._folder.ranks})

    def tell(self, facts: Mapping[str, Any]) -> None:
        """Add what becomes known while the run is written to `run.json`; rank 0 does so for all."""
        self._told |= facts
        if self.rank == 0 and not self._closed and (self.root / meta.FILE).exists():
            meta.tell(self.root, facts, self.rank)
            self._folder.meta |= meta.plain(facts)

    def write(self, batch: Batch) -> None:
        """Take all rows of one optimizer step, and flush if it is time to.

        Raises:
            RecordError: the rows are not as their table wants them, the store is closed, or a flush has failed.
        """
        if self._closed:
            raise RecordError(f"{self.root} has been closed; open a new scope to go on writing")
        self._tail.append(batch)
        if (
            self._tail.rows["steps"] >= self._due
            or self._tail.size >= _BUFFER_BYTES
            or self._clock() - self._flushed_at >= self._flush_seconds
        ):
            self.flush()

    def flush(self) -> None:
        """Write what there is as one part per table, and keep the folder small.

        Raises:
            RecordError: it cannot be written; it is kept for the next flush as long as there is memory for it.
        """
        if self._closed or os.getpid() != self._owner:
            return
        self._flushed_at, self._due = self._clock(), self._tail.rows["steps"] + self._flush_steps
        with self._said():
            self._commit()
            self._due = self._flush_steps
            files, limit = folder.Files(self.root, self.rank), self._limit // len(self.ranks)
            if self._tail.number % _MERGE_EVERY == 0 or files.size() > limit:
                parts.merge(self.root, self.rank)
            thin.to_limit(files, limit, self._note)

    def _commit(self, *, durable: bool = False) -> None:
        """Write the tail, `steps` last; then one assignment makes it the past."""
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
        """The folder was deleted in mid-run: what comes from now on has one again, which says so."""
        blocks = [block for blocks in self._tail.blocks.values() for block in blocks]
        first = min(step for step, _, _ in blocks)
        self._lock.release()
        self._lock = folder.claim(self.root, self.rank)
        meta.begin(self.root, self._told, self.rank, first)
        self._folder = FolderSource(self.root)
        self._tail.append(Batch(self._tail.last_step, (thin.note(DELETED.format(root=self.root, first=first)),)))

    def _note(self, reason: str) -> None:
        self._tail.append(Batch(self._tail.last_step, (thin.note(reason),)))
        self._commit()

    @contextmanager
    def _said(self) -> Generator[None, None, None]:
        """Say in our words what the system could not do, and bound what waits for a better day."""
        try:
            with self._settled.changing():
                yield
        except OSError as error:
            lost = self._give_up(error) if self._tail.size >= _BUFFER_BYTES else "they are kept for the next flush"
            raise RecordError(
                f"rows up to step {self._tail.last_step} cannot be written to {self.root} ({error}); {lost}: "
                "make room or mend the permissions, or close the scope and choose another logdir"
            ) from error

    def _give_up(self, error: OSError) -> str:
        tail = self._tail
        for name in tail.blocks:
            (parts.directory(self.root, name, self.rank) / f"part-{tail.number:06}.parquet").unlink(missing_ok=True)
        self._tail = Buffer(tail.number, tail.last_step)
        lost = f"{tail.rows['steps']} steps up to {tail.last_step} are lost"
        self._tail.append(Batch(tail.last_step, (thin.note(f"{lost}: {error}"),)))
        return lost

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """As `FolderSource.read`, with the rows that still wait for a flush."""
        filters = filters or {}
        asked = conditions(table, filters).get("rank")
        mine = asked is None or asked.holds(self.rank)

        def tables() -> list[tuple[int, Any]]:
            found = self._folder.tables(table, filters, columns)
            tail = [self._tail.table(table)] if mine else []
            return [*found, *((self.rank, arrow.select(table, [rows], filters, columns)) for rows in tail)]

        return arrow.frame(self._settled.read(tables), table, columns)

    def count(self, table: str) -> int:
        """How many rows a table has."""
        return self._folder.count(table) + self._tail.rows[table]

    def close(self) -> None:
        """Write what is left, gather the parts into few, and let the folder go. Does nothing the second time.

        Raises:
            RecordError: the rest cannot be written; the folder is let go all the same.
        """
        if self._closed or os.getpid() != self._owner:
            return
        try:
            with self._said():
                self._commit(durable=True)
                parts.merge(self.root, self.rank)
        finally:
            self._closed = True
            self._lock.release()
