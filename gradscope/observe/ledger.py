"""The clipping calls and the loss scaling between backward and optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from gradscope.attach.clipping import CLIPPING, Clip
from gradscope.attach.scaler import SCALER, Scaling
from gradscope.observe.guard import Guard, guarded
from gradscope.observe.look import Gradients, Look
from gradscope.observe.owners import Owners
from gradscope.observe.parameters import Parameters
from gradscope.observe.passes import Passes
from gradscope.record.recorder import Later, Number, Pending, keep
from gradscope.types import Rows
from gradscope.types.notes import CLIPPED_LATE

CLIPPED_SCALED = (
    "gradients were clipped while still multiplied by the GradScaler's factor, so that the threshold means something "
    "else at every step: call scaler.unscale_(optimizer) before clipping"
)


class Ledger:
    """Receives the clipping calls of every step, and the calls of GradScalers.

    Args:
        parameters: of the observed layers.
        passes: the backward passes, whose losses GradScalers scale.
        guard: for failures.
        owners: which optimizers step observed parameters.
        stepped: called when a GradScaler's step is over, with the optimizer and whether it was skipped.

    Attributes:
        scaling: the GradScaler's state.
        look: at the gradients of this step, if wanted.
        norm: of the last clipping call of this step.
        suspect: True if a clipping call has found a norm that is not finite, and the host knows it.
    """

    def __init__(
        self,
        parameters: Parameters,
        passes: Passes,
        guard: Guard,
        owners: Owners,
        stepped: Callable[[Optimizer, Tensor | bool], None],
    ) -> None:
        """See the class."""
        self.guard, self._parameters, self._passes = guard, parameters, passes
        self._owners, self._stepped = owners, stepped
        self.scaling = Scaling()
        self._rows: list[Rows | Pending] = []
        self.look = Look(parameters, owners, self.scaling, self._rows)
        self.norm: Number | None = None
        self.suspect = False
        self._clipped = set[int]()

    def listen(self) -> ExitStack:
        """Begin to listen; closing the result ends it."""
        with ExitStack() as undo:
            for seam in (CLIPPING, SCALER):
                undo.callback(seam.listen(self).remove)
            return undo.pop_all()

    @property
    def looking(self) -> bool:
        """See `ClippingListener`."""
        return self.look.wanted

    # --- clipping

    def wants_clip(self, parameters: Sequence[Tensor]) -> bool:
        """See `ClippingListener`."""
        return not self._parameters.of_model.isdisjoint(map(id, parameters))

    @guarded
    def after_clip(self, clip: Clip) -> None:
        """Enter a clipping call, and expect the gradients that it leaves."""
        threshold = clip.threshold
        values = [keep(threshold) if isinstance(threshold, Tensor) else threshold, *map(keep, clip.measured)]
        if clip.measured:
            self.norm = values[1]
            self.suspect |= type(self.norm) is float and not math.isfinite(self.norm)
        self._rows.append(Later(values, partial(_row, len(self._rows), clip)))
        if self.look.wanted:
            touched = {id(p) for p in clip.parameters if p.grad is not None}
            self._clipped |= touched
            self.look.expect(touched, clip.factor)
            if touched and self._passes.none_since_step:
                self.guard.note(CLIPPED_LATE)

    # --- loss scaling

    @guarded
    def scaled(self, scaler: GradScaler, given: Any, result: Any) -> None:
        """See `ScalerListener`."""
        self.scaling.scaled(scaler, looking=self.look.wanted)
        if scaler.is_enabled():
            self._passes.losses.scaled(given, result)

    @guarded
    def unscaled(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """Expect gradients divided by the factor."""
        if self._meets(scaler, optimizer):
            self.scaling.unscaled(optimizer)
            if self.look.wanted:
                self.look.expect(self._owners.of(optimizer).share, 1 / self.scaling.factor)

    @guarded
    def before_scaler_step(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """See `ScalerListener`."""
        if self._meets(scaler, optimizer):
            self.scaling.begin(scaler, optimizer)

    @guarded
    def after_scaler_step(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """End the step, whether or not the scaler has skipped the optimizer's own."""
        if self._owners.of(optimizer).watched:
            self._stepped(optimizer, self.scaling.skipped)

    def _meets(self, scaler: GradScaler, optimizer: Optimizer) -> bool:
        """True if the optimizer steps observed parameters."""
        ours = self._owners.of(optimizer).watched
        self.scaling.meets(scaler, ours)
        if not ours:
            return False
        if self._clipped and scaler.is_enabled() and not self.scaling.is_unscaled(optimizer):
            if self._clipped & self._owners.of(optimizer).share:
                self.guard.note(CLIPPED_SCALED)
        return True

    # --- optimizer

    @property
    def nonfinite(self) -> bool:
        """True if the gradients are known not to be finite."""
        finite = self.look.finite
        return self.suspect if finite is None else not finite

    def take_rows(self) -> list[Rows | Pending]:
        """The rows of `clips` of this step, which is over."""
        rows = self._rows.copy()
        self._rows.clear()
        self.norm = None
        return rows

    def close_step(self, optimizer: Optimizer | None = None) -> tuple[Gradients | None, list[Rows | Pending]]:
        """End the step: the gradients at the optimizer, None without a look, and the rows of `clips`."""
        if self.look.wanted and self.look.gradients is None:
            self.guard.call(self.look.at_optimizer, optimizer)
        rows, self.suspect = self.take_rows(), False
        self._clipped.clear()
        looked = self.look.gradients is not None or self.look.reference is not None
        gradients = self.look.close_step(optimizer) if looked else None
        if self.scaling.used:
            self.scaling.over(optimizer)
        return gradients, rows


def _row(index: int, clip: Clip, *numbers: Any) -> Rows:
    """The row of a clipping call, from its numbers on the host."""
    columns = {
        "index": index,
        "kind": clip.kind,
        "how": clip.how,
        "norm_type": clip.norm_type,
        "parameters": len(clip.parameters),
    }
    outcome = clip.outcome(*map(float, numbers))
    return Rows("clips", {**columns, **outcome._asdict(), "nonfinite": int(outcome.nonfinite)})
