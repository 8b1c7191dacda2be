"""Assigns backward passes to the steps of optimizers.

A pass belongs to the steps of the optimizers whose parameters receive its gradients. A few parameters of each optimizer
are witnesses: accumulation changes the version of a gradient, or replaces the tensor. Recorded steps compare all
parameters, and add a witness if none has received gradient.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.attach.gradients import leaves_below
from gradscope.observe.losses import Loss, Losses

WITNESSES = 4
PENDING = 4096
SEARCHED = 5000
"""Nodes to search for parameters below a pass without gradients in observed parameters."""
SETTLED = 8
"""First passes, which compare all parameters, until every optimizer has stepped."""
Stamp = tuple[Tensor, Tensor | None, int]
"""A parameter, its gradient, and the version of the gradient."""


@dataclass(slots=True, eq=False)
class Pass:
    """One backward pass.

    Attributes:
        stamps: of the witnesses, or of all parameters, before the pass.
        roots: of the graph, while the pass runs.
        thorough: True if the stamps include all parameters.
        within: True if the pass runs within an optimizer's step.
        thread: number of its thread.
        alone: True if no other pass has run meanwhile.
        loss: the numbers of its roots.
        touched: parameters with a new gradient that no step has used yet, by identity.
        used: parameters whose optimizer has stepped during the pass.
        leftover: parameters with a gradient before the first pass of a recorded step, and the norms.
    """

    stamps: list[Stamp]
    roots: Sequence[Any]
    thorough: bool
    within: bool
    thread: int = field(default_factory=threading.get_ident)
    alone: bool = True
    loss: Loss = None
    touched: Set[int] = frozenset[int]()
    used: Set[int] = frozenset[int]()
    leftover: tuple[list[Tensor], Tensor] | None = None


class Passes:
    """The backward passes whose gradients no step has used yet.

    Args:
        parameters: returns the parameters of the model, as of now.

    Attributes:
        losses: reads the roots of passes.
        within: True during a step of an optimizer that calls a closure.
    """

    def __init__(self, parameters: Callable[[], Iterable[Tensor]]) -> None:
        """See the class."""
        self.losses = Losses()
        self._parameters = parameters
        self._shares: weakref.WeakKeyDictionary[Optimizer, set[int]] = weakref.WeakKeyDictionary()
        self._witnesses: list[Tensor] = []
        self._pending: deque[Pass] = deque(maxlen=PENDING)
        self._running: list[Pass] = []
        self._without_parameters: list[Loss] = []  # of the last pass without any parameter below its loss
        self._arrives = False
        self._passes = self._passes_before = 0  # so far, and when the last step ended
        self._latest: set[int] | None = None
        self.within = self._seen_within = False
        self._home = threading.get_ident()

    @property
    def any(self) -> bool:
        """True if a pass of this step has ended."""
        return bool(self._pending or self._without_parameters)

    @property
    def none_since_step(self) -> bool:
        """True if no pass has begun since the last step, in a training that has passes, and no step is to use one."""
        return 0 < self._passes == self._passes_before and not self.any

    def add_optimizer(self, optimizer: Optimizer, share: set[int], recurrent: set[int]) -> None:
        """Choose witnesses for an optimizer that steps observed parameters.

        Args:
            optimizer: the optimizer.
            share: identities of all its parameters.
            recurrent: identities of the observed layers' own parameters.
        """
        if self._shares.get(optimizer) is share:
            return
        self._shares[optimizer] = share
        mine = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        parts = [p for p in mine if id(p) in recurrent], [p for p in mine if id(p) not in recurrent]
        chosen = [p for part in parts for p in _spread(part, WITNESSES // 2)]
        self._witnesses = list({id(p): p for p in (*self._witnesses, *chosen)}.values())

    def forget_parameters(self) -> None:
        """Forget all parameters: others have replaced them."""
        self._shares.clear()
        self._witnesses = []

    def begin(self, roots: Sequence[Any], *, thorough: bool) -> Pass:
        """A pass begins.

        Args:
            roots: of the graph.
            thorough: compare all parameters.
        """
        self._passes += 1
        thorough |= self._passes <= SETTLED or not self._witnesses
        stamps: list[Stamp] = []
        for parameter in self._all() if thorough else self._witnesses:
            gradient = parameter.grad
            stamps.append((parameter, gradient, -1 if gradient is None else gradient._version))
        one = Pass(stamps, roots, thorough, self.within)
        for other in self._running:
            other.alone = one.alone = False
        self._running.append(one)
        return one

    def end(self, one: Pass) -> bool:
        """A pass has ended; True if it has left gradients in observed parameters, or in others of their optimizers."""
        self._running.remove(one)
        touched = set[int]()
        for parameter, before, version in one.stamps:  # no comprehension: before Python 3.12 it is one more call
            now = parameter.grad
            if now is not None and (now is not before or now._version != version):
                touched.add(id(parameter))
                if not one.thorough and len(self._shares) == 1:
                    break  # whose pass it is, is known
        if not one.alone and one.thread != self._home:
            return False
        if one.thorough:
            self._learn(one, touched)
        roots, one.roots, one.stamps = one.roots, (), []
        one.touched = touched - one.used if one.used else touched
        if not (one.touched or one.used):
            if one.alone and not self._arrives and _leads_nowhere(roots):
                self._without_parameters = [self.losses.of(roots)]
            return False
        self._arrives = True
        if one.touched and not (one.within and self._seen_within):  # of many closures in a step only the first counts
            one.loss = self.losses.of(roots)
            self._pending.append(one)
        self._seen_within |= one.within
        return True

    def forget(self, one: Pass) -> None:
        """A pass has raised."""
        self._running.remove(one)

    def within_step(self, running: bool) -> None:
        """An optimizer that calls a closure begins or ends its step."""
        self.within, self._seen_within = running, False

    def step_over(self, optimizer: Optimizer | None, share: set[int] | None, recurrent: set[int]) -> list[Loss]:
        """End a step: the losses of the passes whose gradients it has used.

        Args:
            optimizer: the optimizer, if any.
            share: identities of its parameters; None for all.
            recurrent: identities of the observed layers' own parameters.
        """
        losses = self.take(share)
        if self.within:
            self.within_step(False)
        if optimizer is not None and share is not self._latest:
            self.add_optimizer(optimizer, share or set(), recurrent)
            self._latest = share
        return losses

    def take(self, share: set[int] | None) -> list[Loss]:
        """The losses of the passes whose gradients a step has used.

        Args:
            share: identities of the stepped parameters; None for all.
        """
        self._home, self._passes_before = threading.get_ident(), self._passes
        without, self._without_parameters = self._without_parameters, []
        if len(self._pending) == 1 and not self._running and share and self._pending[0].touched <= share:
            return [self._pending.popleft().loss]
        losses, left = list[Loss](), list[Pass]()
        for one in self._pending:
            if share is None or not one.touched.isdisjoint(share):
                losses.append(one.loss)
                one.touched = set() if share is None else one.touched - share
            if one.touched:
                left.append(one)
        self._pending.clear()
        self._pending.extend(left)
        for one in self._running if share else ():
            if one.thread == self._home:
                one.used |= share or set()
                losses.append(self.losses.of(one.roots))
        return losses or without

    def _all(self) -> list[Tensor]:
        owned = [p for optimizer in self._shares for group in optimizer.param_groups for p in group["params"]]
        return list({id(p): p for p in (*self._parameters(), *owned) if p.requires_grad}.values())

    def _learn(self, one: Pass, touched: set[int]) -> None:
        """After a thorough pass, add a witness if none of them has received gradient."""
        known = {id(p) for p in self._witnesses}
        if touched and known and known.isdisjoint(touched):
            self._witnesses.append(next(p for p, _, _ in one.stamps if id(p) in touched))


def _leads_nowhere(roots: Sequence[Any]) -> bool:
    """True if no parameter is below the roots: some value requires gradient by `requires_grad_()`, as after argmax."""
    leaves = leaves_below([root for root in roots if isinstance(root, Tensor)], SEARCHED)
    return not any(isinstance(getattr(leaf, "variable", None), nn.Parameter) for leaf in leaves)


def _spread(some: Sequence[Tensor], count: int) -> list[Tensor]:
    """`count` tensors, evenly spaced from the first to the last."""
    if len(some) <= count:
        return list(some)
    return [some[i * (len(some) - 1) // (count - 1)] for i in range(count)]
