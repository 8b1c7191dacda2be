"""Loss gradients of tensors, in `backward()` passes only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from gradscope.attach.uncompiled import uncompiled
from gradscope.private import will_run

SEARCHED_NODES = 512


def leaves_below(tensors: Iterable[Tensor], limit: int = SEARCHED_NODES) -> tuple[Node, ...]:
    """Find the nodes below the tensors that accumulate into some `.grad`, nearest first, among `limit` nodes.

    The engine runs them in `backward()` and not in `torch.autograd.grad`.
    """
    queue = deque(get_gradient_edge(tensor).node for tensor in tensors if tensor.requires_grad)
    seen, leaves = set[Node](), list[Node]()
    while queue and len(seen) < limit:
        node = queue.popleft()
        if node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            leaves.append(node)
        queue.extend(below for below, _ in node.next_functions if below is not None)
    return tuple(leaves)


@uncompiled
def accumulates(leaves: tuple[Node, ...]) -> bool:
    """True within a backward pass that accumulates into `.grad` at one of the leaves."""
    return not leaves or any(_runs(leaf) for leaf in leaves)


@uncompiled
def _runs(leaf: Node) -> bool:
    try:
        return will_run(leaf)
    except RuntimeError:  # torch.autograd.grad with respect to this very leaf
        return False


@uncompiled
def watch_gradient(tensor: Tensor, leaves: tuple[Node, ...], receive: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `receive` with every accumulated gradient of a tensor, until its graph is gone or the handle is removed.

    The hook belongs to the node that computed the tensor, so that later in-place changes do not matter.
    """

    def hook(gradient: Tensor | None) -> None:
        if gradient is not None and accumulates(leaves):
            receive(gradient.detach())

    return tensor.register_hook(hook)


@uncompiled
def watch_input(node: Node, index: int, leaves: tuple[Node, ...], receive: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `receive` with every accumulated gradient that a node passes back to its input `index`."""

    def hook(inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> None:
        gradient = inputs[index]
        if gradient is not None and accumulates(leaves):
            receive(gradient.detach())

    return node.register_hook(hook)


@uncompiled
def watch_parameter(weight: Tensor, receive: Callable[[Tensor], None]) -> tuple[RemovableHandle, Node | None]:
    """Call `receive` with every gradient that accumulates into a weight.

    The hook belongs to the accumulating node, not to the user's parameter.

    Returns:
        A handle to remove the hook, and the node: for a leaf, the hook lasts as long as a reference to its node.
    """
    if weight.grad_fn is not None:
        return weight.register_hook(lambda gradient: None if gradient is None else receive(gradient.detach())), None
    node = get_gradient_edge(weight).node
    return node.register_prehook(lambda gradients: None if gradients[0] is None else receive(gradients[0])), node
