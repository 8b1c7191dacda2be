"""A recorded step: its calls, whose gradients are arriving, until they are analysed.

A call's copies belong to the user's autograd graph until a gradient arrives: if the output of a forward pass goes
without a backward pass, the copies go with it. From the first gradient on the step owns them too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradscope.attach.inner import Inner
from gradscope.attach.kernel_nodes import dropout_bits, kernel_nodes
from gradscope.capture.cell import Cell
from gradscope.capture.cell_call import take_call
from gradscope.capture.layout import copy_states, layout_of
from gradscope.capture.positions import ModuleInputs
from gradscope.capture.results import Results, tensors_in
from gradscope.capture.retained import retain_cell, retain_kernel
from gradscope.capture.snapshot import Dropout, snapshot
from gradscope.families import Work
from gradscope.observe.analysing import analyse_calls, chains_of
from gradscope.observe.following import Following
from gradscope.observe.hooks import CallHooks, Hook, leaves_of
from gradscope.observe.observed import ObservedCall, with_whole_batches
from gradscope.observe.origins import first_origin
from gradscope.observe.sequences import SequenceCalls
from gradscope.observe.weights import StepWeights
from gradscope.private import backward_pass
from gradscope.types import Analysis, KernelCall, LayerKey, Origin
from gradscope.types.notes import DISABLED, FROZEN, NO_GRADIENT


@dataclass(slots=True)
class Recording:
    """One optimizer step that is being recorded.

    Args:
        limit: the most sequences to analyse; None for all.
        work: what to compute.
        guard: wraps a hook so that its failures do not reach the training.

    Attributes:
        calls: those that have received gradients.
        watched: the modules whose results have hooks.
        without: modules whose calls could not receive a gradient, and a note on each.
        sealed: the modules whose micro-batch is over, since they have received gradients.
        closed: True once the step is over; gradients that arrive later are not part of it.
        arrivals: how many gradients have arrived.
        following: of the states from call to call.
    """

    limit: int | None
    work: Work
    guard: Hook
    calls: list[ObservedCall] = field(default_factory=list[ObservedCall])
    watched: dict[str, None] = field(default_factory=dict[str, None])
    without: dict[str, str] = field(default_factory=dict[str, str])
    sealed: set[str] = field(default_factory=set[str])
    closed: bool = False
    arrivals: int = 0
    following: Following = field(init=False)
    _handles: list[RemovableHandle] = field(default_factory=list[RemovableHandle])
    _passes: set[int] = field(default_factory=set[int])
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _weights: StepWeights = field(init=False)
    _hooks: CallHooks = field(init=False)
    _sequences: SequenceCalls = field(init=False)

    def __post_init__(self) -> None:
        self.following = Following(self.limit)
        self._weights = StepWeights(self.guard, self._passes, self._handles)
        self._hooks = CallHooks(self, self.following, self.guard, self._handles)
        self._sequences = SequenceCalls(self.limit, self.guard, self._handles, self._sequence_arrived)

    def takes(self, module: str) -> bool:
        """True if a call of this module that begins now belongs to the recorded micro-batch.

        The micro-batch of a module ends when the module has received a gradient. A forward within a backward pass
        recomputes an earlier one (activation checkpointing).
        """
        return backward_pass() != -1 or module not in self.sealed

    # --- calls

    def observe(self, module: str, call: KernelCall, result: tuple[Tensor, ...], dropout: Dropout | None) -> None:
        """Copy what the analysis needs of a call of a layer or cell of torch's, and wait for gradients."""
        following = self.following
        link = following.link(module, call)
        rows = following.rows(call.batch, link)
        if dropout is not None and dropout.hidden and call.masks is None:
            dropout = replace(dropout, bits=dropout_bits(call, result[0]))
        copy = snapshot(call, result, self._weights.copies(call), dropout, layout_of(call, rows))
        numbers = list(range(call.batch)) if rows is None else rows
        gradients = self._weights.gradients(call, copy)
        observed = ObservedCall(module, next(self._numbers), call.cell, copy, numbers, link, gradients)
        observed.retained = None if rows is None else retain_kernel(call, result, dropout)
        following.begins(module, copy.state, call.state, link)
        following.returned(module, copy.final)
        self._watch(observed, result, [*call.weights, call.input], call.state)
        if link is None:
            self._hooks.kernel(observed, kernel_nodes(call, result[0]))
        if link is not None or (call.cell and len(result) > 1):
            self._hooks.recurrence(observed, Inner(result, call.state, [call.input, call.weights[0]]))

    def observe_without(self, module: str, call: KernelCall, result: tuple[Tensor, ...]) -> None:
        """Remember a call of a layer or cell of torch's that cannot receive a gradient, and the states it returned."""
        self.without.setdefault(module, FROZEN if torch.is_grad_enabled() else DISABLED)
        finals = copy_states(result if call.cell else result[1:], self.limit, 0 if call.cell else 1)
        self.following.returned(module, finals)

    def observe_cell(self, cell: Cell, arguments: dict[str, Any], state: Any, result: Any) -> None:
        """Copy what the analysis needs of a call of a custom cell, and wait for gradients."""
        following = self.following
        arguments, state = cell.settle(arguments, state, result)
        parts = tensors_in(state)
        results = cell.results_of(result, state)
        if results is None or not all(part.dim() > 1 and len(part) == len(results.state[0]) for part in parts):
            following.refuse(cell, result)
            return
        if not any(part.requires_grad for part in results.state):
            return
        link = following.link_cell(cell.name, parts)
        following.check_arguments(cell, arguments, chained=link is not None)
        observed = self._custom_call(cell, arguments, parts, results, link)
        following.returned(cell.name, observed.snapshot.final)
        with suppress(TypeError):  # the analysis says so if the cell cannot be copied
            cell.double()  # while the cell exists
        inputs = tensors_in(list(arguments.values()))
        self._watch(observed, results.results, [*cell.module.parameters(), *inputs], parts)
        inner = Inner(results.state, parts, inputs)
        if not results.certain:
            self._hooks.guessed_recurrence(observed, inner)
        elif link is not None or len(results.state) > 1:
            self._hooks.recurrence(observed, inner)

    def _custom_call(
        self, cell: Cell, arguments: dict[str, Any], parts: list[Tensor], results: Results, link: Any
    ) -> ObservedCall:
        """The copies of a custom cell's call."""
        batch = len(results.state[0])
        rows = self.following.rows(batch, link)
        copy = take_call(arguments, parts, results, rows, self._weights.of_cell(cell))
        retained = None if rows is None else retain_cell(arguments, parts, results)
        numbers = list(range(batch)) if rows is None else rows
        self.following.begins(cell.name, [part.unsqueeze(0) for part in copy.previous], parts, link)
        return ObservedCall(cell.name, next(self._numbers), True, copy, numbers, link, custom=cell, retained=retained)

    def observe_positions(self, inputs: ModuleInputs, result: Any) -> None:
        """Wait for the gradient of the output of a module that turns a sequence into a sequence."""
        self._sequences.observe(inputs, result, next(self._numbers))

    def _watch(self, observed: ObservedCall, results: Any, inputs: list[Tensor], state: Any) -> None:
        self.watched[observed.module] = None
        observed.leaves = leaves_of(observed, inputs, state)
        self._hooks.results(observed, results)

    # --- gradients

    @property
    def any(self) -> bool:
        """True if a gradient has arrived."""
        return bool(self.calls or self._sequences)

    @property
    def silent(self) -> dict[str, str]:
        """Modules whose calls have received no gradient, and a note on each.

        Calls that could not receive one count if no recurrence has received any: target networks have such calls
        beside the network that learns.
        """
        silent = {module: NO_GRADIENT for module in self.watched if module not in self.sealed}
        return silent if self.sealed else {**self.without, **silent}

    def received(self, call: ObservedCall) -> bool:
        """A gradient arrives for a call: True if the step goes on, so that the gradient is part of it."""
        if not self.closed and not call.received:
            call.received = True
            self.calls.append(call)
            self.sealed.add(call.module)
        self._passes.add(backward_pass())
        self.arrivals += 1
        return not self.closed

    def _sequence_arrived(self, seal: str | None) -> bool:
        """The same for a module that is observed by position; `seal` with the first gradient of a call."""
        if self.closed:
            return False
        if seal is not None:
            self.sealed.add(seal)
        self.arrivals += 1
        return True

    # --- analysis

    def analyse(self, factor: Tensor | float = 1.0, *, stepped: bool = False) -> list[tuple[str, int, list[Analysis]]]:
        """Module, chain and analyses of every chain of calls that has received gradients, in the order of first calls.

        Args:
            factor: the loss scale.
            stepped: an optimizer has stepped, so that the change of the weights is known.
        """
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return [*analyse_calls(self.calls, self.work, factor, stepped=stepped), *self._sequences.analyse(factor)]

    def origin(self, factor: Tensor | float = 1.0) -> tuple[LayerKey, Origin] | None:
        """The first value that is not finite, in any sequence of the calls that have received gradients.

        Sequences that were not analysed count too, unless the loop has written into their tensors since.
        """
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            calls = with_whole_batches(self.calls)
            chains = chains_of(self.calls if calls is None else calls)
            first = first_origin(chains, self._sequences.numbered(), factor)
            return None if first is None else (first[0], replace(first[1], entire=calls is not None))

    @property
    def spoilt(self) -> bool:
        """True if something is not finite in or after a module that is observed by position."""
        return self._sequences.spoilt

    def release(self) -> None:
        """Discard the sequences that are not analysed: no gradient shows a value that is not finite."""
        for call in self.calls:
            call.retained = None

    def close(self) -> None:
        """Remove the hooks and discard everything."""
        self.closed = True
        for handle in reversed(self._handles):
            handle.remove()
        self.release()
        for part in (self._handles, self.calls, self._sequences, self._weights):
            part.clear()
