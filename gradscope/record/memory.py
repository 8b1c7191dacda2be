"""Runs in memory: a buffer of new rows, and compact tables into which the rows go now and then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradscope.record import arrow, thin
from gradscope.record.query import Filters, Frame, conditions
from gradscope.record.schema import SCHEMA_VERSION, TABLES, check, lookup
from gradscope.record.seqlock import Seqlock
from gradscope.types import Batch

_PIECE_BYTES = 8 * 2**20  # gathering doubles this much memory
_GATHER_EVERY = 16
_BLOCK_BYTES = 1024  # the Python objects of a block, beside its numbers


class Buffer:
    """Rows as received. Appending checks them and copies nothing: callers must not change arrays afterwards.

    Attributes:
        number: number of the part that these rows will be.
        size: bytes in use, roughly.
        rows: number of rows by table.
        last_step: step of the newest batch, or -1.
    """

    def __init__(self, number: int = 0, last_step: int = -1) -> None:
        self.number = number
        self.last_step = last_step
        self.size = 0
        self.rows: Counter[str] = Counter()
        self.blocks: dict[str, list[arrow.Block]] = {}

    def append(self, batch: Batch) -> None:
        """Append all rows of one step, or none if one block does not match its table."""
        checked = [(batch.step, rows, check(rows, batch.step)) for rows in batch.rows]
        for block in checked:
            name, length = block[1].table, block[2]
            self.blocks.setdefault(name, []).append(block)
            self.rows[name] += length
            self.size += length * TABLES[name].width + _BLOCK_BYTES
        self.last_step = batch.step

    def table(self, name: str) -> Any:
        """Return the present rows of one table as an Arrow table; another thread may append meanwhile."""
        return arrow.build(TABLES[name], list(self.blocks.get(name, ())))


class MemoryStore:
    """A sink and a source without a folder, for `attach(model)` without `logdir`.

    Beyond `limit` bytes of rows (512 MiB, or `GRADSCOPE_MEMORY_LIMIT`) the store drops every second of the older half
    of the recorded steps, `steps`, `clips` and `notes` last, and says so in `notes`. One thread may write, any may
    read.

    >>> from gradscope.types import Rows
    >>> store = MemoryStore()
    >>> key = {"module": "rnn", "layer": 0, "direction": "forward", "chain": 0}
    >>> store.write(Batch(7, (Rows("notes", {**key, "reason": "the layer was not called"}),)))
    >>> store.read("notes", {"module": "rnn"}, ["step", "reason"])
       step                    reason  rank
    0     7  the layer was not called     0
    """

    def __init__(
        self,
        meta: Mapping[str, Any] | None = None,
        *,
        rank: int = 0,
        limit: int | None = None,
        gather_steps: int = 1000,
    ) -> None:
        self.meta: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **(meta or {})}
        self.ranks = [rank]
        arrow.ready()
        self._limit = thin.size_limit(limit, "GRADSCOPE_MEMORY_LIMIT", "512M", "limit")
        self._gather_steps = gather_steps
        self._tables = _Tables()
        self._tail = Buffer()
        self._batches = 0
        self._seqlock = Seqlock()
        self.closed = False

    @property
    def last_step(self) -> int:
        """The newest step in the store."""
        return self._tail.last_step

    def tell(self, facts: Mapping[str, Any]) -> None:
        """Add facts to `meta` during the run."""
        self.meta |= facts

    def write(self, batch: Batch) -> None:
        """Store all rows of one optimizer step."""
        self._tail.append(batch)
        self._batches += 1
        if self._batches >= self._gather_steps or self._tail.size > self._limit // 16:
            with self._seqlock.changing():
                self._gather()
                thin.to_limit(self._tables, self._limit, self._note)

    def _gather(self) -> None:
        tail = self._tail
        for name in tail.blocks:
            self._tables.add(name, tail.table(name))
        self._tail, self._batches = Buffer(last_step=tail.last_step), 0

    def _note(self, reason: str) -> None:
        self._tail.append(Batch(self._tail.last_step, (thin.note(reason),)))
        self._gather()

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> Frame:
        """Read the selected rows in the order of writing, with the column `rank` at the end."""
        filters = filters or {}
        wanted = conditions(table, filters).get("rank")
        if wanted and not wanted.holds(self.ranks[0]):
            return arrow.frame([], table, columns)
        tables = self._seqlock.read(lambda: [*self._tables.pieces(table), self._tail.table(table)])
        return arrow.frame([(self.ranks[0], arrow.select(table, tables, filters, columns))], table, columns)

    def count(self, table: str) -> int:
        """Count the rows of a table."""
        return sum(map(len, self._tables.pieces(lookup(table).name))) + self._tail.rows[table]

    def close(self) -> None:
        """End writing; reading stays possible."""
        self.closed = True


class _Tables:
    """Arrow tables by name, in pieces."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[Any]] = {}

    def add(self, name: str, piece: Any) -> None:
        pieces = self._pieces.setdefault(name, [])
        pieces.append(piece)
        if len(pieces) % _GATHER_EVERY == 0:
            _join(name, pieces)

    def pieces(self, name: str) -> list[Any]:
        return self._pieces.get(name, [])

    def size(self) -> int:
        return sum(piece.nbytes for pieces in self._pieces.values() for piece in pieces)

    def steps(self, tables: Sequence[str]) -> thin.Steps:
        columns = [piece.column("step").to_numpy() for name in tables for piece in self.pieces(name)]
        return np.unique(np.concatenate(columns)) if columns else np.empty(0, np.int64)

    def drop(self, tables: Sequence[str], steps: thin.Steps) -> None:
        for name in tables:
            pieces = self.pieces(name)
            for place, piece in enumerate(pieces):
                pieces[place] = arrow.gather(name, [arrow.without(piece, steps)])
            _join(name, pieces)


def _join(name: str, pieces: list[Any]) -> None:
    """Join neighbouring pieces in place, up to the size of a piece."""
    pieces[:] = [piece for piece in pieces if len(piece)]
    place = 0
    while place < len(pieces):
        sizes = np.cumsum([piece.nbytes for piece in pieces[place:]])
        end = place + max(1, int(np.searchsorted(sizes, _PIECE_BYTES, side="right")))
        if end > place + 1:
            pieces[place:end] = [arrow.gather(name, pieces[place:end])]
        place += 1
