"""A run folder as a source, finished or still growing; it only reads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gradscope.errors import GradscopeWarning
from gradscope.record import arrow, meta, parts
from gradscope.record.query import Filters, Frame, conditions
from gradscope.record.schema import lookup

_ATTEMPTS = 5


class FolderSource:
    """The parts of every rank in a run folder (`<logdir>/gradscope`); every read lists them anew.

    Raises:
        LoadError: the folder is no run, or of a newer gradscope.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.meta = meta.read(root)

    @property
    def ranks(self) -> list[int]:
        """The ranks that have written so far."""
        return parts.ranks(self.root)

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> Frame:
        """Read the selected rows in the order of writing, rank by rank, with the column `rank` at the end."""
        return arrow.frame(self.tables(table, filters or {}, columns), table, columns)

    def tables(self, table: str, filters: Filters, columns: Sequence[str] | None) -> list[tuple[int, Any]]:
        """Read the same as Arrow tables, each with its rank."""
        wanted = conditions(table, filters)
        of_rank = wanted.pop("rank", None)
        names = list(columns or lookup(table).columns)
        where = arrow.expression(wanted)
        ranks = [rank for rank in self.ranks if of_rank is None or of_rank.holds(rank)]
        needed = [*names, *(column for column in wanted if column not in names)]
        read = [(rank, rows) for rank in ranks for rows in self._each(table, rank, parts.read, needed, where)]
        return [(rank, rows.select(names)) for rank, rows in read]

    def count(self, table: str) -> int:
        """Count the rows of a table, from the footers of its parts."""
        lookup(table)
        return sum(rows for rank in self.ranks for rows in self._each(table, rank, lambda part, _: parts.count(part)))

    def _each(self, table: str, rank: int, read: Any, *arguments: Any) -> list[Any]:
        """Call `read` for each live part; start again if a merge has removed a part meanwhile."""
        for _ in range(_ATTEMPTS):
            try:
                return list(_readable(parts.live(self.root, table, rank), table, read, *arguments))
            except FileNotFoundError:
                continue
        gone = f"{self.root}: rank {rank} of {table!r} changes too fast to be read"
        warnings.warn(gone, GradscopeWarning, stacklevel=4)
        return []


def _readable(live: Sequence[parts.Part], table: str, read: Any, *arguments: Any) -> Iterator[Any]:
    for part in live:
        try:
            yield read(part, table, *arguments)
        except FileNotFoundError:
            raise
        except parts.unreadable() as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"{part.path} is damaged and was skipped: {reason}", GradscopeWarning, stacklevel=5)
