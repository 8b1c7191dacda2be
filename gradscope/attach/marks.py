"""Marks on results of observed calls, in the metadata of the nodes: they live and die with the user's graph."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

KEY = "gradscope"
VISITED = 256

Edge = tuple[Node, int]


class Mark(NamedTuple):
    """A result of an observed call: the call, and the index of the result."""

    call: Any
    slot: int


def mark(tensor: Tensor, owner: Hashable, call: Any, slot: int) -> None:
    """Mark a tensor as a result of a call, visible to this owner only."""
    node, number = edge_of(tensor)
    metadata(node).setdefault(KEY, {})[owner, number] = Mark(call, slot)


def metadata(node: Node) -> dict[str, Any]:
    """The metadata of a node, which torch's stubs declare as a method."""
    return node.metadata  # type: ignore[return-value]


def marked(tensor: Tensor, owner: Hashable) -> Mark | None:
    """The mark of a tensor that is an unchanged result."""
    return mark_at(*edge_of(tensor), owner) if tensor.requires_grad else None


def edge_of(tensor: Tensor) -> Edge:
    """The destination of a tensor's gradient: a node, and the index of its output."""
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def mark_at(node: Node, number: int, owner: Hashable) -> Mark | None:
    """The mark on an output of a node."""
    marks = metadata(node).get(KEY)
    return None if marks is None else marks.get((owner, number))


def nodes_below(start: Sequence[Node], limit: int = VISITED) -> Iterator[Node]:
    """Nodes of the graph from `start` downwards, at most `limit`."""
    stack, seen = list(start), set(start)
    for _ in range(limit):
        if not stack:
            return
        node = stack.pop()
        yield node
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                stack.append(below)
