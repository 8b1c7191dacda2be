"""A user's cell, and a copy of it that runs its calls again."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradscope.capture.cell_call import CellSnapshot, frozen, real
from gradscope.capture.double import (
    Attributes,
    Doubled,
    attributes_of,
    put_attributes,
    put_weights,
    quietly,
    widened,
)
from gradscope.capture.results import Results, StateFinder, tensors_in
from gradscope.private import pytree
from gradscope.types import CellSpec
from gradscope.types.names import part_called

RANDOM = "it draws random numbers (dropout, zoneout), and its new state depends on them: its calls cannot run again"


@dataclass(eq=False)
class Cell(Doubled):
    """A user's cell, and a double that runs without touching it.

    Attributes:
        name: qualified name.
        original: the user's module.
        spec: how to observe the cell.
        states: names of the state's arguments.
        explicit: True for a cell named in `cells=`.
    """

    name: str
    original: weakref.ref[nn.Module]
    spec: CellSpec
    states: tuple[str, ...]
    explicit: bool = False
    finder: StateFinder = field(init=False, repr=False)
    _attributes: Attributes = field(default_factory=dict[tuple[str, str], Any], repr=False)
    _double: nn.Module | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.finder = StateFinder(self.spec.result, self.states)

    @property
    def method(self) -> str:
        """The observed method."""
        return self.spec.method

    @property
    def signature(self) -> inspect.Signature:
        """The signature of the observed method, without `self`."""
        whole = inspect.signature(getattr(type(self.module), self.method))
        return whole.replace(parameters=list(whole.parameters.values())[1:])

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """The arguments by name, and the state. Remembers the cell's attributes for the snapshot."""
        arguments = dict(self.signature.bind(*args, **kwargs).arguments)
        now = attributes_of(self.module)
        self._attributes = self._attributes if self._attributes == now else now
        parts = [arguments.pop(name, None) for name in self.states]
        if len(parts) == 1:
            return arguments, parts[0]
        return arguments, tuple(parts) if any(part is not None for part in parts) else None

    def settle(self, arguments: dict[str, Any], state: Any, result: Any) -> tuple[dict[str, Any], Any]:
        """If a single tensor comes back, the state is one tensor: its supposed second part is an argument."""
        explicit = self.spec.state is not None or self.spec.result is not None
        if explicit or len(self.states) == 1 or len(tensors_in(result)) > 1:
            return arguments, state
        parts = {name: part for name, part in zip(self.states, state or (), strict=False) if part is not None}
        self.states = tuple(name for name in self.states if part_called(name) == "h")
        self.finder = StateFinder(None, self.states)
        hidden = parts.pop(self.states[0], None)
        return arguments | parts, hidden

    def results_of(self, result: Any, state: Any) -> Results | None:
        """The result of a call, with the new state in it; None if it holds no state."""
        results = self.finder.find(result, state)
        return None if results is None else results._replace(attributes=self._attributes)

    def renew(self) -> None:
        """Discard the double: the next run copies the cell as it is then."""
        if self.original() is not None:
            self._double = None

    def run(self, snapshot: CellSnapshot, rows: Sequence[Tensor], state: Sequence[Tensor]) -> list[Tensor]:
        """Compute the parts of the new state, real, from these rows of arguments and state.

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
        """The activations of the gates, [n, H] each."""
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
        outputs = dict[str, Tensor]()

        def forward(cell: nn.Module, *args: Any, **kwargs: Any) -> None:
            with ExitStack() as undo:
                for gate, place in places.items():

                    def keep(module: nn.Module, args: Any, output: Tensor, gate: str = gate) -> None:
                        outputs[gate] = output

                    undo.callback(cell.get_submodule(place).register_forward_hook(keep).remove)
                getattr(type(cell), self.method)(cell, *args, **kwargs)

        self._call(forward, snapshot, rows, state)
        return outputs

    def _parts(self, snapshot: CellSnapshot, result: Any) -> list[Tensor]:
        tensors = self.finder.tensors(result)
        return [real(tensors[p]) for p in snapshot.parts]

    def _call(
        self, function: Callable[..., Any], snapshot: CellSnapshot, rows: Sequence[Tensor], state: Sequence[Tensor]
    ) -> Any:
        """Call a function with the cell's double and the arguments of the observed method, in float32 or better."""
        double = self.double()
        put_attributes(double, snapshot.attributes)
        arguments = snapshot.arguments.assemble(rows)
        whole = self._state(snapshot, state)
        arguments |= {self.states[0]: whole} if len(self.states) == 1 else dict(zip(self.states, whole, strict=True))
        order = [name for name in self.signature.parameters if name in arguments]
        bound = inspect.BoundArguments(self.signature, {name: arguments[name] for name in order})  # type: ignore[arg-type]
        within = _Within(double, function)
        weights = {name: widened(frozen(weight)) for name, weight in snapshot.weights.items()}
        put_weights(double, self.module, weights)
        args, kwargs = pytree.tree_map(widened, (bound.args, bound.kwargs))
        return functional_call(within, {f"cell.{name}": w for name, w in weights.items()}, (args, kwargs))

    def _state(self, snapshot: CellSnapshot, state: Sequence[Tensor]) -> Any:
        kinds = [snapshot.complex[p] for p in snapshot.parts]
        parts = [torch.view_as_complex(s.contiguous()) if c else s for s, c in zip(state, kinds, strict=True)]
        form = self.finder.form if snapshot.state is None and self.finder.form is not None else snapshot.form
        return pytree.tree_unflatten(parts, form)


class _Within(nn.Module):
    """Runs a function of a cell whose parameters are replaced."""

    def __init__(self, cell: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.cell, self.function = cell, function

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for hook in self.cell._forward_pre_hooks.values():  # torch's own: they compute a weight
            hook(self.cell, args)
        return self.function(self.cell, *args, **kwargs)
