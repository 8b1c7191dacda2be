"""The examples in the docstrings hold."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import gradscope_tensorboard
import pytest

NAMES = [f"gradscope_tensorboard.{module.name}" for module in pkgutil.iter_modules(gradscope_tensorboard.__path__)]


@pytest.mark.parametrize("name", ["gradscope_tensorboard", *NAMES])
def test_doctests(name: str) -> None:
    assert not doctest.testmod(importlib.import_module(name)).failed


def test_files_are_small() -> None:
    for name in NAMES:
        path = importlib.import_module(name).__file__
        assert path is not None
        with open(path, encoding="utf-8") as file:
            assert len(file.readlines()) <= 200
