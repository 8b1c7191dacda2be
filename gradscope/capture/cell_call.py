"""A frozen call of a user's cell: its arguments by rows of the batch, its state and its results."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.double import Attributes
from gradscope.capture.layout import Single
from gradscope.capture.results import Results
from gradscope.capture.snapshot import TOLERANCE
from gradscope.private import pytree


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of a call without its state, flattened.

    Attributes:
        rows: tensors with a row for each sequence, [n, ...] each.
        constants: all other leaves, in order.
        form: structure of the arguments.
        is_row: for each leaf, True if it is in `rows`.
        names: names of the arguments.
    """

    rows: list[Tensor]
    constants: list[Any]
    form: pytree.TreeSpec
    is_row: tuple[bool, ...]
    names: tuple[str, ...]

    def assemble(self, rows: Sequence[Tensor]) -> dict[str, Any]:
        """The arguments by name, with these rows and copies of the constants: a cell may write to them."""
        new, constants = iter(rows), map(_copied, self.constants)
        leaves = [next(new) if row else next(constants) for row in self.is_row]
        return dict(zip(self.names, pytree.tree_unflatten(leaves, self.form), strict=True))

    def alike(self, other: Arguments) -> bool:
        """True if only the rows differ."""
        pairs = zip(self.constants, other.constants, strict=False)
        same_form = (self.form, self.is_row, self.names) == (other.form, other.is_row, other.names)
        return same_form and all(_same(a, b) for a, b in pairs)


@dataclass(slots=True)
class CellSnapshot:
    """Inputs and results of a call, for the analysed sequences.

    Attributes:
        layout: the analysed sequences.
        arguments: the arguments without the state.
        state: parts of the initial state, real, [n, ...]; None for a call without one.
        results: all tensors of the result, real, [n, ...].
        parts: indices of the results that are the new state.
        form: structure of the state.
        weights: parameters and buffers by name, shared between the calls of a step.
        attributes: the cell's plain attributes at the call.
        precision: the coarsest type of the computation.
        complex: for each result, True if it is complex; it is stored as pairs then.
    """

    layout: Single
    arguments: Arguments
    state: list[Tensor] | None
    results: list[Tensor]
    parts: list[int]
    form: pytree.TreeSpec
    weights: Mapping[str, Tensor]
    attributes: Attributes
    precision: torch.dtype
    complex: tuple[bool, ...] = ()

    @property
    def previous(self) -> list[Tensor]:
        """The initial state: zeros for a call without one."""
        return [torch.zeros_like(r) for r in self.returned] if self.state is None else self.state

    @property
    def returned(self) -> list[Tensor]:
        """The parts of the new state."""
        return [self.results[p] for p in self.parts]

    @property
    def final(self) -> tuple[Tensor, ...]:
        """The parts of the new state as [1, n, ...]."""
        return tuple(r.unsqueeze(0) for r in self.returned)

    def alike(self, other: CellSnapshot) -> bool:
        """True if both calls can run again as one."""
        shapes = [[x.shape[1:] for x in (*s.previous, *s.returned)] for s in (self, other)]
        same = self.weights is other.weights and self.attributes == other.attributes and shapes[0] == shapes[1]
        return same and self.arguments.alike(other.arguments)


def real(x: Tensor) -> Tensor:
    """A complex tensor as pairs; any other unchanged."""
    return torch.view_as_real(x) if x.is_complex() else x


def take_call(
    arguments: dict[str, Any],
    previous: Sequence[Tensor],
    results: Results,
    rows: list[int] | None,
    weights: Mapping[str, Tensor],
) -> CellSnapshot:
    """Copy a call.

    Args:
        arguments: the arguments by name, without the state.
        previous: the parts of the initial state; empty for a call without one.
        results: the result of the call.
        rows: indices of the sequences to copy; None for all.
        weights: copies of the cell's parameters and buffers.
    """
    batch, device = len(results.state[0]), results.state[0].device
    columns = None if rows is None else torch.tensor(rows, device=device)
    layout = Single(columns, torch.ones(batch if rows is None else len(rows), dtype=torch.long, device=device))

    def take(x: Tensor) -> Tensor:
        return layout.select(real(x.detach())).squeeze(0)

    with torch.no_grad():
        return CellSnapshot(
            layout=layout,
            arguments=take_arguments(arguments, batch, layout),
            state=[take(x) for x in previous] if previous else None,
            results=[take(x) if x.dim() and len(x) == batch else x.detach().clone() for x in results.results],
            parts=results.parts,
            form=results.form,
            weights=weights,
            attributes=results.attributes,
            precision=precision([*previous, *results.state]),
            complex=tuple(x.is_complex() for x in results.results),
        )


def take_arguments(arguments: dict[str, Any], batch: int, layout: Single) -> Arguments:
    """Copy the analysed rows of a call's arguments."""
    leaves, form = pytree.tree_flatten(list(arguments.values()))
    is_row = tuple(isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == batch for x in leaves)
    rows = [layout.select(x.detach()).squeeze(0) for x, row in zip(leaves, is_row, strict=True) if row]
    constants = [frozen(x) for x, row in zip(leaves, is_row, strict=True) if not row]
    return Arguments(rows, constants, form, is_row, tuple(arguments))


def take_weights(module: nn.Module) -> dict[str, Tensor]:
    """Copy a module's parameters and buffers."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def precision(tensors: Sequence[Tensor]) -> torch.dtype:
    """The coarsest type among these, and that of autocast."""
    kinds = {real(t).dtype for t in tensors if t.is_floating_point() or t.is_complex()}
    kinds |= {torch.get_autocast_dtype(t.device.type) for t in tensors if torch.is_autocast_enabled(t.device.type)}
    return max(kinds, key=lambda kind: TOLERANCE.get(kind, 0.0), default=torch.float32)


def frozen(x: Any) -> Any:
    """A copy of a tensor; anything else unchanged."""
    return x.detach().clone() if isinstance(x, Tensor) else x


def _copied(x: Any) -> Any:
    try:
        return x.detach().clone() if isinstance(x, Tensor) else copy.deepcopy(x)
    except Exception as error:
        raise TypeError(f"an argument, of type {type(x).__name__}, cannot be copied ({error})") from error


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    try:
        return bool(a is b or a == b)
    except Exception:  # values without a comparison differ
        return False
