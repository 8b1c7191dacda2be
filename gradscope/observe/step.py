"""What happens between two optimizer steps: the calls whose gradients are arriving, and who owns them meanwhile.

A call's copies belong to the user's autograd graph until a gradient arrives: a forward that never sees a backward takes
them with it when its output goes. From the first gradient on the step owns them as well, until it is analysed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from gradscope.attach.gradients import leaves_below, watch_gradient, watch_input, watch_parameter
from gradscope.attach.inner import Inner, consumers
from gradscope.attach.kernel_nodes import dropout_bits, kernel_nodes, watch_node
from gradscope.attach.marks import Mark, mark
from gradscope.capture.cell import Cell
from gradscope.capture.cell_call import take_call, take_weights
from gradscope.capture.held import hold_cell, hold_kernel
from gradscope.capture.layout import layout_of
from gradscope.capture.positions import Given, SequenceCall
from gradscope.capture.results import tensors_in
from gradscope.capture.snapshot import Dropout, Snapshot, copy_weights, snapshot
from gradscope.families import Work, analyse_positions
from gradscope.observe.analysing import analyse_calls, chains_of
from gradscope.observe.arriving import back_receiver, inside_receiver, kept_receiver, output_receiver
from gradscope.observe.following import NO_CELL, NO_STATE, TOO_LARGE, Following
from gradscope.observe.observed import ObservedCall, WeightGradient, added, entirely
from gradscope.observe.origins import first_origin
from gradscope.private import backward_pass
from gradscope.types import Analysis, KernelCall, LayerKey, Origin, Weights

SEARCHED_AGAIN = 32
"""Nodes to search below the inputs of each call of a chain: what is below all of them is known from the first."""
Hook = Callable[[Callable[[Any], None]], Callable[[Any], None]]


@dataclass(slots=True)
class Recording:
    """One optimizer step that is being recorded.

    Args:
        limit: how many sequences to analyse at most.
        work: what to compute.
        guard: wraps a hook so that a failure in it does not reach the training.
    """

    limit: int | None
    work: Work
    guard: Hook
    calls: list[ObservedCall] = field(default_factory=list[ObservedCall])
    sequences: list[SequenceCall] = field(default_factory=list[SequenceCall])
    watched: dict[str, None] = field(default_factory=dict[str, None])
    sealed: set[str] = field(default_factory=set[str])
    closed: bool = False
    arrivals: int = 0
    handles: list[RemovableHandle] = field(default_factory=list[RemovableHandle])
    counted: int = 0
    passes: set[int] = field(default_factory=set[int])
    weights: dict[tuple[tuple[int, int, int], ...], tuple[Weights, ...]] = field(default_factory=dict)
    gradients: dict[int, WeightGradient] = field(default_factory=dict[int, WeightGradient])
    cell_weights: dict[str, tuple[Any, Mapping[str, Tensor]]] = field(default_factory=dict)
    following: Following = field(init=False)

    def __post_init__(self) -> None:
        self.following = Following(self.limit)

    def takes(self, module: str) -> bool:
        """Whether a call of this module that begins now belongs to the recorded micro-batch.

        That ends for a module when it has received gradient; a forward within a backward pass recomputes an earlier
        one (activation checkpointing).
        """
        return backward_pass() != -1 or module not in self.sealed

    def observe(self, module: str, call: KernelCall, result: tuple[Tensor, ...], dropout: Dropout | None) -> None:
        """Copy what the analysis needs of a call of a layer or cell of torch's, and wait for gradients."""
        following = self.following
        link = following.link(module, call)
        rows = following.rows(call.batch, link)
        if dropout is not None and dropout.hidden and call.masks is None:
            dropout = replace(dropout, bits=dropout_bits(call, result[0]))
        taken = snapshot(call, result, self._copies(call), dropout, layout_of(call, rows))
        kept = list(range(call.batch)) if rows is None else rows
        observed = ObservedCall(module, self.counted, call.cell, taken, kept, link, self._weight_gradients(call, taken))
        observed.held = None if rows is None else hold_kernel(call, result, dropout)
        if link is None and not any(state.requires_grad for state in call.state):
            following.begins(module, taken.state)
        following.passed(module, taken.final)
        leaves = _leaves(observed, [*call.weights, call.input], call.state)
        self._watch(observed, result, leaves)
        if link is None:
            self._watch_kernel(observed, kernel_nodes(call, result[0]), leaves)
        if link is not None or (call.cell and len(result) > 1):
            inputs = [call.input, call.weights[0]]
            self._watch_recurrence(observed, Inner(result, call.state, inputs), leaves)

    def observe_cell(self, cell: Cell, arguments: dict[str, Any], state: Any, result: Any) -> None:
        """Copy what the analysis needs of a call of a cell that is not torch's, and wait for gradients."""
        following = self.following
        arguments, state = cell.settle(arguments, state, result)
        given = tensors_in(state)
        found = cell.results_of(result, state)
        if found is None or not all(part.dim() > 1 and len(part) == len(found.state[0]) for part in given):
            if cell.asked or any(x.requires_grad for x in tensors_in(result)):
                kind, method = type(cell.module).__name__, cell.method
                reason = (NO_STATE if cell.asked else NO_CELL).format(kind=kind, method=method)
                following.remarks[cell.name, reason] = None
            return
        if not any(part.requires_grad for part in found.state):
            return
        link = following.link_cell(cell.name, given)
        following.look_beside(cell, arguments, chained=link is not None)
        rows = following.rows(len(found.state[0]), link)
        kept = list(range(len(found.state[0]))) if rows is None else rows
        taken = take_call(arguments, given, found, rows, self._cell_weights(cell))
        held = None if rows is None else hold_cell(arguments, given, found)
        observed = ObservedCall(cell.name, self.counted, True, taken, kept, link, custom=cell, held=held)
        if link is None and given and not any(part.requires_grad for part in given):
            following.begins(cell.name, tuple(part.unsqueeze(0) for part in taken.given))
        following.passed(cell.name, taken.final)
        with suppress(TypeError):  # what cannot be copied is said when it is analysed
            cell.double()  # while the cell is there
        inputs = tensors_in(list(arguments.values()))
        leaves = _leaves(observed, [*cell.module.parameters(), *inputs], given)
        self._watch(observed, found.results, leaves)
        inner, before = Inner(found.state, given, inputs), len(self.handles)
        if link is not None or len(found.state) > 1:
            self._watch_recurrence(observed, inner, leaves)
        if not found.certain:
            following.unsettle(observed, self._mender(observed, inner, leaves, self.handles[before:]))

    def _mender(
        self, observed: ObservedCall, inner: Inner, leaves: tuple[Node, ...], handles: Sequence[RemovableHandle]
    ) -> Callable[[Sequence[Tensor]], None]:
        """Watches a call anew if its state is another part of its results than it was taken for."""
        guess = list(observed.snapshot.parts)

        def mend(state: Sequence[Tensor]) -> None:
            if observed.snapshot.parts != guess:
                for handle in handles:
                    handle.remove()
                self._watch_recurrence(observed, inner._replace(results=tuple(state)), leaves)

        return mend

    def observe_positions(self, given: Given, result: Any) -> None:
        """Wait for the gradient of the output of a module that turns a sequence into a sequence."""
        output = next(iter(tensors_in(result)), None)
        if output is None or output.dim() < 3 or not output.requires_grad:
            return
        module = given.module
        call = SequenceCall(given, self.counted, module.by_time(output.detach()).clone())
        with suppress(TypeError):
            module.double()
        self.counted += 1

        def receive(gradient: Tensor) -> None:
            if not self.closed:
                if call.gradient is None:
                    self.sequences.append(call)
                    self.sealed.add(module.seal)
                self.arrivals += 1
                call.gradient = added(call.gradient, module.by_time(gradient).clone())

        leaves = leaves_below([*module.module.parameters(), *tensors_in(given.leaves)])
        self.handles.append(watch_gradient(output, leaves, self.guard(receive)))

    def _watch(self, observed: ObservedCall, results: Sequence[Tensor], leaves: tuple[Node, ...]) -> None:
        """Mark the results of a call, and wait for their gradients."""
        self.counted += 1
        self.watched[observed.module] = None
        observed.gradients = [None for _ in results]
        observed.inside, observed.back = list(observed.gradients), list(observed.gradients)
        for slot, tensor in enumerate(results):
            if tensor.requires_grad:
                mark(tensor, (self.following.owner, observed.module), observed, slot)
                target, receive = output_receiver(self, observed, slot, tensor)
                self.handles.append(watch_gradient(target, leaves, self.guard(receive)))

    def _watch_kernel(self, observed: ObservedCall, nodes: Sequence[Node], leaves: tuple[Node, ...]) -> None:
        """Wait for the kernel's own backward pass: what it has kept need not be computed again."""
        observed.kept = [None for _ in nodes]
        for slot, node in enumerate(nodes):
            lower = slot < len(nodes) - observed.snapshot.directions
            self.handles.append(watch_node(node, leaves, self.guard(kept_receiver(self, observed, slot, lower))))

    def _cell_weights(self, cell: Cell) -> Mapping[str, Tensor]:
        """Copies of a cell's parameters and buffers, shared between the calls of a step while they stay the same."""
        tensors = [*cell.module.parameters(), *cell.module.buffers()]
        key = tuple((id(t), t.data_ptr(), t._version) for t in tensors)
        known = self.cell_weights.get(cell.name)
        if known is None or known[0] != key:
            known = self.cell_weights[cell.name] = (key, take_weights(cell.module))
        return known[1]

    def _watch_recurrence(self, observed: ObservedCall, inner: Inner, leaves: tuple[Node, ...]) -> None:
        """Tell apart what comes back through a call from what enters from outside."""
        places = consumers(inner, (self.following.owner, observed.module), observed)
        if places is None:
            self.following.remarks[observed.module, TOO_LARGE] = None
            return
        for node, index, found in places:
            if not isinstance(found, Mark):
                receive = back_receiver(self, observed, found)
            elif observed.cell and found.call is observed:
                receive = inside_receiver(self, observed, found.slot)
            else:
                continue
            self.handles.append(watch_input(node, index, leaves, self.guard(receive)))

    @property
    def any(self) -> bool:
        """Whether any gradient has arrived."""
        return bool(self.calls or self.sequences)

    @property
    def silent(self) -> list[str]:
        """Modules whose calls have received no gradient."""
        return [module for module in self.watched if module not in self.sealed]

    def received(self, call: ObservedCall) -> bool:
        """A gradient arrives for a call: it is part of the step, unless that is over."""
        if not self.closed and not call.received:
            call.received = True
            self.calls.append(call)
            self.sealed.add(call.module)
        self.passes.add(backward_pass())
        self.arrivals += 1
        return not self.closed

    def analyse(self, factor: Tensor | float = 1.0, *, stepped: bool = False) -> list[tuple[str, int, list[Analysis]]]:
        """Module, chain and analyses of every chain of calls that received gradient, in the order of their first calls.

        Args:
            factor: what the loss was multiplied by.
            stepped: an optimizer has stepped, so that it can be said what it did to the weights.
        """
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            found = analyse_calls(self.calls, self.work, factor, stepped=stepped)
            return [*found, *self._analyse_positions(factor)]

    def origin(self, factor: Tensor | float = 1.0) -> tuple[LayerKey, Origin] | None:
        """Where the first value that is not finite was born, in any sequence of all calls that received gradient.

        Sequences that were not analysed are looked at as well, unless the loop has written to what they were.
        """
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            calls = entirely(self.calls)
            chains = chains_of(self.calls if calls is None else calls)
            found = first_origin(chains, self._numbered(), factor)
            return None if found is None else (found[0], replace(found[1], entire=calls is not None))

    @property
    def spoilt(self) -> bool:
        """Whether something is not finite in or after a module that is observed by position, in whatever sequence."""
        modules = {call.given.module.seal: call.given.module.module for call in self.sequences}
        tensors = [t for call in self.sequences for t in (call.output, call.gradient) if t is not None]
        tensors += [p.grad for module in modules.values() for p in module.parameters() if p.grad is not None]
        return not all(bool(tensor.detach().sum().isfinite()) for tensor in tensors)

    def _numbered(self) -> list[tuple[int, SequenceCall]]:
        """Calls of modules that are observed by position, each with its number among those of its module."""
        counts: dict[str, int] = {}
        found: list[tuple[int, SequenceCall]] = []
        for call in sorted(self.sequences, key=lambda call: call.index):
            name = call.given.module.name
            number = counts[name] = counts.get(name, -1) + 1
            found.append((number, call))
        return found

    def _analyse_positions(self, factor: Tensor | float) -> list[tuple[str, int, list[Analysis]]]:
        return [
            (call.given.module.name, number, [analyse_positions(call.positions(self.limit, factor))])
            for number, call in self._numbered()
        ]

    def release(self) -> None:
        """Let go of sequences that were left out: what was not finite in one of them would show in the gradients."""
        for call in self.calls:
            call.held = None

    def close(self) -> None:
        """Let go of everything; gradients that arrive later are not this step's."""
        self.closed = True
        for handle in reversed(self.handles):
            handle.remove()
        self.release()
        self.handles.clear()
        self.calls.clear()
        self.sequences.clear()
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
                target.total = added(target.total, value.detach().clone())

        if weight.requires_grad:
            self.handles.append(watch_parameter(weight, self.guard(receive))[0])
        return gradient


def _leaves(call: ObservedCall, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> tuple[Node, ...]:
    """What accumulates below a call: of one that goes on from others, what does below them and its inputs."""
    if call.link is None:
        call.leaves = leaves_below([*inputs, *state])
    else:
        near = leaves_below(inputs, SEARCHED_AGAIN)
        far = [leaf for strand in call.link.strands for leaf in strand.call.leaves]
        call.leaves = tuple(dict.fromkeys([*near, *far]))
    return call.leaves
