"""Converts rows of a table to curves for the tab: thinned to the resolution of a screen, float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope_integrations.tensorboard.names import CHAINS, FAMILIES, Family, Key

if TYPE_CHECKING:
    from gradscope import Rows

Array = np.ndarray[Any, np.dtype[Any]]


def key_of(columns: Mapping[str, Any]) -> Key:
    """The layer key of a block of rows."""
    return Key(columns["module"], int(columns["layer"]), columns["direction"], int(columns["chain"]))


def curves(rows: tuple[Rows, ...]) -> Iterator[tuple[Key, str, Array]]:
    """Layer, name and numbers of every curve among some rows, for the first `CHAINS` chains."""
    for block in rows:
        family = FAMILIES.get(block.table)
        if family is None or int(block.columns["chain"]) >= CHAINS:
            continue
        yield key_of(block.columns), _name(block), _packed(block, family)


def chains_left_out(rows: tuple[Rows, ...]) -> int:
    """Number of chains without curves, of the layer with the most chains."""
    return max((int(r.columns["chain"]) - CHAINS + 1 for r in rows if r.table == "layers"), default=0)


def _name(block: Rows) -> str:
    if block.table == "timesteps":
        return block.columns["quantity"]
    return block.table if block.table == "reach" else f"{block.table}/{block.columns['gate']}"


def _packed(block: Rows, family: Family) -> Array:
    """Float32 [rows, positions], in the format of `Family`."""
    columns = block.columns
    positions = np.atleast_1d(columns[family.axis])
    chosen = _largest(columns, family.limit) if block.table == "spectra" else _every(len(positions), family.limit)
    names = [name for name in family.rows if name != "nonfinite" or np.count_nonzero(columns[name])]
    whole = len(chosen) == len(positions) and bool((positions == np.arange(len(positions))).all())
    if not whole:
        names = [*family.rows, family.axis]
    packed = np.empty((len(names), len(chosen)), np.float32)
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        for row, name in zip(packed, names, strict=True):
            column = columns[name]
            row[:] = column[chosen] if isinstance(column, np.ndarray) else column
    return packed


def _every(count: int, limit: int) -> Array:
    """Every 2^k-th position, and the last one: sequences of any length then share most positions."""
    stride = 1
    while -(-count // stride) > limit:
        stride *= 2
    chosen = np.arange(0, count, stride)
    return chosen if not count or chosen[-1] == count - 1 else np.append(chosen, count - 1)


def _largest(columns: Mapping[str, Any], limit: int) -> Array:
    """The places of the largest eigenvalues, in order."""
    size = np.hypot(columns["real"], columns["imag"])
    return np.sort(np.argsort(-size, kind="stable")[:limit])
