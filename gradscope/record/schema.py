"""The tables of a run: their columns, the order and kinds of these, and checks for blocks of rows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from gradscope.errors import GradscopeError, RecordError
from gradscope.types import Rows

SCHEMA_VERSION = 2
"""2 added `steps.loss` and `weights.update`; readers fill missing columns of older runs with NaN."""

Kind = Literal["int64", "float64", "bool", "text"]
INT: Kind = "int64"
FLOAT: Kind = "float64"
BOOL: Kind = "bool"
TEXT: Kind = "text"
Array = np.ndarray[Any, np.dtype[Any]]

KEY: Mapping[str, Kind] = {"module": TEXT, "layer": INT, "direction": TEXT, "chain": INT}
"""The layer key; `("", -1, "", -1)` in a note about the whole model."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        name: name of the table and of its folder.
        columns: kind by column, in order: `step`, the layer key if the table has one, then its own columns.
        keyed: whether the table has the layer key.
        width: bytes of one row in memory; text is a 4-byte code.
    """

    name: str
    columns: Mapping[str, Kind]
    keyed: bool
    width: int

    @property
    def order(self) -> list[str]:
        """The columns that sort a frame."""
        return ["step", *KEY] if self.keyed else ["step"]


def _table(name: str, columns: Mapping[str, Kind], *, keyed: bool = True) -> Table:
    whole: Mapping[str, Kind] = {"step": INT, **(KEY if keyed else {}), **columns}
    return Table(name, whole, keyed, sum(4 if kind == TEXT else 8 for kind in whole.values()))


_CLIPS: Mapping[str, Kind] = {
    **{"index": INT, "kind": TEXT, "how": TEXT, "threshold": FLOAT, "norm_type": FLOAT, "parameters": INT},
    **{"norm_before": FLOAT, "norm_after": FLOAT, "coefficient": FLOAT, "clipped": BOOL, "nonfinite": INT},
}
_STEPS: Mapping[str, Kind] = {
    **{"optimizer": TEXT, "loss": FLOAT, "grad_norm": FLOAT, "nonfinite": INT, "recorded": BOOL, "skipped": BOOL},
    **{"overhead_s": FLOAT, "step_s": FLOAT},
}
_LAYERS: Mapping[str, Kind] = {
    **{"horizon": FLOAT, "horizon_censored": BOOL, "decay": FLOAT, "lyapunov": FLOAT, "residual": FLOAT},
    "timesteps": INT,
}
_SPREAD: Mapping[str, Kind] = {"p10": FLOAT, "p50": FLOAT, "p90": FLOAT, "mean": FLOAT}
_COUNTS: Mapping[str, Kind] = {"sequences": INT, "nonfinite": INT}

_OF_BLOCKS = ("spectral_radius", "spectral_norm", "orthogonality", "update")

_ALL = (
    _table("timesteps", {"t": INT, "quantity": TEXT, **_SPREAD, "se": FLOAT, **_COUNTS}),
    _table("reach", {"lag": INT, **_SPREAD, **_COUNTS}),
    _table("gates", {"t": INT, "gate": TEXT, "low": FLOAT, "high": FLOAT, "mean": FLOAT}),
    _table("units", {"gate": TEXT, "unit": INT, "low": FLOAT, "high": FLOAT}),
    _table("weights", {"gate": TEXT, **dict.fromkeys(_OF_BLOCKS, FLOAT)}),
    _table("spectra", {"gate": TEXT, "index": INT, "real": FLOAT, "imag": FLOAT}),
    _table("layers", _LAYERS),
    _table("clips", _CLIPS, keyed=False),
    _table("steps", _STEPS, keyed=False),
    _table("notes", {"reason": TEXT}),
)
TABLES: Mapping[str, Table] = {table.name: table for table in _ALL}

CLOSED: Mapping[str, tuple[str, ...]] = {
    "quantity": (
        *("grad_h", "grad_h_direct", "grad_c", "weight_grad", "jacobian", "jacobian_h", "jacobian_c"),
        *("state", "cell", "jacobian_max", "gain"),
    ),
    "direction": ("forward", "reverse", ""),
    "kind": ("norm", "value", "modified"),
}
"""All values of columns with a fixed set of values. In `notes` a direction may be empty."""

EVERY_STEP = ("steps", "clips", "notes")
"""Tables with rows of steps that are not recorded: a store drops their rows last."""
RECORDED = tuple(name for name in TABLES if name not in EVERY_STEP)

_ROWS_OF_SCALARS: set[tuple[object, ...]] = set()  # tables, columns and types that have passed the check
_ARRAYS: Mapping[Kind, str] = {INT: "iub", FLOAT: "iubf", BOOL: "b", TEXT: ""}  # by numpy's letters for kinds
_SCALARS: Mapping[Kind, tuple[type, ...]] = {
    INT: (int, np.integer, np.bool_),
    FLOAT: (float, int, np.floating, np.integer, np.bool_),
    BOOL: (bool, np.bool_),
    TEXT: (str,),
}


def lookup(name: str) -> Table:
    """Return the table of that name.

    Raises:
        GradscopeError: there is no such table; the message lists all tables.
    """
    if name not in TABLES:
        raise GradscopeError(f"a run has no table {name!r}{choices(name, TABLES)}")
    return TABLES[name]


def choices(wrong: str, valid: Iterable[str]) -> str:
    """Return the end of a message about a wrong name: the most similar name, and all valid names."""
    names = list(valid)
    near = difflib.get_close_matches(wrong, names, n=1)
    return (f"; did you mean {near[0]!r}?" if near else ";") + f" it has {', '.join(names)}"


def check(rows: Rows, step: int) -> int:
    """Check a block of rows of one step against its table, and count its rows.

    The block must have every column but `step`, and no other; if it has `step`, it must be the same step.

    Raises:
        RecordError: a column is missing, unknown, of the wrong kind, or longer than another.
    """
    columns = rows.columns
    shape = (rows.table, *columns, *map(type, columns.values()))
    if shape in _ROWS_OF_SCALARS and columns.get("step", step) == step:
        return 1
    table = lookup(rows.table)
    if len(columns) != len(table.columns) - ("step" not in columns) or not columns.keys() <= table.columns.keys():
        raise RecordError(_misnamed(table, columns))
    lengths: set[int] = set()
    for name, value in columns.items():
        if not _fits(table.columns[name], value):
            kind = table.columns[name]
            raise RecordError(f"table {table.name!r}: column {name!r} takes {kind}, not {_described(value)}")
        if isinstance(value, np.ndarray):
            lengths.add(len(cast("Array", value)))
    if len(lengths) > 1:
        raise RecordError(f"table {table.name!r}: columns of one block differ in length: {sorted(lengths)} rows")
    own = columns.get("step", step)
    if own is not step and np.any(own != step):
        raise RecordError(f"table {table.name!r}: the batch of step {step} has rows of step {own}")
    if lengths:
        return lengths.pop()
    _ROWS_OF_SCALARS.add(shape)
    return 1


def _misnamed(table: Table, columns: Mapping[str, Any]) -> str:
    missing = [name for name in table.columns if name not in columns and name != "step"]
    if missing:
        names = ", ".join(columns) or "no columns"
        return f"table {table.name!r} needs the column {missing[0]!r}; these rows have {names}"
    unknown = next(name for name in columns if name not in table.columns)
    return f"table {table.name!r} has no column {unknown!r}{choices(unknown, table.columns)}"


def _fits(kind: Kind, value: Any) -> bool:
    if type(value) is np.ndarray:
        array = cast("Array", value)
        return array.ndim == 1 and array.dtype.kind in _ARRAYS[kind]
    return isinstance(value, _SCALARS[kind])


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        array = cast("Array", value)
        return f"an array of {array.dtype} with {array.ndim} dimension(s)"
    return f"{value!r:.60} ({type(value).__name__})"
