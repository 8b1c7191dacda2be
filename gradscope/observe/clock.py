"""The time that the training's steps take."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager


class StepClock:
    """Measures each step from the end of the one before; the first from the first event of the training."""

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self._since: float | None = None

    @property
    def begun(self) -> bool:
        """True once an event of the training has arrived."""
        return self._since is not None

    def start(self) -> None:
        """An event of the training arrives."""
        self._since = self._since or time.perf_counter()

    def step_over(self, ended: float) -> float:
        """Begin the next step at `ended`; the seconds of the last one."""
        duration, self._since = ended - (self._since or ended), ended
        return duration

    @contextmanager
    def stopped(self) -> Generator[None]:
        """Leave the time meanwhile out."""
        since, began = self._since, time.perf_counter()
        try:
            yield
        finally:
            self._since = None if since is None else since + time.perf_counter() - began
