"""The rows of one process in a run of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradscope.errors import GradscopeError
from gradscope.record.query import Filters, conditions

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

    from gradscope.record.source import Source


@dataclass(frozen=True, slots=True)
class OfRank:
    """A source restricted to the rows of one process."""

    source: Source
    rank: int

    @property
    def meta(self) -> dict[str, Any]:
        """The metadata of the whole run."""
        return self.source.meta

    @property
    def ranks(self) -> list[int]:
        """This rank."""
        return [self.rank]

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read the selected rows of this process; none if a filter excludes its rank."""
        wanted = conditions(table, filters or {}).get("rank")
        other = wanted is not None and not wanted.holds(self.rank)
        return self.source.read(table, {**(filters or {}), "rank": -1 if other else self.rank}, columns)

    def count(self, table: str) -> int:
        """Count this process's rows of a table."""
        return len(self.read(table, columns=["step"]))


def of_rank(source: Source, rank: int | None = None) -> Source:
    """Return the rows of one process, by default the first; the source itself if there is no other process.

    Raises:
        GradscopeError: no process of that rank has written.
    """
    ranks = source.ranks
    if rank is not None and rank not in ranks:
        raise GradscopeError(f"no process of rank {rank} has written into this run; there are {ranks}")
    return source if len(ranks) < 2 else OfRank(source, ranks[0] if rank is None else rank)
