"""Parameter names in a `state_dict`: `cells.1.weight_ih` has the name `weight_ih_l0_reverse`, as in torch.nn."""

from __future__ import annotations

import re
from typing import Any

OURS = re.compile(r"cells\.(\d+)\.(.+)")
TORCHS = re.compile(r"(.+)_l(\d+)(_reverse)?")


def to_torch(name: str, directions: int) -> str:
    """The name under which torch.nn saves a parameter of our cells; any other name unchanged."""
    match = OURS.fullmatch(name)
    if not match:
        return name
    layer, reverse = divmod(int(match[1]), directions)
    return f"{match[2]}_l{layer}" + "_reverse" * reverse


def from_torch(name: str, directions: int, layers: int) -> str:
    """The inverse of `to_torch`; the name of a missing layer or direction stays as it is, and torch reports it."""
    match = TORCHS.fullmatch(name)
    if not match or int(match[2]) >= layers or (match[3] and directions == 1):
        return name
    return f"cells.{int(match[2]) * directions + bool(match[3])}.{match[1]}"


def renamed_on_save(module: Any, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Rename parameters; a hook after `state_dict`."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[prefix + to_torch(key[len(prefix) :], module.directions)] = state_dict.pop(key)


def renamed_on_load(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename parameters; a hook before `load_state_dict`."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[prefix + from_torch(key[len(prefix) :], module.directions, module.num_layers)] = state_dict.pop(key)
