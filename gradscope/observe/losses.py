"""The loss that a backward pass begins with, unscaled, read without work for the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from gradscope.attach.marks import metadata, nodes_below
from gradscope.attach.modified import local
from gradscope.record.recorder import Number, keep

KEY = "gradscope loss"
SEARCHED = 16
"""Nodes below the root of a pass, to find a scaled loss among."""

Term = tuple[Number, ...]
"""A loss; or a root of the graph, what a GradScaler was given, and what it made of that."""
Loss = float | tuple[Term, ...] | None
"""What a pass begins with, a number if the host knows it at once; None where that is no scalar."""


class Losses:
    """Reads the roots of backward passes. What a GradScaler was given is kept with the node that has scaled it."""

    def __init__(self) -> None:
        """Nothing is scaled yet."""
        self._scaled = False

    def scaled(self, given: Any, result: Any) -> None:
        """A GradScaler has multiplied a loss, or several, by its factor."""
        for before, after in zip(_listed(given), _listed(result), strict=False):
            if isinstance(before, Tensor) and isinstance(after, Tensor) and before.numel() == 1 and after.grad_fn:
                metadata(after.grad_fn)[KEY] = before.detach(), after.detach()
                self._scaled = True

    def of(self, roots: Sequence[Any]) -> Loss:
        """The loss of a pass that begins with these."""
        terms: list[Term] = []
        for root in roots:
            if not isinstance(root, Tensor) or root.numel() != 1 or not root.is_floating_point():
                return None
            terms.append(self._term(root))
        found = 0.0
        for term in terms:
            for number in term:
                if type(number) is not float:
                    return tuple(terms)
            found += _value(term)
        return found

    def _term(self, root: Tensor) -> Term:
        for node in nodes_below([root.grad_fn], SEARCHED) if self._scaled and root.grad_fn is not None else ():
            if KEY in metadata(node):
                given, scaled = metadata(node)[KEY]
                parts = (given,) if node is root.grad_fn else (root, given, scaled)
                return tuple(keep(local(part)) for part in parts)
        return (keep(local(root)),)


def numbers_of(losses: Iterable[Loss]) -> list[Number]:
    """All numbers of some losses that the host may not know yet."""
    numbers: list[Number] = []
    for loss in losses:
        if isinstance(loss, tuple):
            for term in loss:
                numbers += term
    return numbers


def total(losses: Sequence[Loss], numbers: Iterable[Any]) -> float:
    """The sum of some losses; NaN without any, or where one is no scalar.

    Args:
        losses: of the passes of a step.
        numbers: `numbers_of` them, on the host.
    """
    left, found = iter(numbers), 0.0
    for loss in losses:
        if loss is None:
            return math.nan
        found += sum(_value([next(left) for _ in t]) for t in loss) if isinstance(loss, tuple) else loss
    return found if losses else math.nan


def _value(term: Sequence[Any]) -> float:
    root, *scaling = map(float, term)
    return root * scaling[0] / scaling[1] if scaling and scaling[1] else math.nan if scaling else root


def _listed(some: Any) -> list[Any]:
    return [some] if isinstance(some, Tensor) else list(some) if isinstance(some, (list, tuple)) else []
