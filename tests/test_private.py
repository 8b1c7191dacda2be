"""Where torch lacks a private name, a training is recorded all the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gradscope import private

NAMES = re.findall(r'_(?:torchs|find)\("([^"]+)"\)', Path(private.__file__).read_text(encoding="utf-8"))
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each is hidden in a process of its own")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    script = Path(__file__).with_name("hidden.py")
    run = subprocess.run([sys.executable, str(script), *NAMES], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_all_are_hidden_that_have_another_way() -> None:
    assert len(NAMES) == len({*NAMES}) > 10


@pytest.mark.parametrize("name", NAMES)
def test_without_it_the_same_is_recorded(name: str, recorded: dict[str, Any]) -> None:
    expected, found = recorded[""], recorded[name]
    assert isinstance(found, dict), found
    assert found["notes"] == expected["notes"] == []
    assert found["losses"] == expected["losses"]
    for table in ("layers", "clips"):
        assert len(found[table]) == len(expected[table]) > 0
        for ours, theirs in zip(found[table], expected[table], strict=True):
            torch.testing.assert_close(ours[-1], theirs[-1], rtol=1e-3, atol=0)
            assert ours[:-2] == theirs[:-2]
