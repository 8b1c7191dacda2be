"""Unrolls a cell over time: the loop inside a fused kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradscope.errors import GradscopeError


def unroll(
    cell: nn.Module,
    x: Tensor,
    state: Any,
    *,
    running: list[Tensor | None] | None = None,
    reverse: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """s_t = cell(x_t, s_{t-1}) for t = 0, ..., T - 1, or from T - 1 back to 0: one call of the cell per timestep.

    Args:
        cell: returns the new state, or (output, new state).
        x: [T, B, D].
        state: the initial state, [B, H] or a tuple of such tensors.
        running: by t, a mask of the sequences that take this step, [B, 1], None for all; the others keep their state.
        reverse: True to run from T - 1 to 0.
        mask: recurrent dropout, [B, H], for the cell at every step.

    Returns:
        The outputs in the order of the input, [T, B, H], and the last state.
    """
    extra = {} if mask is None else {"mask": mask}
    outputs: list[Tensor] = []
    steps = x.unbind(0)
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        output, new = parted(cell(steps[t], state, **extra), state)
        state = new if running is None else where_running(running[t], new, state)
        outputs.append(output)
    return torch.stack(outputs[::-1] if reverse else outputs), state


def parted(result: Any, state: Any) -> tuple[Tensor, Any]:
    """Split a cell's result, the new state alone or with an output, into output and new state.

    Raises:
        GradscopeError: it is neither.
    """
    if form(result) == form(state):
        return (result if isinstance(result, Tensor) else result[0]), result
    if isinstance(result, tuple) and len(result) == 2 and form(result[1]) == form(state):
        return result
    raise GradscopeError(
        f"a cell with a state of {form(state)} returned {form(result)}: "
        "it has to return the new state in the same form, or (output, state)"
    )


def form(state: Any) -> str:
    """The form of a state in words: a tensor, or a tuple of so many."""
    if isinstance(state, Tensor):
        return "a tensor"
    if isinstance(state, tuple) and all(isinstance(s, Tensor) for s in state):
        return f"a tuple of {len(state)} tensors"
    return f"a {type(state).__name__}"


def where_running(running: Tensor | None, new: Any, old: Any) -> Any:
    """The new state of running sequences, the old state of the others."""
    if running is None:
        return new
    if isinstance(new, Tensor):
        return torch.where(running, new, old)
    return tuple(torch.where(running, n, o) for n, o in zip(new, old, strict=True))
