"""Links each call to the earlier calls of its state, chooses its sequences, and remarks on missing links."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradscope.attach.links import find_link
from gradscope.attach.marks import Mark, marked
from gradscope.attach.signature import line_for
from gradscope.capture.cell import Cell
from gradscope.capture.layout import choose_sequences
from gradscope.capture.results import tensors_in
from gradscope.observe.observed import ObservedCall
from gradscope.types import KernelCall, Link, notes

DETACHED = (
    f"{notes.DETACHED}: it is that of an earlier call of the same step, but no gradient goes back to it; a chain "
    "begins at each such call"
)
CARRIED = (
    f"{notes.DETACHED}: it was carried over from an earlier step, as truncated backpropagation through time does; "
    "no gradient goes back beyond the first timestep of the chain"
)
MIXED = (
    "between two calls the state passes through an operation that mixes its units, or blends the states of several "
    "calls (as zoneout does): the chain ends there; make the cell and the operation one module and name it in cells="
)
CHANGED = (
    "the loop changes the state of the fused layer between two calls: a chain begins at each such call; only the path "
    "from one chain to the next is missing"
)
NO_STATE = (
    "a call of {kind} was not recorded: its state has to be a tensor [B, ...] or a tuple of them, and the result of "
    "{method} has to contain the new state in the same form; name their places with CellSpec(state=..., result=...)"
)
NO_CELL = (
    "{kind}.forward takes a state, but it was not recorded as a cell: there is no new state of the form [B, ...] in "
    "its result; name its place with cells={{{kind}: CellSpec(result=...)}}, or observe the module with positions="
)
BESIDE = (
    "an earlier result of {kind} comes back as its argument {names}, which gradscope does not treat as state: the "
    "Jacobians leave this path out. If it is part of the state, pass {line}"
)
TOO_LARGE = "the graph of one call is too large to find the gradients from later calls: its gradients are unknown"

OWNERS = itertools.count()
ONCE = CARRIED, NO_CELL.removeprefix("{kind}").partition("{")[0], BESIDE.partition("{")[0]
"""Parts of the remarks that are made once in a run for each module."""
RECENT = 4
Finals = deque[tuple[Tensor, ...]]
Mend = Callable[[Sequence[Tensor]], None]


class DetachedState(NamedTuple):
    """A state without a graph at the beginning of a chain, to be compared with earlier results later.

    Attributes:
        module: name of the module.
        state: parts of the state.
        earlier: lists of earlier results, and the remark if the state is in the list; the first match counts.
    """

    module: str
    state: Sequence[Tensor]
    earlier: list[tuple[str, list[tuple[Tensor, ...]]]]


@dataclass(slots=True)
class Following:
    """Follows the states from call to call within one step.

    Args:
        limit: the most sequences to analyse; None for all.

    Attributes:
        remarks: module and reason of each link that cannot be followed.
        recent: states from the last calls of the step, by module.
        previous: the same of the step before.
        detached: states without a graph at the beginning of chains; `messages` compares them with earlier results.
        pending: calls of cells with a guessed state, by module, each with a function that corrects its hooks.
        owner: distinguishes the marks of this step from others.
    """

    limit: int | None
    remarks: dict[tuple[str, str], None] = field(default_factory=dict[tuple[str, str], None])
    recent: dict[str, Finals] = field(default_factory=dict["str", "Finals"])
    previous: dict[str, Finals] = field(default_factory=dict["str", "Finals"])
    detached: list[DetachedState] = field(default_factory=list["DetachedState"])
    pending: dict[str, deque[tuple[ObservedCall, Mend]]] = field(default_factory=dict)
    owner: int = field(default_factory=OWNERS.__next__)

    def link(self, module: str, call: KernelCall) -> Link | None:
        """Link a call of a layer or cell of torch's to the earlier calls that its state comes from."""
        if call.directions == 2:
            return None
        link = self._checked(module, find_link(call.state, (self.owner, module), _as_state, 0 if call.cell else 1))
        if link is None:
            return None
        if not call.cell and not self._continues(link, call):
            self.remarks[module, CHANGED] = None
            return None
        return link

    def link_cell(self, module: str, state: Sequence[Tensor]) -> Link | None:
        """The same for a custom cell."""
        if not state:
            return None
        owner = (self.owner, module)
        for call, mend in self.pending.pop(module, ()):
            slots = [mark.slot for x in state if (mark := marked(x, owner)) is not None and mark.call is call]
            if len(slots) == len(state):
                call.snapshot.parts = slots
                mend(state)
        return self._checked(module, find_link(state, owner, _as_state, 0))

    def check_arguments(self, cell: Cell, arguments: Mapping[str, Any], *, chained: bool) -> None:
        """Remark on arguments of a cell that are its earlier results; the output of a chain may be its next input."""
        owner, places = (self.owner, cell.name), list(cell.signature.parameters)
        back = [n for n, value in arguments.items() if any(marked(x, owner) is not None for x in tensors_in(value))]
        unlinked = [name for name in back if not chained or name != places[0]]
        if unlinked and cell.spec.state is None:
            states = sorted([*(cell.states if chained else ()), *unlinked], key=places.index)
            kind, names = type(cell.module), " and ".join(map(repr, unlinked))
            reason = BESIDE.format(kind=kind.__name__, names=names, line=line_for(kind, cell.method, states))
            self.remarks[cell.name, reason] = None

    def refuse(self, cell: Cell, result: Any) -> None:
        """Remark that the result of a cell does not contain its state."""
        if cell.explicit or any(x.requires_grad for x in tensors_in(result)):
            reason = NO_STATE if cell.explicit else NO_CELL
            self.remarks[cell.name, reason.format(kind=type(cell.module).__name__, method=cell.method)] = None

    def correct_later(self, call: ObservedCall, mend: Mend) -> None:
        """Correct a call with a guessed state when the next call shows which results are the state."""
        self.pending.setdefault(call.module, deque(maxlen=RECENT)).append((call, mend))

    def returned(self, module: str, final: tuple[Tensor, ...]) -> None:
        """Keep the states that a call returned."""
        self.recent.setdefault(module, deque(maxlen=RECENT)).append(final)

    def begins(self, module: str, copies: Sequence[Tensor], state: Sequence[Tensor], link: Link | None) -> None:
        """Keep the state of a call that begins a chain without a graph; `messages` remarks on an earlier result."""
        if link is not None or not state or any(part.requires_grad for part in state):
            return
        lists = (DETACHED, self.recent), (CARRIED, self.previous)
        earlier = [(reason, list(finals[module])) for reason, finals in lists if module in finals]
        if earlier:
            self.detached.append(DetachedState(module, copies, earlier))

    def messages(self) -> list[tuple[str, str]]:
        """Module and reason of every remark; waits for the device."""
        for module, state, earlier in self.detached:
            reason = next((reason for reason, finals in earlier if came_back(state, finals)), None)
            if reason is not None:
                self.remarks[module, reason] = None
        self.detached.clear()
        return list(self.remarks)

    def _continues(self, link: Link, call: KernelCall) -> bool:
        """True if a fused call gets the earlier states unchanged: a chain is replayed as one call."""
        for linked in link.parts:
            if any(f is not None and bool((f[linked.rows >= 0] != 1).any()) for f in linked.factors):
                return False
            local = {row: index for index, row in enumerate(linked.call.rows)}
            pairs = [(r, local[s]) for r, s in enumerate(linked.rows.tolist()) if s in local]
            here, there = [r for r, _ in pairs], [s for _, s in pairs]
            for mine, theirs in zip(call.state, linked.call.snapshot.final, strict=True):
                if not torch.equal(mine.detach()[:, here], theirs[:, there]):
                    return False
        return True

    def _checked(self, module: str, link: Link | None) -> Link | None:
        """The link, or None with a remark if it cannot be followed."""
        if link is not None and link.mixed:
            self.remarks[module, MIXED] = None
            return None
        return link

    def rows(self, batch: int, link: Link | None) -> list[int] | None:
        """Choose the sequences of a call to analyse; None for all.

        First those that continue analysed sequences, then those that begin in their places, then second branches, then
        others that begin, up to the limit.
        """
        if link is None:
            return choose_sequences(batch, self.limit)
        on, branches = list[int](), list[int]()
        for linked in link.parts:
            analysed, continued = set(linked.call.rows), set[int]()
            for row, source in enumerate(linked.rows.tolist()):
                if source in analysed:
                    (branches if source in continued else on).append(row)
                    continued.add(source)
        newest = set(max((linked.call for linked in link.parts), key=lambda c: c.index).rows)
        new = (torch.stack([linked.rows for linked in link.parts]).amax(0) < 0).nonzero().flatten().tolist()
        chosen = [*on, *(r for r in new if r in newest), *branches, *(r for r in new if r not in newest)]
        return sorted(chosen[: self.limit]) if len(chosen[: self.limit]) < batch else None


def came_back(state: Sequence[Tensor], finals: Iterable[tuple[Tensor, ...]]) -> bool:
    """True if a state, [S, n, ...] for each part, is not zero and equals an earlier result."""
    same = any(len(state) == len(final) and all(map(_equal, state, final)) for final in finals)
    return same and any(bool(part.any()) for part in state)


def _equal(x: Tensor, y: Tensor) -> bool:
    return x.device == y.device and x.dtype == y.dtype and torch.equal(x, y)


def _as_state(mark: Mark, cotangent: Tensor) -> tuple[int, Tensor] | None:
    return mark.call.as_state(mark.slot, cotangent)
