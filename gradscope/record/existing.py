"""A folder that may already hold a run: begin beside that run, continue it, or replace it."""

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
from gradscope.record import meta as run_json
from gradscope.record.folder import begun
from gradscope.record.parquet import ParquetStore

EXISTING = ("new", "continue", "replace", "error")


def check_existing(existing: Any, processes: int) -> None:
    """Check the argument `existing`.

    Raises:
        AttachError: there is no such choice, or several processes would replace a run.
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
    """Yield the folder and its neighbours: `exp`, `exp-2`, `exp-3`, ..."""
    yield logdir
    named = logdir if logdir.name not in ("", "..") else logdir.resolve()
    yield from (named.with_name(f"{named.name}-{number}") for number in itertools.count(2))


def open_store(
    logdir: str | PathLike[str], meta: Mapping[str, Any], *, rank: int, first_step: int, existing: str
) -> ParquetStore:
    """Open a store on the folder, or with `existing="new"` on its first free neighbour.

    Raises:
        RecordError: the folder cannot be written, or must not be.
        LoadError: the folder is a run of a newer gradscope.
    """
    if existing != "new":
        return ParquetStore(logdir, meta, rank=rank, first_step=first_step, existing=existing)
    occupied: FolderTakenError | None = None
    for folder in numbered(Path(logdir)):
        try:
            _refuse_other_size(folder, meta, rank)
            store = ParquetStore(folder, meta, rank=rank, first_step=first_step)
        except FolderTakenError as reason:
            occupied = occupied or reason
            continue
        if occupied is not None:
            warnings.warn(f"{occupied.why}: gradscope records this run in {folder}", GradscopeWarning, stacklevel=6)
        return store
    raise RecordError(f"{logdir} has no free neighbour")  # pragma: no cover


def _refuse_other_size(folder: Path, meta: Mapping[str, Any], rank: int) -> None:
    """Refuse a new rank in a run whose number of processes differs; in any other run it joins the other ranks."""
    if not begun(folder) or begun(folder, rank):
        return
    with suppress(LoadError):
        before = run_json.read(folder / run_json.FOLDER).get("processes", 1)
        if before != meta.get("processes", 1):
            raise FolderTakenError(f"the run in {folder} has {before} process{'es' * (before != 1)}", "")
