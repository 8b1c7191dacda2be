"""A lock for one writer per folder and rank. The operating system holds it, so it ends with a killed process."""

from __future__ import annotations

import errno
import os
import platform
import sys
import warnings
import weakref
from pathlib import Path
from typing import IO

from gradscope.errors import FolderTakenError, GradscopeWarning

SHARED = ". Processes of one distributed training share a logdir if they attach after init_process_group"
_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class FolderLock:
    """A lock file, locked until `release` or the end of the process.

    Forked children (data loader workers) close their copy, so that the lock ends with its owner.

    Raises:
        FolderTakenError: another scope holds the lock, in this process or another one.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a+", encoding="utf-8")
        try:
            _acquire(self._file)
        except OSError as error:
            if error.errno in _BUSY:
                self._refuse(path)
            warnings.warn(f"{path.parent} is on a file system without locks; never let two processes write there",
                          GradscopeWarning, stacklevel=5)  # fmt: skip
        self._file.truncate(0)
        self._file.write(_me())
        self._file.flush()
        _closed_in_children(self)

    def _refuse(self, path: Path) -> None:
        owner = path.read_text(encoding="utf-8", errors="replace") or "another scope"
        self._file.close()
        own = owner == _me()
        raise FolderTakenError(
            f"{'an earlier scope of this process' if own else owner} is writing to {path.parent}",
            f"close that scope first, or give each scope its own logdir{'' if own else SHARED}",
        )

    def release(self) -> None:
        """Release the lock for the next writer."""
        if not self._file.closed:
            _release(self._file)
            self._file.close()


def _me() -> str:
    return f"process {os.getpid()} on {platform.node()}"


if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    _FAR = 2**30  # a byte beyond the text: other processes can still read the text

    def _acquire(file: IO[str]) -> None:
        os.lseek(file.fileno(), _FAR, os.SEEK_SET)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def _release(file: IO[str]) -> None:
        os.lseek(file.fileno(), _FAR, os.SEEK_SET)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _acquire(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _release(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)


_locks: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _closed_in_children(lock: FolderLock) -> None:
    if not _locks and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_abandon_all)
    _locks.add(lock)


def _abandon_all() -> None:
    """Close this process's copies, and leave the locks to their owner, another process."""
    for lock in list(_locks):
        lock._file.close()
