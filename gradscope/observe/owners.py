"""Finds out which optimizers step observed parameters, and which parameters each of them steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from gradscope.observe.tree import Tree

OTHERS = 32
"""So many steps of optimizers without parameters of observed layers, and none with some, mean that none has them."""


class Owned(NamedTuple):
    """The parameters of an optimizer.

    Attributes:
        number: how many.
        watched: True if some belong to an observed layer, or to the model if no optimizer steps an observed layer.
        share: their identities.
    """

    number: int
    watched: bool
    share: set[int]


class Owners:
    """Examines each optimizer once, and again when the number of its parameters has changed.

    Args:
        model: the model.
        layers: its observed layers.
        tell: called with `{"optimizers": [...]}`, the settings of all that have stepped observed parameters so far.
    """

    def __init__(self, model: Tree, layers: Sequence[nn.Module], tell: Callable[[Mapping[str, Any]], None]) -> None:
        """See the class."""
        self._tell, self._settings = tell, list[dict[str, Any]]()
        self._model, self._layers = model, [weakref.ref(layer) for layer in layers]
        self._known: weakref.WeakKeyDictionary[Optimizer, Owned] = weakref.WeakKeyDictionary()
        self._last: tuple[weakref.ref[Optimizer], Owned] | None = None
        self._others = 0

    @property
    def optimizers(self) -> list[Optimizer]:
        """All examined optimizers that still exist."""
        return list(self._known)

    def of(self, optimizer: Optimizer) -> Owned:
        """The parameters of an optimizer; most often that of the last call."""
        count = 0
        for group in optimizer.param_groups:
            count += len(group["params"])
        if self._last is not None and self._last[0]() is optimizer and self._last[1].number == count:
            return self._last[1]
        known = self._known.get(optimizer)
        if known is None or known.number != count:
            share, new = _share(optimizer), known is None
            known = self._known[optimizer] = Owned(count, not share.isdisjoint(self._watched()), share)
            if new and known.watched:
                self._settings.append(_settings(optimizer))
                self._tell({"optimizers": self._settings})
        self._last = weakref.ref(optimizer), known
        return known

    def other_stepped(self) -> bool:
        """An optimizer without observed parameters has stepped; True if from now on those of the model count."""
        if self._settings or self._others >= OTHERS:
            return False
        self._others += 1
        if self._others < OTHERS:
            return False
        self._last = None
        self._known.clear()
        return True

    def renew(self) -> None:
        """Read the parameters again: others may have replaced them."""
        self._last = None
        for optimizer, known in list(self._known.items()):
            self._known[optimizer] = known._replace(share=_share(optimizer))

    def _watched(self) -> set[int]:
        """Identities of the observed layers' parameters; if nobody trains those, of all the model's too."""
        layers = [layer for reference in self._layers if (layer := reference()) is not None]
        mine = {p: None for layer in layers for p in layer.parameters()}
        alone = self._others < OTHERS and any(p.requires_grad for p in mine)
        everything = mine if alone else [*mine, *self._model.parameters()]
        return {id(p) for p in everything}


def _settings(optimizer: Optimizer) -> dict[str, Any]:
    """Class and options of an optimizer's first group, with the initial rate: a schedule may begin with a rate of 0."""
    group = optimizer.param_groups[0]
    numbers = {name: value for name, value in group.items() if isinstance(value, int | float | str | tuple)}
    rate = {"lr": numbers.pop("initial_lr")} if "initial_lr" in numbers else {}
    return {"class": type(optimizer).__name__, **numbers, **rate}


def _share(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
