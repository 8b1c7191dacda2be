"""The gradient hooks of a recorded step's calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from gradscope.attach.gradients import leaves_below, watch_gradient, watch_input
from gradscope.attach.inner import Inner, consumers
from gradscope.attach.kernel_nodes import watch_node
from gradscope.attach.marks import Mark, mark
from gradscope.observe.arriving import Step, back_receiver, inside_receiver, kept_receiver, output_receiver
from gradscope.observe.following import TOO_LARGE, Following
from gradscope.observe.observed import ObservedCall

SEARCHED_AGAIN = 32
"""Nodes to search below the inputs of each call of a chain. The first call knows what is below all of them."""
Hook = Callable[[Callable[[Any], None]], Callable[[Any], None]]


class CallHooks:
    """Marks the results of observed calls, and registers hooks for their gradients.

    Args:
        step: receives what arrives.
        following: of the calls' states.
        guard: wraps a hook so that its failures do not reach the training.
        handles: of the hooks; new ones are added.
    """

    def __init__(self, step: Step, following: Following, guard: Hook, handles: list[RemovableHandle]) -> None:
        """See the class."""
        self._step, self._following, self._guard, self._handles = step, following, guard, handles

    def results(self, call: ObservedCall, results: Sequence[Tensor]) -> None:
        """Mark the results of a call, and wait for their gradients."""
        call.gradients = [None for _ in results]
        call.inside, call.back = list(call.gradients), list(call.gradients)
        for slot, tensor in enumerate(results):
            if tensor.requires_grad:
                mark(tensor, (self._following.owner, call.module), call, slot)
                target, receive = output_receiver(self._step, call, slot, tensor)
                self._handles.append(watch_gradient(target, call.leaves, self._guard(receive)))

    def kernel(self, call: ObservedCall, nodes: Sequence[Node]) -> None:
        """Wait for the kernel's own backward pass: what the kernel has saved for it need not be computed again."""
        call.saved = [None for _ in nodes]
        for slot, node in enumerate(nodes):
            lower = slot < len(nodes) - call.snapshot.directions
            receive = kept_receiver(self._step, call, slot, lower)
            self._handles.append(watch_node(node, call.leaves, self._guard(receive)))

    def recurrence(self, call: ObservedCall, inner: Inner) -> None:
        """Tell gradients that come back through a call from those that enter from outside."""
        places = consumers(inner, (self._following.owner, call.module), call)
        if places is None:
            self._following.remarks[call.module, TOO_LARGE] = None
            return
        for node, index, place in places:
            if not isinstance(place, Mark):
                receive = back_receiver(self._step, call, place)
            elif call.cell and place.call is call:
                receive = inside_receiver(self._step, call, place.slot)
            else:
                continue
            self._handles.append(watch_input(node, index, call.leaves, self._guard(receive)))

    def guessed_recurrence(self, call: ObservedCall, inner: Inner) -> None:
        """The same for a call with a guessed state. The next call shows the state, and corrects the hooks."""
        guess, before = list(call.snapshot.parts), len(self._handles)
        if len(inner.results) > 1 or call.link is not None:
            self.recurrence(call, inner)
        handles = self._handles[before:]

        def mend(state: Sequence[Tensor]) -> None:
            if call.snapshot.parts != guess:
                for handle in handles:
                    handle.remove()
                self.recurrence(call, inner._replace(results=tuple(state)))

        self._following.correct_later(call, mend)


def leaves_of(call: ObservedCall, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> tuple[Node, ...]:
    """The nodes below a call that accumulate into some `.grad`; those of the calls that it goes on from included."""
    if call.link is None:
        return leaves_below([*inputs, *state])
    near = leaves_below(inputs, SEARCHED_AGAIN)
    far = [leaf for linked in call.link.parts for leaf in linked.call.leaves]
    return tuple(dict.fromkeys([*near, *far]))
