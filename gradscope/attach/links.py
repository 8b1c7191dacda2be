"""Follows a state through the autograd graph to the marked results that it comes from.

A loop may pass on a state unchanged, mask it (`h * (1 - done)`), select rows, write it into a buffer, or choose between
new and old states (`torch.where`). All these operations are elementwise up to a choice of rows, and so is their
derivative: a row of the later state is a row of an earlier result times a factor. A few cotangents, passed back through
the nodes in between, reveal both.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradscope.attach.marks import Edge, Mark, edge_of, mark_at
from gradscope.attach.walk import carry
from gradscope.types import Link, LinkPart

AsState = Callable[[Mark, Tensor], "tuple[int, Tensor] | None"]


def find_link(state: Sequence[Tensor], owner: Hashable, as_state: AsState, rows: int) -> Link | None:
    """Find the results that a state comes from; None without any marked result.

    Args:
        state: parts of the state, with the rows (the sequences) in dimension `rows`.
        owner: owner of the marks.
        as_state: maps a marked result and its cotangent to the part of the state and that part's cotangent; None if the
            result is no part.
        rows: 0 or 1.
    """
    parts = [_trace(part, owner, _only(as_state, index), rows) for index, part in enumerate(state)]
    calls = list({id(call): call for part in parts for call, _, _ in part.sources}.values())
    linked = [_linked(call, parts) for call in calls]
    mixed = any(part.mixed for part in parts) or any(each is None for each in linked)
    clear = tuple(each for each in linked if each is not None)
    if clear:
        mixed |= bool((torch.stack([s.rows >= 0 for s in clear]).sum(0) > 1).any())
    return Link(clear, mixed) if clear or mixed else None


def _only(as_state: AsState, index: int) -> Callable[[Mark, Tensor], Tensor | None]:
    def view(mark: Mark, cotangent: Tensor) -> Tensor | None:
        known = as_state(mark, cotangent)
        return None if known is None or known[0] != index else known[1]

    return view


class _Part(NamedTuple):
    """The origin of one part of a state: calls, with rows and factors of each."""

    sources: list[tuple[Any, Tensor, Tensor | None]]
    mixed: bool


def _linked(call: Any, parts: Sequence[_Part]) -> LinkPart | None:
    """The share of a state from one call; None if its parts come from different rows, or from several results."""
    by_part = [[s[1:] for s in part.sources if s[0] is call] for part in parts]
    if any(len(sources) > 1 for sources in by_part):
        return None
    rows = torch.stack([sources[0][0] for sources in by_part if sources]).amax(0)
    factors: list[Tensor | None] = []
    for sources in by_part:
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
    return LinkPart(call, rows, tuple(factors))


def _trace(state: Tensor, owner: Hashable, view: Callable[[Mark, Tensor], Tensor | None], rows: int) -> _Part:
    """Follow one part of a state back, [B, ...] or [S, B, ...] if `rows` is 1."""
    if not state.requires_grad or state.numel() == 0:
        return _Part([], False)
    edge = edge_of(state)
    direct = mark_at(*edge, owner)
    if direct is not None and view(direct, state.detach()) is not None:
        return _Part([(direct.call, torch.arange(state.shape[rows], device=state.device), None)], False)
    ones = torch.ones_like(state)
    first = carry(edge, ones, owner)
    probes = [_numbered(ones, rows), _noise(ones)]
    rest = [carry(edge, probe, owner).arrived for probe in probes] if first.arrived else []
    sources: list[tuple[Any, Tensor, Tensor | None]] = []
    for mark, plain in first.arrived.items():
        parts = [_by_row(view(mark, x), state, rows) for x in (plain, *(r[mark] for r in rest if mark in r))]
        known = [p for p in parts if p is not None]
        one = _rows_of(known[0], known[1], known[2], by_row(probes[1], rows)) if len(known) == 3 else None
        if one is None and known:
            one = _row_by_row(edge, owner, mark, view, state, rows)
        if one is None:
            return _Part(sources, True)
        sources.append((mark.call, one[0], one[1]))
    return _Part(sources, first.blocked)


def _numbered(ones: Tensor, rows: int) -> Tensor:
    """Each row filled with its number, from 1."""
    shape = [-1 if d == rows else 1 for d in range(ones.dim())]
    return ones * torch.arange(1, ones.shape[rows] + 1, device=ones.device, dtype=ones.dtype).view(shape)


def _noise(ones: Tensor) -> Tensor:
    """Uniform noise between 0.5 and 1.5, from a separate generator."""
    generator = torch.Generator("cpu").manual_seed(ones.numel())
    return torch.rand(ones.shape, generator=generator, device="cpu").to(ones) + 0.5


def by_row(x: Tensor, rows: int) -> Tensor:
    """Flatten [B, ...] to [B, F]."""
    return x.transpose(0, rows).flatten(1)


def _by_row(x: Tensor | None, state: Tensor, rows: int) -> Tensor | None:
    """A cotangent of a result as [B', F]; None unless it has the form of the state."""
    if x is None or x.dim() != state.dim():
        return None
    same = x.shape[:rows] == state.shape[:rows] and x.shape[rows + 1 :] == state.shape[rows + 1 :]
    return by_row(x, rows) if same else None


def _rows_of(plain: Tensor, weighted: Tensor, check: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Source row and factor of each row of the state, from cotangents [B', F]; None if a row went to several places."""
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
    edge: Edge, owner: Hashable, mark: Mark, view: Callable[[Mark, Tensor], Tensor | None], state: Tensor, rows: int
) -> tuple[Tensor, Tensor | None] | None:
    """Source row and factor of each row of the state, one cotangent per row: rows of the result may repeat."""
    sources, factors = list[int](), list[Tensor]()

    def back(cotangent: Tensor) -> Tensor:
        known = carry(edge, cotangent, owner).arrived.get(mark)
        flat = None if known is None else _by_row(view(mark, known), state, rows)
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
    noise = _noise(torch.ones_like(state))  # the sum of all rows shows whether the loop mixed units
    total, source, factor = back(noise), torch.tensor(sources, device=state.device), torch.stack(factors)
    parts = torch.where((source >= 0).unsqueeze(1), factor * by_row(noise, rows), 0)
    expected = torch.zeros_like(total).index_add_(0, source.clamp(min=0), parts)
    if not torch.allclose(total, expected, rtol=1e-3, atol=0):
        return None
    return source, None if bool((factor[source >= 0] == 1).all()) else factor
