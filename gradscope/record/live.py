"""A run that is still written: the store, and the step that is not over."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gradscope.record.memory import MemoryStore
from gradscope.record.parquet import ParquetStore
from gradscope.record.query import Filters
from gradscope.record.reader import FolderSource
from gradscope.record.source import Source

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]


class Sourced(Protocol):
    """A scope."""

    def source(self) -> Source:
        """What is recorded now."""
        ...


@dataclass(frozen=True, slots=True)
class Live:
    """The source of a scope's run: the store, and the unfinished step while the scope is there."""

    store: MemoryStore | ParquetStore
    scope: weakref.ref[Sourced]

    @property
    def meta(self) -> dict[str, Any]:
        """That of the store."""
        return self.store.meta

    @property
    def ranks(self) -> list[int]:
        """Those of the store."""
        return self.store.ranks

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The wanted rows so far."""
        return self._now().read(table, filters, columns)

    def count(self, table: str) -> int:
        """How many rows a table has so far."""
        return self._now().count(table)

    def __reduce__(self) -> tuple[Any, ...]:
        source = self._now()
        if isinstance(self.store, ParquetStore):
            self.store.flush()
            source = FolderSource(self.store.root)
        return _copied, (source,)

    def _now(self) -> Source:
        scope = self.scope()
        return self.store if scope is None else scope.source()


def _copied(source: Source) -> Source:
    """What a live source is when it is unpickled: what was there."""
    return source
