"""Checks of the training loop on recorded steps: stale gradients, parameters without an optimizer."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence, Set

from torch import Tensor
from torch.optim import Optimizer

from gradscope.attach.gradients import leaves_below
from gradscope.observe.decay import decay_of, outweighing, penalty, sizes
from gradscope.observe.passes import Pass
from gradscope.observe.tree import Tree
from gradscope.types.notes import STALE, UNOPTIMIZED

SEARCHED = 5000
"""Nodes to search for the parameters below a loss."""
SETTLED = 8
"""Recorded steps after which every optimizer has stepped; then two passes are searched for parameters."""
NAMED = 8


class Checks:
    """Examines the backward passes of recorded steps.

    Args:
        model: knows the names of its parameters.
    """

    def __init__(self, model: Tree) -> None:
        """See the class."""
        self._model = model
        self._stale: list[tuple[int, float, float]] = []
        self._steps = 0
        self._leaves: list[dict[int, weakref.ref[Tensor]]] = []
        self._searched = self._decay_noted = False

    def begins(self, one: Pass, *, first: bool) -> None:
        """A pass begins; before the first of a step, all gradients are left over from the last step."""
        if first:
            parameters = [p for p, gradient, _ in one.stamps if gradient is not None and not gradient.is_sparse]
            one.leftover = (parameters, _norms(parameters)) if parameters else None
        if self._steps >= SETTLED and not self._searched and len(self._leaves) < 2:
            roots = [root for root in one.roots if isinstance(root, Tensor)]
            nodes = leaves_below(roots, SEARCHED)
            leaves = [getattr(node, "variable", None) for node in nodes]
            self._leaves.append({id(leaf): weakref.ref(leaf) for leaf in leaves if isinstance(leaf, Tensor)})

    def ended(self, one: Pass) -> None:
        """A pass has ended, and has left gradients in observed parameters."""
        if one.leftover is None:
            return
        parameters, norms = one.leftover
        one.leftover = None
        known = zip(parameters, norms.tolist(), strict=True)
        mine = [(p, norm) for p, norm in known if norm and id(p) in one.touched and p.grad is not None]
        after = _norms([p for p, _ in mine]).tolist()
        self._stale = [(id(p), norm, now) for (p, norm), now in zip(mine, after, strict=True)]

    def notes(
        self, share: Set[int] | None, silent: Mapping[str, str], optimizers: Sequence[Optimizer], watched: Set[int]
    ) -> list[tuple[str, str]]:
        """Module and reason of each mistake in the step that ends.

        Args:
            share: identities of the stepped parameters; None for all.
            silent: modules whose calls have received no gradient, and a note on each.
            optimizers: all that have stepped so far, in this process.
            watched: identities of the observed layers' parameters.
        """
        self._steps += 1
        notes = list(silent.items())
        stale = [(before, after) for n, before, after in self._stale if share is None or n in share]
        self._stale = []
        if stale:
            before, after = (math.hypot(*norms) for norms in zip(*stale, strict=True))
            notes.append(("", f"{STALE}: norm {before:.3g}, {after:.3g} after the pass"))
        if len(self._leaves) == 2 and not self._searched and optimizers:
            self._searched = True
            names = self._unoptimized(optimizers)
            notes += [("", UNOPTIMIZED + ", ".join(names))] if names else []
        decays = [] if self._decay_noted else [text for one in optimizers if (text := decay_of(one, watched))]
        self._decay_noted |= bool(decays)
        mine = watched if share is None else watched & share
        larger = [text for check in (outweighing, penalty) for one in optimizers if (text := check(one, mine))]
        return [*notes, *(("", text) for text in (*decays[:1], *larger))]

    def _unoptimized(self, optimizers: Sequence[Optimizer]) -> list[str]:
        """Names, or shapes, of parameters below the loss of both searched passes that no optimizer steps."""
        stepped = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        first, second = self._leaves
        references = [reference for n, reference in first.items() if n in second and n not in stepped]
        leaves = [leaf for reference in references if (leaf := reference()) is not None]
        named = {id(p): name for name, p in self._model.named_parameters()}
        names = [named.get(id(leaf)) or "x".join(map(str, leaf.shape)) for leaf in leaves]
        return names if len(names) <= NAMED else [*names[:NAMED], f"and {len(names) - NAMED} more"]


def _norms(parameters: Sequence[Tensor]) -> Tensor:
    """The norms of their gradients."""
    return sizes([p.grad for p in parameters if p.grad is not None])
