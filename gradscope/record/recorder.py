"""Between the training loop and the stores: rows wait here until their numbers are on the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from gradscope.types import Batch, Rows

WAITING = 64


class Sink(Protocol):
    """Something that is given every step's rows."""

    def write(self, batch: Batch) -> None:
        """Take the rows of one optimizer step."""
        ...

    def close(self) -> None:
        """Write out what is left."""
        ...


@dataclass(slots=True)
class Recorder:
    """Gives batches to the sinks in order; 0-dim tensors among the columns are copied from the device many at a time."""

    sinks: Sequence[Sink]
    waiting: list[Batch] = field(default_factory=list[Batch])

    def add(self, step: int, rows: Iterable[Rows], *, now: bool) -> None:
        """Take the rows of a step.

        Args:
            step: its number.
            rows: their columns may hold 0-dim tensors.
            now: the device has been waited for anyway.
        """
        self.waiting.append(Batch(step, tuple(rows)))
        if now or len(self.waiting) >= WAITING:
            self.drain()

    def drain(self) -> None:
        """Hand everything on."""
        batches, self.waiting = self.waiting, []
        for batch in on_host(batches):
            for sink in self.sinks:
                sink.write(batch)

    def close(self) -> None:
        """Hand everything on, and close the sinks: all of them, whatever one of them raises."""
        errors: list[Exception] = []
        for action in (self.drain, *(sink.close for sink in self.sinks)):
            try:
                action()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


def on_host(batches: Sequence[Batch]) -> list[Batch]:
    """The same batches with numbers in place of 0-dim tensors: one copy for each device."""
    places = [c for b in batches for r in b.rows for c in r.columns.values() if isinstance(c, torch.Tensor)]
    if not places:
        return list(batches)
    numbers: dict[int, Any] = {}
    for device in {tensor.device for tensor in places}:
        here = [tensor for tensor in places if tensor.device == device]
        values = torch.stack([tensor.detach().double() for tensor in here]).tolist()
        numbers.update({id(t): _as(t.dtype, v) for t, v in zip(here, values, strict=True)})
    return [Batch(b.step, tuple(_replaced(r, numbers) for r in b.rows)) for b in batches]


def _as(kind: torch.dtype, value: float) -> Any:
    if kind == torch.bool:
        return bool(value)
    return value if kind.is_floating_point else int(value)


def _replaced(rows: Rows, numbers: dict[int, Any]) -> Rows:
    return Rows(rows.table, {n: numbers[id(c)] if isinstance(c, torch.Tensor) else c for n, c in rows.columns.items()})
