"""Passes cotangents back through the autograd graph without the engine: fires no hook, frees no saved tensor."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from gradscope.attach.marks import KEY, VISITED, Edge, Mark, mark_at, metadata, nodes_below
from gradscope.private import forward_class, outputs_of, sequence_number

ELEMENTWISE = frozenset(
    """Abs Add Addcdiv Addcmul Alias AsStrided Cat Clamp ClampMax ClampMin Clone ConstantPadNd Copy CopyBackwards
    CopySlices Cos Div Elu Exp Expand Fill Flip Gather Gelu Hardsigmoid Hardswish Hardtanh Index IndexAdd IndexCopy
    IndexFill IndexPut IndexPutImpl IndexSelect LeakyRelu Lerp MaskedFill MaskedScatter Maximum Minimum Mish Mul
    NativeDropout Neg Permute Pow Relu Repeat ReshapeAlias Roll Rsub Scatter ScatterAdd Select SelectScatter Sigmoid
    Silu Sin Slice SliceScatter Softplus Split SplitWithSizes Sqrt Squeeze Stack Sub T Tanh Threshold ToCopy
    Transpose Unbind UnsafeSplit UnsafeView Unsqueeze View Where Zero""".split()
)
"""Operations whose derivative mixes no units: what loops do to a state between two calls."""

HANDED_ON = frozenset(("RegisterPostBackwardFunction", "_DDPSink"))
"""Torch's own functions (FSDP, DDP) that pass on each input unchanged, with side effects in backward: never called."""


@dataclass(slots=True)
class Walk:
    """Cotangents on their way back, the latest node first.

    Attributes:
        owner: owner of the marks.
        pending: cotangents at the outputs of nodes still to visit.
        order: these nodes, as a heap.
        arrived: sum of the cotangents at each marked result.
        blocked: True if a path to a marked result could not be followed.
    """

    owner: Hashable
    pending: dict[Node, dict[int, Tensor]] = field(default_factory=dict[Node, "dict[int, Tensor]"])
    order: list[tuple[int, int, Node]] = field(default_factory=list["tuple[int, int, Node]"])
    arrived: dict[Mark, Tensor] = field(default_factory=dict[Mark, Tensor])
    blocked: bool = False

    def add(self, node: Node, number: int, cotangent: Tensor) -> None:
        """Add a cotangent at an output of a node; zeros go nowhere."""
        if not bool(cotangent.any()):
            return
        marked = mark_at(node, number, self.owner)
        if marked is not None:
            known = self.arrived.get(marked)
            self.arrived[marked] = cotangent if known is None else known + cotangent
            return
        if node not in self.pending:
            self.pending[node] = {}
            heapq.heappush(self.order, (-sequence_number(node), len(self.order), node))
        here = self.pending[node]
        here[number] = here[number] + cotangent if number in here else cotangent

    def step(self) -> None:
        """Pass on the cotangents at the latest node."""
        _, _, node = heapq.heappop(self.order)
        cotangents = self.pending.pop(node)
        if not node.next_functions:
            return
        outputs = outputs_of(node)
        if outputs and _hands_on(node):
            for i, (target, number) in enumerate(node.next_functions[-outputs:]):
                if target is not None and i in cotangents:
                    self.add(target, number, cotangents[i])
            return
        if outputs is None or not _elementwise(node):
            self.blocked |= any(_leads_to_mark(below, self.owner) for below, _ in node.next_functions if below)
            return
        run: Any = node  # calling a node computes, and fires no hook
        try:
            result = run(*(cotangents.get(i) for i in range(outputs)))
        except RuntimeError:  # a backward pass has freed its saved tensors: no gradient goes this way any more
            self.blocked |= _leads_to_mark(node, self.owner)
            return
        below = result if isinstance(result, tuple) else (result,)
        for (target, number), cotangent in zip(node.next_functions, below, strict=False):
            if target is not None and cotangent is not None:
                self.add(target, number, cotangent)


def carry(edge: Edge, cotangent: Tensor, owner: Hashable) -> Walk:
    """Pass a cotangent of a state back to the marked results that the state comes from."""
    walk, kind = Walk(owner), cotangent.device.type
    with torch.no_grad(), torch.autocast(kind, enabled=False):
        walk.add(edge[0], edge[1], cotangent)
        for _ in range(VISITED):
            if not walk.order:
                return walk
            walk.step()
    walk.blocked = True
    return walk


def _elementwise(node: Node) -> bool:
    if isinstance(node, BackwardCFunction):  # user code: not ours to run
        return False
    return node.name().rpartition(":")[2].rstrip("0123456789").removesuffix("Backward") in ELEMENTWISE


def _hands_on(node: Node) -> bool:
    function = forward_class(node)
    return function is not None and function.__name__ in HANDED_ON and function.__module__.startswith("torch.")


def _leads_to_mark(node: Node, owner: Hashable) -> bool:
    """True if a limited search below this node meets a marked result."""
    return any(owner == key[0] for below in nodes_below([node]) for key in metadata(below).get(KEY, ()))
