"""Claim and begin a run folder: may this process write it, from this step on?"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.errors import FolderTakenError, RecordError
from gradscope.record import meta, parts
from gradscope.record.lock import FolderLock
from gradscope.record.schema import TABLES
from gradscope.record.thin import Steps


def claim(root: Path, rank: int) -> FolderLock:
    """Make the folder if need be, and lock it.

    Raises:
        RecordError: the folder cannot be written, another scope holds the lock, or other software owns the folder.
    """
    try:
        meta.refuse_foreign(root)
        root.mkdir(parents=True, exist_ok=True)
        return FolderLock(_lock_file(root, rank))
    except OSError as error:
        file = next((path for path in (root, *root.parents) if path.exists() and not path.is_dir()), None)
        raise _unwritable(root, f"{file} is a file" if file else error) from error


def begun(logdir: Path, rank: int | None = None) -> bool:
    """True if the folder holds a run; with `rank`, if that rank has written here (another may have just begun)."""
    root = logdir / meta.FOLDER
    return (root / meta.FILE if rank is None else _lock_file(root, rank)).exists()


def begin(
    root: Path, facts: Mapping[str, Any], rank: int, first_step: int, *, existing: str, known: bool
) -> tuple[int, int]:
    """Begin or continue the run, and delete the remains of a killed process.

    Args:
        root: the folder.
        facts: contents of `run.json`.
        rank: rank of this process.
        first_step: the first step to write.
        existing: `"replace"` a run that has that step, or `"continue"` behind its last step if `first_step` is 0.
        known: this rank has written here before, so the steps of other ranks are of an earlier session.

    Returns:
        The number of the next part, and the first step.

    Raises:
        FolderTakenError: the run already has the step `first_step`.
        RecordError: the folder cannot be written.
        LoadError: the run is of a newer gradscope.
    """
    if (root / meta.FILE).exists():
        meta.read(root)
    try:
        parts.sweep(root, rank)
        ranks = {rank, *parts.ranks(root)} if known else {rank}
        last = max((end for each in ranks if (end := Files(root, each).last_step()) is not None), default=-1)
        if last >= first_step:
            if existing == "replace":
                _discard(root)
            elif existing == "continue" and first_step == 0:
                first_step = last + 1
            else:
                raise FolderTakenError(
                    f"the run in {root} already has steps up to {last}, and first_step is {first_step}",
                    f'pass first_step={last + 1} to continue the run (existing="continue" does this by itself), '
                    'or another logdir to begin a new run (existing="new" finds one)',
                )
        meta.begin(root, facts, rank, first_step)
    except OSError as error:
        raise _unwritable(root, error) from error
    return parts.finished(root, rank) + 1, first_step


def _discard(root: Path) -> None:
    """Delete a run: `run.json` last, so that the remains are a run until the end."""
    for name in TABLES:
        if (root / name).exists():
            shutil.rmtree(root / name)
    for path in (*root.glob("events.out.tfevents.*"), root / meta.FILE):
        path.unlink(missing_ok=True)


def _lock_file(root: Path, rank: int) -> Path:
    return root / f".rank={rank}.lock"


def _unwritable(root: Path, why: OSError | str) -> RecordError:
    return RecordError(f"gradscope cannot write the run folder {root}: {why}; mend that, or pass another logdir")


class Files:
    """The parts of one rank, for thinning; skips damaged parts."""

    def __init__(self, root: Path, rank: int) -> None:
        self._root, self._rank = root, rank

    def _parts(self, tables: Sequence[str]) -> Iterator[tuple[str, parts.Part]]:
        return ((name, part) for name in tables for part in parts.live(self._root, name, self._rank))

    def size(self) -> int:
        """Count the bytes of all parts."""
        return sum(part.path.stat().st_size for _, part in self._parts(list(TABLES)))

    def last_step(self) -> int | None:
        """Return the highest step of any table, if there is one."""
        ends = [parts.bounds(part) for _, part in self._parts(list(TABLES))]
        return max((end[1] for end in ends if end), default=None)

    def steps(self, tables: Sequence[str]) -> Steps:
        """Return the distinct steps of some tables, ascending."""
        steps = np.empty(0, np.int64)
        for name, part in self._parts(tables):
            with suppress(*parts.unreadable()):
                steps = np.union1d(steps, parts.read(part, name, ["step"], None).column("step").to_numpy())
        return steps

    def drop(self, tables: Sequence[str], steps: Steps) -> None:
        """Rewrite the parts that hold those steps."""
        for name, part in self._parts(tables):
            ends = parts.bounds(part)
            if ends and ends[0] <= steps[-1]:
                with suppress(*parts.unreadable()):
                    parts.rewrite(name, [part], steps)
