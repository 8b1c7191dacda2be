"""The buffer between training loop and stores: rows wait here until their numbers are on the host."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import torch

from gradscope.errors import RecordError
from gradscope.record.sink_thread import Sink, SinkThread
from gradscope.types import Batch, Rows

WAITING_S, WAITING = 1.0, 1000
"""Limits of waiting, in seconds and in steps: the first step to end beyond one of them passes all rows on."""


class Reference(NamedTuple):
    """A number of the training on a device, and the version of its tensor."""

    tensor: torch.Tensor
    version: int


Number = float | torch.Tensor | Reference
"""A value on the host, or a tensor of ours or of the training, which a flush reads."""


def keep(x: torch.Tensor) -> float | Reference:
    """Retain a number that the training has computed: by value on the host, else by reference."""
    return x.item() if x.is_cpu else reference(x)


def reference(x: torch.Tensor) -> Reference:
    """Retain a number of the training for a later flush."""
    return Reference(x.detach(), -1 if x.is_inference() else x._version)


def tensor_of(value: Number) -> torch.Tensor | None:
    """Return the tensor behind a number, if there is one."""
    return value.tensor if isinstance(value, Reference) else value if isinstance(value, torch.Tensor) else None


def known(values: Sequence[Number]) -> bool:
    """True if the numbers are readable without waiting for a device."""
    for value in values:
        if type(value) not in (float, bool) and (x := tensor_of(value)) is not None and not x.is_cpu:
            return False
    return True


class Pending(Protocol):
    """Pending rows: a flush makes them, or none, when their numbers are on the host."""

    @property
    def values(self) -> Sequence[Number]:
        """The numbers; NaN replaces a number of the training that the loop has overwritten meanwhile."""
        ...

    @property
    def rows(self) -> Callable[..., Rows | None]:
        """Makes rows from the numbers, each a float or a tensor on the host."""
        ...


@dataclass(slots=True, eq=False)
class Later:
    """See `Pending`."""

    values: Sequence[Number]
    rows: Callable[..., Rows | None]


def _read(value: Number, numbers: dict[int, torch.Tensor]) -> float | torch.Tensor:
    if isinstance(value, Reference):
        x, version = value
        return numbers[id(x)].reshape(x.shape) if x.is_inference() or x._version == version else math.nan
    return numbers[id(value)].reshape(value.shape) if isinstance(value, torch.Tensor) else value


@dataclass(slots=True)
class Recorder:
    """Passes batches to the sinks in order, and copies many tensors to the host at once.

    Attributes:
        sinks: gradscope's sinks, which it calls directly.
        threads: the user's sinks.
    """

    sinks: Sequence[Sink]
    threads: Sequence[SinkThread] = ()
    waiting: list[tuple[int, list[Rows | Pending]]] = field(default_factory=list)
    since: float = field(default_factory=lambda: time.perf_counter())  # looked up now: a clock may be in its place

    def add(self, step: int, rows: list[Rows | Pending], *, at: float) -> bool:
        """Add the rows of a step; returns True if `drain` is due.

        Args:
            step: number of the step.
            rows: rows of any tables.
            at: the time, by `time.perf_counter`.
        """
        self.waiting.append((step, rows))
        if at - self.since < WAITING_S and len(self.waiting) < WAITING:
            return False
        self.since = at
        return True

    def drain(self) -> None:
        """Pass all rows to every sink, even if one of them raises.

        Raises:
            Exception: the exception of the first sink that failed.
        """
        waiting, self.waiting = self.waiting, []
        batches, idle = on_host(waiting), [thread.idle for thread in self.threads]
        actions = [partial(sink.write, batch) for batch in batches for sink in (*self.sinks, *self.threads)]
        if batches:
            actions += [partial(thread.catch_up, was_idle=was) for thread, was in zip(self.threads, idle, strict=True)]
        _all(actions)

    def close(self) -> None:
        """Pass all rows on and close all sinks, even if one of them raises."""
        _all([self.drain, *(sink.close for sink in (*self.sinks, *self.threads))])


def _all(actions: Iterable[Callable[[], None]]) -> None:
    """Call all actions, then raise the first exception, with the messages of the others."""
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


def on_host(waiting: Sequence[tuple[int, Sequence[Rows | Pending]]]) -> list[Batch]:
    """Replace tensors in the rows of steps by numbers, with one copy for each device."""
    tensors: list[torch.Tensor] = []
    for _, rows in waiting:
        for block in rows:
            if not isinstance(block, Rows):
                tensors += [x for value in block.values if (x := tensor_of(value)) is not None]
    numbers = _numbers(tensors) if tensors else {}
    return [Batch(step, tuple(r for b in rows if (r := _made(b, numbers)) is not None)) for step, rows in waiting]


def _numbers(tensors: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
    numbers = {id(tensor): tensor.detach().reshape(-1) for tensor in tensors if tensor.device.type == "cpu"}
    for device in {tensor.device for tensor in tensors} - {torch.device("cpu")}:
        here = sorted((tensor for tensor in tensors if tensor.device == device), key=lambda tensor: str(tensor.dtype))
        kinds = [list(alike) for _, alike in itertools.groupby(here, key=lambda tensor: tensor.dtype)]
        joined = [torch.cat([tensor.detach().reshape(-1) for tensor in alike]).double() for alike in kinds]
        parts = torch.cat(joined).cpu().split([tensor.numel() for tensor in here])
        numbers.update({id(tensor): part for tensor, part in zip(here, parts, strict=True)})
    return numbers


def _made(block: Rows | Pending, numbers: dict[int, torch.Tensor]) -> Rows | None:
    return block if isinstance(block, Rows) else block.rows(*[_read(value, numbers) for value in block.values])
