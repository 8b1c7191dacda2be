"""A lock that never blocks the writer: readers retry if the writer has moved rows meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")
PAUSE_S = 0.002


class Seqlock:
    """Counts the changes of one writer; a reader reads again if the count has changed.

    >>> seqlock = Seqlock()
    >>> with seqlock.changing():
    ...     pass
    >>> seqlock.read(lambda: 7)
    7
    """

    def __init__(self) -> None:
        self._changes = 0  # odd while a change is under way
        self._writer = threading.get_ident()

    @contextmanager
    def changing(self) -> Generator[None, None, None]:
        """Mark a change: the block moves rows from one place to another."""
        self._writer = threading.get_ident()
        self._changes += 1
        try:
            yield
        finally:
            self._changes += 1

    def read(self, function: Callable[[], Result]) -> Result:
        """Call `function` until no change has overlapped the call, and return its result."""
        while True:
            before = self._changes
            if before % 2 and self._writer != threading.get_ident():
                time.sleep(PAUSE_S)
                continue
            result = function()
            if before == self._changes:
                return result
