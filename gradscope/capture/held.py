"""References to what a call of many sequences was given and gave: for those left out, should they be needed after all.

Nothing is copied, and nothing is kept longer than the step. Autograd keeps most of it for the backward pass anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gradscope.capture.cell_call import take_call
from gradscope.capture.layout import layout_of
from gradscope.capture.results import Results
from gradscope.capture.snapshot import Dropout, snapshot
from gradscope.private import pytree
from gradscope.types import KernelCall


@dataclass(frozen=True, slots=True)
class Arrived:
    """A gradient as it came by.

    Attributes:
        into: which sums it is part of: `gradients`, `inside` or `back`.
        place: its place among these.
        slot: the result that it is a gradient of, or of a later form of.
        gradient: of the whole batch.
        turned: it is time first, whatever the layout.
    """

    into: str
    place: int
    slot: int
    gradient: Tensor
    turned: bool


@dataclass(slots=True)
class Held:
    """What a call was given and gave, whole.

    Attributes:
        batch: how many sequences.
        take: makes the snapshot of all of them, given that of some.
        tensors: all that it is made of, each with the number of writes to it so far.
        arrived: the gradients.
    """

    batch: int
    take: Callable[[Any], Any]
    tensors: list[tuple[Tensor, int]]
    arrived: list[Arrived] = field(default_factory=list[Arrived])

    def keep(self, arrived: Arrived) -> None:
        """A gradient comes by."""
        self.arrived.append(replace(arrived, gradient=(gradient := arrived.gradient.detach())))
        self.tensors.append((gradient, gradient._version))

    @property
    def unchanged(self) -> bool:
        """Whether nobody has written to any of it since."""
        return all(tensor._version == version for tensor, version in self.tensors)


def hold_kernel(call: KernelCall, result: Sequence[Tensor], dropout: Dropout | None) -> Held:
    """Hold a call of a layer or cell of torch's; weights are copied with the snapshot."""
    given, state, results = call.input.detach(), _detached(call.state), _detached(result)
    held = replace(call, input=given, state=state, weights=_detached(call.weights[:1]))

    def take(some: Any) -> Any:
        whole = snapshot(held, results, some.weights, dropout, layout_of(held, None))
        return replace(whole, precision=some.precision)

    return Held(call.batch, take, _counted((given, *state, *results)))


def hold_cell(arguments: dict[str, Any], given: Sequence[Tensor], results: Results) -> Held:
    """Hold a call of a cell that is not torch's."""
    arguments = pytree.tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, arguments)
    given, held = _detached(given), results._replace(results=_detached(results.results))

    def take(some: Any) -> Any:
        whole = take_call(arguments, given, held, None, some.weights)
        return replace(whole, parts=some.parts, precision=some.precision)

    leaves = [x for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor)]
    return Held(len(results.state[0]), take, _counted([*leaves, *given, *held.results]))


def _detached(tensors: Sequence[Tensor]) -> Any:
    return type(tensors)(tensor.detach() for tensor in tensors)  # type: ignore[call-arg]


def _counted(tensors: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
    return [(tensor, tensor._version) for tensor in tensors if not torch.is_inference(tensor)]
