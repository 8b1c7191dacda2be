"""A frozen copy of one call of a cell that is not torch's, and how to run it again."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradscope.capture.double import (
    Attributes,
    Doubled,
    attributes_of,
    put_attributes,
    put_weights,
    quietly,
    widened,
)
from gradscope.capture.layout import Single
from gradscope.capture.results import Results, StateFinder, tensors_in
from gradscope.capture.snapshot import TOLERANCE
from gradscope.private import pytree
from gradscope.types import CellSpec
from gradscope.types.names import part_called

RANDOM = (
    "it draws random numbers (dropout, zoneout) on which its new state depends, so that a call of it cannot be repeated"
)


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
        """The arguments by name, with these rows; the others are copies, that a cell may write to."""
        taken, kept = iter(rows), map(_copied, self.constants)
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
        parts: which of the results are the new state.
        form: how the state is put together.
        weights: parameters and buffers by name, shared between the calls of a step.
        attributes: plain values that the cell kept when it was called.
        precision: the coarsest type that took part.
        complex: which of the results are complex, and given as pairs.
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

    def alike(self, other: CellSnapshot) -> bool:
        """Whether both calls can be run again as one."""
        shapes = [[x.shape[1:] for x in (*s.given, *s.returned)] for s in (self, other)]
        same = self.weights is other.weights and self.attributes == other.attributes and shapes[0] == shapes[1]
        return same and self.arguments.alike(other.arguments)


@dataclass(eq=False)
class Cell(Doubled):
    """A user's cell, and a double of it that can be run without touching the original.

    Attributes:
        name: qualified name.
        original: the user's.
        spec: how to observe it.
        states: names of the arguments that are the state.
        asked: it was named in `cells=`.
    """

    name: str
    original: weakref.ref[nn.Module]
    spec: CellSpec
    states: tuple[str, ...]
    asked: bool = False
    finder: StateFinder = field(init=False, repr=False)
    _attributes: Attributes = field(default_factory=dict[tuple[str, str], Any], repr=False)
    _double: nn.Module | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.finder = StateFinder(self.spec.result, self.states)

    @property
    def method(self) -> str:
        """The method whose calls are observed."""
        return self.spec.method

    @property
    def signature(self) -> inspect.Signature:
        """Of that method, without the module itself."""
        whole = inspect.signature(getattr(type(self.module), self.method))
        return whole.replace(parameters=list(whole.parameters.values())[1:])

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """The arguments by name, and the state; what the cell keeps at the moment is remembered for the snapshot."""
        found = dict(self.signature.bind(*args, **kwargs).arguments)
        now = attributes_of(self.module)
        self._attributes = self._attributes if self._attributes == now else now
        parts = [found.pop(name, None) for name in self.states]
        return found, parts[0] if len(parts) == 1 else tuple(parts) if any(part is not None for part in parts) else None

    def settle(self, arguments: dict[str, Any], state: Any, result: Any) -> tuple[dict[str, Any], Any]:
        """Where one tensor comes back the state is one: what was taken for its other part by its name is a context."""
        said = self.spec.state is not None or self.spec.result is not None
        if said or len(self.states) == 1 or len(tensors_in(result)) > 1:
            return arguments, state
        parts = {name: part for name, part in zip(self.states, state or (), strict=False) if part is not None}
        self.states = tuple(name for name in self.states if part_called(name) == "h")
        self.finder = StateFinder(None, self.states)
        hidden = parts.pop(self.states[0], None)
        return arguments | parts, hidden

    def results_of(self, result: Any, state: Any) -> Results | None:
        """What a call returned, with the new state found in it; None if there is none."""
        found = self.finder.find(result, state)
        return None if found is None else found._replace(attributes=self._attributes)

    def renew(self) -> None:
        """Have the double made again, from what the cell keeps now."""
        if self.original() is not None:
            self._double = None

    def run(self, snapshot: CellSnapshot, rows: Sequence[Tensor], state: Sequence[Tensor]) -> list[Tensor]:
        """The parts of the new state, real, from these rows of arguments and state.

        Raises:
            TypeError: the cell cannot be copied.
            RuntimeError: its new state depends on random numbers.
        """

        def forward(cell: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(type(cell), self.method)(cell, *args, **kwargs)

        with ExitStack() as quiet:
            drawn = quietly(quiet, state[0].device)
            parts = self._parts(snapshot, self._call(forward, snapshot, rows, state))
            if drawn():
                again = self._parts(snapshot, self._call(forward, snapshot, rows, state))
                if not all(map(torch.equal, parts, again)):
                    raise RuntimeError(RANDOM)
        return parts

    def gates(self, snapshot: CellSnapshot, rows: Sequence[Tensor], state: Sequence[Tensor]) -> dict[str, Tensor]:
        """Activations of the gates, [n, H] each."""
        gates = self.spec.gates
        with ExitStack() as quiet:
            quietly(quiet, state[0].device)
            if callable(gates):
                return dict(self._call(gates, snapshot, rows, state))
            return self._outputs_of(gates or {}, snapshot, rows, state)

    def transition(self, snapshot: CellSnapshot, rows: Sequence[Tensor], state: Sequence[Tensor]) -> Tensor:
        """The factor a of `state -> a * state + b`, [n, ...]."""
        assert self.spec.transition is not None
        with ExitStack() as quiet:
            quietly(quiet, state[0].device)
            return self._call(self.spec.transition, snapshot, rows, state)

    def _outputs_of(
        self, places: Mapping[str, str], snapshot: CellSnapshot, rows: Sequence[Tensor], state: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        found = dict[str, Tensor]()

        def forward(cell: nn.Module, *args: Any, **kwargs: Any) -> None:
            with ExitStack() as undo:
                for gate, place in places.items():

                    def keep(module: nn.Module, args: Any, output: Tensor, gate: str = gate) -> None:
                        found[gate] = output

                    undo.callback(cell.get_submodule(place).register_forward_hook(keep).remove)
                getattr(type(cell), self.method)(cell, *args, **kwargs)

        self._call(forward, snapshot, rows, state)
        return found

    def _parts(self, snapshot: CellSnapshot, result: Any) -> list[Tensor]:
        tensors = self.finder.tensors(result)
        return [real(tensors[p]) for p in snapshot.parts]

    def _call(
        self, function: Callable[..., Any], snapshot: CellSnapshot, rows: Sequence[Tensor], state: Sequence[Tensor]
    ) -> Any:
        """A function of the cell and of the arguments of its method, in float32 or better."""
        double = self.double()
        put_attributes(double, snapshot.attributes)
        arguments = snapshot.arguments.put_together(rows)
        whole = self._state(snapshot, state)
        arguments |= {self.states[0]: whole} if len(self.states) == 1 else dict(zip(self.states, whole, strict=True))
        order = [name for name in self.signature.parameters if name in arguments]
        bound = inspect.BoundArguments(self.signature, {name: arguments[name] for name in order})  # type: ignore[arg-type]
        within = _Within(double, function)
        weights = {name: widened(_frozen(weight)) for name, weight in snapshot.weights.items()}
        put_weights(double, self.module, weights)
        args, kwargs = pytree.tree_map(widened, (bound.args, bound.kwargs))
        return functional_call(within, {f"cell.{name}": w for name, w in weights.items()}, (args, kwargs))

    def _state(self, snapshot: CellSnapshot, state: Sequence[Tensor]) -> Any:
        kinds = [snapshot.complex[p] for p in snapshot.parts]
        parts = [torch.view_as_complex(s.contiguous()) if c else s for s, c in zip(state, kinds, strict=True)]
        form = self.finder.form if snapshot.state is None and self.finder.form is not None else snapshot.form
        return pytree.tree_unflatten(parts, form)


class _Within(nn.Module):
    """Runs a function of a cell where its parameters are replaced."""

    def __init__(self, cell: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.cell, self.function = cell, function

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for hook in self.cell._forward_pre_hooks.values():  # torch's own, that make a weight
            hook(self.cell, args)
        return self.function(self.cell, *args, **kwargs)


def real(x: Tensor) -> Tensor:
    """A complex tensor as pairs; others as they are."""
    return torch.view_as_real(x) if x.is_complex() else x


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
            attributes=results.attributes,
            precision=precision([*given, *results.state]),
            complex=tuple(x.is_complex() for x in results.results),
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
    """The coarsest type among these, and that of autocast."""
    kinds = {real(t).dtype for t in tensors if t.is_floating_point() or t.is_complex()}
    kinds |= {torch.get_autocast_dtype(t.device.type) for t in tensors if torch.is_autocast_enabled(t.device.type)}
    return max(kinds, key=lambda kind: TOLERANCE.get(kind, 0.0), default=torch.float32)


def _frozen(x: Any) -> Any:
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
    except Exception:  # what cannot be compared is not the same
        return False
