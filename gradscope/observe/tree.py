"""The model that is observed, held weakly: a scope keeps no model alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence

from torch import nn


class Tree:
    """A model and its observed modules.

    A container that somebody makes for `attach` alone, such as `nn.ModuleList([encoder, decoder])`, goes before the
    training begins. The modules that were in it are the model from then on.

    Args:
        model: the model.
        observed: its observed modules.
    """

    def __init__(self, model: nn.Module, observed: Sequence[nn.Module]) -> None:
        """See the class."""
        self._model = weakref.ref(model)
        self._parts = {name: weakref.ref(module) for name, module in model.named_modules()}
        self._observed = [weakref.ref(module) for module in observed]
        self._calls: list[weakref.ref[nn.Module]] = []

    @property
    def model(self) -> nn.Module | None:
        """The model itself, as long as somebody else holds it."""
        return self._model()

    @property
    def gone(self) -> bool:
        """Whether neither the model nor any of its observed modules is there."""
        return self._model() is None and all(module() is None for module in self._observed)

    def when_gone(self, begun: Callable[[], bool], do: Callable[[], None]) -> None:
        """Have something done when the model goes.

        Args:
            begun: whether the training has begun; before that a model may go while its observed modules stay.
            do: what to do; it may be called more than once.
        """

        def less(_: weakref.ref[nn.Module]) -> None:
            if self.gone or (self._model() is None and begun()):
                do()

        there = [reference() for reference in (self._model, *self._observed)]
        self._calls = [weakref.ref(module, less) for module in there if module is not None]

    def forget(self) -> None:
        """Nothing is to be done any more."""
        self._calls = []

    def named_modules(self) -> dict[str, nn.Module]:
        """Modules by qualified name, as they are now."""
        model = self._model()
        if model is not None:
            return dict(model.named_modules())
        return {name: module for name, part in self._parts.items() if (module := part()) is not None}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by qualified name, as they are now."""
        seen = set[nn.Parameter]()
        for prefix, module in self.named_modules().items():
            for name, parameter in module.named_parameters(prefix, recurse=False):
                if parameter not in seen:
                    seen.add(parameter)
                    yield name, parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters, as they are now."""
        return (parameter for _, parameter in self.named_parameters())
