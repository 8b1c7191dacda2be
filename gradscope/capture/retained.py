"""References to the inputs and results of a call: for the sequences outside the snapshot, should a step need them.

This copies nothing and lasts no longer than the step. Autograd retains most of these tensors for the backward pass
anyway.
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
    """A gradient during the backward pass.

    Attributes:
        into: the sums that it adds to: `gradients`, `inside` or `back`.
        place: index among these.
        slot: index of the result that it belongs to, directly or through a later form of that result.
        gradient: the gradient of the whole batch.
        turned: True if it is time first, whatever the layout.
    """

    into: str
    place: int
    slot: int
    gradient: Tensor
    turned: bool


@dataclass(slots=True)
class Retained:
    """Inputs and results of a call, of the whole batch.

    Attributes:
        batch: number of sequences.
        take: makes the snapshot of all sequences from the snapshot of some.
        tensors: all tensors of the call, each with its version.
        arrived: the gradients so far.
    """

    batch: int
    take: Callable[[Any], Any]
    tensors: list[tuple[Tensor, int]]
    arrived: list[Arrived] = field(default_factory=list[Arrived])

    def keep(self, arrived: Arrived) -> None:
        """Retain a gradient."""
        self.arrived.append(replace(arrived, gradient=(gradient := arrived.gradient.detach())))
        self.tensors.append((gradient, gradient._version))

    @property
    def unchanged(self) -> bool:
        """True if nobody has written to any of these tensors since."""
        return all(tensor._version == version for tensor, version in self.tensors)


def retain_kernel(call: KernelCall, result: Sequence[Tensor], dropout: Dropout | None) -> Retained:
    """Retain a call of one of torch's layers or cells; the snapshot has copies of the weights."""
    inputs, state, results = call.input.detach(), _detached(call.state), _detached(result)
    detached = replace(call, input=inputs, state=state, weights=_detached(call.weights[:1]))

    def take(some: Any) -> Any:
        whole = snapshot(detached, results, some.weights, dropout, layout_of(detached, None))
        return replace(whole, precision=some.precision)

    return Retained(call.batch, take, _counted((inputs, *state, *results)))


def retain_cell(arguments: dict[str, Any], previous: Sequence[Tensor], results: Results) -> Retained:
    """Retain a call of a user's cell."""
    arguments = pytree.tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, arguments)
    previous, detached = _detached(previous), results._replace(results=_detached(results.results))

    def take(some: Any) -> Any:
        whole = take_call(arguments, previous, detached, None, some.weights)
        return replace(whole, parts=some.parts, precision=some.precision)

    leaves = [x for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor)]
    return Retained(len(results.state[0]), take, _counted([*leaves, *previous, *detached.results]))


def _detached(tensors: Sequence[Tensor]) -> Any:
    return type(tensors)(tensor.detach() for tensor in tensors)  # type: ignore[call-arg]


def _counted(tensors: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
    return [(tensor, tensor._version) for tensor in tensors if not torch.is_inference(tensor)]
