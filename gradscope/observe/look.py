"""The look at one step's recurrent gradients: after backward, and again as the optimizer gets them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradscope.attach.modified import Change, Reference, compare, snapshot
from gradscope.attach.scaler import Scaling
from gradscope.observe.owners import Owners
from gradscope.observe.parameters import Parameters
from gradscope.record.recorder import Later, Pending, known
from gradscope.types import Rows


@dataclass(frozen=True, slots=True)
class Gradients:
    """The gradients that the optimizer gets.

    Attributes:
        norms: 2-norm of each recurrent gradient, on the device.
        factor: loss scale that they still contain, on the device or not; 1.0 without a GradScaler.
    """

    norms: Tensor
    factor: Tensor | float


class Look:
    """Compares the gradients at the optimizer with those after backward: a difference is a change by hand.

    Args:
        parameters: of the observed layers.
        owners: which optimizers step which parameters.
        scaling: the GradScaler's state.
        rows: of the step's `clips`; changes by hand are added.

    Attributes:
        wanted: True if this step's gradients are looked at.
        seconds: time that looking has taken in this step.
        gradients: as the optimizer gets them; None before it steps.
        reference: the gradients as they should be; None before backward.
    """

    def __init__(self, parameters: Parameters, owners: Owners, scaling: Scaling, rows: list[Rows | Pending]) -> None:
        """See the class."""
        self._parameters, self._owners, self._scaling, self._rows = parameters, owners, scaling, rows
        self.wanted, self.seconds = True, 0.0
        self.gradients: Gradients | None = None
        self.reference: Reference | None = None
        self._judged: tuple[Tensor, bool] | None = None
        parameters.when_replaced(owners.renew, self._forget)

    def after_backward(self) -> None:
        """Take the gradients as the reference."""
        began = time.perf_counter()
        self._parameters.renew()
        self.reference = snapshot(self._parameters.all)
        self.seconds += time.perf_counter() - began

    def expect(self, touched: set[int], factor: Tensor | float | None) -> None:
        """A known call has changed gradients; expect them as it leaves them.

        Args:
            touched: identities of the parameters whose gradients it changed.
            factor: by which it multiplied them; None if it did something else.
        """
        if self.reference is None or not touched & self._parameters.ids:
            return
        if factor is not None and all(id(p) in touched for p in self._parameters.all if p.grad is not None):
            self.reference = self.reference.times(factor)
        else:
            self.reference = snapshot(self._parameters.all)

    def at_optimizer(self, optimizer: Optimizer | None = None) -> None:
        """Look at the gradients that the optimizer gets. A loop without an optimizer may have zeroed them by now."""
        self.gradients = None
        began = time.perf_counter()
        self._parameters.renew()
        chosen = self._chosen(optimizer)
        parameters = [p for p, choice in zip(self._parameters.all, chosen, strict=True) if choice]
        if all(p.grad is None for p in parameters):
            norms = self.reference.norms if optimizer is None and self.reference is not None else None
        else:
            norms = self._compare(parameters, chosen, zeroed=optimizer is None)
        if norms is not None:
            self.gradients = Gradients(norms, self._scaling.remaining(optimizer))
        self.seconds += time.perf_counter() - began

    @property
    def finite(self) -> bool | None:
        """True if the latest gradients are finite; None if this step has not been looked at. Waits for the device."""
        latest = self.gradients or (self.reference if self.wanted else None)
        if latest is None:
            return None
        if self._judged is None or self._judged[0] is not latest.norms:
            self._judged = latest.norms, math.isfinite(latest.norms.sum(dtype=torch.float64))
        return self._judged[1]

    def close_step(self, optimizer: Optimizer | None) -> Gradients | None:
        """End the step: the gradients that the optimizer got; None if they were not looked at."""
        gradients, self.gradients = self.gradients, None
        if self.reference is not None and all(self._chosen(optimizer)):
            self.reference = None  # else the gradients of another optimizer are still to be looked at
        return gradients

    def _forget(self) -> None:
        """Other parameters have replaced those of the reference."""
        self.reference = None

    def _chosen(self, optimizer: Optimizer | None) -> list[bool]:
        """For each parameter, True if the optimizer steps it or it is frozen."""
        if optimizer is None:
            return [True] * len(self._parameters.all)
        share = self._owners.of(optimizer).share
        return [id(p) in share or not p.requires_grad for p in self._parameters.all]

    def _compare(self, parameters: Sequence[Tensor], chosen: Sequence[bool], *, zeroed: bool) -> Tensor:
        """Add a row for changes by hand since the reference; the present norms."""
        if self.reference is None:
            return snapshot(parameters).norms
        before = self.reference.only(chosen)
        comparison = compare(before, parameters)
        if not comparison.known_unchanged:
            index, count = len(self._rows), len(parameters)

            def rows(values: Tensor) -> Rows | None:
                change = comparison.read(values)
                unchanged = change is None or (zeroed and change.norm_after == 0)
                return None if change is None or unchanged else _row(change, index, count)

            later = Later((comparison.values,), rows)
            row = rows(comparison.values) if known(later.values) else later
            self._rows += [] if row is None else [row]
        now = comparison.now.norms
        return torch.where(now.any(), now, before.norms) if zeroed and now.shape == before.norms.shape else now


def _row(change: Change, index: int, parameters: int) -> Rows:
    columns = {
        "index": index,
        "kind": "modified",
        "how": change.how,
        "threshold": change.threshold,
        "norm_type": 2.0,
        "parameters": parameters,
        "norm_before": change.norm_before,
        "norm_after": change.norm_after,
        "coefficient": change.coefficient,
        "clipped": change.how == "clamped",
        "nonfinite": int(not math.isfinite(change.norm_before)),
    }
    return Rows("clips", columns)
