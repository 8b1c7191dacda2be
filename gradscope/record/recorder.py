"""Between the training loop and the stores: rows wait here until their numbers are on the host."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from gradscope.errors import RecordError
from gradscope.record.apart import Apart, Sink
from gradscope.types import Batch, Rows

WAITING = 64


@dataclass(frozen=True, slots=True)
class Later:
    """Rows, or none, that are known when some numbers are on the host.

    Attributes:
        values: the numbers, one-dimensional, on any device.
        rows: makes the rows of them.
    """

    values: torch.Tensor
    rows: Callable[[torch.Tensor], Rows | None]


@dataclass(slots=True)
class Recorder:
    """Gives batches to the sinks in order; 0-dim tensors among the columns are brought to the host many at a time.

    Attributes:
        sinks: ours, called at once.
        apart: the user's.
    """

    sinks: Sequence[Sink]
    apart: Sequence[Apart] = ()
    waiting: list[tuple[int, list[Rows | Later]]] = field(default_factory=list)

    def add(self, step: int, rows: Iterable[Rows | Later], *, now: bool) -> None:
        """Take the rows of a step.

        Args:
            step: its number.
            rows: their columns may hold 0-dim tensors.
            now: the device has been waited for anyway.
        """
        self.waiting.append((step, list(rows)))
        if now or len(self.waiting) >= WAITING:
            self.drain()

    def drain(self) -> None:
        """Hand everything on, to every sink, whatever one of them raises.

        Raises:
            Exception: what the first that failed has raised.
        """
        waiting, self.waiting = self.waiting, []
        batches, idle = on_host(waiting), [one.idle for one in self.apart]
        actions = [partial(sink.write, batch) for batch in batches for sink in (*self.sinks, *self.apart)]
        if batches:
            actions += [partial(one.settle, was_idle=was) for one, was in zip(self.apart, idle, strict=True)]
        _all(actions)

    def close(self) -> None:
        """Hand everything on, and close the sinks: all of them, whatever one of them raises."""
        _all([self.drain, *(sink.close for sink in (*self.sinks, *self.apart))])


def _all(actions: Iterable[Callable[[], None]]) -> None:
    """Do them all, and then raise what the first that failed has raised; the others are told with it."""
    errors: list[Exception] = []
    for action in actions:
        try:
            action()
        except Exception as error:
            errors.append(error)
    others = {str(error) for error in errors[1:]} - {str(error) for error in errors[:1]}
    if others:
        raise RecordError("; ".join([str(errors[0]), *sorted(others)])) from errors[0]
    if errors:
        raise errors[0]


def on_host(waiting: Sequence[tuple[int, Sequence[Rows | Later]]]) -> list[Batch]:
    """Steps and their rows with numbers in place of tensors: one copy for each device."""
    blocks = [block for _, rows in waiting for block in rows]
    tensors: list[torch.Tensor] = []
    for block in blocks:
        columns = [block.values] if isinstance(block, Later) else block.columns.values()
        tensors += [c for c in columns if isinstance(c, torch.Tensor)]
    numbers = _numbers(tensors)
    return [Batch(step, tuple(r for b in rows if (r := _replaced(b, numbers)) is not None)) for step, rows in waiting]


def _numbers(tensors: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
    found = {id(tensor): tensor.detach().reshape(-1) for tensor in tensors if tensor.device.type == "cpu"}
    for device in {tensor.device for tensor in tensors} - {torch.device("cpu")}:
        here = sorted((tensor for tensor in tensors if tensor.device == device), key=lambda tensor: str(tensor.dtype))
        kinds = [list(alike) for _, alike in itertools.groupby(here, key=lambda tensor: tensor.dtype)]
        joined = [torch.cat([tensor.detach().reshape(-1) for tensor in alike]).double() for alike in kinds]
        parts = torch.cat(joined).cpu().split([tensor.numel() for tensor in here])
        found.update({id(tensor): part for tensor, part in zip(here, parts, strict=True)})
    return found


def _replaced(block: Rows | Later, numbers: dict[int, torch.Tensor]) -> Rows | None:
    if isinstance(block, Later):
        return block.rows(numbers[id(block.values)])
    columns = {n: _as(c.dtype, numbers[id(c)]) if isinstance(c, torch.Tensor) else c for n, c in block.columns.items()}
    return Rows(block.table, columns)


def _as(kind: torch.dtype, value: torch.Tensor) -> float | int | bool:
    number = value.item()
    if kind == torch.bool:
        return bool(number)
    return number if kind.is_floating_point else int(number)
