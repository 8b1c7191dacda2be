"""Conversions between blocks of rows, Arrow tables and pandas frames: no other file knows all three.

Arrow ships no types, so its objects are `Any` here. The first use imports Arrow.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from gradscope.record.query import Condition, Frame, conditions
from gradscope.record.schema import TABLES, TEXT, Table, lookup
from gradscope.types import Rows

POOL = "ARROW_DEFAULT_MEMORY_POOL"
Block = tuple[int, Rows, int]
"""A step, a block of its rows, and the number of rows."""


def pyarrow() -> Any:
    """Import Arrow on first use, with the system's allocator unless the environment names one.

    With Arrow's own allocator every decoding thread retains pages: a hundred MiB in a long training. If the process
    has already imported Arrow, its allocator stays.
    """
    if "pyarrow" in sys.modules or POOL in os.environ:
        return import_module("pyarrow")
    os.environ[POOL] = "system"
    try:
        loaded = import_module("pyarrow")
        loaded.default_memory_pool()  # chosen now, and for good
    finally:
        del os.environ[POOL]
    return loaded


def compute() -> Any:
    """Import Arrow's module of functions over columns."""
    pyarrow()
    return import_module("pyarrow.compute")


def parquet() -> Any:
    """Import Arrow's module for Parquet files."""
    pyarrow()
    return import_module("pyarrow.parquet")


def ready() -> None:
    """Import now, rather than within a step, what the first row needs (Arrow imports pandas)."""
    parquet()
    build(TABLES["steps"], [])


def schema(table: Table, *, coded: bool = False) -> Any:
    """Return the table's Arrow schema; `coded` has text as codes into a dictionary, as in blocks in memory."""
    pa = pyarrow()
    text = pa.dictionary(pa.int32(), pa.string()) if coded else pa.string()
    types = {"int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_(), "text": text}
    return pa.schema([(name, types[kind]) for name, kind in table.columns.items()])


def build(table: Table, blocks: Sequence[Block]) -> Any:
    """Build one Arrow table (text coded) from many checked blocks, without a Python loop over rows."""
    pa = pyarrow()
    lengths = np.fromiter((length for _, _, length in blocks), np.int64, len(blocks))
    columns: dict[str, Any] = {"step": np.repeat(np.array([step for step, _, _ in blocks], np.int64), lengths)}
    for name, kind in table.columns.items():
        if name == "step":
            continue
        values = [rows.columns[name] for _, rows, _ in blocks]
        columns[name] = _text(values, lengths) if kind == TEXT else _numbers(values, lengths, np.dtype(kind))
    return pa.table(columns, schema=schema(table, coded=True))


def _text(values: list[str], lengths: np.ndarray[Any, Any]) -> Any:
    pa = pyarrow()
    codes: dict[str, int] = {}
    code = np.array([codes.setdefault(value, len(codes)) for value in values], np.int32)
    return pa.DictionaryArray.from_arrays(np.repeat(code, lengths), pa.array(list(codes), pa.string()))


def _numbers(values: list[Any], lengths: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if not any(isinstance(value, np.ndarray) for value in values):
        return np.repeat(np.array(values, dtype), lengths)
    column = np.empty(int(lengths.sum()), dtype)
    end = 0
    for value, length in zip(values, lengths.tolist(), strict=True):
        column[end : end + length] = value
        end += length
    return column


def gather(name: str, pieces: Sequence[Any]) -> Any:
    """Join pieces of one table, and drop texts that no row has any more."""
    whole = pyarrow().concat_tables(pieces).unify_dictionaries().combine_chunks()
    for column, kind in TABLES[name].columns.items():
        if kind == TEXT and len(whole):
            position = whole.schema.get_field_index(column)
            whole = whole.set_column(position, column, _used(whole.column(column).combine_chunks()))
    return whole


def _used(text: Any) -> Any:
    """Drop codes that no row has; text without such codes is returned as it is, without decoding."""
    if len(compute().unique(text.indices)) == len(text.dictionary):
        return text
    return text.dictionary_decode().dictionary_encode()


def without(table: Any, steps: np.ndarray[Any, Any]) -> Any:
    """Drop the rows of some steps from a table."""
    return table.filter(pyarrow().array(~np.isin(table.column("step").to_numpy(), steps)))


def expression(wanted: Mapping[str, Condition]) -> Any:
    """Translate conditions into an Arrow expression, or into None for every row."""
    field, scalar = compute().field, compute().scalar
    terms: list[Any] = []
    for name, condition in wanted.items():
        if condition.low is not None:
            terms.append(field(name) >= condition.low)
        if condition.high is not None:
            terms.append(field(name) <= condition.high)
        if condition.values is not None:
            terms.append(field(name).isin(list(condition.values)) if condition.values else scalar(False))
    whole = None
    for term in terms:
        whole = term if whole is None else whole & term
    return whole


def select(name: str, tables: Sequence[Any], filters: Mapping[str, Any], columns: Sequence[str] | None) -> Any:
    """Select rows and columns of some tables in memory, as one table with plain text."""
    wanted = conditions(name, filters)
    where = expression({column: condition for column, condition in wanted.items() if column != "rank"})
    plain = schema(lookup(name))
    table = pyarrow().concat_tables([*tables, schema(lookup(name), coded=True).empty_table()])
    if where is not None:
        table = table.filter(where)
    return table.cast(plain).select(list(columns or plain.names))


def frame(tables: Sequence[tuple[int, Any]], name: str, columns: Sequence[str] | None) -> Frame:
    """Convert plain Arrow tables to one pandas frame; the rank that wrote each becomes the last column, `rank`."""
    pa = pyarrow()
    names = list(columns or TABLES[name].columns)
    empty = schema(TABLES[name]).empty_table().select(names)
    whole = pa.concat_tables([*(table for _, table in tables), empty])
    ranks = np.repeat([rank for rank, _ in tables] or [0], [len(table) for _, table in tables] or [0])
    return whole.append_column("rank", pa.array(ranks.astype(np.int64))).to_pandas()
