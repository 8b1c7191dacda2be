"""How often, and how much: what keeps event files small however long a training runs."""

from __future__ import annotations

import time
from collections.abc import Callable


class Thinner:
    """Keeps everything until a file has its size, then every second, every fourth, ... so that it grows but slowly.

    From then on every doubling of the training's length adds half as much again.

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
        """Whether the next item is to be written."""
        self._seen += 1
        return (self._seen - 1) % self.stride == 0

    def wrote(self, size: int) -> None:
        """It was, and took so many bytes."""
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
        """Whether it is time."""
        return self._clock() - self._last >= max(1.0, (self._last - self._began) / 300)

    def struck(self) -> None:
        """It was done."""
        self._last = self._clock()


class Looks:
    """Findings are looked for after 4, 8, 16, ... recorded steps, or later: looking may take some of the time only.

    The first look loads what it needs, for which it is taken to last as long as `LOADING_S`.

    Args:
        share: of the time since the beginning.
        clock: in seconds.
    """

    FIRST, LOADING_S = 4, 0.1

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._clock = share, clock
        self._began, self._spent, self._next = clock(), self.LOADING_S, self.FIRST

    def due(self, recorded: int) -> bool:
        """Whether it is time, after so many recorded steps."""
        return recorded >= self._next and self._spent <= self._share * (self._clock() - self._began)

    def look(self, recorded: int, action: Callable[[], None]) -> None:
        """Do it."""
        began = self._clock()
        self._next = 2 * recorded
        action()
        self._spent += self._clock() - began
