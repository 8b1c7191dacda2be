"""What a folder holds: a run, or many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gradscope.errors import LoadError
from gradscope.record import meta
from gradscope.record.fleet import Fleet
from gradscope.record.reader import FolderSource
from gradscope.record.run import Run, natural

DEEP = 8
"""How many folders deep runs are looked for."""


def load(logdir: str | os.PathLike[str]) -> Run | Fleet:
    """What a folder holds, finished or still being written.

    Args:
        logdir: that of `attach`, or the `gradscope` in it; or a folder with many of them below it, as of a sweep.

    Returns:
        A run; or, of a folder that is no run itself, all that are below it, as a mapping by the names of their folders.

    Raises:
        LoadError: there is no run, or it was written by a newer gradscope.
    """
    folder = Path(logdir)
    for root in (folder / meta.FOLDER, folder):
        if os.path.exists(root / meta.FILE):  # `Path.exists` raises where no file can have the name
            return Run(FolderSource(root))
    if names := sorted(_below(folder), key=natural):
        return Fleet(folder, names)
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
