"""`run.json`: the metadata of a run, and the mark of a run folder."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from gradscope.errors import LoadError, RecordError
from gradscope.record.schema import SCHEMA_VERSION, TABLES

FOLDER = "gradscope"
FILE = "run.json"
_OURS = re.compile(rf"\.rank=\d+\.lock|\.{FILE}\.tmp.*|events\.out\.tfevents\..*|{'|'.join(TABLES)}")


def read(root: Path) -> dict[str, Any]:
    """Read `run.json`.

    Raises:
        LoadError: the file does not exist, is not of a run, or comes from a newer gradscope.
    """
    path = root / FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(f"{root} is no run: it has no {FILE}") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read ({error}); restore it from a copy of the run") from error
    version = cast("dict[str, Any]", facts).get("schema_version") if isinstance(facts, dict) else None
    if not isinstance(version, int):
        raise LoadError(f"{path} describes no run: it lacks the number 'schema_version'")
    if version > SCHEMA_VERSION:
        raise LoadError(
            f"a newer gradscope (schema {version}, this one reads up to {SCHEMA_VERSION}) wrote {path}: "
            "upgrade with `pip install -U gradscope-rnn`"
        )
    return cast("dict[str, Any]", facts)


def begin(root: Path, meta: Mapping[str, Any], rank: int, first_step: int) -> dict[str, Any]:
    """Add a session to `run.json`: `meta` of the newest session on top, of every session under `sessions`.

    Rank 0 writes the file; another rank does so only if the file does not exist.
    """
    known = (root / FILE).exists()
    earlier = read(root) if known else {}
    if known and rank:
        return earlier
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    session = {"started": started, "first_step": first_step, "rank": rank, **plain(meta)}
    contents = {"schema_version": SCHEMA_VERSION, **plain(meta), "sessions": [*earlier.get("sessions", []), session]}
    temporary = _write(contents, root, rank)
    if rank == 0 or not _put_first(temporary, root / FILE):
        os.replace(temporary, root / FILE)
    return contents


def tell(root: Path, facts: Mapping[str, Any], rank: int) -> None:
    """Add facts during a run: on top, and to the newest session."""
    known = read(root)
    *earlier, session = known["sessions"]
    contents = {**known, **plain(facts), "sessions": [*earlier, {**session, **plain(facts)}]}
    os.replace(_write(contents, root, rank), root / FILE)


def _write(contents: Mapping[str, Any], root: Path, rank: int) -> Path:
    """Write the whole file under a temporary name."""
    temporary = root / f".{FILE}.tmp{rank}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(contents, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _put_first(temporary: Path, path: Path) -> bool:
    """Rename a file unless the name exists; False if the file system cannot do so."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:
        return False
    temporary.unlink()
    return True


def refuse_foreign(root: Path) -> None:
    """Refuse a folder that has our name but contents of other software.

    Raises:
        RecordError: the folder has foreign files and no `run.json`.
    """
    if not root.is_dir():
        return
    foreign = sorted(name for name in os.listdir(root) if not _OURS.fullmatch(name))
    if foreign and not (root / FILE).exists():  # checked last: another rank may begin the run meanwhile
        raise RecordError(
            f"{root} holds something else ({', '.join(foreign[:3])}) and no {FILE}; gradscope leaves it alone: "
            "pass another logdir, or move it away"
        )


def plain(value: Any) -> Any:
    """Convert a value for JSON: values without a JSON type become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in cast("Iterable[Any]", value)]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
