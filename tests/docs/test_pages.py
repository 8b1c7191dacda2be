"""Every block of Python in the README and the documentation runs, in the order of its page."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

import matplotlib.pyplot as plt
import pytest
import torch
from processors import lacks

sybil = pytest.importorskip("sybil", reason="sybil is not installed")
from sybil import Sybil  # noqa: E402
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser  # noqa: E402

KERNEL = torch._VF.lstm
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:.*:UserWarning:torch")  # of torch.compile
@pytest.mark.parametrize("document", PAGES, ids=lambda document: document.stem)
def test_code_blocks_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plt.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["python"])
    before = torch.get_default_dtype()
    page = Sybil([PythonCodeBlockParser(), SkipParser()]).parse(document)
    page.namespace["lacks"] = lacks
    try:
        skipped = list(reasons(page.examples()))
    finally:
        torch.set_default_dtype(before)
        plt.close("all")
        forget(page.namespace)
    assert torch._VF.lstm is KERNEL, "a scope of this page is still open"
    if skipped:
        pytest.skip(f"all but {len(skipped)} blocks ran: {'; '.join(skipped)}")


def forget(namespace: dict[str, Any]) -> None:
    """A graph and a class in it may refer to each other, which no collector sees. Dynamo removes its own names."""
    for name in [name for name in namespace if not name.startswith("__")]:
        del namespace[name]


def reasons(examples: Iterable[Any]) -> Iterator[str]:
    """Run the blocks of a page, and say why some are skipped."""
    for example in examples:
        try:
            example.evaluate()
        except SkipTest as skipped:
            yield str(skipped)


def test_no_page_skips_its_code_without_saying_why() -> None:
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("<!--- skip:"):
                assert line.startswith("<!--- skip: next "), f"{page}: {line}"
                assert "if(" in line or "because" in line or '"' in line, f"{page}: say why: {line}"
