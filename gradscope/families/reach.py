"""How far back a loss gradient reaches: the gradients of a few anchors, carried back alone beside the total.

`reach` at lag k of an anchor a is ||J_{a-k+1}^T ... J_a^T v|| / ||v||, where v is the gradient that enters the state at
a from outside. `reach` does not depend on the loss scale, and is comparable for a loss on the last or on every step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ANCHORS = 3


class Anchors(NamedTuple):
    """The anchors of each sequence, the latest first.

    Attributes:
        times: timesteps, [A, B], -1 where a sequence has fewer anchors.
        sizes: norm of the gradient that enters at each anchor, [A, B].
    """

    times: Tensor
    sizes: Tensor

    @classmethod
    def none(cls, entering: Tensor) -> Anchors:
        """No anchor in any sequence of [T, B]."""
        return cls(entering.new_empty(0, entering.shape[1]).long(), entering.new_empty(0, entering.shape[1]))

    def active(self, start: int) -> int:
        """How many leading anchors are at or after timestep `start` in some sequence."""
        return int((self.times >= start).any(1).sum())

    def single(self) -> bool:
        """True if gradient enters each sequence only once, so that the total is the gradient of this anchor alone.

        False if that gradient is so small or large that its products with Jacobians leave the range of float32 earlier.
        """
        if not len(self.times) or bool((self.times[1:] >= 0).any()):
            return False
        known = self.sizes[self.times >= 0]
        return bool(((known > 1e-9) & (known < 1e9)).all())


def pick_anchors(entering: Tensor) -> Anchors:
    """Choose up to `ANCHORS` timesteps per sequence, evenly spaced over those where gradient enters, with the last.

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
    """Median over anchors of the remaining share of their gradients, by lag.

    Args:
        anchors: the anchors.
        carried: norm of each anchor's carried gradient relative to its first, [T, A, B].

    Returns:
        The medians, [lags, B], and True where some anchor reaches back that far, [lags, B].
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
    """Median over the present anchors of [lags, A, B]; NaN where one of them is not finite."""
    broken = (present & ~values.isfinite()).any(1)
    ranked = values.masked_fill(~present | broken.unsqueeze(1), torch.inf).sort(1).values
    count = present.sum(1, keepdim=True)
    low = ranked.gather(1, (count - 1).clamp_(min=0) // 2)
    high = ranked.gather(1, (count // 2).clamp_(max=values.shape[1] - 1))
    return ((low + high) / 2).squeeze(1).masked_fill_(broken, torch.nan)
