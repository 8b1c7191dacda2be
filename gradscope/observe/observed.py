"""An observed call: copies of its inputs and results, and the gradients that arrive at its results."""

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
from gradscope.capture.layout import Dense
from gradscope.capture.retained import Arrived, Retained
from gradscope.capture.snapshot import select_final
from gradscope.types import Link, Saved


@dataclass(eq=False)
class WeightGradient:
    """The gradient that a `weight_hh` accumulates in the backward passes of recorded calls, for the certificate."""

    weight: weakref.ref[Tensor]
    complete: bool = True
    total: Tensor | None = None


@dataclass(eq=False)
class ObservedCall:
    """A call of a fused layer or a cell; sums its loss gradients as they arrive.

    Attributes:
        module: name of the module.
        index: number of the call within the step.
        cell: True for a cell's call, of one timestep.
        snapshot: copies of inputs and results: a `Snapshot`, or a `CellSnapshot` for a custom cell.
        rows: number in the batch of each sequence of the snapshot.
        link: the earlier calls that its state comes from.
        weight_gradients: of its `weight_hh`s.
        custom: the custom cell, else None.
        retained: references to the whole batch, if the snapshot lacks some of its sequences.
        received: True once a gradient has arrived.
        leaves: nodes below the call that accumulate into some `.grad`.
        gradients: sums by result: output, h_n, c_n; of a cell h, c.
        inside: the part of these gradients from inside the call: in autograd's graph, torch's LSTM cell computes h from
            its result c.
        back: sums by input part of the state: the gradient through the call.
        saved: by layer and direction: values that the kernel saved for its backward pass; None until that pass.
    """

    module: str
    index: int
    cell: bool
    snapshot: Any
    rows: list[int]
    link: Link | None
    weight_gradients: tuple[WeightGradient, ...] = ()
    custom: Cell | None = None
    retained: Retained | None = None
    received: bool = False
    leaves: tuple[Node, ...] = ()
    gradients: list[Tensor | None] = field(default_factory=list[Tensor | None])
    inside: list[Tensor | None] = field(default_factory=list[Tensor | None])
    back: list[Tensor | None] = field(default_factory=list[Tensor | None])
    saved: list[Saved | None] = field(default_factory=list[Saved | None])

    @property
    def lengths(self) -> list[int]:
        """Timesteps of each sequence."""
        return [1] * len(self.rows) if self.cell else self.snapshot.layout.lengths.tolist()

    def idle(self) -> list[bool]:
        """True for each sequence that has received no gradient but zeros."""
        parts = [(g != 0).any(-1).any(0) for g in self.gradients if g is not None]
        return (~torch.stack(parts).any(0)).tolist() if parts else [True] * len(self.rows)

    def complete_saved(self) -> list[Saved]:
        """The kernel's saved values of each layer and direction; empty unless all are known."""
        known = [saved for saved in self.saved if saved is not None]
        return known if len(known) == len(self.saved) else []

    def slot(self, part: int) -> int:
        """Number of the result that is this part of the new state."""
        return self.snapshot.parts[part] if self.custom is not None else part + (not self.cell)

    def receive(self, into: str, place: int, slot: int, gradient: Tensor, *, turned: bool = False) -> None:
        """Add a gradient of a result to its sum; see `Arrived`."""
        if self.retained is not None:
            self.retained.keep(Arrived(into, place, slot, gradient, turned))
        sums: list[Tensor | None] = getattr(self, into)
        sums[place] = added(sums[place], self._part(slot, gradient, turned))

    def with_whole_batch(self) -> ObservedCall | None:
        """This call with every sequence of its batch; None if the loop has written to its tensors since."""
        if self.retained is None:
            return replace(self)
        if not self.retained.unchanged:
            return None
        rows, nothing = list(range(self.retained.batch)), [None] * len(self.gradients)
        sums = {name: list[Tensor | None](nothing) for name in ("gradients", "inside", "back")}
        one = replace(self, snapshot=self.retained.take(self.snapshot), rows=rows, retained=None, **sums)
        for each in self.retained.arrived:
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
        """The part of a later state that a result can be, and the cotangent in the layout of that part."""
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


def with_whole_batches(calls: Sequence[ObservedCall]) -> list[ObservedCall] | None:
    """Calls with every sequence of their batches, and their links; None if one cannot be restored."""
    copies = {id(call): call.with_whole_batch() for call in calls}
    whole = [call for call in copies.values() if call is not None]
    for call in whole if len(whole) == len(calls) else ():
        if call.link is not None:
            parts = [s._replace(call=copies.get(id(s.call), s.call)) for s in call.link.parts]
            call.link = replace(call.link, parts=tuple(parts))
    return whole if len(whole) == len(calls) else None


def added(total: Tensor | None, value: Tensor) -> Tensor:
    """The sum of the gradients so far and a new one."""
    return value if total is None else total + value
