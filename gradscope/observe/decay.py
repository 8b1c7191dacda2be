"""Weight decay in an optimizer, and penalties of the weights in the loss, against the gradient of the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradscope.attach.modified import local, two_norms
from gradscope.types.notes import DECAY, OUTWEIGHS, PENALTY

DECOUPLED = ("SGD", "AdamW")
"""Optimizers whose decay takes a share of the weights, independent of the gradient."""
DECAYING = 0.003
"""Share of the weights per step at which decay is noted; usual is a hundredth of this share."""
MIXED = ("SGD", "Adam", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta")
"""Optimizers that add their decay to the gradient, unless they are told to decouple it."""
UNUSUAL = 1e-3
"""Decay from which such a sum is examined; usual is a tenth of this, or less."""
FEW = 1000
"""The gradient of fewer weights may point along them without a penalty."""
ALONG = 0.15
"""With such a penalty the gradient of one weight matrix has at least this cosine with it: else no other is examined."""
DIFFER = 2.0
"""The multiples of two parameters differ by more if the loss itself shrinks them."""
LARGE = 0.5
"""A penalty so many times as large as the rest of the gradient is noted; a useful one is a tenth of this, or less."""


def decay_of(optimizer: Optimizer, watched: Set[int]) -> str | None:
    """Return a note on decoupled weight decay that takes a large share of observed weights at each step; else None."""
    for group in optimizer.param_groups:
        rate, decay = group.get("lr"), group.get("weight_decay")
        decoupled = group.get("decoupled_weight_decay") or type(optimizer).__name__ in DECOUPLED
        if not (decoupled and isinstance(rate, float) and isinstance(decay, float)):
            continue
        if rate * decay >= DECAYING and any(id(p) in watched for p in group["params"]):
            how = f"{type(optimizer).__name__}, lr={rate:g}, weight_decay={decay:g}"
            return f"{DECAY}{rate * decay:.2%} of the recurrent weights ({how})"
    return None


def outweighing(optimizer: Optimizer, watched: Set[int]) -> str | None:
    """Return a note on decay that an optimizer adds to the gradients of observed weights, if it is larger; else None.

    Args:
        optimizer: the optimizer that steps now.
        watched: identities of the observed parameters that it steps.
    """
    if type(optimizer).__name__ not in MIXED:
        return None
    for group in optimizer.param_groups:
        decay, decoupled = group.get("weight_decay"), group.get("decoupled_weight_decay")
        if decoupled or not isinstance(decay, float | int) or decay < UNUSUAL:
            continue
        pairs = _with_gradients(group["params"], watched)
        weights, gradient = _norm([p for p, _ in pairs]), _norm([g for _, g in pairs])
        if 0 < gradient < decay * weights:
            how = f"{type(optimizer).__name__}, weight_decay={decay:g}"
            return f"{OUTWEIGHS}norm {decay * weights:.3g}, loss gradient {gradient:.3g} ({how})"
    return None


@torch.no_grad()
def penalty(optimizer: Optimizer, watched: Set[int]) -> str | None:
    """Return a note if much of the gradient is one multiple of all weights, or of their signs; else None.

    The gradient of a penalty of squares is a multiple of the weights, that of a penalty of sizes one of their signs.
    The part of the gradient along either is the penalty; the rest is the gradient of the loss itself.

    Args:
        optimizer: the optimizer that steps now.
        watched: identities of the observed parameters that it steps.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.dim() > 1]
    pairs = _with_gradients(parameters, watched)
    if sum(p.numel() for p, _ in pairs) < FEW or not _cosine(*pairs[-1]) >= ALONG:
        return None
    gradient = _norm([g for _, g in pairs])
    if not 0 < gradient < math.inf:
        return None
    along, how = max((_along(pairs), "squares"), (_along([(p.sign(), g) for p, g in pairs]), "sizes"))
    rest = max(math.sqrt(max(gradient**2 - along**2, 0)), 1e-6 * gradient)
    return f"{PENALTY}norm {along:.3g}, loss gradient {rest:.3g} (of their {how})" if along > LARGE * rest else None


def _with_gradients(parameters: Sequence[Tensor], watched: Set[int]) -> list[tuple[Tensor, Tensor]]:
    """Return the observed parameters that have a dense gradient, each with it."""
    known = [(p, p.grad) for p in parameters if id(p) in watched]
    return [(local(p), local(g)) for p, g in known if g is not None and not g.is_sparse]


def _cosine(x: Tensor, y: Tensor) -> float:
    """Return the cosine of a weight matrix with its gradient; NaN if one of them is zero."""
    x, y = x.flatten(), y.to(x.dtype).flatten()
    first, second = two_norms([x, y])
    return float(torch.dot(x, y) / (first * second))


def _along(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the norm of the part of the gradient that is a multiple of given directions; 0 if multiples differ.

    Args:
        pairs: for each parameter its direction and its gradient.
    """
    inner = [torch.dot(x.flatten(), g.to(x.dtype).flatten()).float().cpu() for x, g in pairs]
    squares = sizes([x for x, _ in pairs]).square()
    multiples = torch.stack(inner) / squares
    if not 0 < float(multiples.max()) <= DIFFER * float(multiples.min()):
        return 0.0
    return float(torch.stack(inner).sum() / squares.sum().sqrt())


def _norm(tensors: Sequence[Tensor]) -> float:
    """Return the norm of all of them together."""
    return math.hypot(*sizes(tensors).tolist())


def sizes(tensors: Sequence[Tensor]) -> Tensor:
    """Return their norms, on the host."""
    norms = two_norms([local(x.detach()) for x in tensors])
    return torch.stack([norm.float().cpu() for norm in norms]) if norms else torch.empty(0)
