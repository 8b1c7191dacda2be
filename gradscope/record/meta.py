"""`run.json`: what a run says about itself, and whether a folder is one."""

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
    """What `run.json` says.

    Raises:
        LoadError: it is not there, is no run's, or comes from a newer gradscope.
    """
    path = root / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(f"{root} is no run: it has no {FILE}") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read ({error}); restore it from a copy of the run") from error
    version = cast("dict[str, Any]", found).get("schema_version") if isinstance(found, dict) else None
    if not isinstance(version, int):
        raise LoadError(f"{path} is not a run's: it lacks the number 'schema_version'")
    if version > SCHEMA_VERSION:
        raise LoadError(
            f"{path} was written by a newer gradscope (schema {version}, this one reads up to {SCHEMA_VERSION}): "
            "upgrade with `pip install -U gradscope-rnn`"
        )
    return cast("dict[str, Any]", found)


def begin(root: Path, meta: Mapping[str, Any], rank: int, first_step: int) -> dict[str, Any]:
    """Tell `run.json` of a session: `meta` of the newest on top, of every one under `sessions`.

    Rank 0 tells it; another rank does so only where nobody has yet.
    """
    known = (root / FILE).exists()
    earlier = read(root) if known else {}
    if known and rank:
        return earlier
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    session = {"started": started, "first_step": first_step, "rank": rank, **plain(meta)}
    told = {"schema_version": SCHEMA_VERSION, **plain(meta), "sessions": [*earlier.get("sessions", []), session]}
    temporary = _write(told, root, rank)
    if rank == 0 or not _put_first(temporary, root / FILE):
        os.replace(temporary, root / FILE)
    return told


def tell(root: Path, facts: Mapping[str, Any], rank: int) -> None:
    """Add what becomes known while a run is written: on top, and to the newest session."""
    known = read(root)
    *earlier, session = known["sessions"]
    told = {**known, **plain(facts), "sessions": [*earlier, {**session, **plain(facts)}]}
    os.replace(_write(told, root, rank), root / FILE)


def _write(told: Mapping[str, Any], root: Path, rank: int) -> Path:
    """A whole file, which has not its name yet."""
    temporary = root / f".{FILE}.tmp{rank}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(told, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _put_first(temporary: Path, path: Path) -> bool:
    """Give a file its name unless another has it already; false where the file system cannot."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:
        return False
    temporary.unlink()
    return True


def refuse_foreign(root: Path) -> None:
    """Leave a folder alone that has our name but somebody else's contents.

    Raises:
        RecordError: it has files, and none of them says that it is a run.
    """
    if not root.is_dir():
        return
    foreign = sorted(name for name in os.listdir(root) if not _OURS.fullmatch(name))
    if foreign and not (root / FILE).exists():  # asked last: another rank may begin the run meanwhile
        raise RecordError(
            f"{root} holds something else ({', '.join(foreign[:3])}) and no {FILE}; it is left alone: "
            "pass another logdir, or move it away"
        )


def plain(value: Any) -> Any:
    """The value as JSON can hold it: what JSON has no word for becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in cast("Iterable[Any]", value)]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
