"""Runs a stack layer by layer to reveal its dropout masks: on request only, as this changes the random stream.

cuDNN draws the dropout masks between the layers of a stack inside its kernel. One call per layer, with
`torch.nn.functional.dropout` in between, computes the same function under visible masks.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradscope.attach.find import is_call_of
from gradscope.attach.seam import Seam
from gradscope.types import KernelCall

SPLIT = (
    "split_layers=True: gradscope runs {name!r} layer by layer, and torch draws the dropout between the layers, "
    "not the kernel. This trains the same function, but with other random numbers than without this scope, and slower"
)


class SplitListener(Protocol):
    """Decides which calls to split."""

    def splits(self, call: KernelCall) -> bool:
        """True to run this call layer by layer."""
        ...


SPLITS: Seam[SplitListener] = Seam(
    lambda: lambda: None
)  # the seam of the kernels reads these handles; this one replaces nothing


class Splitter:
    """Splits the calls of some layers whose dropout is hidden.

    Args:
        layers: layers by qualified name.
        say: receives a message once for each layer whose calls are split.
    """

    def __init__(self, layers: Mapping[str, nn.Module], say: Callable[[str], None]) -> None:
        """See the class."""
        stacks = {n: m for n, m in layers.items() if isinstance(m, nn.RNNBase) and m.num_layers > 1}
        self._layers = weakref.WeakValueDictionary(stacks)
        self._say = say
        self._said: set[str] = set()

    def splits(self, call: KernelCall) -> bool:
        """See `SplitListener`."""
        if call.num_layers == 1 or call.dropout == 0 or not hides(call):
            return False
        name = next((n for n, m in self._layers.items() if is_call_of(m, call)), None)
        if name is not None and name not in self._said:
            self._said.add(name)
            self._say(SPLIT.format(name=name or "the model"))
        return name is not None


def hides(call: KernelCall) -> bool:
    """True if the kernel hides its dropout masks; those of the CPU can be drawn again."""
    return call.input.device.type != "cpu"


def split(kernel: Callable[..., Any], call: KernelCall) -> tuple[Tensor, ...]:
    """The kernel's result, from one call per layer. Appends the masks between them to `call.masks`."""
    assert call.masks is not None
    x = call.input.transpose(0, 1) if call.batch_first else call.input
    count, finals = len(call.weights) // call.num_layers, list[tuple[Tensor, ...]]()
    for layer in range(call.num_layers):
        if layer:
            call.masks.append(nn.functional.dropout(torch.ones_like(x), call.dropout))
            x = x * call.masks[-1]
        state = [part[layer * call.directions : (layer + 1) * call.directions] for part in call.state]
        weights = call.weights[layer * count : (layer + 1) * count]
        x, *final = _run(kernel, call, x, state, weights)
        finals.append(tuple(final))
    output = x.transpose(0, 1) if call.batch_first else x
    return (output, *(torch.cat(part) for part in zip(*finals, strict=True)))


def _run(
    kernel: Callable[..., Any], call: KernelCall, x: Tensor, state: list[Tensor], weights: list[Tensor]
) -> tuple[Tensor, ...]:
    """Run one layer, without dropout."""
    hx = state if call.family == "lstm" else state[0]
    single = (hx, weights, call.has_biases, 1, 0.0, True, call.bidirectional)
    with warnings.catch_warnings():  # the weights of one layer of a stack are not contiguous in memory
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk", UserWarning)
        return kernel(x, *single, False) if call.batch_sizes is None else kernel(x, call.batch_sizes, *single)
