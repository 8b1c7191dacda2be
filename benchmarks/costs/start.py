"""What it takes to begin: the import beside torch's own, and attaching to a model of fifty layers."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from torch import nn

import gradscope
from costs.rounds import now, without_gc

LAYERS = 50
# Soon after torch is imported Python looks through its objects for garbage: here before our import, not within it.
IMPORT = (
    "import gc, time; a = time.perf_counter(); import torch; b = time.perf_counter(); gc.collect(); "
    "c = time.perf_counter(); import gradscope; print(b - a, time.perf_counter() - c)"
)


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds, medians.

    Attributes:
        torch: to import torch in a fresh process.
        ours: to import gradscope after that.
        attach: to attach to a model of fifty recurrent layers, in memory.
        close: to close again.
    """

    torch: float
    ours: float
    attach: float
    close: float


def fifty_layers() -> nn.Module:
    """Of all three kinds."""
    kinds = (nn.LSTM, nn.GRU, nn.RNN)
    return nn.ModuleList([kinds[i % 3](32, 32) for i in range(LAYERS)])


def attaching(model: nn.Module) -> tuple[float, float]:
    """Seconds to attach, and to close."""
    with without_gc():
        began = now()
        scope = gradscope.attach(model)
        attached = now()
        scope.close()
        return attached - began, now() - attached


def importing(cache: str) -> tuple[float, float]:
    """Seconds to import torch, and gradscope after it, in a process of its own; `cache` keeps what is compiled."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = cache
    command = [sys.executable, "-c", IMPORT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    torch_s, ours = map(float, done.stdout.split())
    return torch_s, ours


def measure_start(repeats: int) -> Start:
    """Medians of so many."""
    model = fifty_layers()
    attaching(model)
    attached = [attaching(model) for _ in range(repeats)]
    with tempfile.TemporaryDirectory() as cache:
        importing(cache)
        imports = [importing(cache) for _ in range(repeats)]
    columns = [statistics.median(c) for c in (*zip(*imports, strict=True), *zip(*attached, strict=True))]
    return Start(*columns)
