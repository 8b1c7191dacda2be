"""What the tests of cells of one's own share: loops, and what is held."""

from __future__ import annotations

from typing import Any

import torch
from cases import uneven
from chains.hold import data
from chains.named import INPUT, Own
from torch import Tensor

TIME, BATCH = 6, 3


def losses(outputs: list[Tensor], loss: str, row: int) -> Tensor:
    """Row by row, so that a sequence alone has the loss that it had in the batch."""
    picked = {"last": outputs[-1:], "all": outputs, "some": outputs[1::2]}[loss]
    return torch.stack([uneven(o, seed=7 * row + t) for t, o in enumerate(picked)]).sum()


def run_loop(cell: Own, loss: str, more: list[Any] | None = None, batch: int = BATCH) -> tuple[Tensor, list[Any]]:
    x, state, seen = data(TIME, batch, INPUT), cell.initial(batch), []
    for t in range(TIME):
        state = cell.advance(x[t], state, *([] if more is None else [more[t]]))
        seen.append(cell.read(state))
    return sum(losses([o[b] for o in seen], loss, b) for b in range(batch)), seen
