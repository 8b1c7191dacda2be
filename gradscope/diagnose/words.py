"""Names of the user's modules and parameters as code, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradscope.types import LayerKey

MODEL = "model"


def typed(module: str) -> str:
    """Write a module as an expression: `model.encoder`, `model.layers[0].rnn`, or `model` for the model itself."""
    name = MODEL
    for part in module.split(".") if module else ():
        name += f"[{part}]" if part.isdigit() else f".{part}" if part.isidentifier() else f".get_submodule({part!r})"
    return name


def parameter(key: LayerKey, kind: str, modules: Mapping[str, Mapping[str, Any]]) -> str:
    """Write a parameter of a recurrence as an expression: `model.encoder.weight_hh_l0`."""
    cell = str(modules.get(key.module, {}).get("class", "")).endswith("Cell")
    suffix = "" if cell else f"_l{key.layer}{'_reverse' if key.direction == 'reverse' else ''}"
    return f"{typed(key.module)}.{kind}{suffix}"


def place(key: LayerKey, alone: bool = True) -> str:
    """Name a layer: `model.encoder`, or `model.encoder, layer 1, reverse` if the module has several."""
    return typed(key.module) if alone else f"{typed(key.module)}, layer {key.layer}, {key.direction}"


def number(value: float) -> str:
    """Write a number with three digits at most."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.3g}"


def percent(share: float) -> str:
    """Write a share as a percentage."""
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else f"{100 * share:.1g} %"


def plural(count: int, word: str, several: str = "") -> str:
    """Write a count with its noun: `1 step`, `2 steps`; `several` is an irregular plural."""
    return f"{count:,} {word if count == 1 else several or f'{word}s'}"
