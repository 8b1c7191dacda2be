"""How far back a loss gradient reaches: the gradients of a few anchors, carried back alone beside the total.

`reach` at lag k of an anchor a is ||J_{a-k+1}^T ... J_a^T v|| / ||v||, where v is the gradient that enters the state at
a from outside. `reach` does not depend on the loss scale, and is comparable for a loss on the last or on every step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradscope.families.counting import column

ANCHORS = 3


class Anchors(NamedTuple):
    """The anchors of each sequence, the latest first.

    Attributes:
        times: timesteps, [A, B], -1 where a sequence has fewer anchors.
        sizes: norm of the gradient that enters at each anchor, [A, B].
        latest: of each anchor, its latest timestep in any sequence; on the host.
    """

    times: Tensor
    sizes: Tensor
    latest: list[int]

    @classmethod
    def none(cls, entering: Tensor) -> Anchors:
        """No anchor in any sequence of [T, B]."""
        return cls(entering.new_empty(0, entering.shape[1]).long(), entering.new_empty(0, entering.shape[1]), [])

    @property
    def used(self) -> int:
        """How many leading anchors to measure: those of some sequence, at least one."""
        return max(1, self.active(0))

    def active(self, start: int) -> int:
        """How many leading anchors are at or after timestep `start` in some sequence."""
        return sum(time >= start for time in self.latest)

    def single(self) -> bool:
        """True if gradient enters each sequence only once, so that the total is the gradient of this anchor alone.

        False if that gradient is so small or large that its products with Jacobians leave the range of float32 earlier.
        """
        if not self.latest or self.active(0) > 1:
            return False
        known = zip(self.times.tolist()[0], self.sizes.tolist()[0], strict=True)
        return all(1e-9 < size < 1e9 for time, size in known if time >= 0)


def pick_anchors(entering: Tensor) -> Anchors:
    """Choose up to `ANCHORS` timesteps per sequence, evenly spaced over those where gradient enters, with the last.

    Args:
        entering: norm of the gradient that enters the state from outside, [T, B].
    """
    rank = (entering != 0).cumsum(0)
    count = rank[-1]
    anchors = count.clamp(max=ANCHORS)
    rows = column(ANCHORS, entering.device)
    wanted = (anchors - rows) * count // anchors.clamp(min=1)
    times = (rank < wanted.unsqueeze(1)).sum(1)
    sizes = entering.gather(0, times)
    times.masked_fill_(rows >= anchors, -1)
    return Anchors(times, sizes, times.amax(1).tolist())


def reach_by_lag(anchors: Anchors, carried: Tensor) -> tuple[Tensor, Tensor]:
    """Median over anchors of the remaining share of their gradients, by lag.

    Args:
        anchors: the anchors.
        carried: norm of each anchor's carried gradient relative to its first, [T, A, B].

    Returns:
        The medians, [lags, B], and True where some anchor reaches back that far, [lags, B].
    """
    lags = max(anchors.latest, default=-1) + 1
    lag = column(lags, carried.device)
    single = anchors.used == 1
    source = anchors.times[0] - lag if single else anchors.times[: anchors.used] - lag.unsqueeze(1)
    present = source >= 0
    values = (carried[:, 0] if single else carried).gather(0, source.clamp_(min=0))
    known = (values < torch.inf).logical_and_(present)
    if single:
        return values.masked_fill_(~known, torch.nan), present
    return _median(values, present, known), present.any(1)


def _median(values: Tensor, present: Tensor, known: Tensor) -> Tensor:
    """Median over the present anchors of [lags, A, B]; NaN where one of them is not finite."""
    broken = (present != known).any(1, keepdim=True)
    ranked = values.masked_fill_(~present | broken, torch.inf).sort(1).values
    count = present.sum(1, keepdim=True)
    low = ranked.gather(1, (count - 1).clamp_(min=0) // 2)
    high = ranked.gather(1, (count // 2).clamp_(max=values.shape[1] - 1))
    return ((low + high) / 2).masked_fill_(broken, torch.nan).squeeze(1)
