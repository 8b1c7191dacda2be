"""One observed call: what it was given and gave, and the gradients that have arrived at its results."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from gradscope.capture.cell import Cell
from gradscope.capture.cell_call import real
from gradscope.capture.held import Arrived, Held
from gradscope.capture.layout import Dense
from gradscope.capture.snapshot import select_final
from gradscope.types import Kept, Link


@dataclass(eq=False)
class WeightGradient:
    """What a `weight_hh` accumulates in the backward passes of the recorded calls, for the certificate."""

    weight: weakref.ref[Tensor]
    complete: bool = True
    total: Tensor | None = None


@dataclass(eq=False)
class ObservedCall:
    """One call of a fused layer or a cell, whose loss gradients are summed up as they arrive.

    Attributes:
        module: whose call it is.
        index: number of the call within the step.
        cell: a cell's call, of one timestep.
        snapshot: what it was given and gave: a `Snapshot`, or a `CellSnapshot` of a cell that is not torch's.
        rows: number in the batch of each sequence of the snapshot.
        link: the earlier calls that its state comes from.
        weight_gradients: of its `weight_hh`s.
        custom: the cell, where it is not torch's.
        held: references to the whole batch, where some of its sequences are not in the snapshot.
        received: some gradient has arrived.
        leaves: nodes below it that accumulate into some `.grad`.
        gradients: by result, summed up: output, h_n, c_n; of a cell h, c.
        inside: what of them came from within: torch's LSTM cell, as autograd sees it, computes h from the c that it
            returns.
        back: by part of the state that it was given: what came back to it through the call, summed up.
        kept: by layer and direction: what the kernel kept of it for its backward pass, which has come there.
    """

    module: str
    index: int
    cell: bool
    snapshot: Any
    rows: list[int]
    link: Link | None
    weight_gradients: tuple[WeightGradient, ...] = ()
    custom: Cell | None = None
    held: Held | None = None
    received: bool = False
    leaves: tuple[Node, ...] = ()
    gradients: list[Tensor | None] = field(default_factory=list[Tensor | None])
    inside: list[Tensor | None] = field(default_factory=list[Tensor | None])
    back: list[Tensor | None] = field(default_factory=list[Tensor | None])
    kept: list[Kept | None] = field(default_factory=list[Kept | None])

    @property
    def lengths(self) -> list[int]:
        """Timesteps of each sequence."""
        return [1] * len(self.rows) if self.cell else self.snapshot.layout.lengths.tolist()

    def idle(self) -> list[bool]:
        """For each sequence: no gradient arrived, or nothing but zeros."""
        parts = [(g != 0).any(-1).any(0) for g in self.gradients if g is not None]
        return (~torch.stack(parts).any(0)).tolist() if parts else [True] * len(self.rows)

    def known(self) -> list[Kept]:
        """What the kernel kept of each layer and direction; empty unless it is known of all of them."""
        known = [kept for kept in self.kept if kept is not None]
        return known if len(known) == len(self.kept) else []

    def slot(self, part: int) -> int:
        """Which result is a part of the new state."""
        return self.snapshot.parts[part] if self.custom is not None else part + (not self.cell)

    def receive(self, into: str, place: int, slot: int, gradient: Tensor, *, turned: bool = False) -> None:
        """Add a gradient of a result to its sum; see `Arrived`."""
        if self.held is not None:
            self.held.keep(Arrived(into, place, slot, gradient, turned))
        sums: list[Tensor | None] = getattr(self, into)
        sums[place] = added(sums[place], self._part(slot, gradient, turned))

    def entire(self) -> ObservedCall | None:
        """The same with every sequence of its batch; None where something of it has been written to since."""
        if self.held is None:
            return replace(self)
        if not self.held.unchanged:
            return None
        rows, nothing = list(range(self.held.batch)), [None] * len(self.gradients)
        sums = {name: list[Tensor | None](nothing) for name in ("gradients", "inside", "back")}
        one = replace(self, snapshot=self.held.take(self.snapshot), rows=rows, held=None, **sums)
        for each in self.held.arrived:
            one.receive(each.into, each.place, each.slot, each.gradient, turned=each.turned)
        return one

    def _part(self, slot: int, gradient: Tensor, turned: bool) -> Tensor:
        """The analysed sequences of a gradient of a result: [T, n, .] of an output, [S, n, .] of a state."""
        layout = self.snapshot.layout
        if turned:
            return layout.time_first(gradient)
        if self.custom is not None:
            return layout.select(real(gradient)).flatten(2)
        return select_final(gradient, layout) if slot or self.cell else layout.select(gradient)

    def as_state(self, slot: int, cotangent: Tensor) -> tuple[int, Tensor] | None:
        """Which part of a later state a result can be, and a cotangent of it as one of that part."""
        if self.custom is not None:
            return (self.snapshot.parts.index(slot), cotangent) if slot in self.snapshot.parts else None
        if self.cell:
            return slot, cotangent
        if slot:
            return slot - 1, cotangent
        layout, single = self.snapshot.layout, len(self.snapshot.weights) == 1
        if not isinstance(layout, Dense) or not single or cotangent.shape[1 if layout.batch_first else 0] != 1:
            return None
        return 0, cotangent.transpose(0, 1) if layout.batch_first else cotangent


def entirely(calls: Sequence[ObservedCall]) -> list[ObservedCall] | None:
    """Calls with every sequence of their batches, linked as they were; None where one cannot be had."""
    found = {id(call): call.entire() for call in calls}
    whole = [call for call in found.values() if call is not None]
    for call in whole if len(whole) == len(calls) else ():
        if call.link is not None:
            strands = [s._replace(call=found.get(id(s.call), s.call)) for s in call.link.strands]
            call.link = replace(call.link, strands=tuple(strands))
    return whole if len(whole) == len(calls) else None


def added(total: Tensor | None, value: Tensor) -> Tensor:
    """The sum of what has arrived."""
    return value if total is None else total + value
