"""The last steps of a running training: a part that stays readable however long the training is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gradscope.record.query import Filters, conditions
from gradscope.record.source import Source

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

STEPS = 2**15
"""Number of optimizer steps."""


class Written(Source, Protocol):
    """A store."""

    @property
    def last_step(self) -> int:
        """The newest step in the store."""
        ...

    @property
    def closed(self) -> bool:
        """True if the store accepts no more rows."""
        ...


@dataclass(frozen=True, slots=True)
class Recent:
    """A store restricted to its last `STEPS` steps until it is closed, and unrestricted afterwards.

    The memory for reading a whole table grows with the training, and allocators never return it.
    """

    store: Written

    @property
    def meta(self) -> dict[str, Any]:
        """The metadata of the whole run."""
        return self.store.meta

    @property
    def ranks(self) -> list[int]:
        """All ranks."""
        return self.store.ranks

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read the selected rows of those steps."""
        return self.store.read(table, self._within(table, filters or {}), columns)

    def count(self, table: str) -> int:
        """Count the rows of those steps in a table."""
        return len(self.read(table, columns=["step"]))

    def _within(self, table: str, filters: Filters) -> Filters:
        first = self.store.last_step - STEPS + 1
        if self.store.closed or first <= 0:
            return filters
        wanted = conditions(table, filters).get("step")
        if wanted is None:
            return {**filters, "step": slice(first, None)}
        if wanted.values is not None:
            return {**filters, "step": [step for step in wanted.values if step >= first]}
        low = first if wanted.low is None else max(first, wanted.low)
        return {**filters, "step": slice(low, wanted.high)}
