"""Every fault that `docs/reliability.md` promises something of names tests that exist; every fault tested is in it."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

from reliability.faults import ANY_ROOT, MOUNTED

ROOT = Path(__file__).parents[2]
NAMES = [fault.name for fault in (*ANY_ROOT, *MOUNTED)]


def rows() -> list[list[str]]:
    """The cells of the table of faults."""
    lines = (ROOT / "docs/reliability.md").read_text().partition("\n## Faults\n")[2].partition("\n## ")[0].splitlines()
    found = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return found[1:]


def named(row: list[str]) -> list[str]:
    return re.findall(r"`([^`]+)`", row[-1])


def test_every_row_names_tests_that_exist() -> None:
    assert len(rows()) > 20
    for row in rows():
        assert len(row) == 5 and named(row), row
        for name in named(row):
            path, _, function = name.partition("::")
            if function:
                assert re.search(rf"^def {function}\(", (ROOT / path).read_text(), re.MULTILINE), name
            else:
                assert any(fnmatchcase(fault, name) for fault in NAMES), name


def test_every_fault_that_is_tested_is_in_one_row() -> None:
    for fault in NAMES:
        assert len([row for row in rows() if any(fnmatchcase(fault, name) for name in named(row))]) == 1, fault
