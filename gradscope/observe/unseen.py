"""Finds modules with gradients for calls that gradscope has not seen."""

from __future__ import annotations

import weakref
from collections.abc import Container, Mapping, Sequence

from torch import nn

from gradscope.attach.modified import present_gradients
from gradscope.capture.positions import SequenceModule
from gradscope.observe.tree import Tree
from gradscope.private import has_compiled

NOT_CALLED = (
    "it received gradient, but torch's fused kernel was not called for it: a class with a forward of its own cannot be "
    "observed, nor can the replicas of torch.nn.DataParallel (DistributedDataParallel can)"
)
NO_CALL = (
    "its parameters received gradient, but gradscope saw no call of it: positions= sees calls of the module itself, "
    "not of its parts or methods, nor of the replicas of torch.nn.DataParallel (DistributedDataParallel can be "
    "observed)"
)
COMPILED = (
    "it received gradient, but gradscope saw no call of it: it ran inside a graph of torch.compile, and is not "
    "recorded. Keep it out of the graph: put torch.compiler.disable around its caller, or, for a fused layer, leave "
    "torch._dynamo.config.allow_rnn at False; or train some steps without torch.compile. If it is in no such graph: "
)
CALLED_EARLIER = (
    "it received gradient for a call before the last optimizer step, and gradscope does not record such a call; if one "
    "forward pass serves several optimizers, run all backward passes before the first of their steps"
)
REPLACED = "it is no longer part of the model, and its replacement is not observed: close the scope, and attach again"


class CalledModules:
    """Remembers which observed modules were called, in the last recorded step and in this one.

    Args:
        layers: layers and cells by name.
        sequences: modules that are observed by position, after the layers.
    """

    def __init__(self, layers: Mapping[str, nn.Module], sequences: Sequence[SequenceModule]) -> None:
        """Begin with a step in which nothing was called."""
        self._watched = [(name, name, weakref.ref(layer), NOT_CALLED) for name, layer in layers.items()]
        self._watched += [(s.seal, s.name, s.original, NO_CALL) for s in sequences]
        self._earlier, self._now = set[str](), set[str]()

    def add(self, key: str) -> None:
        """A layer was called, by its name, or another module, by its seal."""
        self._now.add(key)

    def step(self) -> None:
        """The next recorded step begins."""
        self._earlier, self._now = self._now, set()

    def unseen(self, model: Tree, arrived: Container[int]) -> list[tuple[str, str]]:
        """Names and reasons of modules with a gradient but no call, and of modules that are gone.

        Args:
            model: the model.
            arrived: numbers of the modules that have received gradients in this step. A `.grad` left over from another
                step does not count.
        """
        missing = [(index, *watched) for index, watched in enumerate(self._watched) if watched[0] not in self._now]
        if not missing or model.gone:
            return []
        present = set(model.named_modules().values())
        unseen: list[tuple[str, str]] = []
        for index, key, name, reference, otherwise in missing:
            module = reference()
            if module is None or module not in present:
                unseen.append((name, REPLACED))
            elif index in arrived and any(bool(g.any()) for g in present_gradients(list(module.parameters()))):
                reason = COMPILED + otherwise if has_compiled() else otherwise
                unseen.append((name, CALLED_EARLIER if key in self._earlier else reason))
        return unseen
