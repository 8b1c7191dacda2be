"""The gradient hooks of a step's calls: each adds an arriving gradient to its call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from gradscope.capture.layout import Dense
from gradscope.capture.saved import copy_saved
from gradscope.observe.observed import ObservedCall, added
from gradscope.private import base_of


class Step(Protocol):
    """The part of a recorded step that the hooks need.

    Attributes:
        closed: True once the step is over; gradients that arrive later are not part of it.
    """

    @property
    def closed(self) -> bool:
        """See the class."""
        ...

    def received(self, call: ObservedCall) -> bool:
        """A gradient arrives for a call; True if it is part of the step."""
        ...


def output_receiver(
    recording: Step, call: ObservedCall, slot: int, tensor: Tensor
) -> tuple[Tensor, Callable[[Tensor], None]]:
    """The tensor to watch for the gradient of a result, and the hook."""
    layout = call.snapshot.layout
    if slot or call.cell:

        def receive_final(gradient: Tensor) -> None:
            if recording.received(call):
                call.receive("gradients", slot, slot, gradient)

        return tensor, receive_final
    base = base_of(tensor)
    turned = base is not None and isinstance(layout, Dense) and base.shape == tensor.transpose(0, 1).shape
    # If the user writes to a view in place, the gradient passes the node of the view, but not that of its base.
    target = base if turned and base is not None else tensor

    def receive_output(gradient: Tensor) -> None:
        if recording.received(call):
            call.receive("gradients", 0, 0, gradient, turned=turned)

    return target, receive_output


def kept_receiver(
    recording: Step, call: ObservedCall, slot: int, lower: bool
) -> Callable[[tuple[Any, Tensor | None]], None]:
    """A hook that copies the kernel's saved values of a layer, and adds the output gradient of a lower layer."""
    layout = call.snapshot.layout

    def receive(arrived: tuple[Any, Tensor | None]) -> None:
        node, gradient = arrived
        if recording.closed:
            return
        saved = call.saved[slot] or copy_saved(node, layout, lower=lower)
        if saved is not None and lower and gradient is not None:
            saved = replace(saved, grad_output=added(saved.grad_output, layout.time_first(gradient.detach())))
        call.saved[slot] = saved

    return receive


def inside_receiver(recording: Step, call: ObservedCall, slot: int) -> Callable[[Tensor], None]:
    """A hook that adds a gradient to a result from inside its own call."""

    def receive(gradient: Tensor) -> None:
        if not recording.closed:
            call.receive("inside", slot, slot, gradient)

    return receive


def back_receiver(recording: Step, call: ObservedCall, part: int) -> Callable[[Tensor], None]:
    """A hook that adds the gradient of an input part of the state, through the call."""

    def receive(gradient: Tensor) -> None:
        if not recording.closed:
            call.receive("back", part, call.slot(part), gradient)

    return receive
