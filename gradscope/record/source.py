"""Where rows come from: the protocol, and two sources as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gradscope.record.query import Filters

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]


class Source(Protocol):
    """Where a run's rows come from: memory, a folder, or both."""

    @property
    def meta(self) -> dict[str, Any]:
        """What the run says about itself."""
        ...

    @property
    def ranks(self) -> list[int]:
        """The processes that have written."""
        ...

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The wanted rows in the order they were written, with the column `rank` at the end."""
        ...

    def count(self, table: str) -> int:
        """How many rows a table has."""
        ...


@dataclass(frozen=True, slots=True)
class Joined:
    """Two sources as one, such as a store and the step that has not been written to it yet."""

    first: Source
    second: Source

    @property
    def meta(self) -> dict[str, Any]:
        """What the first says."""
        return self.first.meta

    @property
    def ranks(self) -> list[int]:
        """The ranks of both."""
        return sorted({*self.first.ranks, *self.second.ranks})

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows of the first, then those of the second."""
        import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

        both = [source.read(table, filters, columns) for source in (self.first, self.second)]
        return pd.concat(both, ignore_index=True)

    def count(self, table: str) -> int:
        """How many rows both have."""
        return self.first.count(table) + self.second.count(table)
