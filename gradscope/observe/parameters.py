"""The parameters of the observed layers, and which layers receive gradients."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from gradscope.attach.gradients import watch_parameter
from gradscope.attach.uncompiled import uncompiled
from gradscope.observe.tree import Tree

CHECKED = 4
"""Layers of which `spoilt` reads one element of a gradient."""
READABLE = (torch.float32, torch.float64)


class Parameters:
    """The parameters of the observed layers, each once, as of the last `renew`.

    Args:
        model: the model.
        layers: its observed recurrent layers.
        others: modules observed by position. They take the layers' place in a model without any.

    Attributes:
        all: the parameters.
        ids: their identities.
        of_model: identities of all parameters of the model.
        on_host: True if gradients can be looked at without waiting for a device.
    """

    def __init__(self, model: Tree, layers: Sequence[nn.Module], others: Sequence[nn.Module]) -> None:
        """See the class."""
        self._model, self._modules = model, [weakref.ref(module) for module in (*layers, *others)]
        self._count = len(layers or others)
        self._replaced: list[Callable[[], None]] = []
        self._read()

    def when_replaced(self, *calls: Callable[[], None]) -> None:
        """Call these when `renew` finds other parameters."""
        self._replaced += calls

    def _read(self) -> None:
        named = [(name, p) for layer in self._layers() for name, p in layer.named_parameters()]
        self.all = list({p: None for _, p in named})
        self.ids = {id(p) for p in self.all}
        self.of_model = {id(p) for p in self._model.parameters()} | self.ids
        self.on_host = all(parameter.is_cpu for parameter in self.all[:1])
        self._checked = ([p for name, p in named if name.startswith("weight_hh")] or self.all[:1])[:CHECKED]
        self.first = self._firsts()

    def trained(self) -> list[Tensor]:
        """The parameters that require gradients, read from the layers now."""
        return [p for layer in self._layers() for p in layer.parameters() if p.requires_grad]

    def _layers(self) -> list[nn.Module]:
        """The layers that still exist."""
        return [layer for reference in self._modules[: self._count] if (layer := reference()) is not None]

    def _firsts(self) -> list[Tensor | None]:
        """The first parameter of each module; None for a module that no longer exists."""
        return [None if (module := ref()) is None else next(module.parameters(), None) for ref in self._modules]

    def renew(self) -> None:
        """Read the parameters again if others have replaced them, as `fully_shard` does."""
        if all(now is p for now, p in zip(self._firsts(), self.first, strict=True)) or self._model.gone:
            return
        self._read()
        for call in self._replaced:
            call()

    def modules(self) -> list[nn.Module | None]:
        """Layers, then the other modules; None for one that no longer exists."""
        return [reference() for reference in self._modules]

    @property
    def spoilt(self) -> bool:
        """True if one element of a recurrent gradient is not finite. In a recurrence NaN spreads to all elements."""
        return any(not math.isfinite(_element(parameter)) for parameter in self._checked)


class Arrivals:
    """Which modules receive gradients in a recorded step.

    Args:
        parameters: of the modules.
    """

    def __init__(self, parameters: Parameters) -> None:
        """See the class."""
        self._parameters = parameters
        parameters.when_replaced(self.forget)
        self._arrived = set[int]()
        self._hooks, self._watching = ExitStack(), False

    def __contains__(self, index: int) -> bool:
        """True if the module with this number has received a gradient in this step.

        Sharded parameters always count as if they had: their gradients bypass the hooks.
        """
        return index in self._arrived or hasattr(self._parameters.first[index], "to_local")

    def watch(self) -> None:
        """Register hooks, until `stop` or `forget`."""
        if self._watching:
            return
        self._watching = True
        for index, module in enumerate(self._parameters.modules()):
            for parameter in [p for p in module.parameters() if p.requires_grad][:1] if module is not None else ():
                handle, node = watch_parameter(parameter, partial(self._arrives, index))
                self._hooks.callback(lambda handle, node: handle.remove(), handle, node)

    def stop(self) -> None:
        """Remove the hooks."""
        self._hooks.close()
        self._watching = False

    def forget(self) -> None:
        """Remove the hooks and forget: the step is over, or other parameters have replaced these."""
        self.stop()
        self._arrived = set()

    @uncompiled
    def _arrives(self, index: int, _: Tensor) -> None:
        self._arrived.add(index)


def _element(parameter: Tensor) -> float:
    """One element of the gradient, read from memory without an operation of torch; 0 if unreadable."""
    gradient = parameter.grad
    if type(gradient) is not Tensor or gradient.requires_grad or gradient.dtype not in READABLE or not gradient.numel():
        return 0.0
    return float(gradient.numpy()[(0,) * gradient.dim()])
