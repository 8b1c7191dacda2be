"""Parameter names in a `state_dict`: `cells.1.weight_ih` is saved as `weight_ih_l0_reverse`, as torch.nn has it."""

from __future__ import annotations

import re
from typing import Any

OURS = re.compile(r"cells\.(\d+)\.(.+)")
TORCHS = re.compile(r"(.+)_l(\d+)(_reverse)?")


def to_torch(name: str, directions: int) -> str:
    """The name under which torch.nn saves a parameter of our cells; any other name as it is."""
    found = OURS.fullmatch(name)
    if not found:
        return name
    layer, reverse = divmod(int(found[1]), directions)
    return f"{found[2]}_l{layer}" + "_reverse" * reverse


def from_torch(name: str, directions: int, layers: int) -> str:
    """The reverse; a name of a layer or direction that is not there stays as it is, and is reported by torch."""
    found = TORCHS.fullmatch(name)
    if not found or int(found[2]) >= layers or (found[3] and directions == 1):
        return name
    return f"cells.{int(found[2]) * directions + bool(found[3])}.{found[1]}"


def renamed_on_save(module: Any, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Hook after `state_dict`."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[prefix + to_torch(key[len(prefix) :], module.directions)] = state_dict.pop(key)


def renamed_on_load(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hook before `load_state_dict`."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[prefix + from_torch(key[len(prefix) :], module.directions, module.num_layers)] = state_dict.pop(key)
