"""A frozen copy of one call of a cell that is not torch's, and how to run it again."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from gradscope.capture.layout import Single
from gradscope.capture.snapshot import TOLERANCE
from gradscope.types import CellSpec


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of a call but for its state, taken apart.

    Attributes:
        rows: tensors with a row for each sequence, [n, ...] each.
        constants: everything else, in order.
        form: how to put them together.
        is_row: which of all leaves are rows.
        names: of the arguments.
    """

    rows: list[Tensor]
    constants: list[Any]
    form: pytree.TreeSpec
    is_row: tuple[bool, ...]
    names: tuple[str, ...]

    def put_together(self, rows: Sequence[Tensor]) -> dict[str, Any]:
        """The arguments by name, with these rows."""
        taken, kept = iter(rows), iter(self.constants)
        leaves = [next(taken) if row else next(kept) for row in self.is_row]
        return dict(zip(self.names, pytree.tree_unflatten(leaves, self.form), strict=True))

    def alike(self, other: Arguments) -> bool:
        """Whether all but the rows is the same."""
        pairs = zip(self.constants, other.constants, strict=False)
        same_form = (self.form, self.is_row, self.names) == (other.form, other.is_row, other.names)
        return same_form and all(_same(a, b) for a, b in pairs)


@dataclass(slots=True)
class CellSnapshot:
    """What a call was given and gave, for the sequences that are analysed.

    Attributes:
        layout: which sequences.
        arguments: but for the state.
        state: parts of the state as they were given, real, [n, ...]; None where none was given.
        results: all tensors that came back, real, [n, ...].
        final: the parts of the new state, [1, n, ...] each.
        parts: which of the results are the new state.
        form: how the state is put together.
        weights: parameters and buffers by name, shared between the calls of a step.
        precision: the coarsest type that took part.
        complex: which parts of the state are complex, and given as pairs.
    """

    layout: Single
    arguments: Arguments
    state: list[Tensor] | None
    results: list[Tensor]
    parts: list[int]
    form: pytree.TreeSpec
    weights: Mapping[str, Tensor]
    precision: torch.dtype
    complex: tuple[bool, ...] = ()

    @property
    def given(self) -> list[Tensor]:
        """The state that the call began with: zeros where none was given."""
        return [torch.zeros_like(r) for r in self.returned] if self.state is None else self.state

    @property
    def returned(self) -> list[Tensor]:
        """The parts of the new state."""
        return [self.results[p] for p in self.parts]

    @property
    def final(self) -> tuple[Tensor, ...]:
        """The same as [1, n, ...]."""
        return tuple(r.unsqueeze(0) for r in self.returned)


class Results(NamedTuple):
    """What a call returned.

    Attributes:
        results: its tensors.
        parts: which of them are the new state.
        form: how the state is put together.
        certain: whether that is known; without a given state and with two tensors returned it is not.
    """

    results: list[Tensor]
    parts: list[int]
    form: pytree.TreeSpec
    certain: bool

    @property
    def state(self) -> list[Tensor]:
        """The parts of the new state."""
        return [self.results[p] for p in self.parts]


@dataclass(eq=False)
class Cell:
    """A user's cell, and a double of it that can be run without touching the original.

    Attributes:
        name: qualified name.
        module: the user's.
        spec: how to observe it.
        argument: name of the argument that is the state.
    """

    name: str
    module: nn.Module
    spec: CellSpec
    argument: str
    asked: bool = False
    form: pytree.TreeSpec | None = None
    _double: nn.Module | None = field(default=None, repr=False)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """The arguments by name, and the state."""
        bound = inspect.signature(type(self.module).forward).bind(self.module, *args, **kwargs)
        found = dict(list(bound.arguments.items())[1:])
        for parameter in inspect.signature(type(self.module).forward).parameters.values():
            if parameter.kind == parameter.VAR_KEYWORD:
                found.update(found.pop(parameter.name, {}))
        return found, found.pop(self.argument, None)

    def state_of(self, result: Any, state: Any) -> tuple[Any, bool]:
        """The new state in what `forward` returned, and whether that is certain."""
        if self.spec.result is not None:
            return self.spec.result(result), True
        if state is None and self.form is None:
            if isinstance(result, (tuple, list)) and len(result) == 2:
                if isinstance(result[1], (tuple, list)) or result[0] is result[1]:
                    return result[1], True
                return result, False
            return result, True
        wanted = pytree.tree_flatten(state)[1] if state is not None else self.form
        for candidate in _candidates(result):
            if pytree.tree_flatten(candidate)[1] == wanted:
                return candidate, True
        leaves = pytree.tree_leaves(result)
        count = wanted.num_leaves if wanted is not None else 0
        if wanted is None or not 0 < count <= len(leaves):
            return None, True
        return pytree.tree_unflatten(leaves[-count:], wanted), True

    def results_of(self, result: Any, state: Any) -> Results | None:
        """What a call returned, with the new state found in it; None if there is none."""
        new, certain = self.state_of(result, state)
        leaves, form = pytree.tree_flatten(new)
        if not leaves or not all(isinstance(x, Tensor) and x.dim() > 1 and len(x) == len(leaves[0]) for x in leaves):
            return None
        if not all(x.is_floating_point() or x.is_complex() for x in leaves):
            return None
        if state is not None:
            self.form = form
        tensors = leaves if self.spec.result else [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
        return Results(tensors, [next(i for i, t in enumerate(tensors) if t is x) for x in leaves], form, certain)

    def double(self) -> nn.Module:
        """The cell without its hooks, beside the original."""
        if self._double is None:
            self._double = double_of(self.module)
        return self._double

    def run(self, snapshot: CellSnapshot, rows: Sequence[Tensor], state: Sequence[Tensor]) -> list[Tensor]:
        """The parts of the new state, real, from these rows of arguments and state."""
        arguments = snapshot.arguments.put_together(rows)
        arguments[self.argument] = self._state(snapshot, state)
        with ExitStack() as quiet:
            quietly(quiet, state[0].device)
            result = functional_call(self.double(), dict(snapshot.weights), (), arguments)
        new = result if self.spec.result is None else self.spec.result(result)
        leaves = [x for x in pytree.tree_leaves(new) if isinstance(x, Tensor)]
        return [real(leaves[p]) for p in snapshot.parts]

    def gates(self, snapshot: CellSnapshot, rows: Sequence[Tensor], state: Sequence[Tensor]) -> dict[str, Tensor]:
        """Activations of the gates, [n, H] each."""
        arguments = snapshot.arguments.put_together(rows)
        arguments[self.argument] = self._state(snapshot, state)
        gates = self.spec.gates
        with ExitStack() as quiet:
            quietly(quiet, state[0].device)
            if callable(gates):
                return dict(_call(self.double(), gates, snapshot.weights, arguments))
            return self._outputs_of(gates or {}, snapshot.weights, arguments)

    def transition(self, snapshot: CellSnapshot, rows: Sequence[Tensor], state: Sequence[Tensor]) -> Tensor:
        """The factor a of `state -> a * state + b`, [n, ...]."""
        arguments = snapshot.arguments.put_together(rows)
        arguments[self.argument] = self._state(snapshot, state)
        assert self.spec.transition is not None
        return _call(self.double(), self.spec.transition, snapshot.weights, arguments)

    def _outputs_of(
        self, places: Mapping[str, str], weights: Mapping[str, Tensor], arguments: dict[str, Any]
    ) -> dict[str, Tensor]:
        double, found = self.double(), dict[str, Tensor]()
        with ExitStack() as undo:
            for gate, place in places.items():

                def keep(module: nn.Module, args: Any, output: Tensor, gate: str = gate) -> None:
                    found[gate] = output

                undo.callback(double.get_submodule(place).register_forward_hook(keep).remove)
            functional_call(double, dict(weights), (), arguments)
        return found

    def _state(self, snapshot: CellSnapshot, state: Sequence[Tensor]) -> Any:
        parts = [torch.view_as_complex(s) if c else s for s, c in zip(state, snapshot.complex, strict=True)]
        return pytree.tree_unflatten(parts, snapshot.form)


def double_of(original: nn.Module) -> nn.Module:
    """A module beside another, with its parameters but without its hooks: running it leaves the other as it is."""
    shared = {id(t): t for m in original.modules() for t in _tensors(m)}
    try:
        double = copy.deepcopy(original, dict(shared))
    except Exception:  # what cannot be copied is shared
        double = copy.copy(original)
    for module in double.modules():
        module._forward_hooks, module._backward_hooks = type(module._forward_hooks)(), {}  # type: ignore[assignment]
        module._backward_pre_hooks = {}  # type: ignore[assignment]
    return double


class _Within(nn.Module):
    """Runs a function of a cell where its parameters are replaced."""

    def __init__(self, cell: nn.Module, function: Any) -> None:
        super().__init__()
        self.cell, self.function = cell, function

    def forward(self, arguments: dict[str, Any]) -> Any:
        return self.function(self.cell, **arguments)


def _call(cell: nn.Module, function: Any, weights: Mapping[str, Tensor], arguments: dict[str, Any]) -> Any:
    return functional_call(_Within(cell, function), {f"cell.{n}": w for n, w in weights.items()}, (arguments,))


def real(x: Tensor) -> Tensor:
    """A complex tensor as pairs; others as they are."""
    return torch.view_as_real(x) if x.is_complex() else x


def tensors_in(x: Any) -> list[Tensor]:
    """All tensors in a structure."""
    return [leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)]


def take_call(
    arguments: dict[str, Any],
    given: Sequence[Tensor],
    results: Results,
    rows: list[int] | None,
    weights: Mapping[str, Tensor],
) -> CellSnapshot:
    """Copy a call.

    Args:
        arguments: by name, without the state.
        given: the parts of the state; empty where none was given.
        results: what the call returned.
        rows: which sequences to take; None for all.
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
            state=[take(x) for x in given] if given else None,
            results=[take(x) if x.dim() and len(x) == batch else x.detach().clone() for x in results.results],
            parts=results.parts,
            form=results.form,
            weights=weights,
            precision=precision([*given, *results.state]),
            complex=tuple(x.is_complex() for x in results.state),
        )


def take_arguments(arguments: dict[str, Any], batch: int, layout: Single) -> Arguments:
    """Copies of the analysed rows of a call's arguments."""
    leaves, form = pytree.tree_flatten(list(arguments.values()))
    is_row = tuple(isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == batch for x in leaves)
    rows = [layout.select(x.detach()).squeeze(0) for x, row in zip(leaves, is_row, strict=True) if row]
    constants = [_frozen(x) for x, row in zip(leaves, is_row, strict=True) if not row]
    return Arguments(rows, constants, form, is_row, tuple(arguments))


def take_weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's parameters and buffers."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def precision(tensors: Sequence[Tensor]) -> torch.dtype:
    """The coarsest type among these; autocast shows in the results."""
    kinds = {real(t).dtype for t in tensors if t.is_floating_point() or t.is_complex()}
    return max(kinds, key=lambda kind: TOLERANCE.get(kind, 0.0), default=torch.float32)


def _candidates(result: Any) -> list[Any]:
    """Parts of a result that may be the state, the likeliest first."""
    if not isinstance(result, (tuple, list)):
        return [result]
    return [result, *reversed(result), *([tuple(result[1:])] if len(result) > 2 else [])]


def _tensors(module: nn.Module) -> list[Tensor]:
    own = [x for x in module.__dict__.values() if isinstance(x, Tensor)]
    return [*own, *(p for p in module._parameters.values() if p is not None)]


def _frozen(x: Any) -> Any:
    return x.detach().clone() if isinstance(x, Tensor) else x


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    try:
        return bool(a is b or a == b)
    except Exception:  # what cannot be compared is not the same
        return False


def quietly(quiet: ExitStack, device: torch.device) -> None:
    """Random numbers that a cell draws when it is run again are not the user's."""
    devices = [device] if device.type == "cuda" else []
    quiet.enter_context(torch.random.fork_rng(devices=devices))
