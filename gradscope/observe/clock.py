"""The time that the training's steps take."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager


class StepClock:
    """Measures each step from the end of the one before; the first from the first event of the training.

    Attributes:
        begun: True once an event of the training has arrived.
    """

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self.begun, self._since = False, 0.0

    def start(self) -> None:
        """An event of the training arrives."""
        if not self.begun:
            self.begun, self._since = True, time.perf_counter()

    def step_over(self, ended: float) -> float:
        """Begin the next step at `ended`; the seconds of the last one."""
        duration, self._since = ended - self._since, ended
        return duration

    @contextmanager
    def stopped(self) -> Generator[None]:
        """Leave the time meanwhile out."""
        begun, began = self.begun, time.perf_counter()
        try:
            yield
        finally:
            self.begun = begun
            self._since += time.perf_counter() - began
