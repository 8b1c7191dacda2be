"""The last stretch of a run that is still written: what can be read while a training goes on, however long it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gradscope.record.query import Filters, conditions
from gradscope.record.source import Source

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

STEPS = 2**15
"""Optimizer steps that are looked back on."""


class Written(Source, Protocol):
    """A store."""

    @property
    def last_step(self) -> int:
        """The newest step that it has."""
        ...

    @property
    def closed(self) -> bool:
        """Whether nothing more will be written."""
        ...


@dataclass(frozen=True, slots=True)
class Recent:
    """A store cut down to its last `STEPS` steps, until it is closed: then it is all there.

    What a whole table takes to read grows with the training, and what has been taken once the allocators keep.
    """

    store: Written

    @property
    def meta(self) -> dict[str, Any]:
        """That of the whole run."""
        return self.store.meta

    @property
    def ranks(self) -> list[int]:
        """All of them."""
        return self.store.ranks

    def read(self, table: str, filters: Filters | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The wanted rows of those steps."""
        return self.store.read(table, self._within(table, filters or {}), columns)

    def count(self, table: str) -> int:
        """How many rows of a table are of those steps."""
        return len(self.read(table, columns=["step"]))

    def _within(self, table: str, filters: Filters) -> Filters:
        first = self.store.last_step - STEPS + 1
        if self.store.closed or first <= 0:
            return filters
        asked = conditions(table, filters).get("step")
        if asked is None:
            return {**filters, "step": slice(first, None)}
        if asked.values is not None:
            return {**filters, "step": [step for step in asked.values if step >= first]}
        low = first if asked.low is None else max(first, asked.low)
        return {**filters, "step": slice(low, asked.high)}
