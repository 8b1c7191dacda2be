"""Where a state comes from: followed through the autograd graph to a marked result, whatever the loop did to it.

A loop may hand a state on as it is, mask it (`h * (1 - done)`), keep some of its rows, write it into a buffer, or
choose between new and old ones (`torch.where`). All these are elementwise but for a choice of rows, and so is their
derivative: a row of the later state is a row of an earlier result times a factor. Both are read off by handing a few
cotangents back through the nodes in between, by hand: no hook of the user's fires, and nothing that was saved for
backward is freed.

Marks are kept in the nodes' own metadata: they live and die with the user's graph.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge

from gradscope.private import forward_class, outputs_of, sequence_number
from gradscope.types import Link, Strand

KEY = "gradscope"
VISITED = 256
SEARCHED = 20_000
ELEMENTWISE = frozenset(
    """Abs Add Addcdiv Addcmul Alias AsStrided Cat Clamp ClampMax ClampMin Clone ConstantPadNd Copy CopyBackwards
    CopySlices Cos Div Elu Exp Expand Fill Flip Gather Gelu Hardsigmoid Hardswish Hardtanh Index IndexAdd IndexCopy
    IndexFill IndexPut IndexPutImpl IndexSelect LeakyRelu Lerp MaskedFill MaskedScatter Maximum Minimum Mish Mul
    NativeDropout Neg Permute Pow Relu Repeat ReshapeAlias Roll Rsub Scatter ScatterAdd Select SelectScatter Sigmoid
    Silu Sin Slice SliceScatter Softplus Split SplitWithSizes Sqrt Squeeze Stack Sub T Tanh Threshold ToCopy
    Transpose Unbind UnsafeSplit UnsafeView Unsqueeze View Where Zero""".split()
)
"""Operations whose derivative mixes no units: what a loop does to a state between two calls."""

HANDED_ON = frozenset(("RegisterPostBackwardFunction", "_DDPSink"))
"""Torch's own functions that hand each input on as it is, and do other things in backward (FSDP, DDP): never called."""

Edge = tuple[Node, int]


class Mark(NamedTuple):
    """A result of an observed call: which call, and which of its results."""

    call: Any
    slot: int


AsState = Callable[[Mark, Tensor], "tuple[int, Tensor] | None"]


def mark(tensor: Tensor, owner: Hashable, call: Any, slot: int) -> None:
    """Say that this result is that of a call; for whoever asks with the same owner."""
    node, number = edge_of(tensor)
    metadata(node).setdefault(KEY, {})[owner, number] = Mark(call, slot)


def metadata(node: Node) -> dict[str, Any]:
    """What is kept with a node; torch's stubs take it for a method."""
    return node.metadata  # type: ignore[return-value]


def marked(tensor: Tensor, owner: Hashable) -> Mark | None:
    """The result that a tensor is, as it was."""
    return _marked(*edge_of(tensor), owner) if tensor.requires_grad else None


def edge_of(tensor: Tensor) -> Edge:
    """Where the gradient of a tensor goes: a node, and which of its outputs."""
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def find_link(state: Sequence[Tensor], owner: Hashable, as_state: AsState, rows: int) -> Link | None:
    """Where a state comes from; None if from no marked result.

    Args:
        state: its parts, with the rows (the sequences) in dimension `rows`.
        owner: whose marks.
        as_state: which part of the state a marked result is, and a cotangent of the result as one of that part; None
            where it is none.
        rows: 0 or 1.
    """
    parts = [_trace(part, owner, _only(as_state, index), rows) for index, part in enumerate(state)]
    calls = list({id(call): call for part in parts for call, _, _ in part.sources}.values())
    strands = [_strand(call, parts) for call in calls]
    mixed = any(part.mixed for part in parts) or any(strand is None for strand in strands)
    found = tuple(strand for strand in strands if strand is not None)
    if found:
        mixed |= bool((torch.stack([s.rows >= 0 for s in found]).sum(0) > 1).any())
    return Link(found, mixed) if found or mixed else None


def _only(as_state: AsState, index: int) -> Callable[[Mark, Tensor], Tensor | None]:
    def view(found: Mark, cotangent: Tensor) -> Tensor | None:
        known = as_state(found, cotangent)
        return None if known is None or known[0] != index else known[1]

    return view


class _Part(NamedTuple):
    """One part of a state: the calls that it comes from, rows and factors of each."""

    sources: list[tuple[Any, Tensor, Tensor | None]]
    mixed: bool


def _strand(call: Any, parts: Sequence[_Part]) -> Strand | None:
    """What comes from one call; None if its parts come from different rows, or from several results."""
    found = [[s[1:] for s in part.sources if s[0] is call] for part in parts]
    if any(len(sources) > 1 for sources in found):
        return None
    rows = torch.stack([sources[0][0] for sources in found if sources]).amax(0)
    factors: list[Tensor | None] = []
    for sources in found:
        if not sources:
            factors.append(torch.zeros(len(rows), 1, device=rows.device))
            continue
        own, factor = sources[0]
        if not torch.equal(own, rows):
            if bool(((own >= 0) & (own != rows)).any()):
                return None
            here = (own >= 0).unsqueeze(1).float()
            factor = here if factor is None else here.to(factor) * factor
        factors.append(factor)
    return Strand(call, rows, tuple(factors))


def _trace(state: Tensor, owner: Hashable, view: Callable[[Mark, Tensor], Tensor | None], rows: int) -> _Part:
    """Follow one part of a state back, [B, ...] or [S, B, ...] if `rows` is 1."""
    if not state.requires_grad or state.numel() == 0:
        return _Part([], False)
    edge = edge_of(state)
    direct = _marked(*edge, owner)
    if direct is not None and view(direct, state.detach()) is not None:
        return _Part([(direct.call, torch.arange(state.shape[rows], device=state.device), None)], False)
    ones = torch.ones_like(state)
    first = _carry(edge, ones, owner)
    probes = [_numbered(ones, rows), _noise(ones)]
    rest = [_carry(edge, probe, owner).found for probe in probes] if first.found else []
    sources: list[tuple[Any, Tensor, Tensor | None]] = []
    for found, plain in first.found.items():
        parts = [_by_row(view(found, x), state, rows) for x in (plain, *(r[found] for r in rest if found in r))]
        known = [p for p in parts if p is not None]
        one = _rows_of(known[0], known[1], known[2], by_row(probes[1], rows)) if len(known) == 3 else None
        if one is None and known:
            one = _row_by_row(edge, owner, found, view, state, rows)
        if one is None:
            return _Part(sources, True)
        sources.append((found.call, one[0], one[1]))
    return _Part(sources, first.blocked)


def _numbered(ones: Tensor, rows: int) -> Tensor:
    """Each row filled with its number, from 1."""
    shape = [-1 if d == rows else 1 for d in range(ones.dim())]
    return ones * torch.arange(1, ones.shape[rows] + 1, device=ones.device, dtype=ones.dtype).view(shape)


def _noise(ones: Tensor) -> Tensor:
    """Between 0.5 and 1.5, from a generator of its own."""
    generator = torch.Generator("cpu").manual_seed(ones.numel())
    return torch.rand(ones.shape, generator=generator, device="cpu").to(ones) + 0.5


def by_row(x: Tensor, rows: int) -> Tensor:
    """[B, ...] flattened to [B, F]."""
    return x.transpose(0, rows).flatten(1)


def _by_row(x: Tensor | None, state: Tensor, rows: int) -> Tensor | None:
    """A cotangent of a result, [B', F], if it has the form of the state."""
    if x is None or x.dim() != state.dim():
        return None
    same = x.shape[:rows] == state.shape[:rows] and x.shape[rows + 1 :] == state.shape[rows + 1 :]
    return by_row(x, rows) if same else None


def _rows_of(plain: Tensor, weighted: Tensor, check: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Which row of the state each row of a result went to, if to one only, and the factor: all [B', F]."""
    count = noise.shape[0]
    moved = plain != 0
    place = torch.where(moved, weighted / plain, 0)
    target = place.amax(1).round().long() - 1  # -1 where the row went nowhere
    uneven = (place - (target + 1).unsqueeze(1)).abs()[moved]
    if bool((uneven > 1e-2).any()) or bool((target >= count).any()):
        return None
    used = target[target >= 0]
    if len(used.unique()) < len(used):
        return None
    expected = plain * noise[target.clamp(min=0)]
    if not torch.allclose(check, expected, rtol=1e-3 if plain.dtype == torch.float32 else 1e-6, atol=0):
        return None
    rows = torch.full((count,), -1, dtype=torch.long, device=plain.device)
    rows[used] = torch.arange(len(plain), device=plain.device)[target >= 0]
    factors = plain.new_zeros(count, plain.shape[1])
    factors[used] = plain[target >= 0]
    return rows, None if bool((factors[rows >= 0] == 1).all()) else factors


def _row_by_row(
    edge: Edge, owner: Hashable, found: Mark, view: Callable[[Mark, Tensor], Tensor | None], state: Tensor, rows: int
) -> tuple[Tensor, Tensor | None] | None:
    """The same where a row of the result went to several of the state's: each row's cotangent by itself."""
    sources, factors = list[int](), list[Tensor]()

    def back(cotangent: Tensor) -> Tensor:
        known = _carry(edge, cotangent, owner).found.get(found)
        flat = None if known is None else _by_row(view(found, known), state, rows)
        return by_row(torch.zeros_like(state), rows)[:1] if flat is None else flat

    for r in range(state.shape[rows]):
        seed = torch.zeros_like(state)
        seed.select(rows, r).fill_(1)
        flat = back(seed)
        used = (flat != 0).any(1).nonzero().flatten().tolist()
        if len(used) > 1:
            return None
        sources.append(used[0] if used else -1)
        factors.append(flat[used[0]] if used else torch.zeros_like(flat[0]))
    noise = _noise(torch.ones_like(state))  # whether units were mixed on the way shows in the sum of all rows
    total, source, factor = back(noise), torch.tensor(sources, device=state.device), torch.stack(factors)
    parts = torch.where((source >= 0).unsqueeze(1), factor * by_row(noise, rows), 0)
    expected = torch.zeros_like(total).index_add_(0, source.clamp(min=0), parts)
    if not torch.allclose(total, expected, rtol=1e-3, atol=0):
        return None
    return source, None if bool((factor[source >= 0] == 1).all()) else factor


@dataclass(slots=True)
class _Walk:
    """Cotangents on their way back, the latest node first."""

    owner: Hashable
    pending: dict[Node, dict[int, Tensor]] = field(default_factory=dict[Node, "dict[int, Tensor]"])
    order: list[tuple[int, int, Node]] = field(default_factory=list["tuple[int, int, Node]"])
    found: dict[Mark, Tensor] = field(default_factory=dict[Mark, Tensor])
    blocked: bool = False

    def add(self, node: Node, number: int, cotangent: Tensor) -> None:
        """A cotangent arrives at an output of a node; zeros go nowhere."""
        if not bool(cotangent.any()):
            return
        marked = _marked(node, number, self.owner)
        if marked is not None:
            known = self.found.get(marked)
            self.found[marked] = cotangent if known is None else known + cotangent
            return
        if node not in self.pending:
            self.pending[node] = {}
            heapq.heappush(self.order, (-sequence_number(node), len(self.order), node))
        here = self.pending[node]
        here[number] = here[number] + cotangent if number in here else cotangent

    def step(self) -> None:
        """Hand on what has arrived at the latest node."""
        _, _, node = heapq.heappop(self.order)
        arrived = self.pending.pop(node)
        if not node.next_functions:
            return
        outputs = outputs_of(node)
        if outputs and _hands_on(node):
            for i, (target, number) in enumerate(node.next_functions[-outputs:]):
                if target is not None and i in arrived:
                    self.add(target, number, arrived[i])
            return
        if outputs is None or not _elementwise(node):
            self.blocked |= any(_leads_to_mark(below, self.owner) for below, _ in node.next_functions if below)
            return
        run: Any = node  # calling a node computes, and fires no hook
        try:
            result = run(*(arrived.get(i) for i in range(outputs)))
        except RuntimeError:  # what it had saved is gone after a backward pass: no gradient goes this way any more
            self.blocked |= _leads_to_mark(node, self.owner)
            return
        below = result if isinstance(result, tuple) else (result,)
        for (target, number), cotangent in zip(node.next_functions, below, strict=False):
            if target is not None and cotangent is not None:
                self.add(target, number, cotangent)


def _carry(edge: Edge, cotangent: Tensor, owner: Hashable) -> _Walk:
    """Hand a cotangent of a state back to the marked results that it came from."""
    walk, kind = _Walk(owner), cotangent.device.type
    with torch.no_grad(), torch.autocast(kind, enabled=False):
        walk.add(edge[0], edge[1], cotangent)
        for _ in range(VISITED):
            if not walk.order:
                return walk
            walk.step()
    walk.blocked = True
    return walk


def _marked(node: Node, number: int, owner: Hashable) -> Mark | None:
    marks = metadata(node).get(KEY)
    return None if marks is None else marks.get((owner, number))


def _elementwise(node: Node) -> bool:
    if isinstance(node, BackwardCFunction):  # somebody's own Python: not ours to run
        return False
    return node.name().rpartition(":")[2].rstrip("0123456789").removesuffix("Backward") in ELEMENTWISE


def _hands_on(node: Node) -> bool:
    function = forward_class(node)
    return function is not None and function.__name__ in HANDED_ON and function.__module__.startswith("torch.")


def _leads_to_mark(node: Node, owner: Hashable) -> bool:
    """Whether some marked result is among the nodes below, within reach of a search."""
    return any(owner == key[0] for below in nodes_below([node]) for key in metadata(below).get(KEY, ()))


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
            known = parts.get((below, number), _marked(below, number, owner))
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
