"""The Parquet files of one rank, and their changes, which a reader sees whole or not at all.

A flush writes one part per table, all under the same number, `steps` last: the `part-<n>` of `steps` completes the
flush, so readers ignore the files of a process killed between two files. A merge writes `part-<first>-<last>`, which
replaces the parts of these flushes from the moment it has its name; the merge then deletes those parts. Both rules
follow from the names alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from gradscope.record import arrow
from gradscope.record.schema import FLOAT, TABLES

SEALED_BYTES = 32 * 2**20
"""Merges make files of up to this size, and leave such files alone."""
_GROUP_ROWS = 131_072
_SMALL_BYTES = 2**18
"""Filters choose row groups in larger files alone: in a small one this takes longer than reading all of it."""
_NAME = re.compile(r"part-(\d+)(?:-(\d+))?\.parquet")
_RANK = re.compile(r"rank=(\d{1,9})")


class Part(NamedTuple):
    """One file, with the flushes from `first` to `last`."""

    first: int
    last: int
    path: Path


def ranks(root: Path) -> list[int]:
    """List the ranks that have written into a run folder."""
    names = (entry for name in TABLES for entry in _names(root / name))
    return sorted({int(match[1]) for name in names if (match := _RANK.fullmatch(name))})


def directory(root: Path, table: str, rank: int) -> Path:
    """Return the folder of the parts of one table and rank."""
    return root / table / f"rank={rank}"


def live(root: Path, table: str, rank: int) -> list[Part]:
    """List the live parts in the order of writing: neither replaced nor of an unfinished flush."""
    parts = _unreplaced(_listed(directory(root, table, rank)))
    last = finished(root, rank)
    return [part for part in parts if part.last <= last]


def finished(root: Path, rank: int) -> int:
    """Return the number of the last finished flush, 0 if there is none."""
    return max((part.last for part in _listed(directory(root, "steps", rank))), default=0)


def _listed(folder: Path) -> list[Part]:
    matches = [match for name in _names(folder) if (match := _NAME.fullmatch(name))]
    return [Part(int(match[1]), int(match[2] or match[1]), folder / match[0]) for match in matches]


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def _unreplaced(parts: Iterable[Part]) -> list[Part]:
    valid: list[Part] = []
    for part in sorted(parts, key=lambda part: (part.first, -part.last)):
        if not valid or part.last > valid[-1].last:
            valid.append(part)
    return valid


def sweep(root: Path, rank: int) -> None:
    """Delete the remains of a killed process; only the owner of the lock may do so."""
    for name in TABLES:
        folder = directory(root, name, rank)
        alive = {part.path for part in live(root, name, rank)}
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            if entry not in alive and (_NAME.fullmatch(entry.name) or entry.name.endswith(".parquet.tmp")):
                entry.unlink()


def write(path: Path, name: str, table: Any, *, durable: bool = False) -> None:
    """Write one part, whole or not at all; with `durable` it survives a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _writer(path, name, table.schema, durable=durable) as writer:
        writer.write_table(table, row_group_size=_GROUP_ROWS)


@contextmanager
def _writer(path: Path, name: str, schema: Any, *, durable: bool) -> Generator[Any, None, None]:
    temporary = path.with_name(f".{path.name}.tmp")
    options: dict[str, Any] = {
        "compression": "zstd",
        "use_dictionary": [column for column, kind in TABLES[name].columns.items() if kind != FLOAT],
        "write_page_checksum": True,
        "store_schema": False,
    }
    try:
        with arrow.parquet().ParquetWriter(temporary, schema, **options) as writer:
            yield writer
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _sync(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def merge(root: Path, rank: int) -> None:
    """Join neighbouring small parts of each table; if one is damaged, or the disk is full, they stay as they are."""
    for name in TABLES:
        for group in _groups(live(root, name, rank)):
            with suppress(*unreadable()):
                rewrite(name, group)


def _groups(parts: Sequence[Part]) -> Iterator[list[Part]]:
    group: list[Part] = []
    total = 0
    for part in parts:
        size = part.path.stat().st_size
        if group and total + size > SEALED_BYTES:
            yield group
            group, total = [], 0
        group.append(part)
        total += size
    yield group


def rewrite(name: str, group: Sequence[Part], dropped: Any = None) -> None:
    """Replace several parts, or one, by one part without the rows of the dropped steps."""
    if len(group) < 2 and dropped is None:
        return
    first, last = group[0].first, group[-1].last
    number = f"{first:06}" if first == last else f"{first:06}-{last:06}"
    path = group[0].path.with_name(f"part-{number}.parquet")
    with _writer(path, name, arrow.schema(TABLES[name]), durable=True) as writer:
        for table in _gathered(name, group, dropped):
            writer.write_table(table)
    for part in group:
        if part.path != path:
            os.unlink(part.path)


def _gathered(name: str, group: Sequence[Part], dropped: Any) -> Iterator[Any]:
    """Yield the rows of some parts, in pieces large enough for row groups."""
    pa, parquet = arrow.pyarrow(), arrow.parquet()
    pieces: list[Any] = []
    for part in group:
        with parquet.ParquetFile(part.path, page_checksum_verification=True) as file:
            for index in range(file.num_row_groups):
                piece = _completed(file.read_row_group(index), name, [*TABLES[name].columns])
                if dropped is not None:
                    piece = piece.filter(~arrow.compute().field("step").isin(dropped))
                pieces.append(piece)
                if sum(map(len, pieces)) >= _GROUP_ROWS:
                    yield pa.concat_tables(pieces)
                    pieces = []
    if any(map(len, pieces)):
        yield pa.concat_tables(pieces)


def read(part: Part, name: str, columns: Sequence[str], wanted: Any) -> Any:
    """Read some columns of one part, and the rows that meet an expression over these columns."""
    parquet, options = arrow.parquet(), {"partitioning": None, "page_checksum_verification": True}
    if wanted is not None and part.path.stat().st_size > _SMALL_BYTES:
        with suppress(arrow.pyarrow().ArrowInvalid):  # damaged, or of an earlier gradscope
            return _cast(parquet.read_table(part.path, columns=list(columns), filters=wanted, **options), name, columns)
    with parquet.ParquetFile(part.path, page_checksum_verification=True) as file:
        table = _completed(file.read(columns=list(columns)), name, columns)
    return _cast(table if wanted is None else table.filter(wanted), name, columns)


def _cast(table: Any, name: str, columns: Sequence[str]) -> Any:
    fields = [arrow.schema(TABLES[name]).field(column) for column in columns]
    return table.select(list(columns)).cast(arrow.pyarrow().schema(fields))


def _completed(table: Any, name: str, columns: Sequence[str]) -> Any:
    """Add the columns that an earlier gradscope did not write, as NaN."""
    pa, schema = arrow.pyarrow(), arrow.schema(TABLES[name])
    missing = [field for field in schema if field.name in columns and field.name not in table.column_names]
    for field in missing:
        table = table.append_column(field, pa.array([float("nan")] * len(table), field.type))
    return table.select(list(columns)) if missing else table


def count(part: Part) -> int:
    """Read the number of rows from a part's footer."""
    return arrow.parquet().read_metadata(part.path).num_rows


def bounds(part: Part) -> tuple[int, int] | None:
    """Read the lowest and highest step from a part's footer; None if the part is empty or damaged."""
    try:
        meta = arrow.parquet().read_metadata(part.path)
    except unreadable():
        return None
    groups = [meta.row_group(index).column(0).statistics for index in range(meta.num_row_groups)]
    ends = [group for group in groups if group is not None and group.has_min_max and isinstance(group.min, int)]
    return (min(end.min for end in ends), max(end.max for end in ends)) if ends else None


def unreadable() -> tuple[type[Exception], ...]:
    """Return Arrow's exceptions for a file that is truncated, corrupt, or no Parquet file."""
    return (arrow.pyarrow().ArrowException, OSError, ValueError, KeyError)
