"""Filters of a table: one condition per column, checked before reading."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from gradscope.errors import GradscopeError
from gradscope.record.schema import BOOL, CLOSED, FLOAT, INT, TEXT, Kind, choices, lookup

if TYPE_CHECKING:
    import pandas as pd

Frame: TypeAlias = "pd.DataFrame"
Filters = Mapping[str, Any]
_INT64 = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class Condition:
    """Requirements for a column: one of `values`, and from `low` to `high`, both included; None requires nothing."""

    values: Collection[Any] | None = None
    low: float | None = None
    high: float | None = None

    def holds(self, value: Any) -> bool:
        """True if a value meets the condition."""
        return (
            (self.values is None or value in self.values)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
        )


def conditions(table: str, filters: Filters) -> dict[str, Condition]:
    """Translate filters, each a value, a collection of values, or a slice, into conditions.

    A slice is a range with both ends included, as labels are in pandas: `step=slice(100, 200)`, `t=slice(None, 9)`.
    As in pandas, NaN equals nothing. Every table has the column `rank` as well.

    Raises:
        GradscopeError: the table or a column does not exist, or the column cannot have a value: the type differs, or
            `quantity`, `direction` or `kind` has no such value.
    """
    kinds: dict[str, Kind] = {**lookup(table).columns, "rank": INT}
    wanted: dict[str, Condition] = {}
    for column, filtered in filters.items():
        if column not in kinds:
            raise GradscopeError(f"table {table!r} has no column {column!r}{choices(column, kinds)}")
        try:
            wanted[column] = _condition(kinds[column], filtered)
        except (TypeError, ValueError) as error:
            raise GradscopeError(f"{table!r} cannot be filtered by {column}={filtered!r:.80}: {error}") from error
        _refuse_unknown(table, column, wanted[column])
    return wanted


def _refuse_unknown(table: str, column: str, wanted: Condition) -> None:
    for value in wanted.values or ():
        if column in CLOSED and value not in CLOSED[column]:
            valid = filter(None, CLOSED[column])
            raise GradscopeError(f"column {column!r} of {table!r} has no value {value!r}{choices(value, valid)}")


def _condition(kind: Kind, filtered: Any) -> Condition:
    if isinstance(filtered, slice):
        return _between(kind, cast("slice[Any, Any, Any]", filtered))
    if isinstance(filtered, str) or not isinstance(filtered, Iterable):
        filtered = (filtered,)
    values = {known for value in cast(Iterable[Any], filtered) if (known := _value(kind, value)) is not None}
    if kind in (INT, FLOAT) and values:
        return Condition(values, min(values), max(values))
    return Condition(values)


def _between(kind: Kind, ends: slice[Any, Any, Any]) -> Condition:
    if kind not in (INT, FLOAT):
        raise TypeError("a slice needs a column of numbers; pass the values instead")
    if ends.step is not None:
        raise TypeError("a slice is a range from low to high without a step; pass a range() instead")
    return Condition(None, _bound(kind, ends.start, math.ceil), _bound(kind, ends.stop, math.floor))


def _bound(kind: Kind, end: Any, rounded: Callable[[float], int]) -> float | None:
    if end is None:
        return None
    number = _number(end)
    if math.isnan(number):
        raise ValueError("NaN is no bound")
    return rounded(min(max(number, _INT64[0]), _INT64[1])) if kind == INT else number


def _number(value: Any) -> float:
    if not isinstance(value, int | float | np.integer | np.floating | np.bool_):
        raise TypeError(f"{value!r} is no number")
    return cast(float, value.item()) if isinstance(value, np.generic) else value


def _value(kind: Kind, value: Any) -> Any:
    """Convert a value to the column's type, or to None if no row can equal it."""
    if kind == TEXT:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is no text")
        return str(value)
    number = _number(value)
    if math.isnan(number) or (kind == BOOL and number not in (0, 1)):
        return None
    if kind == INT:
        return int(number) if _INT64[0] <= number <= _INT64[1] and number == int(number) else None
    return bool(number) if kind == BOOL else float(number)
