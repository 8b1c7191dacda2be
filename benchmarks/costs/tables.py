"""Tables as text and as Markdown."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

WIDTH = 118


@dataclass(slots=True)
class Table:
    """A table with notes under it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        widths = [max(len(row[i]) for row in [self.columns, *self.rows]) for i in range(len(self.columns))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [self.columns, tuple("-" * width for width in widths), *self.rows]
        ]
        notes = [textwrap.fill(note, WIDTH, initial_indent="  ", subsequent_indent="  ") for note in self.notes]
        return "\n".join([self.title, "", *lines, *notes])

    def markdown(self, level: int = 2) -> str:
        rows = [self.columns, ("---",) * len(self.columns), *self.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n\n".join([f"{'#' * level} {self.title}", "\n".join(lines), *self.notes])


def renewed(page: str, tables: list[Table], level: int = 2) -> str:
    """A page with these tables in place of those of the same titles; a new one comes behind the one before it."""
    mark = f"{'#' * level} "
    head, *parts = re.split(f"^(?={mark})", page, flags=re.MULTILINE)
    found = {part.splitlines()[0].removeprefix(mark): part.rstrip() for part in parts}
    titles, place = list(found), 0
    for table in tables:
        if table.title in titles:
            place = titles.index(table.title)
        else:
            titles.insert(place, table.title)
        found[table.title] = table.markdown(level)
        place += 1
    return "\n\n".join([head.rstrip(), *(found[title] for title in titles)]) + "\n"


def rows_of(page: str, title: str) -> list[tuple[str, ...]]:
    """The rows of a table in Markdown."""
    lines = re.split(f"^#+ {re.escape(title)}$", page, flags=re.MULTILINE)[-1].strip().splitlines()
    rows = [tuple(line.strip("| ").split(" | ")) for line in itertools.takewhile(lambda x: x.startswith("|"), lines)]
    return rows[2:]


def text(header: Mapping[str, str], tables: list[Table]) -> str:
    head = "\n".join(f"{name:<10}{value}" for name, value in header.items())
    return "\n\n".join([head, *(table.text() for table in tables)])


def markdown(header: Mapping[str, str], tables: list[Table], introduction: str, level: int = 2) -> str:
    head = "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in header.items())])
    return "\n\n".join([introduction.strip(), head, *(table.markdown(level) for table in tables)]) + "\n"
