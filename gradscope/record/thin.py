"""What gives way when a run has outgrown its limit: older steps, every second one, recorded tables first."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from gradscope.errors import RecordError
from gradscope.record.schema import EVERY_STEP, RECORDED
from gradscope.types import Rows

DISK_LIMIT = "GRADSCOPE_DISK_LIMIT"
MEMORY_LIMIT = "GRADSCOPE_MEMORY_LIMIT"
_ENOUGH = 0.8  # thin to this share of the limit, so that it is not at once reached again
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

Steps = np.ndarray[Any, np.dtype[np.int64]]


class Thinnable(Protocol):
    """Tables from which whole steps can be dropped."""

    def size(self) -> int:
        """Bytes in use."""
        ...

    def steps(self, tables: Sequence[str]) -> Steps:
        """The distinct steps of some tables, ascending."""
        ...

    def drop(self, tables: Sequence[str], steps: Steps) -> None:
        """Delete the rows of those steps."""
        ...


def to_limit(store: Thinnable, limit: int, say: Callable[[str], None]) -> None:
    """Drop steps until the store is well below its limit, and say so in notes before each time."""
    if store.size() <= limit:
        return
    for tables in (RECORDED, EVERY_STEP):
        while store.size() > _ENOUGH * limit:
            dropped = every_second_of_older_half(store.steps(tables))
            if not len(dropped):
                break
            say(
                f"the limit of {told(limit)} is reached: every second of the older steps up to {dropped[-1]} "
                f"({len(dropped)} steps) was dropped from {', '.join(tables)}"
            )
            before = store.size()
            store.drop(tables, dropped)
            if store.size() >= before:
                return


def every_second_of_older_half(steps: Steps) -> Steps:
    """Which of the steps to drop; the first is always kept, and the newer half whole."""
    return steps[: len(steps) // 2][1::2]


def note(reason: str) -> Rows:
    """A row of `notes` about the whole model."""
    return Rows("notes", {"module": "", "layer": -1, "direction": "", "chain": -1, "reason": reason})


def disk_limit(given: int | None) -> int:
    """The limit of a folder in bytes: as given, else as the environment has it, else 1 GiB.

    Raises:
        RecordError: it is not a positive size.
    """
    return _size(given, DISK_LIMIT, "1G", "disk_limit")


def memory_limit(given: int | None) -> int:
    """The limit of a run in memory: as given, else as the environment has it, else 512 MiB.

    Raises:
        RecordError: it is not a positive size.
    """
    return _size(given, MEMORY_LIMIT, "512M", "limit")


def _size(given: int | None, variable: str, default: str, name: str) -> int:
    text = str(given) if given is not None else os.environ.get(variable, default)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * 1024 ** _UNITS[match[2].upper()]) if match else 0
    if size <= 0:
        source = name if given is not None else f"the environment variable {variable}"
        raise RecordError(f"{source} is {text!r}; it must be a size in bytes such as 500000000, 500M or 2G")
    return size


def told(size: float) -> str:
    """A size in words."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
