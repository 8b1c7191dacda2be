"""Whatever is given to `attach` or to the command is taken, or refused in one line that says what would be right."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import gradscope
from gradscope.attach.kernels import KERNELS
from gradscope.cli import main

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=True), st.text(max_size=8), st.binary(max_size=4),
    st.lists(st.integers() | st.text(max_size=4), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.sampled_from([object(), int, nn.GRU, torch.ones(2), math.inf]),
)  # fmt: skip
NAMES = ("every", "budget", "quantities", "max_sequences", "include", "exclude", "first_step", "cells", "positions")


@pytest.mark.filterwarnings("ignore::gradscope.GradscopeWarning")
@settings(max_examples=120, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), ODD, min_size=1, max_size=3))
def test_any_arguments(arguments: dict[str, Any]) -> None:
    """Taken, and then a step works; or an `AttachError` that names the argument. Either way nothing remains."""
    model = nn.GRU(2, 3)
    try:
        scope = gradscope.attach(model, strict=False, **arguments)
    except gradscope.errors.AttachError as error:
        assert any(name in str(error) for name in (*arguments, "layer", "pattern"))
        assert "\n" not in str(error).strip() and len(str(error)) < 1000
    else:
        with scope:
            model(torch.ones(3, 2, 2))[0].sum().backward()
    assert not KERNELS.handles


@pytest.mark.parametrize("model", [None, 3, "model", nn.GRU, object(), [nn.GRU(2, 2)]])
def test_no_model(model: Any) -> None:
    with pytest.raises(gradscope.errors.AttachError, match="Pass the model itself"):
        gradscope.attach(model)


WORDS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=12)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    command=st.sampled_from(["report", "compare", "check"]),
    words=st.lists(WORDS | st.sampled_from(["--format", "-o", "--fail-on", "json", "critical", "--", "."]), max_size=3),
)
def test_any_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, command: str, words: list[str]
) -> None:
    """Status 2 and a reason, or 0 for `--help`; no traceback, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gradscope", command, *words])
    status, told = main(), capsys.readouterr()
    assert status == 2 or "--help" in words
    assert "Traceback" not in told.err and (told.err + told.out).strip()
    assert not list(tmp_path.iterdir())
