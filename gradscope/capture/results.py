"""Finds the new state in a cell's result."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradscope.private import pytree
from gradscope.types.names import part_called

REMEMBERED = 8


class Results(NamedTuple):
    """The result of a call.

    Attributes:
        results: its tensors, each once.
        parts: indices of the parts of the new state.
        form: structure of the state.
        certain: False if `parts` is a guess.
        attributes: the cell's plain attributes at the call.
    """

    results: list[Tensor]
    parts: list[int]
    form: pytree.TreeSpec
    certain: bool
    attributes: Mapping[tuple[str, str], Any] = {}

    @property
    def state(self) -> list[Tensor]:
        """The parts of the new state."""
        return [self.results[p] for p in self.parts]


class _Known(NamedTuple):
    """An earlier result: its tensors, its structure with their indices as leaves, and the chosen parts."""

    tensors: list[weakref.ref[Tensor]]
    shapes: list[torch.Size]
    tree: Any
    parts: list[int]


@dataclass
class StateFinder:
    """Finds the new state in the result of `forward`.

    A state that the loop passes back shows which part of the earlier result it is. Until then the finder chooses the
    part with the form and shapes of the state, the last of several.

    Attributes:
        result: `CellSpec.result`.
        names: names of the state's arguments.
        form: structure of the state, once a call had one.
    """

    result: Callable[[Any], Any] | str | int | Sequence[str | int] | None
    names: Sequence[str] = ("state",)
    form: pytree.TreeSpec | None = None
    _slots: list[int] | None = None
    _earlier: deque[_Known] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def __post_init__(self) -> None:
        if len(self.names) > 1:
            self.form = pytree.tree_flatten(tuple(self.names))[1]

    def tensors(self, result: Any) -> list[Tensor]:
        """The tensors of a result, each once; with `result`, those of the state alone."""
        return _each_once(self._select(result))

    def _select(self, result: Any) -> Any:
        """The part of a result that `self.result` names; all of it without."""
        if self.result is None or callable(self.result):
            return result if self.result is None else self.result(result)
        keys = (self.result,) if isinstance(self.result, str | int) else self.result
        parts = [getattr(result, k) if isinstance(k, str) and hasattr(result, k) else result[k] for k in keys]
        return parts[0] if isinstance(self.result, str | int) else tuple(parts)

    def find(self, result: Any, state: Any) -> Results | None:
        """The result of a call with this state; None if it holds no new state."""
        try:
            with torch.no_grad():
                chosen = self._select(result)
        except (LookupError, TypeError):
            if callable(self.result):
                raise
            return None
        tensors = _each_once(chosen)
        inputs = tensors_in(state)
        if _computed(tensors, tensors_in(result)) or (state is not None and len(inputs) < _leaves(state)):
            return None
        numbers = {id(x): number for number, x in enumerate(tensors)}
        tree = pytree.tree_map(lambda x: numbers.get(id(x)), chosen)
        if inputs:
            self.form = pytree.tree_flatten(state)[1]
            self._learn(inputs)
        parts, certain = self._choose(tree, [x.shape for x in tensors], [x.shape for x in inputs])
        if parts is None or not all(_is_state(tensors[p], tensors[parts[0]]) for p in parts):
            return None
        self._earlier.append(_Known([weakref.ref(x) for x in tensors], [x.shape for x in tensors], tree, parts))
        form = self.form
        if form is None or form.num_leaves != len(parts):
            form = _form(tree, parts, self.names)
        return Results(tensors, parts, form, certain)

    def _learn(self, state: Sequence[Tensor]) -> None:
        """Learn from a state that the loop passed back, and correct earlier guesses."""
        for known in self._earlier:
            tensors = [reference() for reference in known.tensors]
            slots = [next((n for n, t in enumerate(tensors) if t is x), -1) for x in state]
            if min(slots) >= 0:
                self._slots = slots
        for known in self._earlier:
            parts, _ = self._choose(known.tree, known.shapes, [x.shape for x in state])
            known.parts[:] = parts or known.parts

    def _choose(
        self, tree: Any, shapes: Sequence[torch.Size], state: Sequence[torch.Size]
    ) -> tuple[list[int] | None, bool]:
        """The indices of the state's tensors, and whether they are certain."""
        leaves = pytree.tree_leaves(tree)
        if self.result is not None:
            fits = leaves and None not in leaves and (self.form is None or len(leaves) == self.form.num_leaves)
            return (leaves if fits else None), True
        if self._slots is not None and max(self._slots) < len(shapes):
            return list(self._slots), True
        if self.form is None:
            return _first_guess(tree)
        candidates = map(pytree.tree_flatten, _candidates(tree, self.names))
        fitting = [leaves for leaves, form in candidates if form == self.form]
        fitting = [c for c in fitting if None not in c]
        same = [
            c for c in fitting if len(state) == len(c) and all(shapes[p] == s for p, s in zip(c, state, strict=True))
        ]
        best = same or fitting
        if best:
            return best[0], all(c == best[0] for c in best)
        numbers = [p for p in leaves if p is not None]
        count = self.form.num_leaves
        return (numbers[-count:], len(numbers) == count) if 0 < count <= len(numbers) else (None, True)


def tensors_in(x: Any) -> list[Tensor]:
    """All tensors in a structure."""
    return [leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)]


def _each_once(x: Any) -> list[Tensor]:
    return list({id(leaf): leaf for leaf in tensors_in(x)}.values())


def _leaves(x: Any) -> int:
    return len(pytree.tree_leaves(x))


def _computed(chosen: Sequence[Tensor], whole: Sequence[Tensor]) -> bool:
    """True if `CellSpec.result` computed a part anew: the training does not go on with such a tensor."""
    known = {id(x) for x in whole}
    return any(x.requires_grad for x in whole) and any(id(x) not in known and not x.requires_grad for x in chosen)


def _first_guess(tree: Any) -> tuple[list[int] | None, bool]:
    """A guess before any known state: the second part of `(output, (h, c))`, else the whole result."""
    if isinstance(tree, Mapping):
        tree = next(iter(_by_name(tree, ())), tree)
    if isinstance(tree, (tuple, list)) and len(tree) == 2 and isinstance(tree[1], (tuple, list)):
        tree = tree[1]
    leaves = list(dict.fromkeys(p for p in pytree.tree_leaves(tree) if p is not None))
    return leaves or None, len(leaves) == 1


def _candidates(tree: Any, names: Sequence[str]) -> list[Any]:
    """Candidates for the state in a result, the likeliest first."""
    if isinstance(tree, Mapping):
        return [tree, *_by_name(tree, names), *[*tree.values()][::-1]]
    if not isinstance(tree, (tuple, list)):
        return [tree]
    cuts = range(1, len(tree) - 1) if len(tree) <= REMEMBERED else ()
    return [tree, *reversed(tree), *(tuple(tree[n:]) for n in cuts), *(tuple(tree[:-n]) for n in cuts)]


def _by_name(tree: Mapping[Any, Any], names: Sequence[str]) -> list[Any]:
    """Entries of a dict with the name of a state, or of its parts."""
    called = {part: value for key, value in tree.items() if isinstance(key, str) and (part := part_called(key))}
    parts = [part_called(name) for name in names] if len(names) > 1 else ["h", "c"]
    whole = [tuple(called[part] for part in parts)] if all(part in called for part in parts) else []
    return [*whole, *([called["h"]] if "h" in called else [])]


def _form(tree: Any, parts: Sequence[int], names: Sequence[str]) -> pytree.TreeSpec:
    """The structure of a state that no call has had as an argument."""
    for candidate in _candidates(tree, names):
        leaves, form = pytree.tree_flatten(candidate)
        if leaves == list(parts):
            return form
    return pytree.tree_flatten(tuple(parts) if len(parts) > 1 else parts[0])[1]


def _is_state(x: Tensor, first: Tensor) -> bool:
    return x.dim() > 1 and len(x) == len(first) and (x.is_floating_point() or x.is_complex())
