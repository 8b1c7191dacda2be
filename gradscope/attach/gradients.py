"""Loss gradients of tensors, as they enter them in `backward()` passes and in no others."""

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
    """Nodes that accumulate into some `.grad` below the tensors, the nearest first; those within reach of a search.

    Whether the engine is about to run one of them tells `backward()` from `torch.autograd.grad`.
    """
    queue = deque(get_gradient_edge(tensor).node for tensor in tensors if tensor.requires_grad)
    seen, found = set[Node](), list[Node]()
    while queue and len(seen) < limit:
        node = queue.popleft()
        if node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            found.append(node)
        queue.extend(below for below, _ in node.next_functions if below is not None)
    return tuple(found)


@uncompiled
def accumulates(leaves: tuple[Node, ...]) -> bool:
    """Within a backward pass: is it one that accumulates into `.grad`, at one of the leaves?"""
    return not leaves or any(_runs(leaf) for leaf in leaves)


@uncompiled
def _runs(leaf: Node) -> bool:
    try:
        return will_run(leaf)
    except RuntimeError:  # torch.autograd.grad with respect to this very leaf
        return False


@uncompiled
def watch_gradient(tensor: Tensor, leaves: tuple[Node, ...], receive: Callable[[Tensor], None]) -> RemovableHandle:
    """Hand every accumulated gradient of a tensor to `receive`, until its graph is gone or the handle is removed.

    In-place changes that the user makes to the tensor afterwards do not matter: the hook stays with the node that
    computed it.
    """

    def hook(gradient: Tensor | None) -> None:
        if gradient is not None and accumulates(leaves):
            receive(gradient.detach())

    return tensor.register_hook(hook)


@uncompiled
def watch_input(node: Node, index: int, leaves: tuple[Node, ...], receive: Callable[[Tensor], None]) -> RemovableHandle:
    """Hand to `receive` every accumulated gradient that a node hands down to where its input `index` came from."""

    def hook(inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> None:
        gradient = inputs[index]
        if gradient is not None and accumulates(leaves):
            receive(gradient.detach())

    return node.register_hook(hook)


@uncompiled
def watch_parameter(weight: Tensor, receive: Callable[[Tensor], None]) -> tuple[RemovableHandle, Node | None]:
    """Hand every gradient that is accumulated into a weight to `receive`.

    Nothing is put on the user's parameter: the hook is the accumulating node's.

    Returns:
        A handle that ends it, and the node; without a graph, the hook lasts as long as the node is held.
    """
    if weight.grad_fn is not None:
        return weight.register_hook(lambda gradient: None if gradient is None else receive(gradient.detach())), None
    node = get_gradient_edge(weight).node
    return node.register_prehook(lambda gradients: None if gradients[0] is None else receive(gradients[0])), node
