"""The documentation builds without a single warning, and asks nothing of the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

for needed in ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter", "l2m4m"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(r"""(?:src|<link[^>]*\shref)=["'](https?:[^"']*)""")


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    assert not {url for page in pages for url in FETCHED.findall(page.read_text(encoding="utf-8"))}
    shown = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    assert all(name in shown for name in ("gradscope.scope.attach", "gradscope.Run", "forget_bias_", "max_sequences"))
