"""The examples of integrations run, each in a process of its own, and print what was recorded."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import forks
import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "frameworks").glob("with_*.py"))
NEEDS = {"sb3": "sb3_contrib"}
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each is a fork")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    framework = path.stem.removeprefix("with_")
    if not importlib.util.find_spec(NEEDS.get(framework, framework)):
        pytest.skip(f"make frameworks installs {framework}")
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    run = forks.script(path, tmp_path, paths)
    assert run.status == 0, run.err
    rows = [line.split() for line in run.out.splitlines() if "rnn" in line or "lstm" in line]
    assert len(rows) >= 2 and all(float(row[2]) > 0 for row in rows)  # the horizon


def test_examples_are_short() -> None:
    assert len(EXAMPLES) == 8
    assert all(len(path.read_text(encoding="utf-8").splitlines()) < 120 for path in EXAMPLES)
