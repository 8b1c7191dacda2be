"""What a recorded step shows of the loop: gradients that are left over, parameters that nobody steps."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence, Set

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradscope.attach.gradients import leaves_below
from gradscope.attach.modified import local
from gradscope.observe.passes import Pass
from gradscope.observe.tree import Tree
from gradscope.private import foreach_norm
from gradscope.types.notes import DECAY, NO_GRADIENT, STALE, UNOPTIMIZED

SEARCHED = 5000
"""Nodes of the graph, for the parameters below a loss."""
SETTLED = 8
"""Recorded steps after which every optimizer has had its turn; parameters are asked for then, and once more."""
NAMED = 8
DECOUPLED = ("SGD", "AdamW")
"""Optimizers whose decay takes a share of the weights, whatever the gradient."""
DECAYING = 0.003
"""Share of the weights that decay takes away at every step; usual is a hundredth of that."""


class Checks:
    """Looks at the backward passes of recorded steps.

    Args:
        model: knows the names of its parameters.
    """

    def __init__(self, model: Tree) -> None:
        """See the class."""
        self._model = model
        self._stale: list[tuple[int, float, float]] = []
        self._steps = 0
        self._leaves: list[dict[int, weakref.ref[Tensor]]] = []
        self._told = self._decay_told = False

    def begins(self, one: Pass, *, first: bool) -> None:
        """A pass begins; the first of a step finds the gradients as the last step has left them."""
        if first:
            held = [p for p, gradient, _ in one.stamps if gradient is not None and not gradient.is_sparse]
            one.leftover = (held, _norms(held)) if held else None
        if self._steps >= SETTLED and not self._told and len(self._leaves) < 2:
            roots = [root for root in one.roots if isinstance(root, Tensor)]
            nodes = leaves_below(roots, SEARCHED)
            found = [getattr(node, "variable", None) for node in nodes]
            self._leaves.append({id(leaf): weakref.ref(leaf) for leaf in found if isinstance(leaf, Tensor)})

    def ended(self, one: Pass) -> None:
        """It is over, and was ours."""
        if one.leftover is None:
            return
        held, norms = one.leftover
        one.leftover = None
        known = zip(held, norms.tolist(), strict=True)
        mine = [(p, norm) for p, norm in known if norm and id(p) in one.touched and p.grad is not None]
        after = _norms([p for p, _ in mine]).tolist()
        self._stale = [(id(p), norm, now) for (p, norm), now in zip(mine, after, strict=True)]

    def notes(
        self, share: Set[int] | None, silent: Sequence[str], optimizers: Sequence[Optimizer], watched: Set[int]
    ) -> list[tuple[str, str]]:
        """Module and reason of what is wrong in the step that ends.

        Args:
            share: the parameters that are stepped; None for all.
            silent: modules whose calls have received no gradient.
            optimizers: all that have stepped so far, in this process.
            watched: identities of the watched layers' parameters.
        """
        self._steps += 1
        found = [(name, NO_GRADIENT) for name in silent]
        stale = [(before, after) for n, before, after in self._stale if share is None or n in share]
        self._stale = []
        if stale:
            before, after = (math.hypot(*norms) for norms in zip(*stale, strict=True))
            found.append(("", f"{STALE}: norm {before:.3g}, {after:.3g} after the pass"))
        if len(self._leaves) == 2 and not self._told and optimizers:
            self._told = True
            names = self._unoptimized(optimizers)
            found += [("", UNOPTIMIZED + ", ".join(names))] if names else []
        decays = [] if self._decay_told else [told for one in optimizers if (told := _decay(one, watched))]
        self._decay_told |= bool(decays)
        return [*found, *(("", told) for told in decays[:1])]

    def _unoptimized(self, optimizers: Sequence[Optimizer]) -> list[str]:
        """Names, or shapes, of parameters below the loss in both steps asked that no optimizer steps."""
        stepped = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        first, second = self._leaves
        asked = [reference() for n, reference in first.items() if n in second and n not in stepped]
        lost = [leaf for leaf in asked if leaf is not None]
        known = {id(p): name for name, p in self._model.named_parameters()}
        names = [known.get(id(leaf)) or "x".join(map(str, leaf.shape)) for leaf in lost]
        return names if len(names) <= NAMED else [*names[:NAMED], f"and {len(names) - NAMED} more"]


def _norms(parameters: Sequence[Tensor]) -> Tensor:
    gradients = [local(p.grad.detach()) for p in parameters if p.grad is not None]
    return torch.stack([norm.float().cpu() for norm in foreach_norm(gradients, 2)]) if gradients else torch.empty(0)


def _decay(optimizer: Optimizer, watched: Set[int]) -> str | None:
    """What weight decay does to watched weights, where that is much and known: where it goes by the weights alone."""
    for group in optimizer.param_groups:
        rate, decay = group.get("lr"), group.get("weight_decay")
        decoupled = group.get("decoupled_weight_decay") or type(optimizer).__name__ in DECOUPLED
        if not (decoupled and isinstance(rate, float) and isinstance(decay, float)):
            continue
        if rate * decay >= DECAYING and any(id(p) in watched for p in group["params"]):
            how = f"{type(optimizer).__name__}, lr={rate:g}, weight_decay={decay:g}"
            return f"{DECAY}{rate * decay:.2%} of the recurrent weights ({how})"
    return None
