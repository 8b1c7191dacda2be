"""A finished optimizer step, and its row of `steps`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradscope.observe.guard import Overhead
from gradscope.observe.look import Gradients
from gradscope.observe.losses import Loss, numbers_of, total
from gradscope.record.recorder import Later, Number, known
from gradscope.types import Rows

Report = Callable[[float, int], None]


@dataclass(slots=True)
class Ending:
    """A finished optimizer step.

    Attributes:
        columns: the known columns of its row of `steps`.
        losses: of its backward passes.
        gradients: the gradients that the optimizer gets; None if gradscope has not looked at them.
        skipped: True if a GradScaler has left the parameters as they were; a tensor that is 0 if not.
        norm: of its last clipping call, if there is one.
        overhead: gradscope's share of its time.
        spoilt: True if a value was known not to be finite before the optimizer stepped.
    """

    columns: Mapping[str, Any]
    losses: Sequence[Loss]
    gradients: Gradients | None
    skipped: Tensor | bool
    norm: Number | None
    overhead: Overhead
    spoilt: bool = False

    def row(self, report: Report) -> Rows | Later:
        """The row, at once if all its numbers are on the host.

        Args:
            report: called unless the step was skipped, with the norm of the gradients, NaN if unknown, and the number
                of gradients that are not finite.
        """
        looked = () if self.gradients is None else (self.gradients.norms, self.gradients.factor)
        numbers = [self.skipped, math.nan if self.norm is None else self.norm, *looked, *numbers_of(self.losses)]
        if known(numbers):
            return self._row(numbers, report)
        return Later(numbers, lambda *numbers: self._row(numbers, report))

    def _row(self, numbers: Sequence[Any], report: Report) -> Rows:
        skipped, norm, *rest = numbers
        skipped, norm = bool(skipped), float(norm)
        grad_norm, bad = math.nan, 0
        if self.gradients is not None:
            norms, factor, *rest = rest
            norms, factor = norms.tolist(), float(factor)
            grad_norm, bad = math.hypot(*norms) / factor, sum(not math.isfinite(each) for each in norms)
        loss = total(self.losses, rest)
        lost = self.losses and None not in self.losses and not math.isfinite(loss)
        if lost or self.spoilt or (self.norm is not None and not math.isfinite(norm)):
            bad = max(bad, 1)
        if not skipped:
            report(grad_norm if self.norm is None else norm, bad)
        known = {"loss": loss, "grad_norm": grad_norm, "nonfinite": bad, "skipped": skipped}
        return Rows(
            "steps",
            {
                **self.columns,
                **known,
                "overhead_s": self.overhead.seconds(),
            },
        )
