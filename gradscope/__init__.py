"""Gradient diagnostics for PyTorch recurrent networks.

>>> import torch, gradscope
>>> model = torch.nn.GRU(2, 4)
>>> with gradscope.attach(model, every=1) as scope:
...     model(torch.ones(6, 3, 2))[0][-1].sum().backward()
>>> int(scope.run.frame("reach").lag.max())
5
"""

from __future__ import annotations

import importlib
from types import ModuleType

# The package `attach`, loaded later, would replace the function of that name.
import gradscope.attach  # noqa: F401  # pyright: ignore[reportUnusedImport]
from gradscope.compare import compare
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.run import Run, load
from gradscope.scope import Scope, attach
from gradscope.types import Batch, CellSpec, Finding, LayerKey, Rows
from gradscope.version import __version__ as __version__

__all__ = [
    "Batch",
    "CellSpec",
    "Finding",
    "GradscopeError",
    "GradscopeWarning",
    "LayerKey",
    "Rows",
    "Run",
    "Scope",
    "attach",
    "compare",
    "load",
]

_ROOMS = ("cells", "plot", "testing")  # loaded when first asked for: what findings say to type works as typed


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"gradscope.{name}")
    raise AttributeError(f"module 'gradscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
