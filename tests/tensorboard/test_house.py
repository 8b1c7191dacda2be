"""Files are small, and only public names of gradscope are used."""

from __future__ import annotations

import ast
import importlib
import pkgutil

import gradscope_tensorboard
import pytest

import gradscope

NAMES = [f"gradscope_tensorboard.{module.name}" for module in pkgutil.iter_modules(gradscope_tensorboard.__path__)]


@pytest.mark.parametrize("name", NAMES)
def test_house_rules(name: str) -> None:
    path = importlib.import_module(name).__file__
    assert path is not None
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "gradscope":
            assert node.module == "gradscope"
            assert {alias.name for alias in node.names} <= {*gradscope.__all__}
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("gradscope.") for alias in node.names)
