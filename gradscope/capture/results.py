"""Which part of what a cell returned is its new state."""

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
    """What a call returned.

    Attributes:
        results: its tensors, each once.
        parts: which of them are the new state.
        form: how the state is put together.
        certain: whether that is known.
        attributes: what the cell kept when it was called.
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
    """An earlier result: its tensors, what it was with their numbers in their place, and the choice that was made."""

    tensors: list[weakref.ref[Tensor]]
    shapes: list[torch.Size]
    tree: Any
    parts: list[int]


@dataclass
class StateFinder:
    """Finds the new state in what `forward` returns.

    What comes back to a call as its state tells which part of the earlier result that was; until then the part of the
    same form and shapes as the state is taken, the last of several.

    Attributes:
        result: what the user said.
        names: of the arguments that are the state.
        form: of the state, once one was given.
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
        """The tensors of a result, each once; where the user said which, those of the state alone."""
        return _each_once(self._taken(result))

    def _taken(self, result: Any) -> Any:
        """What the user said is the state; all if nothing was said."""
        if self.result is None or callable(self.result):
            return result if self.result is None else self.result(result)
        keys = (self.result,) if isinstance(self.result, str | int) else self.result
        parts = [getattr(result, k) if isinstance(k, str) and hasattr(result, k) else result[k] for k in keys]
        return parts[0] if isinstance(self.result, str | int) else tuple(parts)

    def find(self, result: Any, state: Any) -> Results | None:
        """What a call returned for this state; None if there is no new state in it."""
        try:
            with torch.no_grad():
                chosen = self._taken(result)
        except (LookupError, TypeError):
            if callable(self.result):
                raise
            return None
        tensors = _each_once(chosen)
        given = tensors_in(state)
        if _computed(tensors, tensors_in(result)) or (state is not None and len(given) < _leaves(state)):
            return None
        numbers = {id(x): number for number, x in enumerate(tensors)}
        tree = pytree.tree_map(lambda x: numbers.get(id(x)), chosen)
        if given:
            self.form = pytree.tree_flatten(state)[1]
            self._learn(given)
        found, certain = self._choose(tree, [x.shape for x in tensors], [x.shape for x in given])
        if found is None or not all(_is_state(tensors[p], tensors[found[0]]) for p in found):
            return None
        self._earlier.append(_Known([weakref.ref(x) for x in tensors], [x.shape for x in tensors], tree, found))
        form = self.form
        if form is None or form.num_leaves != len(found):
            form = _form(tree, found, self.names)
        return Results(tensors, found, form, certain)

    def _learn(self, given: Sequence[Tensor]) -> None:
        """A state that came back is what it is; earlier guesses are mended."""
        for known in self._earlier:
            tensors = [reference() for reference in known.tensors]
            slots = [next((n for n, t in enumerate(tensors) if t is x), -1) for x in given]
            if min(slots) >= 0:
                self._slots = slots
        for known in self._earlier:
            found, _ = self._choose(known.tree, known.shapes, [x.shape for x in given])
            known.parts[:] = found or known.parts

    def _choose(
        self, tree: Any, shapes: Sequence[torch.Size], given: Sequence[torch.Size]
    ) -> tuple[list[int] | None, bool]:
        """The numbers of the tensors that are the state, and whether that is certain."""
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
            c for c in fitting if len(given) == len(c) and all(shapes[p] == g for p, g in zip(c, given, strict=True))
        ]
        found = same or fitting
        if found:
            return found[0], all(c == found[0] for c in found)
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
    """Whether a part was computed from the result just now, and is nothing that the training goes on with."""
    known = {id(x) for x in whole}
    return any(x.requires_grad for x in whole) and any(id(x) not in known and not x.requires_grad for x in chosen)


def _first_guess(tree: Any) -> tuple[list[int] | None, bool]:
    """Without any state known yet: `(output, (h, c))` shows it; else all that came back may be the state."""
    if isinstance(tree, Mapping):
        tree = next(iter(_by_name(tree, ())), tree)
    if isinstance(tree, (tuple, list)) and len(tree) == 2 and isinstance(tree[1], (tuple, list)):
        tree = tree[1]
    leaves = list(dict.fromkeys(p for p in pytree.tree_leaves(tree) if p is not None))
    return leaves or None, len(leaves) == 1


def _candidates(tree: Any, names: Sequence[str]) -> list[Any]:
    """Parts of a result that may be the state, the likeliest first."""
    if isinstance(tree, Mapping):
        return [tree, *_by_name(tree, names), *[*tree.values()][::-1]]
    if not isinstance(tree, (tuple, list)):
        return [tree]
    cuts = range(1, len(tree) - 1) if len(tree) <= REMEMBERED else ()
    return [tree, *reversed(tree), *(tuple(tree[n:]) for n in cuts), *(tuple(tree[:-n]) for n in cuts)]


def _by_name(tree: Mapping[Any, Any], names: Sequence[str]) -> list[Any]:
    """What is called like a state, or like its parts, in a dict."""
    called = {part: value for key, value in tree.items() if isinstance(key, str) and (part := part_called(key))}
    parts = [part_called(name) for name in names] if len(names) > 1 else ["h", "c"]
    whole = [tuple(called[part] for part in parts)] if all(part in called for part in parts) else []
    return [*whole, *([called["h"]] if "h" in called else [])]


def _form(tree: Any, parts: Sequence[int], names: Sequence[str]) -> pytree.TreeSpec:
    """How a state is put together that was never given."""
    for candidate in _candidates(tree, names):
        leaves, form = pytree.tree_flatten(candidate)
        if leaves == list(parts):
            return form
    return pytree.tree_flatten(tuple(parts) if len(parts) > 1 else parts[0])[1]


def _is_state(x: Tensor, first: Tensor) -> bool:
    return x.dim() > 1 and len(x) == len(first) and (x.is_floating_point() or x.is_complex())
