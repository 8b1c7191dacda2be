"""The rows of a step: what its recording shows, and its row of `steps`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradscope.observe.guard import Overhead
from gradscope.observe.ledger import Gradients
from gradscope.observe.losses import Loss, numbers_of, total
from gradscope.record.recorder import Later, Number, known
from gradscope.types import Rows

Hear = Callable[[float, int], None]


@dataclass(slots=True)
class Ending:
    """An optimizer step that is over.

    Attributes:
        columns: of its row of `steps`, as far as they are known.
        losses: of its backward passes.
        gradients: what the optimizer was given, if that was looked at.
        skipped: a GradScaler has left the parameters as they were; a tensor that is 0 if not.
        norm: of its last clipping call, if there was one.
        overhead: what gradscope took of it.
        spoilt: something was known not to be finite before the optimizer stepped.
    """

    columns: Mapping[str, Any]
    losses: Sequence[Loss]
    gradients: Gradients | None
    skipped: Tensor | bool
    norm: Number | None
    overhead: Overhead
    spoilt: bool = False

    def row(self, hear: Hear) -> Rows | Later:
        """The row, at once where all its numbers are on the host.

        Args:
            hear: told the norm of the gradients, NaN if unknown, and what is not finite, of a step that counts.
        """
        found = self.gradients
        parts: list[Number] = [self.skipped, math.nan if self.norm is None else self.norm]
        parts += [] if found is None else [found.norms, found.factor]
        numbers = [*parts, *numbers_of(self.losses)]
        if known(numbers):
            return self._made(numbers, len(parts), hear)
        return Later(numbers, lambda *numbers: self._made(numbers, len(parts), hear))

    def _made(self, numbers: Sequence[Any], parts: int, hear: Hear) -> Rows:
        skipped, norm = bool(numbers[0]), float(numbers[1])
        grad_norm, bad = math.nan, 0
        if self.gradients is not None:
            norms, factor = numbers[2].tolist(), float(numbers[3])
            grad_norm, bad = math.hypot(*norms) / factor, sum(not math.isfinite(each) for each in norms)
        loss = total(self.losses, numbers[parts:])
        lost = self.losses and None not in self.losses and not math.isfinite(loss)
        if lost or self.spoilt or (self.norm is not None and not math.isfinite(norm)):
            bad = max(bad, 1)
        if not skipped:
            hear(grad_norm if self.norm is None else norm, bad)
        columns = {**self.columns, "loss": loss, "grad_norm": grad_norm, "nonfinite": bad, "skipped": skipped}
        return Rows("steps", {**columns, "overhead_s": self.overhead.seconds()})
