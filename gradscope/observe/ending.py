"""A finished optimizer step, and its row of `steps`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradscope.observe.guard import Overhead
from gradscope.observe.look import Gradients
from gradscope.observe.losses import Loss, numbers_of, total
from gradscope.record.recorder import Number, Pending, known
from gradscope.types import Rows

Report = Callable[[float, int], None]


@dataclass(slots=True, eq=False)
class Ending:
    """A finished optimizer step; `Pending` until the numbers of its row are on the host.

    Attributes:
        step: its number.
        optimizer: class of the optimizer; empty without one.
        step_s: its seconds.
        overhead: gradscope's share of them.
        losses: of its backward passes.
        norm: of its last clipping call, if there is one.
        gradients: the gradients that the optimizer gets; None if gradscope has not looked at them.
        skipped: True if a GradScaler has left the parameters as they were; a tensor that is 0 if not.
        recorded: True if there are measurements of it.
        spoilt: True if a value was known not to be finite before the optimizer stepped.
        report: called unless the step was skipped, with the norm of the gradients, NaN if unknown, and the number of
            gradients that are not finite; None if that has been done.
    """

    step: int
    optimizer: str
    step_s: float
    overhead: Overhead
    losses: Sequence[Loss]
    norm: Number | None
    gradients: Gradients | None = None
    skipped: Tensor | bool = False
    recorded: bool = False
    spoilt: bool = False
    report: Report | None = None

    @property
    def values(self) -> list[Number]:
        """See `Pending`."""
        looked = () if self.gradients is None else (self.gradients.norms, self.gradients.factor)
        return [self.skipped, math.nan if self.norm is None else self.norm, *looked, *numbers_of(self.losses)]

    @property
    def finite(self) -> bool:
        """True if the host knows all numbers of a step without a look, and they are finite."""
        for number in (self.norm, *self.losses):
            if number is not None and (type(number) is not float or not math.isfinite(number)):
                return False
        return True

    def row(self) -> Rows | Pending:
        """The row, at once if all its numbers are on the host."""
        values = self.values
        return self.rows(*values) if known(values) else self

    def rows(self, skipped: Any, norm: Any, *rest: Any) -> Rows:
        """See `Pending`."""
        skipped, norm = bool(skipped), float(norm)
        grad_norm, bad = math.nan, 0
        if self.gradients is not None:
            norms, factor, rest = rest[0].tolist(), float(rest[1]), rest[2:]
            grad_norm, bad = math.hypot(*norms) / factor, sum(not math.isfinite(each) for each in norms)
        loss = total(self.losses, rest)
        lost = self.losses and None not in self.losses and not math.isfinite(loss)
        if lost or self.spoilt or (self.norm is not None and not math.isfinite(norm)):
            bad = max(bad, 1)
        if self.report is not None and not skipped:
            self.report(grad_norm if self.norm is None else norm, bad)
        columns = {
            "step": self.step,
            "optimizer": self.optimizer,
            "recorded": self.recorded,
            "step_s": self.step_s,
            "loss": loss,
            "grad_norm": grad_norm,
            "nonfinite": bad,
            "skipped": skipped,
            "overhead_s": self.overhead.seconds(),
        }
        return Rows("steps", columns)
