"""Which earlier call a call goes on from, which of its sequences are analysed, and what could not be followed."""

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
from gradscope.types import KernelCall, Link

DETACHED = (
    "the state was detached: it is that of an earlier call of the same step, but no gradient goes back to it; a chain "
    "begins at each such call"
)
CARRIED = (
    "the state was detached: it was carried over from an earlier step, as truncated backpropagation through time does; "
    "no gradient goes back beyond the first timestep of the chain"
)
MIXED = (
    "between two calls the state passes through an operation that mixes its units, or blends the states of several "
    "calls (as zoneout does): the chain ends there; make the cell and the operation one module and name it in cells="
)
CHANGED = (
    "between two calls of the fused layer its state was changed: a chain begins at each such call; nothing is lost but "
    "the way from one to the next"
)
NO_STATE = (
    "a call of {kind} was not recorded: its state has to be a tensor [B, ...] or a tuple of them, and the new state "
    "has to be in what {method} returns, in the same form; say where with CellSpec(state=..., result=...)"
)
NO_CELL = (
    "{kind}.forward takes a state, but it was not recorded as a cell: there is no new state of the form [B, ...] in "
    "what it returns; say where with cells={{{kind}: CellSpec(result=...)}}, or observe it from outside by positions="
)
BESIDE = (
    "an earlier result of {kind} comes back as its argument {names}, which is not taken for its state: the Jacobians "
    "leave out what goes on that way. If it is part of the state, pass {line}"
)
TOO_LARGE = "the graph of one call is too large to tell what comes back from later calls: gradients are not given"

OWNERS = itertools.count()
ONCE = CARRIED, NO_CELL.removeprefix("{kind}").partition("{")[0], BESIDE.partition("{")[0]
"""Beginnings or parts of what is said of a module once in a run."""
RECENT = 4
Finals = deque[tuple[Tensor, ...]]
Mend = Callable[[Sequence[Tensor]], None]


class Asked(NamedTuple):
    """Whether a state is one of those that earlier calls have returned: the first reason of those is to be told."""

    module: str
    state: Sequence[Tensor]
    known: list[tuple[str, list[tuple[Tensor, ...]]]]


@dataclass(slots=True)
class Following:
    """Follows the states from call to call within one step.

    Args:
        limit: how many sequences to analyse at most.

    Attributes:
        remarks: module and reason of what could not be followed.
        recent: by module, the states that its last calls have returned.
        before: the same of the step before.
        asked: states without a graph with which something begins: are they known? Told when the device is waited for.
        unsettled: calls of cells of which it is not known yet what in their results is the state, and how to mend them.
        owner: tells the marks of this step from others'.
    """

    limit: int | None
    remarks: dict[tuple[str, str], None] = field(default_factory=dict[tuple[str, str], None])
    recent: dict[str, Finals] = field(default_factory=dict["str", "Finals"])
    before: dict[str, Finals] = field(default_factory=dict["str", "Finals"])
    asked: list[Asked] = field(default_factory=list["Asked"])
    unsettled: dict[str, deque[tuple[ObservedCall, Mend]]] = field(default_factory=dict)
    owner: int = field(default_factory=OWNERS.__next__)

    def link(self, module: str, call: KernelCall) -> Link | None:
        """Which earlier calls of a layer or cell of torch's the state comes from."""
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
        """The same of a cell that is not torch's."""
        if not state:
            return None
        owner = (self.owner, module)
        for call, mend in self.unsettled.pop(module, ()):
            slots = [found.slot for x in state if (found := marked(x, owner)) is not None and found.call is call]
            if len(slots) == len(state):
                call.snapshot.parts = slots
                mend(state)
        return self._checked(module, find_link(state, owner, _as_state, 0))

    def look_beside(self, cell: Cell, arguments: Mapping[str, Any], *, chained: bool) -> None:
        """Say which arguments of a cell are earlier results of it; the output of a chain may be its next input."""
        owner, places = (self.owner, cell.name), list(cell.signature.parameters)
        back = [n for n, value in arguments.items() if any(marked(x, owner) is not None for x in tensors_in(value))]
        beside = [name for name in back if not chained or name != places[0]]
        if beside and cell.spec.state is None:
            states = sorted([*(cell.states if chained else ()), *beside], key=places.index)
            kind, names = type(cell.module), " and ".join(map(repr, beside))
            reason = BESIDE.format(kind=kind.__name__, names=names, line=line_for(kind, cell.method, states))
            self.remarks[cell.name, reason] = None

    def unsettle(self, call: ObservedCall, mend: Mend) -> None:
        """Which of a call's results is the state will be known when it comes back as such; the call is mended then."""
        self.unsettled.setdefault(call.module, deque(maxlen=RECENT)).append((call, mend))

    def passed(self, module: str, final: tuple[Tensor, ...]) -> None:
        """Remember what a call returned."""
        self.recent.setdefault(module, deque(maxlen=RECENT)).append(final)

    def begins(self, module: str, state: tuple[Tensor, ...]) -> None:
        """A chain begins with a state without a graph: `tell` says so if it is an earlier result, detached."""
        earlier = (DETACHED, self.recent), (CARRIED, self.before)
        known = [(reason, list(finals[module])) for reason, finals in earlier if module in finals]
        if known:
            self.asked.append(Asked(module, state, known))

    def tell(self) -> list[tuple[str, str]]:
        """Module and reason of everything that is to be remarked upon; the device is waited for."""
        for module, state, known in self.asked:
            reason = next((reason for reason, finals in known if came_back(state, finals)), None)
            if reason is not None:
                self.remarks[module, reason] = None
        self.asked.clear()
        return list(self.remarks)

    def _continues(self, link: Link, call: KernelCall) -> bool:
        """Whether a fused call goes on from states as they were: what is run again as one call allows no change."""
        for strand in link.strands:
            if any(f is not None and bool((f[strand.rows >= 0] != 1).any()) for f in strand.factors):
                return False
            local = {row: index for index, row in enumerate(strand.call.rows)}
            pairs = [(r, local[s]) for r, s in enumerate(strand.rows.tolist()) if s in local]
            here, there = [r for r, _ in pairs], [s for _, s in pairs]
            for mine, theirs in zip(call.state, strand.call.snapshot.final, strict=True):
                if not torch.equal(mine.detach()[:, here], theirs[:, there]):
                    return False
        return True

    def _checked(self, module: str, link: Link | None) -> Link | None:
        """A link that can be followed; one that cannot is remarked upon."""
        if link is not None and link.mixed:
            self.remarks[module, MIXED] = None
            return None
        return link

    def rows(self, batch: int, link: Link | None) -> list[int] | None:
        """Which sequences of a call are analysed.

        First those that go on from analysed ones, then those that begin in their places, then second branches, then
        others that begin; as many as the limit allows.
        """
        if link is None:
            return choose_sequences(batch, self.limit)
        on, branches = list[int](), list[int]()
        for strand in link.strands:
            kept, taken = set(strand.call.rows), set[int]()
            for row, source in enumerate(strand.rows.tolist()):
                if source in kept:
                    (branches if source in taken else on).append(row)
                    taken.add(source)
        newest = set(max((strand.call for strand in link.strands), key=lambda c: c.index).rows)
        begun = (torch.stack([strand.rows for strand in link.strands]).amax(0) < 0).nonzero().flatten().tolist()
        chosen = [*on, *(r for r in begun if r in newest), *branches, *(r for r in begun if r not in newest)]
        return sorted(chosen[: self.limit]) if len(chosen[: self.limit]) < batch else None


def came_back(state: Sequence[Tensor], finals: Iterable[tuple[Tensor, ...]]) -> bool:
    """Whether a state, [S, n, ...] for each part, is one of those that earlier calls have returned, and not zero."""
    if not any(bool(part.any()) for part in state):
        return False
    return any(len(state) == len(final) and all(map(torch.equal, state, final)) for final in finals)


def _as_state(found: Mark, cotangent: Tensor) -> tuple[int, Tensor] | None:
    return found.call.as_state(found.slot, cotangent)
