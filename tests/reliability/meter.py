"""What a process has in use: asked for and not given back, whatever its allocators keep for later."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

from gradscope.record import arrow


class Use(NamedTuple):
    """What is in use.

    Attributes:
        blocks: of Python's own allocator: small objects.
        native: bytes that numpy, torch and everything else in C has from `malloc`, and Arrow from its pool.
    """

    blocks: int
    native: int


class _Malloc(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names.split())


def can_measure() -> bool:
    """Whether the C library says what is in use."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallinfo2")


def in_use() -> Use:
    """Now, after a collection."""
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Malloc
    told = mallinfo2()
    pool = arrow.pyarrow().default_memory_pool()
    own = 0 if pool.backend_name == "system" else pool.bytes_allocated()
    return Use(sys.getallocatedblocks(), told.uordblks + told.hblkhd + own)


def resident() -> float:
    """Resident memory, in KiB: with what the allocators keep, and the pages of libraries touched so far."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


@contextmanager
def frozen() -> Generator[None, None, None]:
    """While collections pass over all that was there before, so that measuring often costs little."""
    already = gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if already:
            gc.collect()
            gc.freeze()
