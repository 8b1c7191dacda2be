"""The source of a running training: the store, and the unfinished step."""

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

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
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
