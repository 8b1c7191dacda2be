"""Reads the unscaled loss at the root of a backward pass, without work for the device."""

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
"""Nodes to search for a scaled loss below the root of a pass."""

Term = tuple[Number, ...]
"""A loss; or a root of the graph, with the input and the result of a GradScaler."""
Loss = float | tuple[Term, ...] | None
"""The loss of a pass, a number if the host knows it at once; None if the root is no scalar."""


class Losses:
    """Reads the roots of backward passes. The node of a GradScaler's multiplication stores its unscaled loss."""

    def __init__(self) -> None:
        """Nothing is scaled yet."""
        self._scaled = False

    def scaled(self, losses: Any, result: Any) -> None:
        """A GradScaler has multiplied one or more losses by its factor."""
        for before, after in zip(_listed(losses), _listed(result), strict=False):
            if isinstance(before, Tensor) and isinstance(after, Tensor) and before.numel() == 1 and after.grad_fn:
                metadata(after.grad_fn)[KEY] = before.detach(), after.detach()
                self._scaled = True

    def of(self, roots: Sequence[Any]) -> Loss:
        """The loss of a pass with these roots."""
        only = roots[0] if len(roots) == 1 and not self._scaled else None
        if type(only) is Tensor and only.is_cpu and only.numel() == 1 and only.is_floating_point():
            return only.item()  # the usual case, in one call
        terms: list[Term] = []
        for root in roots:
            if not isinstance(root, Tensor) or root.numel() != 1 or not root.is_floating_point():
                return None
            terms.append(self._term(root))
        loss = 0.0
        for term in terms:
            for number in term:
                if type(number) is not float:
                    return tuple(terms)
            loss += _value(term)
        return loss

    def _term(self, root: Tensor) -> Term:
        for node in nodes_below([root.grad_fn], SEARCHED) if self._scaled and root.grad_fn is not None else ():
            if KEY in metadata(node):
                unscaled, scaled = metadata(node)[KEY]
                parts = (unscaled,) if node is root.grad_fn else (root, unscaled, scaled)
                return tuple(keep(local(part)) for part in parts)
        return (keep(local(root)),)


def numbers_of(losses: Iterable[Loss]) -> list[Number]:
    """The numbers of losses that the host may not know yet."""
    numbers: list[Number] = []
    for loss in losses:
        if isinstance(loss, tuple):
            for term in loss:
                numbers += term
    return numbers


def total(losses: Sequence[Loss], numbers: Iterable[Any]) -> float:
    """The sum of losses; NaN without any, or if one is no scalar.

    Args:
        losses: of the passes of a step.
        numbers: `numbers_of` them, on the host.
    """
    left, loss_sum = iter(numbers), 0.0
    for loss in losses:
        if loss is None:
            return math.nan
        loss_sum += sum(_value([next(left) for _ in t]) for t in loss) if isinstance(loss, tuple) else loss
    return loss_sum if losses else math.nan


def _value(term: Sequence[Any]) -> float:
    root, *scaling = map(float, term)
    return root * scaling[0] / scaling[1] if scaling and scaling[1] else math.nan if scaling else root


def _listed(some: Any) -> list[Any]:
    return [some] if isinstance(some, Tensor) else list(some) if isinstance(some, (list, tuple)) else []
