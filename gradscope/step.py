"""What happens between two optimizer steps: the calls whose gradients are arriving, and who owns them meanwhile.

A call's copies belong to the user's autograd graph until a gradient arrives: a forward that never sees a backward takes
them with it when its output goes. From the first gradient on the step owns them as well, until it is analysed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradscope.attach.gradients import backward_pass, leaves_below, watch_gradient, watch_parameter
from gradscope.capture.layout import Packed
from gradscope.capture.snapshot import Dropout, Snapshot, copy_weights, select_final, snapshot
from gradscope.families import analyse, certify
from gradscope.types import Analysis, KernelCall, Weights

Hook = Callable[[Callable[[Tensor], None]], Callable[[Tensor], None]]


@dataclass(eq=False)
class WeightGradient:
    """What a `weight_hh` accumulates in the backward passes of the recorded calls, for the certificate."""

    weight: weakref.ref[Tensor]
    complete: bool = True
    total: Tensor | None = None


@dataclass(eq=False)
class ObservedCall:
    """One call of a fused layer whose loss gradients are summed up as they arrive."""

    module: str
    index: int
    snapshot: Snapshot
    weight_gradients: tuple[WeightGradient, ...]
    received: bool = False
    grad_output: Tensor | None = None
    grad_final: list[Tensor | None] = field(default_factory=list[Tensor | None])


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

    def takes(self, module: str) -> bool:
        """Whether a call of this module that begins now belongs to the recorded micro-batch.

        That ends for a module when it has received gradient; a forward within a backward pass recomputes an earlier
        one (activation checkpointing).
        """
        self.called.add(module)
        return backward_pass() != -1 or module not in self.sealed

    def observe(self, module: str, call: KernelCall, result: tuple[Tensor, ...], dropout: Dropout | None) -> None:
        """Copy what the analysis needs, and wait for gradients."""
        taken = snapshot(call, result, self._copies(call), dropout, self.limit)
        observed = ObservedCall(module, self.counted, taken, self._weight_gradients(call, taken))
        observed.grad_final = [None] * len(taken.final)
        self.counted += 1
        leaves = leaves_below([*call.weights, call.input, *call.state])
        for slot, tensor in enumerate(result):
            if tensor.requires_grad:
                target, receive = _receiver(self, observed, slot, tensor)
                self.handles.append(watch_gradient(target, leaves, self.guard(receive)))

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
        """Module, chain and analyses of every call that received gradient, in the order of the calls.

        Args:
            factor: what the loss was multiplied by.
        """
        found: list[tuple[str, int, list[Analysis]]] = []
        chains: dict[str, int] = {}
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            calls = sorted(self.calls, key=lambda call: call.index)
            for call in calls:
                chain = chains[call.module] = chains.get(call.module, -1) + 1
                stack = call.snapshot.stack(call.grad_output, call.grad_final, factor)
                sketch = any(g.complete and g.total is not None for g in call.weight_gradients)
                found.append((call.module, chain, analyse(stack, full=self.full, sketch=sketch)))
            self._certify(calls, [analyses for _, _, analyses in found], factor)
        return found

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

    def _certify(self, calls: Sequence[ObservedCall], analyses: list[list[Analysis]], factor: Tensor | float) -> None:
        users: dict[int, list[tuple[int, int]]] = {}
        known: dict[int, WeightGradient] = {}
        for i, call in enumerate(calls):
            for j, gradient in enumerate(call.weight_gradients):
                users.setdefault(id(gradient), []).append((i, j))
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
    if slot:

        def receive_final(gradient: Tensor) -> None:
            if recording.received(call):
                call.grad_final[slot - 1] = _added(call.grad_final[slot - 1], select_final(gradient, layout))

        return tensor, receive_final
    base = tensor._base if tensor._is_view() else None
    turned = base is not None and not isinstance(layout, Packed) and base.shape == tensor.transpose(0, 1).shape
    # Of a view that the user writes to in place the gradient passes by its own node, but not by its base's.
    target = base if turned and base is not None else tensor
    select = layout.time_first if turned and not isinstance(layout, Packed) else layout.select

    def receive_output(gradient: Tensor) -> None:
        if recording.received(call):
            call.grad_output = _added(call.grad_output, select(gradient))

    return target, receive_output


def _added(total: Tensor | None, value: Tensor) -> Tensor:
    return value if total is None else total + value
