"""The data of a run, as frames: the only basis of findings, figures and reports."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.errors import GradscopeError
from gradscope.record.schema import TABLES, TEXT, Array, Kind, Table, lookup
from gradscope.record.source import OfRank, Source
from gradscope.types import LayerKey

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Self


@dataclass(frozen=True, slots=True, repr=False)
class RunData:
    """The tables of a run as tidy pandas frames; a live run has the rows so far."""

    source: Source

    @property
    def meta(self) -> dict[str, Any]:
        """The run's metadata: versions, layers, arguments, sessions."""
        return dict(self.source.meta)

    @property
    def layers(self) -> list[LayerKey]:
        """The recorded layer keys, sorted by module name (2 before 10), layer, direction and chain."""
        rows = self.source.read("layers", columns=LayerKey._fields).drop_duplicates(list(LayerKey._fields))
        keys = [LayerKey(*row[:4]) for row in rows.itertuples(index=False)]
        return sorted(keys, key=lambda key: (natural(key.module), *key[1:]))

    def frame(self, table: str, /, **filters: Any) -> pd.DataFrame:
        """Read one table, or the rows that meet every filter, sorted by step, then layer key.

        A filter names a column: `quantity="grad_h"` wants that value, `step=[0, 8, 16]` any of several (list, tuple,
        set, range, array), `step=slice(100, 200)` a range with **both ends included**, `slice(100, None)` all from 100.
        If several processes have written, there is one more column, `rank`; it is always a valid filter.

        Raises:
            GradscopeError: there is no such table or column, or the column cannot have such a value, as an unknown
                quantity.
        """
        rows = self.source.read(table, filters)
        if len(self.source.ranks) < 2:
            rows.pop("rank")
        return _in_order(rows, lookup(table))

    @property
    def ranks(self) -> list[int]:
        """The ranks that have written."""
        return self.source.ranks

    def of_rank(self, rank: int) -> Self:
        """Return the rows of one process as a run of their own.

        Raises:
            GradscopeError: no process of that rank has written.
        """
        if rank not in self.ranks:
            raise GradscopeError(f"no process of rank {rank} has written into this run; there are {self.ranks}")
        return self if len(self.ranks) < 2 else replace(self, source=OfRank(self.source, rank))

    def _sizes(self) -> dict[str, int]:
        """Count the rows of each table, without empty tables."""
        return {name: rows for name in TABLES if (rows := self.source.count(name))}


def _in_order(rows: pd.DataFrame, table: Table) -> pd.DataFrame:
    """Sort rows by step, then layer key; rows of one key stay in the order of writing."""
    keys = [_sortable(rows[column], table.columns[column]) for column in reversed(table.order)]
    order = np.lexsort(keys)
    return rows if (order == np.arange(len(order))).all() else rows.take(order).reset_index(drop=True)


def _sortable(column: pd.Series, kind: Kind) -> Array:
    """Return numbers that sort as the values do: `DataFrame.sort_values` takes three times as long for short text."""
    if kind != TEXT:
        return column.to_numpy()
    codes, texts = column.factorize()
    return np.argsort(np.argsort(np.asarray(texts, object)))[codes]


def natural(name: str) -> list[tuple[int, str]]:
    """Make a sort key of a name in which numbers sort by value."""
    return [(int(word) if word.isdigit() else -1, word) for word in re.split(r"(\d+)", name)]
