"""The recurrent weights of a recorded step: copies as the calls used them, and the gradients they accumulate."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradscope.attach.gradients import watch_parameter
from gradscope.capture.cell import Cell
from gradscope.capture.cell_call import take_weights
from gradscope.capture.snapshot import Snapshot, copy_weights
from gradscope.observe.observed import WeightGradient, added
from gradscope.private import backward_pass
from gradscope.types import KernelCall, Weights

Key = tuple[tuple[int, int, int], ...]
"""Identity, address and version of each tensor."""


class StepWeights:
    """Copies weights once for all calls of a step that use the same values.

    Args:
        guard: wraps a hook so that its failures do not reach the training.
        passes: numbers of the backward passes in which observed calls have received gradients.
        handles: of the hooks; new ones are added.
    """

    def __init__(
        self, guard: Callable[[Callable[[Any], None]], Any], passes: set[int], handles: list[RemovableHandle]
    ) -> None:
        """See the class."""
        self._guard, self._passes, self._handles = guard, passes, handles
        self._copies: dict[Key, tuple[Weights, ...]] = {}
        self._of_cells: dict[str, tuple[Key, Mapping[str, Tensor]]] = {}
        self._gradients: dict[int, WeightGradient] = {}

    def copies(self, call: KernelCall) -> tuple[Weights, ...]:
        """Copies of a call's weights, layer by layer."""
        if call.weights[0].grad_fn is not None:  # made anew before each call, so that its identity may be reused
            return copy_weights(call)
        key = _key(call.weights)
        if key not in self._copies:
            self._copies[key] = copy_weights(call)
        return self._copies[key]

    def of_cell(self, cell: Cell) -> Mapping[str, Tensor]:
        """Copies of a custom cell's parameters and buffers, by name."""
        key = _key([*cell.module.parameters(), *cell.module.buffers()])
        known = self._of_cells.get(cell.name)
        if known is None or known[0] != key:
            known = self._of_cells[cell.name] = key, take_weights(cell.module)
        return known[1]

    def gradients(self, call: KernelCall, snapshot: Snapshot) -> tuple[WeightGradient, ...]:
        """The gradient that each `weight_hh` of a call accumulates; incomplete if only some sequences are analysed."""
        count = len(call.weights) // len(snapshot.weights)
        gradients = tuple(self._gradient(weight) for weight in call.weights[1::count])
        for gradient in gradients:
            gradient.complete &= snapshot.layout.columns is None
        return gradients

    def _gradient(self, weight: Tensor) -> WeightGradient:
        known = self._gradients.get(id(weight))
        if known is not None and known.weight() is weight:
            return known
        gradient = self._gradients[id(weight)] = WeightGradient(weakref.ref(weight))
        reference = weakref.ref(gradient)

        def receive(value: Tensor) -> None:
            target = reference()
            if target is not None and target.complete and backward_pass() in self._passes:
                target.total = added(target.total, value.detach().clone())

        if weight.requires_grad:
            self._handles.append(watch_parameter(weight, self._guard(receive))[0])
        return gradient

    def clear(self) -> None:
        """Discard all copies."""
        self._copies.clear()
        self._of_cells.clear()
        self._gradients.clear()


def _key(tensors: Any) -> Key:
    return tuple((id(t), t.data_ptr(), t._version) for t in tensors)
