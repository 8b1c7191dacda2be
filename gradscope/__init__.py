"""Gradient diagnostics for PyTorch recurrent networks.

>>> import torch, gradscope
>>> model = torch.nn.GRU(2, 4)
>>> with gradscope.attach(model, every=1) as scope:
...     model(torch.ones(6, 3, 2))[0][-1].sum().backward()
>>> scope.run.frame("reach").lag.max()
5
"""

from gradscope.compare import compare
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.record.run import Run, load
from gradscope.scope import Scope, attach
from gradscope.types import Batch, CellSpec, Finding, LayerKey, Rows

__version__ = "0.1.0.dev0"
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
