"""Values that torch's CPU kernel for LSTMs (oneDNN) saves of a layer for its own backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradscope.capture.layout import Dense
from gradscope.private import saved
from gradscope.types import Kept

GATES = 4
SAMPLE = 32
LINE, ALIASED = 16, 256
"""Numbers in a line of the cache; oneDNN adds a line to rows whose width is a multiple of the second."""


def take_kept(node: Any, layout: Dense, *, lower: bool) -> Kept | None:
    """Copy the saved values of the analysed sequences.

    Args:
        node: a `MkldnnRnnLayerBackward0` that has not run yet.
        layout: layout of the call's tensors, with the sequences to copy.
        lower: True for a layer below others: the call does not return its output.

    Returns:
        None if the workspace does not look as expected.
    """
    with torch.no_grad():
        inputs, output, space, reverse = (saved(node, name) for name in ("input", "result0", "result3", "reverse"))
        if inputs is None or output is None or space is None or reverse is None:
            return None
        gates = _gates(space, output, layout.columns)
        if gates is None:
            return None
        t, b = _sample(*gates.shape[1:3], device=gates.device)
        time = len(output) - 1 - t if reverse else t
        column = b if layout.columns is None else layout.columns[b]
        return Kept(
            gates=gates,
            output=layout.time_first(output.detach()) if lower else None,
            places=(t, b),
            input=inputs.detach()[time, column],
        )


def _gates(space: Tensor, output: Tensor, columns: Tensor | None) -> Tensor | None:
    """Gates of the chosen sequences in the order of the recurrence, [4, T, n, H], from the head of the workspace."""
    steps, batch, hidden = output.shape
    width = -(-GATES * hidden // LINE) * LINE
    width += LINE if width % ALIASED == 0 else 0
    size = steps * batch * width
    if space.dtype != torch.uint8 or not space.is_contiguous() or space.numel() < size * output.element_size():
        return None
    rows = space.view(output.dtype)[:size].view(steps, batch, width)[..., : GATES * hidden]
    gates = rows.unflatten(-1, (GATES, hidden)).permute(2, 0, 1, 3)
    return gates.contiguous() if columns is None else gates.index_select(2, columns)


def _sample(steps: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Timesteps and sequences of up to `SAMPLE` evenly spaced places."""
    count = steps * batch
    places = torch.linspace(0, count - 1, min(SAMPLE, count), dtype=torch.float64, device=device).long()
    return places // batch, places % batch
