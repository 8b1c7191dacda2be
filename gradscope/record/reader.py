"""A run folder as a source, finished or still being written; it reads, and never changes a thing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope.errors import GradscopeWarning
from gradscope.record import arrow, meta, parts
from gradscope.record.query import Filters, conditions
from gradscope.record.schema import lookup

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

_ATTEMPTS = 5


class FolderSource:
    """The parts of every rank in a run folder (`<logdir>/gradscope`), looked up anew at every reading.

    Raises:
        LoadError: the folder is no run, or a newer gradscope's.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.meta = meta.read(root)

    @property
    def ranks(self) -> list[int]:
        """The ranks that have written so far."""
        return parts.ranks(self.root)

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The wanted rows in the order they were written, rank by rank, with the column `rank` at the end."""
        return arrow.frame(self.tables(table, filters or {}, columns), table, columns)

    def tables(self, table: str, filters: Filters, columns: Sequence[str] | None) -> list[tuple[int, Any]]:
        """The same as Arrow tables, each with its rank."""
        wanted = conditions(table, filters)
        asked = wanted.pop("rank", None)
        names = list(columns or lookup(table).columns)
        where = arrow.expression(wanted)
        ranks = [rank for rank in self.ranks if asked is None or asked.holds(rank)]
        return [(rank, found) for rank in ranks for found in self._each(table, rank, parts.read, names, where)]

    def count(self, table: str) -> int:
        """How many rows a table has, from the footers of its parts."""
        lookup(table)
        return sum(found for rank in self.ranks for found in self._each(table, rank, _count))

    def _each(self, table: str, rank: int, read: Any, *arguments: Any) -> list[Any]:
        """What `read` finds in each part that counts; once more if a merge took a part away in between."""
        for _ in range(_ATTEMPTS):
            try:
                return list(_readable(parts.live(self.root, table, rank), table, read, *arguments))
            except FileNotFoundError:
                continue
        gone = f"{self.root}: rank {rank} of {table!r} changes too fast to be read"
        warnings.warn(gone, GradscopeWarning, stacklevel=4)
        return []


def _count(part: parts.Part, _: str) -> int:
    return parts.count(part)


def _readable(found: Sequence[parts.Part], table: str, read: Any, *arguments: Any) -> Iterator[Any]:
    for part in found:
        try:
            yield read(part, table, *arguments)
        except FileNotFoundError:
            raise
        except parts.unreadable() as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"{part.path} is damaged and was skipped: {reason}", GradscopeWarning, stacklevel=5)
