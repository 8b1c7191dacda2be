"""A snapshot of every name, column, label, help text and message: who changes one sees it beside its neighbours."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("seaborn")
from surface import surface  # noqa: E402

GOLDEN = Path(__file__).parent / "golden" / "surface.txt"


def test_what_users_read_has_not_changed_unseen() -> None:
    expected, found = GOLDEN.read_text(encoding="utf-8"), surface()
    changed = "\n".join(
        difflib.unified_diff(expected.splitlines(), found.splitlines(), "before", "now", n=1, lineterm="")
    )
    assert not changed, f"{changed}\n\nif it is meant: python tests/surface.py > tests/golden/surface.txt"
