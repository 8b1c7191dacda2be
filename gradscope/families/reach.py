"""How far back a loss gradient reaches: a few anchors' gradients carried back alone, beside the total.

`reach` at lag k of an anchor a is ||J_{a-k+1}^T ... J_a^T v|| / ||v||, v the gradient that enters the state at a from
outside. It does not depend on the loss's scale, and means the same for a loss on the last step and on every step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ANCHORS = 3


class Anchors(NamedTuple):
    """Where, for each sequence, gradients start to be carried back alone, the latest first.

    Attributes:
        times: [A, B], -1 where a sequence has fewer anchors.
        sizes: norm of the gradient that enters there, [A, B].
    """

    times: Tensor
    sizes: Tensor

    def active(self, start: int) -> int:
        """How many anchors some sequence has at or after timestep `start`: a prefix, the latest being first."""
        return int((self.times >= start).any(1).sum())

    def single(self) -> bool:
        """Whether gradient enters each sequence but once, so that the total carried back is that anchor's alone.

        Not where it is so small or large that a product of Jacobians would leave the range of float32 earlier.
        """
        known = self.sizes[self.times >= 0]
        return bool((self.times[1:] < 0).all() and ((known > 1e-9) & (known < 1e9)).all())


def pick_anchors(entering: Tensor) -> Anchors:
    """Choose up to `ANCHORS` times per sequence, evenly spaced among those where gradient enters, the last one always.

    Args:
        entering: norm of the gradient that enters the state from outside, [T, B].
    """
    enters = entering != 0
    rank = enters.cumsum(0) * enters
    count = rank.amax(0)
    anchors = count.clamp(max=ANCHORS)
    rows = torch.arange(ANCHORS, device=entering.device).unsqueeze(1)
    wanted = (anchors - rows) * count // anchors.clamp(min=1)
    hit = (rank.unsqueeze(0) == wanted.unsqueeze(1)) & (rows < anchors).unsqueeze(1)
    times = torch.where(hit.any(1), hit.to(torch.uint8).argmax(1), -1)
    return Anchors(times, entering.gather(0, times.clamp(min=0)))


def reach_by_lag(anchors: Anchors, carried: Tensor) -> tuple[Tensor, Tensor]:
    """Median over anchors of what is left of their gradient, by lag.

    Args:
        anchors: where the gradients started.
        carried: norm of each anchor's carried gradient relative to its own, [T, A, B].

    Returns:
        [lags, B] and, as booleans, whether some anchor reaches back that far.
    """
    steps = carried.shape[0]
    source = anchors.times.unsqueeze(0) - torch.arange(steps, device=carried.device).view(-1, 1, 1)
    present = (source >= 0) & (anchors.times >= 0)
    values = carried.gather(0, source.clamp(min=0))
    broken = (present & ~values.isfinite()).any(1)
    ranked = values.nan_to_num(nan=torch.inf).masked_fill(~present, torch.inf).sort(1).values
    count = present.sum(1, keepdim=True)
    low = ranked.gather(1, (count - 1).clamp(min=0) // 2)
    high = ranked.gather(1, (count // 2).clamp(max=ANCHORS - 1))
    median = ((low + high) / 2).squeeze(1).masked_fill(broken, torch.nan)
    reached = present.any(1)
    lags = int(reached.any(1).sum())
    return median[:lags], reached[:lags]
