"""Between the training loop and the stores: rows wait here until their numbers are on the host."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch

from gradscope.errors import RecordError
from gradscope.record.apart import Apart, Sink
from gradscope.types import Batch, Rows

WAITING_S, WAITING = 1.0, 1000
"""Seconds, or steps, that rows wait at most; a step that ends later hands them on."""


class Reference(NamedTuple):
    """A number of the training's own on a device, and the version at which it was that."""

    tensor: torch.Tensor
    version: int


Number = float | torch.Tensor | Reference
"""On the host its value; elsewhere a tensor of ours or of the training's, which is read when rows are flushed."""


def keep(x: torch.Tensor) -> float | Reference:
    """The number in a tensor that the training has computed: read at once on the host, else by reference."""
    return x.item() if x.is_cpu else reference(x)


def reference(x: torch.Tensor) -> Reference:
    """A number of the training's own, to be read later."""
    return Reference(x.detach(), -1 if x.is_inference() else x._version)


def tensor_of(value: Number) -> torch.Tensor | None:
    """The tensor that has to be read for a number."""
    return value.tensor if isinstance(value, Reference) else value if isinstance(value, torch.Tensor) else None


def known(values: Sequence[Number]) -> bool:
    """True if no device has to be waited for."""
    for value in values:
        if type(value) not in (float, bool) and (x := tensor_of(value)) is not None and not x.is_cpu:
            return False
    return True


@dataclass(slots=True, eq=False)
class Later:
    """Rows, or none, that are known when some numbers are on the host.

    Attributes:
        values: the numbers; of one of the training's that the loop has written into meanwhile, NaN is read.
        rows: makes the rows of the numbers, a float or a tensor on the host for each.
    """

    values: Sequence[Number]
    rows: Callable[..., Rows | None]

    def made(self, numbers: dict[int, torch.Tensor]) -> Rows | None:
        """The rows.

        Args:
            numbers: what each tensor is on the host, by its identity.
        """
        return self.rows(*[_read(value, numbers) for value in self.values])


def _read(value: Number, numbers: dict[int, torch.Tensor]) -> float | torch.Tensor:
    if isinstance(value, Reference):
        x, version = value
        return numbers[id(x)].reshape(x.shape) if x.is_inference() or x._version == version else math.nan
    return numbers[id(value)].reshape(value.shape) if isinstance(value, torch.Tensor) else value


@dataclass(slots=True)
class Recorder:
    """Gives batches to the sinks in order; tensors are brought to the host many at a time.

    Attributes:
        sinks: ours, called at once.
        apart: the user's.
    """

    sinks: Sequence[Sink]
    apart: Sequence[Apart] = ()
    waiting: list[tuple[int, list[Rows | Later]]] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)

    def add(self, step: int, rows: list[Rows | Later], *, at: float) -> bool:
        """Take the rows of a step: whether it is time to hand on what has come.

        Args:
            step: its number.
            rows: of any tables.
            at: the time, by `time.perf_counter`.
        """
        self.waiting.append((step, rows))
        if at - self.since < WAITING_S and len(self.waiting) < WAITING:
            return False
        self.since = at
        return True

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
    tensors: list[torch.Tensor] = []
    for _, rows in waiting:
        for block in rows:
            if isinstance(block, Later):
                tensors += [x for value in block.values if (x := tensor_of(value)) is not None]
    numbers = _numbers(tensors) if tensors else {}
    return [Batch(step, tuple(r for b in rows if (r := _made(b, numbers)) is not None)) for step, rows in waiting]


def _numbers(tensors: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
    found = {id(tensor): tensor.detach().reshape(-1) for tensor in tensors if tensor.device.type == "cpu"}
    for device in {tensor.device for tensor in tensors} - {torch.device("cpu")}:
        here = sorted((tensor for tensor in tensors if tensor.device == device), key=lambda tensor: str(tensor.dtype))
        kinds = [list(alike) for _, alike in itertools.groupby(here, key=lambda tensor: tensor.dtype)]
        joined = [torch.cat([tensor.detach().reshape(-1) for tensor in alike]).double() for alike in kinds]
        parts = torch.cat(joined).cpu().split([tensor.numel() for tensor in here])
        found.update({id(tensor): part for tensor, part in zip(here, parts, strict=True)})
    return found


def _made(block: Rows | Later, numbers: dict[int, torch.Tensor]) -> Rows | None:
    return block.made(numbers) if isinstance(block, Later) else block
