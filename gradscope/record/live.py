"""The sources of a running training: all rows with the unfinished step, and the last steps alone."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradscope.record.memory import MemoryStore
from gradscope.record.parquet import ParquetStore
from gradscope.record.query import Filters, Frame, conditions
from gradscope.record.reader import FolderSource
from gradscope.record.source import Part, Source

STEPS = 2**15
"""Number of optimizer steps of a running training that stay readable, however long the training is."""


class Sourced(Protocol):
    """A scope."""

    def source(self) -> Source:
        """Return the records so far."""
        ...


@dataclass(frozen=True, slots=True)
class Live:
    """The source of a scope's run: the store, and the unfinished step as long as the scope exists."""

    store: MemoryStore | ParquetStore
    scope: weakref.ref[Sourced]

    @property
    def meta(self) -> dict[str, Any]:
        """The store's metadata."""
        return self.store.meta

    @property
    def ranks(self) -> list[int]:
        """The store's ranks."""
        return self.store.ranks

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> Frame:
        """Read the selected rows so far."""
        return self._now().read(table, filters, columns)

    def count(self, table: str) -> int:
        """Count the rows of a table so far."""
        return self._now().count(table)

    def __reduce__(self) -> tuple[Any, ...]:
        source = self._now()
        if isinstance(self.store, ParquetStore):
            self.store.flush()
            source = FolderSource(self.store.root)
        return _unpickled, (source,)

    def _now(self) -> Source:
        scope = self.scope()
        return self.store if scope is None else scope.source()


def _unpickled(source: Source) -> Source:
    """Return the rows at the time of pickling."""
    return source


@dataclass(frozen=True, slots=True)
class Recent(Part):
    """A store restricted to its last `STEPS` steps until it is closed, and unrestricted afterwards.

    The memory for reading a whole table grows with the training, and allocators never return it.
    """

    source: MemoryStore | ParquetStore

    def within(self, table: str, filters: Filters) -> Filters:
        """Restrict filters to those steps."""
        first = self.source.last_step - STEPS + 1
        if self.source.closed or first <= 0:
            return filters
        wanted = conditions(table, filters).get("step")
        if wanted is None:
            return {**filters, "step": slice(first, None)}
        if wanted.values is not None:
            return {**filters, "step": [step for step in wanted.values if step >= first]}
        low = first if wanted.low is None else max(first, wanted.low)
        return {**filters, "step": slice(low, wanted.high)}
