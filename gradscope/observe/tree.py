"""The observed model, by weak references: a scope keeps no model alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence

from torch import nn


class Tree:
    """A model and its observed modules.

    A container made for `attach` alone, such as `nn.ModuleList([encoder, decoder])`, is gone before the training
    begins. From then on its modules are the model.

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
        """The model itself, or None once it is gone."""
        return self._model()

    @property
    def gone(self) -> bool:
        """True once the model and all its observed modules are gone."""
        return self._model() is None and all(module() is None for module in self._observed)

    def when_gone(self, begun: Callable[[], bool], do: Callable[[], None]) -> None:
        """Call a function when the model is gone.

        Args:
            begun: returns True once the training has begun; before, the model may go while its observed modules stay.
            do: the function; it may be called more than once.
        """

        def less(_: weakref.ref[nn.Module]) -> None:
            if self.gone or (self._model() is None and begun()):
                do()

        existing = [reference() for reference in (self._model, *self._observed)]
        self._calls = [weakref.ref(module, less) for module in existing if module is not None]

    def forget(self) -> None:
        """Cancel `when_gone`."""
        self._calls = []

    def named_modules(self) -> dict[str, nn.Module]:
        """Modules by qualified name, as of now."""
        model = self._model()
        if model is not None:
            return dict(model.named_modules())
        return {name: module for name, part in self._parts.items() if (module := part()) is not None}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by qualified name, as of now."""
        seen = set[nn.Parameter]()
        for prefix, module in self.named_modules().items():
            for name, parameter in module.named_parameters(prefix, recurse=False):
                if parameter not in seen:
                    seen.add(parameter)
                    yield name, parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters, as of now."""
        return (parameter for _, parameter in self.named_parameters())
