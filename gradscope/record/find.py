"""What a folder holds: a run, or many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gradscope.errors import LoadError
from gradscope.record import meta
from gradscope.record.data import natural

DEEP = 8
"""How many folders deep runs are looked for."""


def find(logdir: str | os.PathLike[str]) -> Path | list[str]:
    """The folder of the one run that is there, or the names of the runs below.

    Raises:
        LoadError: there is no run.
    """
    folder = Path(logdir)
    for root in (folder / meta.FOLDER, folder):
        if os.path.exists(root / meta.FILE):  # `Path.exists` raises where no file can have the name
            return root
    if names := sorted(_below(folder), key=natural):
        return names
    what = "holds no run" if os.path.isdir(folder) else "is a file" if os.path.exists(folder) else "does not exist"
    raise LoadError(
        f"{folder} {what}: there is no {meta.FOLDER}/{meta.FILE} in it, nor below it; "
        "pass the logdir that attach() was given"
    )


def _below(folder: Path) -> Iterator[str]:
    """The runs at any depth, by their paths with `/` in between; links are not followed."""
    for place, folders, _ in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        if meta.FOLDER in folders:
            folders.remove(meta.FOLDER)
            if os.path.exists(os.path.join(place, meta.FOLDER, meta.FILE)):
                yield Path(place).relative_to(folder).as_posix()
        folders[:] = [name for name in folders if not name.startswith(".") and depth < DEEP]
