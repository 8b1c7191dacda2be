"""The table in docs/integrations.md names what there is."""

from __future__ import annotations

import re
from pathlib import Path

from frameworks.table import PAGE, current

ROOT = Path(__file__).parents[2]
SHARED = {"gradscope_pytest", "gradscope_scalars", "gradscope_sessions", "gradscope_tracking"}


def test_every_integration_is_in_the_table() -> None:
    there = {path.stem for path in (ROOT / "integrations").glob("*.py")} - SHARED
    rows = [line for line in current().splitlines() if "`gradscope_" in line]
    assert {re.search(r"`(gradscope_\w+)`", row)[1] for row in rows} == there
    assert all(row.endswith("| yes |") for row in rows)
    named = set(re.findall(r"`(gradscope_\w+)` \| `", PAGE.read_text(encoding="utf-8")))
    assert named == there  # in the table of what to write as well


def test_versions_are_those_that_are_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    for package, version in re.findall(r"^\| [^|]+ \| (\S+) (\S+) \|", current(), re.MULTILINE):
        assert f"{package}=={version} " in pins
