"""Limits on the frequency and amount of writing: event files stay small in trainings of any length."""

from __future__ import annotations

import time
from collections.abc import Callable


class Thinner:
    """Keeps everything up to a size of the file, then every second item, every fourth, ...: the file grows slowly.

    From then on, every doubling of the training's length adds half as much again.

    >>> thinner = Thinner(limit=4)
    >>> kept = []
    >>> for item in range(16):
    ...     if thinner.keeps():
    ...         thinner.wrote(1)
    ...         kept.append(item)
    >>> kept
    [0, 1, 2, 3, 4, 6, 8, 12]
    """

    def __init__(self, limit: int) -> None:
        self.stride = 1
        self._limit, self._more = limit, limit // 2
        self._seen = self._size = 0

    def keeps(self) -> bool:
        """True if the next item should be written."""
        self._seen += 1
        return (self._seen - 1) % self.stride == 0

    def wrote(self, size: int) -> None:
        """Count the bytes of a written item."""
        self._size += size
        while self._size >= self._limit:
            self.stride *= 2
            self._limit += self._more


class Beat:
    """Comes due every second, then ever more seldom: some 300 times while the time of training grows e-fold."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._last = clock()

    def due(self) -> bool:
        """True if it is time."""
        return self._clock() - self._last >= max(1.0, (self._last - self._began) / 300)

    def reset(self) -> None:
        """Start the next interval."""
        self._last = self._clock()


class Looks:
    """Decides when to diagnose: after 4, 8, 16, ... recorded steps, or later to stay within a share of the time.

    The first diagnosis loads modules; it counts as `LOADING_S` before it happens.

    Args:
        share: limit, relative to the time since the beginning.
        clock: returns seconds.
    """

    FIRST, LOADING_S = 4, 0.1

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._clock = share, clock
        self._began, self._spent, self._next = clock(), self.LOADING_S, self.FIRST

    def due(self, recorded: int) -> bool:
        """True if it is time, after so many recorded steps."""
        return recorded >= self._next and self._spent <= self._share * (self._clock() - self._began)

    def look(self, recorded: int, action: Callable[[], None]) -> None:
        """Run a diagnosis, and measure its time."""
        began = self._clock()
        self._next = 2 * recorded
        action()
        self._spent += self._clock() - began
