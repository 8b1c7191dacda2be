"""The part of the autograd graph that belongs to a call, and the places where its state enters."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import Node

from gradscope.attach.marks import Edge, Mark, edge_of, mark_at, nodes_below

SEARCHED = 20_000


class Inner(NamedTuple):
    """The tensors that bound a call's part of the graph.

    Attributes:
        results: results of the call.
        state: parts of its initial state.
        inputs: its other arguments, and their weights.
    """

    results: Sequence[Tensor]
    state: Sequence[Tensor]
    inputs: Sequence[Tensor]


def consumers(inner: Inner, owner: Hashable, call: Any) -> list[tuple[Node, int, int | Mark]] | None:
    """Find the places in a call's graph where the parts of its state, and its own results, enter a node.

    Args:
        inner: the call.
        owner: owner of the marks.
        call: the `call` of its own marks: a path may lead through a result, such as a gate that it also returns.

    Returns:
        Node, index of its input, and part of the state or mark; None if the graph is too large to search.
    """
    parts = {edge_of(x): part for part, x in enumerate(inner.state) if x.requires_grad}
    inputs = {edge_of(x) for x in inner.inputs if x.requires_grad}
    stack = list(dict.fromkeys(edge_of(r)[0] for r in inner.results if r.requires_grad))  # a fused cell has one node
    seen, places = set(stack), list[tuple[Node, int, "int | Mark"]]()
    while stack:
        node = stack.pop()
        for index, (below, number) in enumerate(node.next_functions):
            if below is None:
                continue
            known = parts.get((below, number), mark_at(below, number, owner))
            if known is not None:
                if known.__class__ is Mark or (below, number) not in inputs or not _takes(node, inputs, below):
                    places.append((node, index, known))
            within = known is None or (isinstance(known, Mark) and known.call is call)
            if within and (below, number) not in inputs and below not in seen:
                seen.add(below)
                stack.append(below)
        if len(seen) > SEARCHED:
            return None
    return places


def _takes(node: Node, inputs: set[Edge], but: Node) -> bool:
    """True if a node also takes one of the inputs, possibly transposed: the state is an input as well then."""
    others = [below for below, _ in node.next_functions if below not in (None, but)]
    wanted = {below for below, _ in inputs if below is not but}
    return any(below in wanted for below in nodes_below(others, 8))
