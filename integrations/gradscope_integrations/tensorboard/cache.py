"""A cache of data between requests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

CACHE_BYTES = 256 * 2**20


class Cache:
    """The most recently used values, up to a size in bytes. It may drop any value at any time."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit, self._size = limit, 0
        self._entries: OrderedDict[tuple[str, ...], tuple[Any, int, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, ...], stamp: Any, make: Callable[[], tuple[T, int]]) -> T:
        """The cached value of a key if the stamp is the same, else a new one; `make` returns a value and its bytes."""
        with self._lock:
            if key in self._entries and self._entries[key][0] == stamp:
                self._entries.move_to_end(key)
                return self._entries[key][2]
        made, size = make()
        with self._lock:
            self._size += size - self._entries.pop(key, (None, 0, None))[1]
            self._entries[key] = stamp, size, made
            while self._size > self._limit and len(self._entries) > 1:
                self._size -= self._entries.popitem(last=False)[1][1]
        return made
