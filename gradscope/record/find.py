"""Search of a folder for runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gradscope.errors import LoadError
from gradscope.record import meta
from gradscope.record.data import natural

DEEP = 8
"""How many folders deep the search goes."""


def find(logdir: str | os.PathLike[str]) -> Path | list[str]:
    """Find the folder of the one run in `logdir`, or the names of the runs below.

    Raises:
        LoadError: there is no run.
    """
    folder = Path(logdir)
    for root in (folder / meta.FOLDER, folder):
        if os.path.exists(root / meta.FILE):  # `Path.exists` raises where no file can have the name
            return root
    if names := sorted(_below(folder), key=natural):
        return names
    fault = "holds no run" if os.path.isdir(folder) else "is a file" if os.path.exists(folder) else "does not exist"
    raise LoadError(
        f"{folder} {fault}: there is no {meta.FOLDER}/{meta.FILE} in it, nor below it; pass the logdir of attach()"
    )


def _below(folder: Path) -> Iterator[str]:
    """Yield the paths of the runs below, with `/` as separator; the search follows no links."""
    for place, folders, _ in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        if meta.FOLDER in folders:
            folders.remove(meta.FOLDER)
            if os.path.exists(os.path.join(place, meta.FOLDER, meta.FILE)):
                yield Path(place).relative_to(folder).as_posix()
        folders[:] = [name for name in folders if not name.startswith(".") and depth < DEEP]
