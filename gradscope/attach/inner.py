"""The part of the autograd graph that is a call's own, and where the parts of its state go in."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import Node

from gradscope.attach.marks import Edge, Mark, edge_of, mark_at, nodes_below

SEARCHED = 20_000


class Inner(NamedTuple):
    """What bounds a call's own part of the graph.

    Attributes:
        results: of the call.
        state: what it was given as its state.
        inputs: what it was given beside, and what that is multiplied by.
    """

    results: Sequence[Tensor]
    state: Sequence[Tensor]
    inputs: Sequence[Tensor]


def consumers(inner: Inner, owner: Hashable, call: Any) -> list[tuple[Node, int, int | Mark]] | None:
    """The places in a call's graph where the parts of its state go in, and results of its own.

    Args:
        inner: the call.
        owner: whose marks.
        call: what its own results are marked with: a way may lead through one, such as a gate that is returned too.

    Returns:
        Node, number of its input, and part of the state or mark; None where the graph is too large to search.
    """
    parts = {edge_of(x): part for part, x in enumerate(inner.state) if x.requires_grad}
    inputs = {edge_of(x) for x in inner.inputs if x.requires_grad}
    stack = list(dict.fromkeys(edge_of(r)[0] for r in inner.results if r.requires_grad))  # a fused cell has one node
    seen, found = set(stack), list[tuple[Node, int, "int | Mark"]]()
    while stack:
        node = stack.pop()
        for index, (below, number) in enumerate(node.next_functions):
            if below is None:
                continue
            known = parts.get((below, number), mark_at(below, number, owner))
            if known is not None:
                if known.__class__ is Mark or (below, number) not in inputs or not _takes(node, inputs, below):
                    found.append((node, index, known))
            within = known is None or (isinstance(known, Mark) and known.call is call)
            if within and (below, number) not in inputs and below not in seen:
                seen.add(below)
                stack.append(below)
        if len(seen) > SEARCHED:
            return None
    return found


def _takes(node: Node, inputs: set[Edge], but: Node) -> bool:
    """Whether a node also takes one of the inputs, as it is or transposed: where the state is the input as well."""
    others = [below for below, _ in node.next_functions if below not in (None, but)]
    wanted = {below for below, _ in inputs if below is not but}
    return any(below in wanted for below in nodes_below(others, 8))
