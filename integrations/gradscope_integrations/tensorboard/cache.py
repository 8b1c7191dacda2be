"""What requests read is kept for the next ones."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

CACHE_BYTES = 256 * 2**20


class Cache:
    """What was read last, up to so many bytes; anything may be dropped at any time."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit, self._size = limit, 0
        self._kept: OrderedDict[tuple[str, ...], tuple[Any, int, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, ...], stamp: Any, make: Callable[[], tuple[T, int]]) -> T:
        """What is kept under a key if it has that stamp, else what is made now, with its size in bytes."""
        with self._lock:
            if key in self._kept and self._kept[key][0] == stamp:
                self._kept.move_to_end(key)
                return self._kept[key][2]
        made, size = make()
        with self._lock:
            self._size += size - self._kept.pop(key, (None, 0, None))[1]
            self._kept[key] = stamp, size, made
            while self._size > self._limit and len(self._kept) > 1:
                self._size -= self._kept.popitem(last=False)[1][1]
        return made
