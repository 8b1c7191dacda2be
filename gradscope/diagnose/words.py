"""How the user's own modules and parameters are called, and how numbers are told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradscope.types import LayerKey

MODEL = "model"


def typed(module: str) -> str:
    """The expression that gives a module: `model.encoder`, `model.layers[0].rnn`, `model` if it is the model itself."""
    name = MODEL
    for part in module.split(".") if module else ():
        name += f"[{part}]" if part.isdigit() else f".{part}" if part.isidentifier() else f".get_submodule({part!r})"
    return name


def parameter(key: LayerKey, kind: str, modules: Mapping[str, Mapping[str, Any]]) -> str:
    """The expression that gives a parameter of a recurrence: `model.encoder.weight_hh_l0`."""
    cell = str(modules.get(key.module, {}).get("class", "")).endswith("Cell")
    suffix = "" if cell else f"_l{key.layer}{'_reverse' if key.direction == 'reverse' else ''}"
    return f"{typed(key.module)}.{kind}{suffix}"


def place(key: LayerKey, alone: bool = True) -> str:
    """Where in words: `model.encoder`, or `model.encoder, layer 1, reverse` where there are several."""
    return typed(key.module) if alone else f"{typed(key.module)}, layer {key.layer}, {key.direction}"


def number(value: float) -> str:
    """Three digits at most, for people."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share, for people."""
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else f"{100 * share:.1g} %"


def plural(count: int, word: str, several: str = "") -> str:
    """`1 step`, `2 steps`; `several` for words that are not made so."""
    return f"{count:,} {word if count == 1 else several or f'{word}s'}"
