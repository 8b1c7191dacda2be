"""Every block of Python in the README and the documentation runs, in the order of its page."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

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
    try:
        for example in Sybil([PythonCodeBlockParser(), SkipParser()]).parse(document).examples():
            example.evaluate()
    finally:
        torch.set_default_dtype(before)
        plt.close("all")
    assert torch._VF.lstm is KERNEL, "a scope of this page is still open"


def test_no_page_skips_its_code_without_saying_why() -> None:
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("<!--- skip:"):
                assert line.startswith("<!--- skip: next "), f"{page}: {line}"
                assert "if(" in line or "because" in line or '"' in line, f"{page}: say why: {line}"
