"""What is promised of torch and Python is what `make compat` has shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from compat import BEGIN, END, PAGE, PAIRS, ROOT, SUITES, read, table


def test_the_page_shows_what_is_promised() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("| ")]
    assert [(torch, python) for torch, python, *_ in rows[1:]] == [*PAIRS]
    assert {failed for *_, failed, _ in rows[1:]} == {"0"} and "not run" not in shown
    assert f"torch>={PAIRS[0][0].removesuffix('.0')}" in project["dependencies"]
    pythons = sorted((python for _, python in PAIRS), key=lambda python: int(python.partition(".")[2]))
    assert project["requires-python"] == f">={pythons[0]}"
    prefix = "Programming Language :: Python :: 3."
    assert [c for c in project["classifiers"] if c.startswith(prefix)] == [f"{prefix[:-2]}{p}" for p in pythons]


def test_the_table(tmp_path: Path) -> None:
    passed, failed = "<testcase/>", '<testcase><failure message="m"/></testcase>'
    skipped = '<testcase><skipped message="no Dask"/></testcase>'
    ends = {suite: passed for suite in SUITES} | {"loop": passed + failed, "record": passed + skipped + skipped}
    for suite, cases in ends.items():
        (tmp_path / f"{suite}.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    text = table({("2.6.0", "3.10"): read(tmp_path.iterdir())})
    assert "| 2.6.0 | 3.10 | 1 | 1 | 1 | 1 | 1 | 1 | 2 |\n" in text
    assert "* no Dask: 2 with 2.6.0\n" in text
