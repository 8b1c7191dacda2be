"""A chain of calls in the layout of a single one: what the loop did call by call, as if one call had done it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gradscope.capture.chain import Chain, Linked, Place
from gradscope.capture.snapshot import Snapshot
from gradscope.types import Joined, Stack

EPSILONS = 16
"""A difference of so many roundings is none."""


class Gradients(Linked, Protocol):
    """A call, and the gradients that have arrived at its results.

    Attributes:
        gradients: by result: output, h_n, c_n; of a cell h, c. None where none arrived.
        inside: what of them came from within the call.
        back: by part of the state that the call was given: what came back to it through the call.
    """

    gradients: list[Tensor | None]
    inside: list[Tensor | None]
    back: list[Tensor | None]

    def slot(self, part: int) -> int:
        """Which result is a part of the new state."""
        ...


class Observed(Gradients, Protocol):
    """A call of one of torch's layers or cells, and what has arrived at its results."""

    snapshot: Snapshot

    @property
    def cell(self) -> bool:
        """Whether it is a cell's."""
        ...


@dataclass(frozen=True, slots=True)
class Places:
    """Where each timestep of each sequence is found in the calls' tensors, laid end to end.

    Attributes:
        index: row among the calls' [T, n, .] tensors, flattened, [T, B]; 0 in the padding.
        valid: [T, B].
        lengths: [B].
        ends: for each call that a sequence went through: the timestep at which it ends there, the sequence, the
            timestep at which it began, and the row among the calls' [S, n, .] tensors, [N] each.
        first: row of each sequence's first call among those, [B].
        last: of its last call, [B].
    """

    index: Tensor
    valid: Tensor
    lengths: Tensor
    ends: tuple[Tensor, Tensor, Tensor, Tensor]
    first: Tensor
    last: Tensor

    def by_time(self, parts: Sequence[Tensor]) -> Tensor:
        """Of [T, n, F] per call: [T, B, F], zeros in the padding."""
        rows = torch.cat([part.flatten(0, 1) for part in parts])
        return rows[self.index].masked_fill_(~self.valid.unsqueeze(-1), 0)

    def at_ends(self, parts: Sequence[Tensor]) -> Tensor:
        """Of [S, n, F] per call: where each call ends, [S, T, B, F], zeros elsewhere."""
        rows = torch.cat(list(parts), 1)
        end, sequence, _, row = self.ends
        found = rows.new_zeros(rows.shape[0], *self.index.shape, rows.shape[2])
        found[:, end, sequence] = rows[:, row]
        return found

    def at_begins(self, parts: Sequence[Tensor], blank: float) -> Tensor:
        """Of [n, F] per call: where each call begins, [T, B, F], `blank` elsewhere."""
        rows = torch.cat(list(parts))
        _, sequence, begin, row = self.ends
        found = rows.new_full((*self.index.shape, rows.shape[1]), blank)
        found[begin, sequence] = rows[row]
        return found


def find_places(chain: Chain, lengths: Sequence[Sequence[int]], device: torch.device) -> Places:
    """Lay the calls of a chain end to end.

    Args:
        chain: of calls.
        lengths: timesteps of each row of each of its calls.
        device: for the result.
    """
    flat, first = [0], [0]
    for row in lengths:
        flat.append(flat[-1] + max(row, default=0) * len(row))
        first.append(first[-1] + len(row))
    columns = list[list[int]]()
    ends = list[tuple[int, int, int, int]]()
    for number, track in enumerate(chain.tracks):
        column = list[int]()
        for place, row in track.places:
            begin, count = len(column), len(lengths[place])
            column += [flat[place] + t * count + row for t in range(lengths[place][row])]
            if len(column) > begin:
                ends.append((len(column) - 1, number, begin, first[place] + row))
        columns.append(column)
    spans = [len(column) for column in columns]
    edges = [[first[place] + row for place, row in (track.places[0], track.places[-1])] for track in chain.tracks]

    def tensor(x: list[Any]) -> Tensor:
        return torch.tensor(x, device=device, dtype=torch.long)

    index = tensor([column + [0] * (max(spans) - len(column)) for column in columns]).T.contiguous()
    valid = torch.arange(len(index), device=device).unsqueeze(1) < tensor(spans)
    end, number, begin, row = tensor(ends).unbind(1)
    return Places(index, valid, tensor(spans), (end, number, begin, row), *tensor(edges).unbind(1))


def join(chain: Chain, calls: Sequence[Observed], factor: Tensor | float = 1.0) -> Stack:
    """The canonical form of a chain, in float32 or better, with gradients divided by `factor`.

    Args:
        chain: its calls by number.
        calls: all of the module.
        factor: what the loss was multiplied by.
    """
    mine = [calls[number] for number in chain.calls]
    places = find_places(chain, [call.lengths for call in mine], mine[0].snapshot.output.device)
    stacks = [call.snapshot.stack(None, [None, None], factor) for call in mine]
    like = stacks[0]
    cell = like.c_0 is not None
    names = ("h_n", "c_n")[: 1 + cell]
    entering, totals = _arrived(mine, stacks)
    ends = [
        places.at_ends(direct_gradients(chain, mine, p, totals[p], [getattr(s, n) for s in stacks], factor))
        for p, n in enumerate(names)
    ]
    finals = [torch.cat([getattr(s, n) for s in stacks], 1)[:, places.last] for n in names]
    outputs = places.by_time([s.output for s in stacks])
    return Stack(
        family=like.family,
        weights=like.weights,
        directions=like.directions,
        lengths=places.lengths,
        input=places.by_time([s.input for s in stacks]),
        h_0=torch.cat([s.h_0 for s in stacks], 1)[:, places.first],
        c_0=torch.cat([s.c_0 for s in stacks if s.c_0 is not None], 1)[:, places.first] if cell else None,
        output=outputs,
        h_n=finals[0],
        c_n=finals[1] if cell else None,
        grad_output=places.by_time(entering).div_(factor) if entering else torch.zeros_like(outputs),
        grad_h_n=torch.zeros_like(finals[0]),
        grad_c_n=None,
        dropout=tuple(places.by_time(list(masks)) for masks in zip(*(s.dropout for s in stacks), strict=True)),
        hidden_dropout=any(s.hidden_dropout for s in stacks),
        dropout_read=any(s.dropout_read for s in stacks),
        tolerance=max(s.tolerance for s in stacks),
        joined=Joined(
            starts=torch.tensor([track.start for track in chain.tracks], device=places.lengths.device),
            grad_h=ends[0],
            grad_c=ends[1] if cell else None,
            **(_of_cells(mine, stacks, places, factor) if mine[0].cell else {}),
        ),
    )


def _arrived(
    calls: Sequence[Observed], stacks: Sequence[Stack]
) -> tuple[list[Tensor], list[list[tuple[Tensor | None, ...]]]]:
    """What arrived at each call: by timestep, [T, n, .]; and by part of the state at its end, [S, n, .]."""
    if calls[0].cell:
        return [], [[(g,) for g in part] for part in zip(*(c.gradients for c in calls), strict=True)]
    found, ends = list[Tensor](), list[list[tuple[Tensor | None, ...]]]()
    for call, stack in zip(calls, stacks, strict=True):
        output, h_n, *c_n = call.gradients
        own = torch.zeros_like(stack.output) if output is None else output.to(stack.output.dtype, copy=True)
        last = None
        if output is not None and len(stack.weights) == 1:  # the last output may have been handed on in place of h_n
            at = stack.lengths - 1, torch.arange(len(stack.lengths), device=stack.lengths.device)
            last = output[at].unsqueeze(0)
            own[at] = 0
        found.append(own)
        ends.append([(h_n, last), *((c,) for c in c_n)])
    return found, [list(part) for part in zip(*ends, strict=True)]


def direct_gradients(
    chain: Chain,
    calls: Sequence[Gradients],
    part: int,
    arrived: Sequence[tuple[Tensor | None, ...]],
    like: Sequence[Tensor],
    factor: Tensor | float,
) -> list[Tensor]:
    """Loss gradient of a part of the state at the end of every call, but for what came from the next call.

    Args:
        chain: of these calls.
        calls: in their order in the chain.
        part: of the state.
        arrived: what arrived at each of them, in parts to be added up.
        like: the state at the end of each, [S, n, F].
        factor: what the loss was multiplied by.

    Returns:
        [S, n, F] each, exactly zero where all came from the next call.
    """
    back = _back(chain, calls, part, like)
    return [_difference(a, b, x) / factor for a, b, x in zip(arrived, back, like, strict=True)]


def _back(chain: Chain, calls: Sequence[Gradients], part: int, like: Sequence[Tensor]) -> list[list[Tensor]]:
    """What came to each call's part of the state from the next call of each sequence, and from within itself."""
    steps: dict[Place, list[Place]] = {}
    for track in chain.tracks:
        for (place, row), (later, there) in itertools.pairwise(track.places):
            steps.setdefault((place, later), []).append((row, there))
    inside = [call.inside[call.slot(part)] for call in calls]
    found = [[] if own is None else [own.to(x.dtype)] for own, x in zip(inside, like, strict=True)]
    for (place, later), rows in steps.items():
        back = calls[later].back[part]
        if back is not None:
            here, there = torch.tensor(rows, device=back.device).unbind(1)
            scale = link_factor(calls[later], part, like[later][0])
            value = back[:, there].to(like[place].dtype)
            total = torch.zeros_like(like[place])
            total[:, here] = value if scale is None else value * scale[there]
            found[place].append(total)
    return found


def _difference(arrived: Sequence[Tensor | None], back: Sequence[Tensor], like: Tensor) -> Tensor:
    """What arrived but did not come back; exactly zero where the difference is rounding."""
    known = [g for g in arrived if g is not None]
    if not known:
        return torch.zeros_like(like)
    total = torch.stack([g.to(like.dtype) for g in known]).sum(0)
    if not back:
        return total
    recurrent = torch.stack(list(back)).sum(0)
    direct = total - recurrent
    sizes = [torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (direct, total, recurrent)]
    rounding = EPSILONS * max(torch.finfo(g.dtype).eps for g in known) * (sizes[1] + sizes[2])
    return direct.masked_fill(sizes[0] <= rounding, 0)


def _of_cells(
    calls: Sequence[Observed], stacks: Sequence[Stack], places: Places, factor: Tensor | float
) -> dict[str, Any]:
    """What is known of cells beside: the states in between, and autograd's own totals."""
    cell = stacks[0].c_0 is not None
    results = [[s.h_n for s in stacks]] + [[s.c_n for s in stacks if s.c_n is not None]] * cell
    states = [[s.h_0 for s in stacks]] + [[s.c_0 for s in stacks if s.c_0 is not None]] * cell
    totals = [
        [total_gradient(c, p, x, factor) for c, x in zip(calls, part, strict=True)] for p, part in enumerate(results)
    ]
    returned = [places.by_time(part) for part in results]
    given = tuple(places.by_time(part) for part in states)
    inside = places.valid[1:].unsqueeze(-1)
    as_returned = all(bool(((g[1:] == r[:-1]) | ~inside).all()) for g, r in zip(given, returned, strict=True))
    factors = [[link_factor(c, p, x[0]) for c, x in zip(calls, part, strict=True)] for p, part in enumerate(states)]
    known = {"totals": tuple(places.by_time(part) for part in totals), "cells": returned[1] if cell else None}
    if as_returned and all(f is None for part in factors for f in part):
        return known
    scales = [
        places.at_begins([torch.ones_like(x[0]) if f is None else f for f, x in zip(part, shape, strict=True)], 1.0)
        for part, shape in zip(factors, states, strict=True)
    ]
    return {**known, "given": given, "factors": tuple(scales)}


def total_gradient(call: Gradients, slot: int, like: Tensor, factor: Tensor | float) -> Tensor:
    """Total loss gradient of a part of the state, but for what came to it from within the call."""
    total, inside = call.gradients[slot], call.inside[slot]
    if total is None:
        return torch.zeros_like(like)
    return (total.to(like.dtype) - (0 if inside is None else inside.to(like.dtype))) / factor


def link_factor(call: Linked, part: int, like: Tensor) -> Tensor | None:
    """What the loop multiplied a part of the state by before it gave it to a call, [n, F] as `like`; None for ones."""
    found: Tensor | None = None
    for strand in call.link.strands if call.link is not None else ():
        scale = strand.factors[part]
        if scale is None:
            continue
        found = torch.ones_like(like) if found is None else found
        rows = torch.tensor(call.rows, device=scale.device)
        here = strand.rows[rows] >= 0
        found[here] = scale[rows][here].to(found.dtype).expand_as(found[here])
    return found
