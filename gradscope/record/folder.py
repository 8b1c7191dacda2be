"""Taking hold of a run folder: may it be written, by this one, from this step on?"""

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
    """Make the folder if need be, and hold it.

    Raises:
        RecordError: it cannot be written, is held by another scope, or is somebody else's.
    """
    try:
        meta.refuse_foreign(root)
        root.mkdir(parents=True, exist_ok=True)
        return FolderLock(_lock_file(root, rank))
    except OSError as error:
        taken = next((path for path in (root, *root.parents) if path.exists() and not path.is_dir()), None)
        raise _unwritable(root, f"{taken} is a file" if taken else error) from error


def begun(logdir: Path, rank: int | None = None) -> bool:
    """Whether a run is there; of a rank, whether that one has been there: another may have begun it a moment ago."""
    root = logdir / meta.FOLDER
    return (root / meta.FILE if rank is None else _lock_file(root, rank)).exists()


def begin(
    root: Path, told: Mapping[str, Any], rank: int, first_step: int, *, existing: str, known: bool
) -> tuple[int, int]:
    """Begin or continue the run, and tidy up after whoever was killed.

    Args:
        root: the folder.
        told: what `run.json` shall say.
        rank: whose part it is.
        first_step: the first step to be written.
        existing: `"replace"` a run that has that step, or `"continue"` behind its last one where `first_step` is 0.
        known: this rank has been here before, so that what other ranks have is not of a moment ago.

    Returns:
        The number of the next part, and the first step.

    Raises:
        FolderTakenError: the run already has the step `first_step`.
        RecordError: it cannot be written.
        LoadError: it is a newer gradscope's.
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
                    f'pass first_step={last + 1} to continue it (existing="continue" does so by itself), '
                    'or another logdir to begin a new one (existing="new" finds one)',
                )
        meta.begin(root, told, rank, first_step)
    except OSError as error:
        raise _unwritable(root, error) from error
    return parts.finished(root, rank) + 1, first_step


def _discard(root: Path) -> None:
    """Delete a run: what it says about itself last, so that what is left meanwhile is still one."""
    for name in TABLES:
        if (root / name).exists():
            shutil.rmtree(root / name)
    for path in (*root.glob("events.out.tfevents.*"), root / meta.FILE):
        path.unlink(missing_ok=True)


def _lock_file(root: Path, rank: int) -> Path:
    return root / f".rank={rank}.lock"


def _unwritable(root: Path, why: OSError | str) -> RecordError:
    return RecordError(f"the run folder {root} cannot be written: {why}; mend that, or pass another logdir")


class Files:
    """The parts of one rank, as something to be thinned; damaged parts are passed over."""

    def __init__(self, root: Path, rank: int) -> None:
        self._root, self._rank = root, rank

    def _parts(self, tables: Sequence[str]) -> Iterator[tuple[str, parts.Part]]:
        return ((name, part) for name in tables for part in parts.live(self._root, name, self._rank))

    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.path.stat().st_size for _, part in self._parts(list(TABLES)))

    def last_step(self) -> int | None:
        """The highest step of any table, if there is one."""
        ends = [parts.bounds(part) for _, part in self._parts(list(TABLES))]
        return max((end[1] for end in ends if end), default=None)

    def steps(self, tables: Sequence[str]) -> Steps:
        """The distinct steps of some tables, ascending."""
        found = np.empty(0, np.int64)
        for name, part in self._parts(tables):
            with suppress(*parts.unreadable()):
                found = np.union1d(found, parts.read(part, name, ["step"], None).column("step").to_numpy())
        return found

    def drop(self, tables: Sequence[str], steps: Steps) -> None:
        """Rewrite the parts that hold those steps."""
        for name, part in self._parts(tables):
            ends = parts.bounds(part)
            if ends and ends[0] <= steps[-1]:
                with suppress(*parts.unreadable()):
                    parts.rewrite(name, [part], steps)
