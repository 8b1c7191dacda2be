"""What happens between two optimizer steps: the calls whose gradients are arriving, and who owns them meanwhile.

A call's copies belong to the user's autograd graph until a gradient arrives: a forward that never sees a backward takes
them with it when its output goes. From the first gradient on the step owns them as well, until it is analysed.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from gradscope.attach.gradients import backward_pass, leaves_below, watch_gradient, watch_input, watch_parameter
from gradscope.attach.links import Mark, consumers, find_link, mark, marked
from gradscope.capture.cell import Cell, CellSnapshot, precision, real, take_arguments, take_weights
from gradscope.capture.chain import Chain, join_calls
from gradscope.capture.join import join
from gradscope.capture.join_cell import join_cells
from gradscope.capture.layout import Dense, Single, choose_sequences, layout_of
from gradscope.capture.snapshot import Dropout, Snapshot, copy_weights, select_final, snapshot
from gradscope.families import analyse, analyse_recurrence, certify
from gradscope.types import Analysis, KernelCall, Link, Weights

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
    "has to be in what forward returns, in the same form; say where with CellSpec(state=..., result=...)"
)
TOO_LARGE = "the graph of one call is too large to tell what comes back from later calls: gradients are not given"

OWNERS = itertools.count()
RECENT = 4
Finals = deque[tuple[Tensor, ...]]
Hook = Callable[[Callable[[Tensor], None]], Callable[[Tensor], None]]


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
        received: some gradient has arrived.
        gradients: by result, summed up: output, h_n, c_n; of a cell h, c.
        recurrent: what of them came from later calls that go on from this one, or from within the call itself.
        inside: what came from within: torch's LSTM cell, as autograd sees it, computes h from the c that it returns.
    """

    module: str
    index: int
    cell: bool
    snapshot: Any
    rows: list[int]
    link: Link | None
    weight_gradients: tuple[WeightGradient, ...] = ()
    custom: Cell | None = None
    received: bool = False
    gradients: list[Tensor | None] = field(default_factory=list[Tensor | None])
    recurrent: list[Tensor | None] = field(default_factory=list[Tensor | None])
    inside: list[Tensor | None] = field(default_factory=list[Tensor | None])

    @property
    def lengths(self) -> list[int]:
        """Timesteps of each sequence."""
        return [1] * len(self.rows) if self.cell else self.snapshot.layout.lengths.tolist()

    def idle(self) -> list[bool]:
        """For each sequence: no gradient arrived, or nothing but zeros."""
        parts = [(g != 0).any(-1).any(0) for g in self.gradients if g is not None]
        return (~torch.stack(parts).any(0)).tolist() if parts else [True] * len(self.rows)

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


@dataclass(slots=True)
class Recording:
    """One optimizer step that is being recorded.

    Args:
        limit: how many sequences to analyse at most.
        full: the full set of quantities.
        guard: wraps a hook so that a failure in it does not reach the training.
    """

    limit: int | None
    full: bool
    guard: Hook
    calls: list[ObservedCall] = field(default_factory=list[ObservedCall])
    called: set[str] = field(default_factory=set[str])
    sealed: set[str] = field(default_factory=set[str])
    closed: bool = False
    arrivals: int = 0
    handles: list[RemovableHandle] = field(default_factory=list[RemovableHandle])
    counted: int = 0
    passes: set[int] = field(default_factory=set[int])
    weights: dict[tuple[tuple[int, int, int], ...], tuple[Weights, ...]] = field(default_factory=dict)
    gradients: dict[int, WeightGradient] = field(default_factory=dict[int, WeightGradient])
    remarks: dict[tuple[str, str], None] = field(default_factory=dict[tuple[str, str], None])
    recent: dict[str, Finals] = field(default_factory=dict["str", "Finals"])
    before: dict[str, Finals] = field(default_factory=dict["str", "Finals"])
    unsettled: dict[str, list[ObservedCall]] = field(default_factory=dict[str, "list[ObservedCall]"])
    cell_weights: dict[str, tuple[Any, Mapping[str, Tensor]]] = field(default_factory=dict)
    owner: int = field(default_factory=OWNERS.__next__)

    def takes(self, module: str) -> bool:
        """Whether a call of this module that begins now belongs to the recorded micro-batch.

        That ends for a module when it has received gradient; a forward within a backward pass recomputes an earlier
        one (activation checkpointing).
        """
        self.called.add(module)
        return backward_pass() != -1 or module not in self.sealed

    def observe(self, module: str, call: KernelCall, result: tuple[Tensor, ...], dropout: Dropout | None) -> None:
        """Copy what the analysis needs, and wait for gradients."""
        link = self._link(module, call)
        rows = self._rows(call.batch, link)
        taken = snapshot(call, result, self._copies(call), dropout, layout_of(call, rows))
        kept = list(range(call.batch)) if rows is None else rows
        weights = self._weight_gradients(call, taken)
        observed = ObservedCall(module, self.counted, call.cell, taken, kept, link, weights)
        self.counted += 1
        leaves = leaves_below([*call.weights, call.input, *call.state])
        self._watch(observed, result, leaves)
        if link is None and not any(state.requires_grad for state in call.state):
            self._remark_on_start(module, taken.state)
        self.recent.setdefault(module, deque(maxlen=RECENT)).append(taken.final)
        if link is not None or (call.cell and len(result) > 1):
            self._watch_recurrence(observed, result, [call.input, *call.weights], leaves)

    def observe_cell(self, cell: Cell, arguments: dict[str, Any], state: Any, result: Any) -> None:
        """Copy what the analysis needs of a call of a cell that is not torch's, and wait for gradients."""
        given = [x for x in pytree.tree_leaves(state) if isinstance(x, Tensor)]
        found = cell.results_of(result, state)
        if found is None or not all(p.dim() > 1 and len(p) == len(found.results[found.parts[0]]) for p in given):
            if cell.asked:
                self.remarks[cell.name, NO_STATE.format(kind=type(cell.module).__name__)] = None
            return
        new = [found.results[p] for p in found.parts]
        if not any(part.requires_grad for part in new):
            return
        owner, batch = (self.owner, cell.name), len(new[0])
        if given:
            self._settle(cell, given, owner)
        link = find_link(given, owner, _as_state, 0) if given else None
        link = self._checked_link(cell.name, link)
        rows = self._rows(batch, link)
        columns = None if rows is None else torch.tensor(rows, device=new[0].device)
        layout = Single(
            columns, torch.ones(batch if rows is None else len(rows), dtype=torch.long, device=new[0].device)
        )
        with torch.no_grad():
            snapshot = CellSnapshot(
                layout=layout,
                arguments=take_arguments(arguments, batch, layout),
                state=[layout.select(real(x.detach())).squeeze(0) for x in given] if given else None,
                results=[layout.select(real(x.detach())).squeeze(0) for x in found.results],
                parts=found.parts,
                form=found.form,
                weights=self._cell_weights(cell),
                precision=precision([*given, *new]),
                complex=tuple(x.is_complex() for x in new),
            )
        kept = list(range(batch)) if rows is None else rows
        observed = ObservedCall(cell.name, self.counted, True, snapshot, kept, link, custom=cell)
        self.counted += 1
        if not found.certain:
            self.unsettled.setdefault(cell.name, []).append(observed)
        inputs = [x for x in pytree.tree_leaves(list(arguments.values())) if isinstance(x, Tensor)]
        if link is None and given and not any(x.requires_grad for x in given):
            self._remark_on_start(cell.name, tuple(x.unsqueeze(0) for x in snapshot.state or ()))
        self.recent.setdefault(cell.name, deque(maxlen=RECENT)).append(snapshot.final)
        leaves = leaves_below([*cell.module.parameters(), *inputs, *given])
        self._watch(observed, found.results, leaves)
        if link is not None or len(new) > 1:
            self._watch_recurrence(observed, new, inputs, leaves)

    def _watch(self, observed: ObservedCall, results: Sequence[Tensor], leaves: tuple[Node, ...]) -> None:
        """Mark the results of a call, and wait for their gradients."""
        observed.gradients = [None for _ in results]
        observed.recurrent, observed.inside = list(observed.gradients), list(observed.gradients)
        for slot, tensor in enumerate(results):
            if tensor.requires_grad:
                mark(tensor, (self.owner, observed.module), observed, slot)
                target, receive = _receiver(self, observed, slot, tensor)
                self.handles.append(watch_gradient(target, leaves, self.guard(receive)))

    def _settle(self, cell: Cell, given: list[Tensor], owner: Hashable) -> None:
        """Which of the results of calls without a state was the state: the one that comes back as such."""
        for call in self.unsettled.pop(cell.name, []):
            slots = [found.slot for x in given if (found := marked(x, owner)) is not None and found.call is call]
            if len(slots) == len(given):
                call.snapshot.parts = slots

    def _cell_weights(self, cell: Cell) -> Mapping[str, Tensor]:
        """Copies of a cell's parameters and buffers, shared between the calls of a step while they stay the same."""
        tensors = [*cell.module.parameters(), *cell.module.buffers()]
        key = tuple((id(t), t.data_ptr(), t._version) for t in tensors)
        known = self.cell_weights.get(cell.name)
        if known is None or known[0] != key:
            known = self.cell_weights[cell.name] = (key, take_weights(cell.module))
        return known[1]

    def _link(self, module: str, call: KernelCall) -> Link | None:
        """Which earlier calls of the module the state comes from; what cannot be followed is remarked upon."""
        if call.directions == 2:
            return None
        link = self._checked_link(module, find_link(call.state, (self.owner, module), _as_state, 0 if call.cell else 1))
        if link is None:
            return None
        if not call.cell and not self._continues(link, call):
            self.remarks[module, CHANGED] = None
            return None
        return link

    def _remark_on_start(self, module: str, state: tuple[Tensor, ...]) -> None:
        """Say so if a state without a graph is an earlier result, detached."""
        if not any(bool(part.any()) for part in state):
            return
        for reason, known in ((DETACHED, self.recent), (CARRIED, self.before)):
            for final in known.get(module, ()):
                if len(state) == len(final) and all(map(torch.equal, state, final)):
                    self.remarks[module, reason] = None
                    return

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

    def _checked_link(self, module: str, link: Link | None) -> Link | None:
        """A link that can be followed; what is lost is remarked upon."""
        if link is not None and link.mixed:
            self.remarks[module, MIXED] = None
        return link if link is not None and link.strands else None

    def _rows(self, batch: int, link: Link | None) -> list[int] | None:
        """Which sequences of a call are analysed: those that go on from analysed ones, and those in their places."""
        if link is None:
            return choose_sequences(batch, self.limit)
        chosen = set[int]()
        for strand in link.strands:
            kept = set(strand.call.rows)
            chosen |= {row for row, source in enumerate(strand.rows.tolist()) if source in kept}
        fresh = torch.stack([strand.rows for strand in link.strands]).amax(0) < 0
        newest = set(max((strand.call for strand in link.strands), key=lambda c: c.index).rows)
        chosen |= {row for row in fresh.nonzero().flatten().tolist() if row in newest}
        return sorted(chosen) if len(chosen) < batch else None

    def _watch_recurrence(
        self, observed: ObservedCall, results: Sequence[Tensor], inputs: Sequence[Tensor], leaves: tuple[Node, ...]
    ) -> None:
        """Tell apart what comes back through a call from what enters from outside."""
        strands = observed.link.strands if observed.link is not None else ()
        sources = {id(observed), *(id(strand.call) for strand in strands)}
        places = consumers(results, inputs, (self.owner, observed.module))
        if places is None:
            self.remarks[observed.module, TOO_LARGE] = None
            return
        for node, index, found in places:
            if id(found.call) in sources and (observed.cell or found.call is not observed):
                receive = _recurrent_receiver(self, found.call, found.slot, inside=found.call is observed)
                self.handles.append(watch_input(node, index, leaves, self.guard(receive)))

    def received(self, call: ObservedCall) -> bool:
        """A gradient arrives for a call: it is part of the step, unless that is over."""
        if not self.closed and not call.received:
            call.received = True
            self.calls.append(call)
            self.sealed.add(call.module)
        self.passes.add(backward_pass())
        self.arrivals += 1
        return not self.closed

    def analyse(self, factor: Tensor | float = 1.0) -> list[tuple[str, int, list[Analysis]]]:
        """Module, chain and analyses of every chain of calls that received gradient, in the order of their first calls.

        Args:
            factor: what the loss was multiplied by.
        """
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            chains = self._chains()
            found: list[tuple[str, int, list[Analysis]]] = []
            for number, calls, chain in chains:
                first = calls[chain.calls[0]]
                if first.custom is not None:
                    recurrence = join_cells(first.custom, chain, calls, factor)
                    found.append((first.module, number, [analyse_recurrence(recurrence, full=self.full)]))
                    continue
                if len(chain.calls) == 1 and not first.cell and len(chain.tracks) == len(first.rows):
                    output, *final = first.gradients
                    stack = first.snapshot.stack(output, final, factor)
                else:
                    stack = join(chain, calls, factor)
                users = [g for n in chain.calls for g in calls[n].weight_gradients]
                sketch = any(g.complete and g.total is not None for g in users)
                found.append((first.module, number, analyse(stack, full=self.full, sketch=sketch)))
            self._certify(chains, [analyses for _, _, analyses in found], factor)
        return found

    def _chains(self) -> list[tuple[int, list[ObservedCall], Chain]]:
        """Number within the module, calls of the module, and chain."""
        modules: dict[str, list[ObservedCall]] = {}
        for call in sorted(self.calls, key=lambda call: call.index):
            modules.setdefault(call.module, []).append(call)
        chains = [(n, calls, chain) for calls in modules.values() for n, chain in enumerate(join_calls(calls))]
        return sorted(chains, key=lambda c: c[1][c[2].calls[0]].index)

    def close(self) -> None:
        """Let go of everything; gradients that arrive later are not this step's."""
        self.closed = True
        for handle in reversed(self.handles):
            handle.remove()
        self.handles.clear()
        self.calls.clear()
        self.weights.clear()
        self.gradients.clear()

    def _copies(self, call: KernelCall) -> tuple[Weights, ...]:
        key = tuple((id(w), w.data_ptr(), w._version) for w in call.weights)
        if call.weights[0].grad_fn is not None:  # a weight made anew before each call: its identity may be reused
            return copy_weights(call)
        if key not in self.weights:
            self.weights[key] = copy_weights(call)
        return self.weights[key]

    def _weight_gradients(self, call: KernelCall, taken: Snapshot) -> tuple[WeightGradient, ...]:
        count = len(call.weights) // len(taken.weights)
        found = tuple(self._weight_gradient(weight) for weight in call.weights[1::count])
        for gradient in found:
            gradient.complete &= taken.layout.columns is None
        return found

    def _weight_gradient(self, weight: Tensor) -> WeightGradient:
        known = self.gradients.get(id(weight))
        if known is not None and known.weight() is weight:
            return known
        gradient = self.gradients[id(weight)] = WeightGradient(weakref.ref(weight))
        reference = weakref.ref(gradient)

        def receive(value: Tensor) -> None:
            target = reference()
            if target is not None and target.complete and backward_pass() in self.passes:
                target.total = _added(target.total, value.detach().clone())

        if weight.requires_grad:
            self.handles.append(watch_parameter(weight, self.guard(receive))[0])
        return gradient

    def _certify(
        self,
        chains: Sequence[tuple[int, list[ObservedCall], Chain]],
        analyses: list[list[Analysis]],
        factor: Tensor | float,
    ) -> None:
        users: dict[int, dict[tuple[int, int], None]] = {}
        known: dict[int, WeightGradient] = {}
        for i, (_, calls, chain) in enumerate(chains):
            for number in chain.calls:
                for j, gradient in enumerate(calls[number].weight_gradients):
                    users.setdefault(id(gradient), {})[i, j] = None
                    known[id(gradient)] = gradient
        for key, places in users.items():
            gradient = known[key]
            if gradient.complete and gradient.total is not None:
                certified = certify([analyses[i][j] for i, j in places], gradient.total / factor)
                for (i, j), analysis in zip(places, certified, strict=True):
                    analyses[i][j] = analysis


def _receiver(
    recording: Recording, call: ObservedCall, slot: int, tensor: Tensor
) -> tuple[Tensor, Callable[[Tensor], None]]:
    """Which tensor to watch for the gradient of a result, and what to do with it."""
    layout = call.snapshot.layout
    if slot or call.cell:

        def receive_final(gradient: Tensor) -> None:
            if recording.received(call):
                call.gradients[slot] = _added(call.gradients[slot], _part(call, slot, gradient))

        return tensor, receive_final
    base = tensor._base if tensor._is_view() else None
    turned = base is not None and isinstance(layout, Dense) and base.shape == tensor.transpose(0, 1).shape
    # Of a view that the user writes to in place the gradient passes by its own node, but not by its base's.
    target = base if turned and base is not None else tensor
    select = layout.time_first if turned and isinstance(layout, Dense) else layout.select

    def receive_output(gradient: Tensor) -> None:
        if recording.received(call):
            call.gradients[0] = _added(call.gradients[0], select(gradient))

    return target, receive_output


def _part(call: ObservedCall, slot: int, gradient: Tensor) -> Tensor:
    """The analysed sequences of a gradient of a result: [T, n, .] of an output, [S, n, .] of a state."""
    layout = call.snapshot.layout
    if call.custom is not None:
        return layout.select(real(gradient)).flatten(2)
    return select_final(gradient, layout) if slot or call.cell else layout.select(gradient)


def _as_state(found: Mark, cotangent: Tensor) -> tuple[int, Tensor] | None:
    return found.call.as_state(found.slot, cotangent)


def _recurrent_receiver(
    recording: Recording, call: ObservedCall, slot: int, *, inside: bool
) -> Callable[[Tensor], None]:
    """Take in what comes back to a result from a later call, or from within its own."""

    def receive(gradient: Tensor) -> None:
        if not recording.closed:
            part = _part(call, slot, gradient)
            call.recurrent[slot] = _added(call.recurrent[slot], part)
            if inside:
                call.inside[slot] = _added(call.inside[slot], part)

    return receive


def _added(total: Tensor | None, value: Tensor) -> Tensor:
    return value if total is None else total + value
