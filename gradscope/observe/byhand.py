"""Detects a loop that updates the parameters itself: only the parameters show its steps."""

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
    """A parameter at the end of a backward pass; only `values` show a write through `.data`."""

    parameter: Tensor
    version: int
    values: Tensor | None


class ByHand:
    """Compares the parameters of the recurrent layers between backward passes, until a step has ended.

    Attributes:
        over: True once a step has ended, or the note is made: nothing is compared any more.
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
            parameters: as of now.
            values: copy the values of the first parameter as well; not on idle steps, which run no operation of ours.
        """
        stamped = enumerate(_whole(parameters))
        self._stamps = [Stamp(p, p._version, p.detach().clone() if values and not n else None) for n, p in stamped]

    def begins(self, parameters: Iterable[Tensor]) -> bool:
        """A backward pass begins; True if parameters have changed before a pass for the second time.

        The first change may have another cause: weights set before the training, or the trial step of an optimizer
        such as SAM.

        Args:
            parameters: as of now.
        """
        before, now = self._stamps, _whole(parameters)
        if len(now) == len(before) and any(map(_changed, before, now)):
            self._changes += 1
        if self._changes == 2:
            self.stop()
        return self.over


def _whole(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that are not sharded: sharding replaces parameters."""
    return [p for p in parameters if type(p) is torch.nn.Parameter]


def _changed(before: Stamp, now: Tensor) -> bool:
    """True if the loop has written to a parameter or replaced it."""
    if now is not before.parameter or now._version != before.version:
        return True
    values = before.values
    if values is None or (values.shape, values.dtype, values.device) != (now.shape, now.dtype, now.device):
        return False  # the model has moved to another device or type meanwhile
    return not torch.equal(values, now.detach())
