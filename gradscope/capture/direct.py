"""Loss gradients that enter a chain from outside: those of its calls, less what later calls pass back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gradscope.capture.chain import Chain, Linked, Place
from gradscope.capture.places import Places, padded

EPSILONS = 16
"""Roundings in a difference that counts as zero."""


class Gradients(Linked, Protocol):
    """A call, and the loss gradients that it received.

    Attributes:
        gradients: by result: output, h_n, c_n; of a cell h, c. None for a result without gradient.
        inside: by result: the share that came from within the call.
        back: by part of the initial state: the gradient that the call passed back to it.
    """

    gradients: list[Tensor | None]
    inside: list[Tensor | None]
    back: list[Tensor | None]

    def slot(self, part: int) -> int:
        """The index of the result that is this part of the new state."""
        ...


def direct_gradients(
    chain: Chain,
    calls: Sequence[Gradients],
    part: int,
    arrived: Sequence[tuple[Tensor | None, ...]],
    like: Sequence[Tensor],
    factor: Tensor | float,
) -> list[Tensor]:
    """Loss gradient of a part of the state at the end of every call, less the share from the next call.

    Args:
        chain: the chain of these calls.
        calls: the calls in their order in the chain.
        part: index of the part of the state.
        arrived: gradients of each call, as terms of a sum.
        like: the state at the end of each call, [S, n, F].
        factor: scale of the loss.

    Returns:
        [S, n, F] each, exactly zero where all of the gradient came from the next call.
    """
    back = _back(chain, calls, part, like)
    return [_difference(a, b, x) / factor for a, b, x in zip(arrived, back, like, strict=True)]


def _back(chain: Chain, calls: Sequence[Gradients], part: int, like: Sequence[Tensor]) -> list[list[Tensor]]:
    """Gradients that each call's part of the state received from the next call of each sequence, and from within."""
    steps: dict[Place, list[Place]] = {}
    for track in chain.tracks:
        for (place, row), (later, there) in itertools.pairwise(track.places):
            steps.setdefault((place, later), []).append((row, there))
    inside = [call.inside[call.slot(part)] for call in calls]
    terms = [[] if own is None else [own.to(x.dtype)] for own, x in zip(inside, like, strict=True)]
    for (place, later), rows in steps.items():
        back = calls[later].back[part]
        if back is not None:
            here, there = torch.tensor(rows, device=back.device).unbind(1)
            scale = link_factor(calls[later], part, like[later][0])
            value = back[:, there].to(like[place].dtype)
            total = torch.zeros_like(like[place])
            total[:, here] = value if scale is None else value * scale[there]
            terms[place].append(total)
    return terms


def _difference(arrived: Sequence[Tensor | None], back: Sequence[Tensor], like: Tensor) -> Tensor:
    """The sum of the gradients less the recurrent share; exactly zero where the difference is rounding."""
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


def total_gradient(call: Gradients, slot: int, like: Tensor, factor: Tensor | float) -> Tensor:
    """Total loss gradient of a part of the state, less the share from within the call."""
    total, inside = call.gradients[slot], call.inside[slot]
    if total is None:
        return torch.zeros_like(like)
    return (total.to(like.dtype) - (0 if inside is None else inside.to(like.dtype))) / factor


def link_factor(call: Linked, part: int, like: Tensor) -> Tensor | None:
    """The factor by which the loop scaled a part of the state before a call, [n, F] as `like`; None for ones."""
    factor: Tensor | None = None
    for linked in call.link.parts if call.link is not None else ():
        scale = linked.factors[part]
        if scale is None:
            continue
        factor = torch.ones_like(like) if factor is None else factor
        rows = torch.tensor(call.rows, device=scale.device)
        here = linked.rows[rows] >= 0
        factor[here] = scale[rows][here].to(factor.dtype).expand_as(factor[here])
    return factor


def link_scales(
    calls: Sequence[Linked],
    places: Places,
    like: Sequence[Sequence[Tensor]],
    previous: Sequence[Tensor],
    returned: Sequence[Tensor],
) -> tuple[Tensor, ...] | None:
    """The factor by which the loop scaled each part of the state, at the first timestep of each call.

    Args:
        calls: the calls of a chain, in order.
        places: their places.
        like: by part of the state, a tensor [n, F] for each call.
        previous: the states before the timesteps, by part, [T, B, F].
        returned: the states after them.

    Returns:
        By part, [T, B, F], 1 elsewhere; None if the loop passed on every state unchanged.
    """
    factors = [[link_factor(c, p, x) for c, x in zip(calls, part, strict=True)] for p, part in enumerate(like)]
    valid = places.valid[1:].unsqueeze(-1)
    same = all(bool(((g[1:] == r[:-1]) | ~valid).all()) for g, r in zip(previous, returned, strict=True))
    if same and all(f is None for part in factors for f in part):
        return None
    scales = list[Tensor]()
    for part, shapes, states in zip(factors, like, previous, strict=True):
        rows = [torch.ones_like(x) if f is None else f for f, x in zip(part, shapes, strict=True)]
        scales.append(places.at_begins([padded(row, states.shape[-1]) for row in rows], 1.0))
    return tuple(scales)
