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

    @classmethod
    def none(cls, entering: Tensor) -> Anchors:
        """No anchor in any sequence of [T, B]."""
        return cls(entering.new_empty(0, entering.shape[1]).long(), entering.new_empty(0, entering.shape[1]))

    def active(self, start: int) -> int:
        """How many anchors some sequence has at or after timestep `start`: a prefix, the latest being first."""
        return int((self.times >= start).any(1).sum())

    def single(self) -> bool:
        """Whether gradient enters each sequence but once, so that the total carried back is that anchor's alone.

        Not where it is so small or large that a product of Jacobians would leave the range of float32 earlier.
        """
        if not len(self.times) or bool((self.times[1:] >= 0).any()):
            return False
        known = self.sizes[self.times >= 0]
        return bool(((known > 1e-9) & (known < 1e9)).all())


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
    steps, used = carried.shape[0], max(1, anchors.active(0))
    times, carried = anchors.times[:used], carried[:, :used]
    source = times - torch.arange(steps, device=carried.device).view(-1, 1, 1)
    present = source >= 0
    values = carried.gather(0, source.clamp_(min=0))
    reached = present.any(1)
    lags = int(reached.any(1).sum())
    if used == 1:
        median = torch.where(present & values.isfinite(), values, torch.nan).squeeze(1)
    else:
        median = _median(values, present)
    return median[:lags], reached[:lags]


def _median(values: Tensor, present: Tensor) -> Tensor:
    """Over the anchors, [lags, A, B], of those present; NaN where one of these is not finite."""
    broken = (present & ~values.isfinite()).any(1)
    ranked = values.masked_fill(~present | broken.unsqueeze(1), torch.inf).sort(1).values
    count = present.sum(1, keepdim=True)
    low = ranked.gather(1, (count - 1).clamp_(min=0) // 2)
    high = ranked.gather(1, (count // 2).clamp_(max=values.shape[1] - 1))
    return ((low + high) / 2).squeeze(1).masked_fill_(broken, torch.nan)
