"""Values that torch's CPU kernel for LSTMs (oneDNN) saves of a layer for its own backward pass."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from gradscope.capture.layout import Dense
from gradscope.private import saved
from gradscope.types import Saved

GATES = 4
SAMPLE = 32
LINE, ALIASED = 16, 256
"""Numbers in a line of the cache; oneDNN adds a line to rows whose width is a multiple of the second."""


def copy_saved(node: Any, layout: Dense, *, lower: bool) -> Saved | None:
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
        return Saved(
            gates=gates,
            output=layout.time_first(output.detach()) if lower else None,
            places=(t, b),
            input=inputs[time, column],
        )


def _gates(space: Tensor, output: Tensor, columns: Tensor | None) -> Tensor | None:
    """Gates of the chosen sequences in the order of the recurrence, [4, T, n, H], from the head of the workspace."""
    steps, batch, hidden = output.shape
    width = -(-GATES * hidden // LINE) * LINE
    width += LINE if width % ALIASED == 0 else 0
    size = steps * batch * width
    if space.dtype != torch.uint8 or not space.is_contiguous() or space.numel() < size * output.element_size():
        return None
    strides = hidden, batch * width, width, 1
    gates = space.view(output.dtype).as_strided((GATES, steps, batch, hidden), strides)
    return gates.contiguous() if columns is None else gates.index_select(2, columns)


@functools.lru_cache(maxsize=16)
def _sample(steps: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Timesteps and sequences of up to `SAMPLE` evenly spaced places."""
    count = steps * batch
    last = min(SAMPLE, count) - 1
    places = [divmod(n * (count - 1) // max(1, last), batch) for n in range(last + 1)]
    t, b = torch.tensor(places, device=device).unbind(1)
    return t, b
