"""A run folder that may hold a run already: begin beside that run, go on with it, or put a new one in its place."""

from __future__ import annotations

import difflib
import itertools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from gradscope.errors import AttachError, FolderTakenError, GradscopeWarning, LoadError, RecordError
from gradscope.record import meta
from gradscope.record.folder import begun
from gradscope.record.parquet import ParquetStore

EXISTING = ("new", "continue", "replace", "error")


def check_existing(existing: Any, processes: int) -> None:
    """Refuse what cannot be meant.

    Raises:
        AttachError: there is no such choice, or several processes were to replace a run.
    """
    if existing not in EXISTING:
        near = difflib.get_close_matches(str(existing), EXISTING, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise AttachError(f"existing={existing!r:.80}: expected one of {', '.join(map(repr, EXISTING))}.{hint}")
    if existing == "replace" and processes > 1:
        raise AttachError(
            f"existing='replace': one of {processes} processes would delete what another has begun to write. "
            "Remove the folder before they start, or pass another logdir."
        )


def numbered(logdir: Path) -> Iterator[Path]:
    """The folder, and its neighbours: `exp`, `exp-2`, `exp-3`, ..."""
    yield logdir
    named = logdir if logdir.name not in ("", "..") else logdir.resolve()
    yield from (named.with_name(f"{named.name}-{number}") for number in itertools.count(2))


def open_store(
    logdir: str | PathLike[str], told: Mapping[str, Any], *, rank: int, first_step: int, existing: str
) -> ParquetStore:
    """A store on the folder, or with `existing="new"` on the first of its neighbours that is free.

    Raises:
        RecordError: the folder cannot be written, or may not be.
        LoadError: the folder is a run of a newer gradscope.
    """
    if existing != "new":
        return ParquetStore(logdir, told, rank=rank, first_step=first_step, existing=existing)
    taken: FolderTakenError | None = None
    for folder in numbered(Path(logdir)):
        try:
            _refuse_fewer(folder, told, rank)
            store = ParquetStore(folder, told, rank=rank, first_step=first_step)
        except FolderTakenError as reason:
            taken = taken or reason
            continue
        if taken is not None:
            warnings.warn(f"{taken.why}: this run is recorded in {folder}", GradscopeWarning, stacklevel=6)
        return store
    raise RecordError(f"{logdir} has no free neighbour")  # pragma: no cover


def _refuse_fewer(folder: Path, told: Mapping[str, Any], rank: int) -> None:
    """A process that was never here joins the others, unless these were of a training with another number of them."""
    if not begun(folder) or begun(folder, rank):
        return
    with suppress(LoadError):
        before = meta.read(folder / meta.FOLDER).get("processes", 1)
        if before != told.get("processes", 1):
            raise FolderTakenError(f"the run in {folder} is one of {before} process{'es' * (before != 1)}", "")
