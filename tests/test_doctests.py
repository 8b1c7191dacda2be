"""Every example in a docstring does what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import gradscope

HOUSE = Path(gradscope.__file__).parent
INTEGRATIONS = HOUSE.parent / "integrations"


def modules() -> list[str]:
    """The modules with examples, by name."""
    found: list[str] = []
    for root, top in ((HOUSE.parent, HOUSE), (INTEGRATIONS, INTEGRATIONS)):
        for path in sorted(top.rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                found.append(".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"))
    return found


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    if name.startswith("gradscope_integrations.tensorboard"):
        pytest.importorskip("tensorboard")
        import boards  # noqa: F401  (it loads TensorBoard without its warnings)
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted and not outcome.failed
