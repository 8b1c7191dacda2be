from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import gradscope.cells

ROOMS = [
    "gradscope.cells",
    *(found.name for found in pkgutil.iter_modules(gradscope.cells.__path__, "gradscope.cells.")),
]


@pytest.mark.parametrize("name", ROOMS)
def test_doctests(name: str) -> None:
    torch.set_default_dtype(torch.float32)
    assert not doctest.testmod(importlib.import_module(name)).failed


def test_every_public_name_has_an_example() -> None:
    for name in gradscope.cells.__all__:
        if name != "Cell":  # abstract: its example is every other
            assert ">>>" in (getattr(gradscope.cells, name).__doc__ or ""), name
