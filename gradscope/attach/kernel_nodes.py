"""The nodes of the autograd graph in which vendors' kernels run recurrences, and the values that they save.

On the CPU every layer and direction of an LSTM has a node, which saves the gates and the output of the layer for its
backward pass. Reading them spares computing them again. cuDNN has one node for a whole stack, with a *reserve* of
bytes; the dropout masks between the layers are at its end. All of this is private: if anything looks otherwise, these
functions return no nodes and no masks, and gradscope compares the values with the kernel's results before it trusts
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from gradscope.attach.gradients import accumulates
from gradscope.attach.uncompiled import uncompiled
from gradscope.private import current_node, hooks_on_saved, saved
from gradscope.types import KernelCall

KERNEL, CUDNN = "MkldnnRnnLayerBackward0", "CudnnRnnBackward0"
RESERVE_ALIGNED, RESERVE_TAIL = 32, 256
"""In bytes: the alignment of a mask, and the tail after the last mask (cuDNN 9)."""
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LEAST_STEPS = 8
"""Shorter calls are mostly parts of a longer sequence, which gradscope analyses as one."""


def kernel_nodes(call: KernelCall, output: Tensor) -> tuple[Node, ...]:
    """The node of each layer and direction, in torch's order of parameters; none for another kernel."""
    plain = call.family == "lstm" and call.batch_sizes is None and not call.cell and call.masks is None
    if not plain or output.dtype != torch.float32 or output.device.type != "cpu" or output.dim() != 3:
        return ()
    if output.shape[1 if call.batch_first else 0] < LEAST_STEPS or hooks_on_saved(True) is not None:
        return ()
    layers: list[list[Node]] = []
    below = output.grad_fn
    for _ in range(call.num_layers):
        nodes = _directions(below, call.directions)
        if not nodes:
            return ()
        layers.insert(0, nodes)
        below = nodes[0].next_functions[0][0]
    return tuple(node for nodes in layers for node in nodes)


@uncompiled
def watch_node(
    node: Node, leaves: tuple[Node, ...], receive: Callable[[tuple[Any, Tensor | None]], None]
) -> RemovableHandle:
    """Before a node runs in a backward pass, call `receive` with the node and the gradient of its first result.

    The hook has no reference to the graph, which would keep itself alive.
    """

    def hook(gradients: tuple[Tensor | None, ...]) -> None:
        if accumulates(leaves):
            receive((current_node(), gradients[0]))

    return node.register_prehook(hook)


def dropout_bits(call: KernelCall, output: Tensor) -> Tensor | None:
    """Copy cuDNN's dropout masks between the layers: [masks, bytes], a bit for every element.

    Each direction of a layer has its own mask on the whole output of the layer below, forward before reverse. A bit is
    1 for a retained element, the lowest bit first, in the order of the elements of that output, time first or packed.
    None without such a node.
    """
    if output.device.type != "cuda" or output.dtype not in FLOATING or hooks_on_saved(True) is not None:
        return None
    node = _past(output.grad_fn, "Transpose")  # batch first
    reserve = saved(node, "result3") if node is not None and node.name() == CUDNN else None
    if not isinstance(reserve, Tensor):
        return None
    count, length = (call.num_layers - 1) * call.directions, -(-output.numel() // 8)
    block = -(-length // RESERVE_ALIGNED) * RESERVE_ALIGNED
    last = reserve.numel() * reserve.element_size() - RESERVE_TAIL
    if last < count * block:
        return None
    masks = reserve.detach().contiguous().view(torch.uint8)[last - count * block : last]
    return masks.reshape(count, block)[:, :length].clone()


def _directions(node: Node | None, directions: int) -> list[Node]:
    """The nodes of one layer, from the node of its output or of the input of the layer above."""
    node = _past(node, "Transpose", "Mul")  # batch first; dropout
    if node is None:
        return []
    below = [node for node, _ in node.next_functions] if directions == 2 and node.name() == "CatBackward0" else [node]
    nodes = [each for each in below if each is not None and each.name() == KERNEL]
    return nodes if len(nodes) == len(below) == directions else []


def _past(node: Node | None, *names: str) -> Node | None:
    """The first node, from this one downwards, whose name does not begin with one of these."""
    while node is not None and node.name().startswith(names):
        node = node.next_functions[0][0]
    return node
