"""A loop that updates the parameters itself: nobody is told of its steps, and only the parameters show them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

BY_HAND = (
    "the recurrent parameters have changed between two backward passes, and no torch.optim.Optimizer has stepped them. "
    "Until one does, all passes count as one step: call scope.step() after each update"
)


class Stamp(NamedTuple):
    """What a parameter was when a backward pass had ended; a write through `.data` shows in the values alone."""

    parameter: Tensor
    version: int
    values: Tensor | None


class ByHand:
    """Compares the parameters of the recurrent layers between backward passes, until a step has ended.

    Attributes:
        over: a step has ended, or it has been said: there is nothing to compare any more.
    """

    def __init__(self) -> None:
        """Begin before any pass."""
        self.over = False
        self._stamps: list[Stamp] = []
        self._changes = 0

    def stop(self) -> None:
        """A step has ended."""
        self.over, self._stamps = True, []

    def ended(self, parameters: Iterable[Tensor], *, values: bool) -> None:
        """A backward pass has ended.

        Args:
            parameters: as they are.
            values: copy those of the first as well; an idle step has no operation of ours.
        """
        stamped = enumerate(_whole(parameters))
        self._stamps = [Stamp(p, p._version, p.detach().clone() if values and not n else None) for n, p in stamped]

    def begins(self, parameters: Iterable[Tensor]) -> bool:
        """A backward pass begins: whether this is the second time that parameters have changed before one.

        The first time may be something else: weights that are set before the training, or an optimizer that looks
        around before it steps, as SAM does.

        Args:
            parameters: as they are.
        """
        before, now = self._stamps, _whole(parameters)
        if len(now) == len(before) and any(map(_changed, before, now)):
            self._changes += 1
        if self._changes == 2:
            self.stop()
        return self.over


def _whole(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those that are not sharded, for what shards them puts others in their places."""
    return [p for p in parameters if type(p) is torch.nn.Parameter]


def _changed(before: Stamp, now: Tensor) -> bool:
    """Whether a parameter was written to, or another has taken its place."""
    if now is not before.parameter or now._version != before.version:
        return True
    values = before.values
    if values is None or (values.shape, values.dtype, values.device) != (now.shape, now.dtype, now.device):
        return False  # the model has moved to another device or type meanwhile
    return not torch.equal(values, now.detach())
