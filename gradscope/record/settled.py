"""Reading from one thread what another rearranges now and then, without ever holding that one up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

Found = TypeVar("Found")
PAUSE_S = 0.002


class Settled:
    """Counts the rearrangements of one writer, so that readers can tell that none fell into their reading.

    >>> settled = Settled()
    >>> with settled.changing():
    ...     pass
    >>> settled.read(lambda: 7)
    7
    """

    def __init__(self) -> None:
        self._changes = 0  # odd while a change is under way
        self._writer = threading.get_ident()

    @contextmanager
    def changing(self) -> Generator[None, None, None]:
        """While rows move from one place to another."""
        self._writer = threading.get_ident()
        self._changes += 1
        try:
            yield
        finally:
            self._changes += 1

    def read(self, look: Callable[[], Found]) -> Found:
        """What `look` finds while nothing moves; it is called again where something has moved meanwhile."""
        while True:
            before = self._changes
            if before % 2 and self._writer != threading.get_ident():
                time.sleep(PAUSE_S)
                continue
            found = look()
            if before == self._changes:
                return found
