"""Separates gradscope from the training: measures our time, and keeps our failures from the training."""

from __future__ import annotations

import functools
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch

from gradscope.attach.uncompiled import uncompiled
from gradscope.errors import AnalysisError, GradscopeWarning
from gradscope.private import set_eval_frame

P = ParamSpec("P")
R = TypeVar("R")
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")


@dataclass(slots=True)
class Overhead:
    """gradscope's part of a step's time.

    Attributes:
        host_s: seconds in our callbacks by the host's clock, including waits for the device.
        events: pairs of device events around the same callbacks; empty on the CPU.
    """

    host_s: float
    events: tuple[torch.cuda.Event, ...] = ()

    def seconds(self) -> float:
        """Seconds by the device's clock if there are events, after a wait for the last one; else by the host's."""
        if not self.events:
            return self.host_s
        self.events[-1].synchronize()
        pairs = zip(self.events[::2], self.events[1::2], strict=True)
        return sum(begin.elapsed_time(end) for begin, end in pairs) / 1000


class Guard:
    """Measures the time in our callbacks, and catches their failures.

    Args:
        strict: raise failures instead of turning them into notes.
        cuda: True if `by_device` can measure the device's time.

    Attributes:
        reasons: texts for the notes of this step.
    """

    def __init__(self, strict: bool, *, cuda: bool = False) -> None:
        """See the class."""
        self._cuda = cuda
        self._events: list[torch.cuda.Event] | None = None
        self._spent = 0.0
        self._since = 0.0
        self._strict = strict
        self._depth = 0
        self.reasons: list[str] = []
        self._warned: set[str] = set()

    @uncompiled
    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Call one of our functions; None if it fails."""
        if not self._depth:
            self._since = time.perf_counter()
            if self._events is not None:
                self._mark()
        self._depth += 1
        compiler = set_eval_frame(None)
        try:
            return function(*args, **kwargs)
        except AnalysisError:
            raise
        except Exception as error:
            self._fail(error)
            return None
        finally:
            set_eval_frame(compiler)
            self._depth -= 1
            if not self._depth:
                if self._events is not None:
                    self._mark()
                self._spent += time.perf_counter() - self._since

    @property
    def busy(self) -> bool:
        """True while one of our callbacks runs."""
        return self._depth > 0

    def take_overhead(self, now: float | None = None) -> Overhead:
        """The time in our callbacks, including the running one, from the last call of this to `now`."""
        now = time.perf_counter() if now is None else now
        host = self._spent + (now - self._since if self._depth else 0.0)
        self._spent, self._since = 0.0, now
        if self._events is None:
            return Overhead(host)
        if self._depth:
            self._mark()
        events, self._events = tuple(self._events), []
        if self._depth:
            self._mark()  # the rest of the running callback counts next time
        return Overhead(host, events)

    def by_device(self, wanted: bool) -> None:
        """Measure by the device's clock from now on, if there is one: for steps that give the device work."""
        if not self._cuda or wanted == (self._events is not None):
            return
        self._events = [] if wanted else None
        if self._depth:
            self._mark()

    def _mark(self) -> None:
        """Record an event in the device's queue, without a wait."""
        if self._events is not None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)

    def note(self, reason: str) -> None:
        """Add a reason to the notes of this step, and warn about it the first time."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.warn(reason)

    def warn(self, reason: str) -> None:
        """Warn about a reason from the notes, the first time."""
        kind = _NUMBER.sub("0", reason)  # reasons that differ in a step number or an address are the same
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f"{reason} (training goes on; see the table `notes`)", GradscopeWarning, stacklevel=2)

    def take_reasons(self) -> list[str]:
        """The reasons since the last call of this."""
        reasons, self.reasons = self.reasons, []
        return reasons

    def _fail(self, error: Exception) -> None:
        reason = f"gradscope failed: {type(error).__name__}: {error}"
        if self._strict:
            raise AnalysisError(reason) from error
        self.note(reason)


class Guarded(Protocol):
    """An object with a guard."""

    guard: Guard


G = TypeVar("G", bound=Guarded)


def guarded(method: Callable[Concatenate[G, P], R]) -> Callable[Concatenate[G, P], R | None]:
    """Run a callback under the guard of its object."""

    @functools.wraps(method)
    @uncompiled
    def around(self: G, *args: P.args, **kwargs: P.kwargs) -> R | None:
        return self.guard.call(method, self, *args, **kwargs)

    return around
