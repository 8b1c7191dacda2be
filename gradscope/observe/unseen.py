"""What a step should have been heard of, and was not: modules that received gradient for calls that nobody saw."""

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
    "its parameters received gradient, but no call of it was seen: positions= sees calls of the module itself, not of "
    "its parts or methods, nor those of the replicas of torch.nn.DataParallel (DistributedDataParallel can be observed)"
)
COMPILED = (
    "it received gradient, but no call of it was seen: it ran inside a graph of torch.compile, and nothing of it is "
    "recorded. Keep it out of the graph: put torch.compiler.disable around what calls it, or, for a fused layer, leave "
    "torch._dynamo.config.allow_rnn at False; or train some steps without torch.compile. If it is in no such graph: "
)
CALLED_EARLIER = (
    "it received gradient for a call made before the last optimizer step, and such a call is not recorded; where one "
    "forward pass serves several optimizers, take all backward passes before the first of their steps"
)
REPLACED = (
    "it is no longer part of the model, and what has taken its place is not observed: close the scope, and attach again"
)


class Calls:
    """Which observed modules were called, in the recorded step before and in this one.

    Args:
        layers: layers and cells by name.
        sequences: modules that are observed by position, after the layers.
    """

    def __init__(self, layers: Mapping[str, nn.Module], sequences: Sequence[SequenceModule]) -> None:
        """Begin with a step in which nothing was called."""
        self._watched = [(name, name, weakref.ref(layer), NOT_CALLED) for name, layer in layers.items()]
        self._watched += [(s.seal, s.name, s.original, NO_CALL) for s in sequences]
        self._earlier, self._now = set[str](), set[str]()

    def saw(self, key: str) -> None:
        """A layer, by its name, or another module, by its seal, was called."""
        self._now.add(key)

    def step(self) -> None:
        """The next recorded step begins."""
        self._earlier, self._now = self._now, set()

    def unseen(self, model: Tree, arrived: Container[int]) -> list[tuple[str, str]]:
        """Names and reasons of those that have a gradient without a call, or are not there any more.

        Args:
            model: what they should be part of.
            arrived: numbers of the modules that have received gradients in this step. A gradient left in `.grad` by
                another step is no sign.
        """
        missing = [(index, *watched) for index, watched in enumerate(self._watched) if watched[0] not in self._now]
        if not missing or model.gone:
            return []
        present = set(model.named_modules().values())
        found: list[tuple[str, str]] = []
        for index, key, name, reference, otherwise in missing:
            module = reference()
            if module is None or module not in present:
                found.append((name, REPLACED))
            elif index in arrived and any(bool(g.any()) for g in present_gradients(list(module.parameters()))):
                reason = COMPILED + otherwise if has_compiled() else otherwise
                found.append((name, CALLED_EARLIER if key in self._earlier else reason))
        return found
