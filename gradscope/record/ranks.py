"""The part of one process in the run of several."""

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
    """A source cut down to what one process has written."""

    source: Source
    rank: int

    @property
    def meta(self) -> dict[str, Any]:
        """That of the whole run."""
        return self.source.meta

    @property
    def ranks(self) -> list[int]:
        """This one."""
        return [self.rank]

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The wanted rows of this process; none where a filter asks for another's."""
        asked = conditions(table, filters or {}).get("rank")
        other = asked is not None and not asked.holds(self.rank)
        return self.source.read(table, {**(filters or {}), "rank": -1 if other else self.rank}, columns)

    def count(self, table: str) -> int:
        """How many rows of a table are this process's."""
        return len(self.read(table, columns=["step"]))


def of_rank(source: Source, rank: int | None = None) -> Source:
    """What one process has written, by default the first of them; the source itself where there is no other.

    Raises:
        GradscopeError: no such process has written.
    """
    ranks = source.ranks
    if rank is not None and rank not in ranks:
        raise GradscopeError(f"no process of rank {rank} has written into this run; there are {ranks}")
    return source if len(ranks) < 2 else OfRank(source, ranks[0] if rank is None else rank)
