"""The calls, within a recorded step, of modules that are observed by position."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradscope.attach.gradients import leaves_below, watch_gradient
from gradscope.capture.positions import ModuleInputs, SequenceCall
from gradscope.capture.results import tensors_in
from gradscope.families import analyse_positions
from gradscope.observe.observed import added
from gradscope.types import Analysis


class SequenceCalls:
    """Keeps the calls whose outputs have received gradients.

    Args:
        limit: the most sequences to analyse; None for all.
        guard: wraps a hook so that its failures do not reach the training.
        handles: of the hooks; new ones are added.
        arrived: called when a gradient arrives, with the module's seal if it is the call's first; False to discard.
    """

    def __init__(
        self,
        limit: int | None,
        guard: Callable[[Callable[[Any], None]], Any],
        handles: list[RemovableHandle],
        arrived: Callable[[str | None], bool],
    ) -> None:
        """See the class."""
        self._limit, self._guard, self._handles, self._arrived = limit, guard, handles, arrived
        self._calls: list[SequenceCall] = []

    def __bool__(self) -> bool:
        """True if a gradient has arrived."""
        return bool(self._calls)

    def observe(self, inputs: ModuleInputs, result: Any, index: int) -> None:
        """Wait for the gradient of the output, if it can have one.

        Args:
            inputs: the call before it was made.
            result: what it returned.
            index: number of the call within the step.
        """
        output = next(iter(tensors_in(result)), None)
        if output is None or output.dim() < 3 or not output.requires_grad:
            return
        module = inputs.module
        call = SequenceCall(inputs, index, module.by_time(output.detach()).clone())
        with suppress(TypeError):
            module.double()

        def receive(gradient: Tensor) -> None:
            first = call.gradient is None
            if self._arrived(module.seal if first else None):
                if first:
                    self._calls.append(call)
                call.gradient = added(call.gradient, module.by_time(gradient).clone())

        leaves = leaves_below([*module.module.parameters(), *tensors_in(inputs.leaves)])
        self._handles.append(watch_gradient(output, leaves, self._guard(receive)))

    def numbered(self) -> list[tuple[int, SequenceCall]]:
        """The calls in their order, each with its number among those of its module."""
        counts: dict[str, int] = {}
        calls: list[tuple[int, SequenceCall]] = []
        for call in sorted(self._calls, key=lambda call: call.index):
            name = call.inputs.module.name
            counts[name] = counts.get(name, -1) + 1
            calls.append((counts[name], call))
        return calls

    def analyse(self, factor: Tensor | float) -> list[tuple[str, int, list[Analysis]]]:
        """Module, number and analysis of each call; `factor` is the loss scale."""
        return [
            (call.inputs.module.name, number, [analyse_positions(call.positions(self._limit, factor))])
            for number, call in self.numbered()
        ]

    @property
    def spoilt(self) -> bool:
        """True if something in or after these modules is not finite, in any sequence."""
        modules = {call.inputs.module.seal: call.inputs.module.module for call in self._calls}
        tensors = [t for call in self._calls for t in (call.output, call.gradient) if t is not None]
        tensors += [p.grad for module in modules.values() for p in module.parameters() if p.grad is not None]
        return not all(bool(tensor.detach().sum().isfinite()) for tensor in tensors)

    def clear(self) -> None:
        """Discard all calls."""
        self._calls.clear()
