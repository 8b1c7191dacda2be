"""The nodes of autograd's graph in which vendors' kernels run recurrences, and what they keep.

On the CPU there is a node for every layer and direction of an LSTM, with what its own backward pass needs: the gates
and the output of the layer. What is read there need not be computed again. cuDNN has one node for a whole stack, with a
*reserve* of bytes, at whose end are the dropout masks between the layers, which it gives to nobody. All of it is
private: where anything looks otherwise, there are no nodes and no masks, and what is read is held against the kernel's
results before it is believed.
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
"""Bytes: what a mask is filled up to, and what comes behind the last (cuDNN 9)."""
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LEAST_STEPS = 8
"""Calls of fewer timesteps are mostly parts of a longer sequence, which is analysed as one."""


def kernel_nodes(call: KernelCall, output: Tensor) -> tuple[Node, ...]:
    """One node for each layer and direction, in torch's order of parameters; none where it was another kernel."""
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
    """Before a node runs in a backward pass: hand it to `receive`, with the gradient of its first result.

    The hook holds nothing of the graph, which would keep itself alive.
    """

    def hook(gradients: tuple[Tensor | None, ...]) -> None:
        if accumulates(leaves):
            receive((current_node(), gradients[0]))

    return node.register_prehook(hook)


def dropout_bits(call: KernelCall, output: Tensor) -> Tensor | None:
    """What cuDNN keeps of the dropout masks between the layers, a copy: [masks, bytes], a bit for every element.

    Each direction of a layer has a mask of its own on all that the layer below gives it, forward before reverse. A bit
    is set where the element was kept, the lowest first, in the order of the elements of that output, time first or
    packed. None where there is no such node.
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
    kept = reserve.detach().contiguous().view(torch.uint8)[last - count * block : last]
    return kept.reshape(count, block)[:, :length].clone()


def _directions(node: Node | None, directions: int) -> list[Node]:
    """The nodes of one layer, from the one that made its output or what is made of that for the layer above."""
    node = _past(node, "Transpose", "Mul")  # batch first; dropout
    if node is None:
        return []
    found = [below for below, _ in node.next_functions] if directions == 2 and node.name() == "CatBackward0" else [node]
    nodes = [each for each in found if each is not None and each.name() == KERNEL]
    return nodes if len(nodes) == len(found) == directions else []


def _past(node: Node | None, *names: str) -> Node | None:
    """The first node below, or this one, whose name does not begin like that."""
    while node is not None and node.name().startswith(names):
        node = node.next_functions[0][0]
    return node
