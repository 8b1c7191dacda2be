"""Thinning of a run beyond its limit: drops every second of the older steps, from recorded tables first."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from gradscope.errors import RecordError
from gradscope.record.schema import EVERY_STEP, RECORDED
from gradscope.types import Rows

_ENOUGH = 0.8  # thin to this share of the limit, so that the next thinning is not due at once
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

Steps = np.ndarray[Any, np.dtype[np.int64]]


class Thinnable(Protocol):
    """Tables from which whole steps can be dropped."""

    def size(self) -> int:
        """Count the bytes in use."""
        ...

    def steps(self, tables: Sequence[str]) -> Steps:
        """Return the distinct steps of some tables, ascending."""
        ...

    def drop(self, tables: Sequence[str], steps: Steps) -> None:
        """Delete the rows of those steps."""
        ...


def to_limit(store: Thinnable, limit: int, write_note: Callable[[str], None]) -> None:
    """Drop steps until the store is well below its limit, and write a note before each drop."""
    if store.size() <= limit:
        return
    for tables in (RECORDED, EVERY_STEP):
        while store.size() > _ENOUGH * limit:
            dropped = every_second_of_older_half(store.steps(tables))
            if not len(dropped):
                break
            write_note(
                f"at its limit of {in_words(limit)}, the run dropped every second of the older steps up to "
                f"{dropped[-1]} ({len(dropped)} steps) from {', '.join(tables)}"
            )
            before = store.size()
            store.drop(tables, dropped)
            if store.size() >= before:
                return


def every_second_of_older_half(steps: Steps) -> Steps:
    """Select the steps to drop; never the first step, nor a step of the newer half."""
    return steps[: len(steps) // 2][1::2]


def note(reason: str) -> Rows:
    """Make a row of `notes` about the whole model."""
    return Rows("notes", {"module": "", "layer": -1, "direction": "", "chain": -1, "reason": reason})


def size_limit(limit: int | None, variable: str, default: str, name: str) -> int:
    """Return the limit of a run in bytes: the argument `name`, else the environment's, else the default.

    Raises:
        RecordError: the limit is not a positive size.
    """
    text = str(limit) if limit is not None else os.environ.get(variable, default)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * 1024 ** _UNITS[match[2].upper()]) if match else 0
    if size <= 0:
        source = name if limit is not None else f"the environment variable {variable}"
        raise RecordError(f"{source} is {text!r}; it must be a size in bytes such as 500000000, 500M or 2G")
    return size


def in_words(size: float) -> str:
    """Write a size with its unit."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
