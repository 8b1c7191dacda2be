"""The table in docs/integrations.md names what there is."""

from __future__ import annotations

import re
from pathlib import Path

from frameworks.table import PAGE, current

ROOT = Path(__file__).parents[2]
SHARED = {"__init__", "pytest", "scalars", "sessions", "tracking"}


def test_every_integration_is_in_the_table() -> None:
    there = {path.stem for path in (ROOT / "integrations" / "gradscope_integrations").glob("*.py")} - SHARED
    rows = [line for line in current().splitlines() if "`gradscope_integrations." in line]
    assert {re.search(r"`gradscope_integrations\.(\w+)`", row)[1] for row in rows} == there
    assert all(row.endswith("| yes |") for row in rows)
    named = set(re.findall(r"`gradscope_integrations\.(\w+)` \| `", PAGE.read_text(encoding="utf-8")))
    assert named == there  # in the table of what to write as well


def test_versions_are_those_that_are_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    for package, version in re.findall(r"^\| [^|]+ \| (\S+) (\S+) \|", current(), re.MULTILINE):
        assert f"{package}=={version} " in pins
