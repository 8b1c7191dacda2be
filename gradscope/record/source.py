"""The protocol of a source of rows; the union of two sources, and the rows of one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradscope.record.query import Filters, Frame, conditions


class Source(Protocol):
    """The origin of a run's rows: memory, a folder, or both."""

    @property
    def meta(self) -> dict[str, Any]:
        """The run's metadata."""
        ...

    @property
    def ranks(self) -> list[int]:
        """The ranks that have written."""
        ...

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> Frame:
        """Read the selected rows in the order of writing, with the column `rank` at the end."""
        ...

    def count(self, table: str) -> int:
        """Count the rows of a table."""
        ...


@dataclass(frozen=True, slots=True)
class Joined:
    """Two sources as one, such as a store and the unfinished step."""

    first: Source
    second: Source

    @property
    def meta(self) -> dict[str, Any]:
        """The metadata of the first."""
        return self.first.meta

    @property
    def ranks(self) -> list[int]:
        """The ranks of both."""
        return sorted({*self.first.ranks, *self.second.ranks})

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> Frame:
        """Read the rows of the first, then of the second."""
        import pandas as pd

        both = [source.read(table, filters, columns) for source in (self.first, self.second)]
        return pd.concat(both, ignore_index=True)

    def count(self, table: str) -> int:
        """Count the rows of both."""
        return self.first.count(table) + self.second.count(table)


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of another source, which `within` selects."""

    source: Source

    @property
    def meta(self) -> dict[str, Any]:
        """The metadata of the whole run."""
        return self.source.meta

    @property
    def ranks(self) -> list[int]:
        """All ranks."""
        return self.source.ranks

    def within(self, table: str, filters: Filters) -> Filters:
        """Restrict filters to the part."""
        raise NotImplementedError

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> Frame:
        """Read the selected rows of the part."""
        return self.source.read(table, self.within(table, filters or {}), columns)

    def count(self, table: str) -> int:
        """Count the rows of the part in a table."""
        return len(self.read(table, columns=["step"]))


@dataclass(frozen=True, slots=True)
class OfRank(Part):
    """The rows of one process; none if a filter excludes its rank."""

    rank: int

    @property
    def ranks(self) -> list[int]:
        """This rank."""
        return [self.rank]

    def within(self, table: str, filters: Filters) -> Filters:
        """Restrict filters to the rank."""
        wanted = conditions(table, filters).get("rank")
        return {**filters, "rank": self.rank if wanted is None or wanted.holds(self.rank) else -1}
