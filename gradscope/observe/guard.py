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


class Guarded(Protocol):
    """An object with a guard."""

    @property
    def guard(self) -> Guard:
        """See the class."""
        ...


G = TypeVar("G", bound=Guarded)


def guarded(method: Callable[Concatenate[G, P], R]) -> Callable[Concatenate[G, P], R | None]:
    """Run a callback under the guard of its object; None if it fails."""

    @functools.wraps(method)
    @uncompiled
    def around(self: G, *args: P.args, **kwargs: P.kwargs) -> R | None:
        guard = self.guard  # its methods would be further Python calls on every idle step
        if not guard.depth:
            guard.since = time.perf_counter()
            if guard.events is not None:
                guard.mark()
        guard.depth += 1
        compiler = set_eval_frame(None)
        try:
            return method(self, *args, **kwargs)
        except AnalysisError:
            raise
        except Exception as error:
            guard.fail(error)
            return None
        finally:
            set_eval_frame(compiler)
            guard.depth -= 1
            if not guard.depth:
                if guard.events is not None:
                    guard.mark()
                guard.spent += time.perf_counter() - guard.since

    return around


class Guard:
    """Measures the time in our callbacks, and catches their failures.

    Args:
        strict: raise failures instead of turning them into notes.
        cuda: True if `by_device` can measure the device's time.

    Attributes:
        reasons: texts for the notes of this step.
        depth: number of our callbacks that run, one within the other.
        since: time at which the outermost one began, or at which `take_overhead` was last called.
        spent: seconds in callbacks before that.
        events: of the device, around the callbacks; None while only the host's clock measures.
    """

    def __init__(self, strict: bool, *, cuda: bool = False) -> None:
        """See the class."""
        self._cuda, self._strict = cuda, strict
        self.events: list[torch.cuda.Event] | None = None
        self.spent = self.since = 0.0
        self.depth = 0
        self.reasons: list[str] = []
        self._warned: set[str] = set()

    @property
    def guard(self) -> Guard:
        """Itself: `call` is a callback like any other."""
        return self

    @guarded
    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call one of our functions; None if it fails."""
        return function(*args, **kwargs)

    def take_overhead(self, now: float) -> Overhead:
        """The time in our callbacks, including the running one, from the last call of this to `now`."""
        host = self.spent + (now - self.since if self.depth else 0.0)
        self.spent, self.since = 0.0, now
        if self.events is None:
            return Overhead(host)
        if self.depth:
            self.mark()
        events, self.events = tuple(self.events), []
        if self.depth:
            self.mark()  # the rest of the running callback counts next time
        return Overhead(host, events)

    def by_device(self, wanted: bool) -> None:
        """Measure by the device's clock from now on, if there is one: for steps that give the device work."""
        if not self._cuda or wanted == (self.events is not None):
            return
        self.events = [] if wanted else None
        if self.depth:
            self.mark()

    def mark(self) -> None:
        """Record an event in the device's queue, without a wait."""
        if self.events is not None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.events.append(event)

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

    def fail(self, error: Exception) -> None:
        """Note a failure of ours, or raise it.

        Raises:
            AnalysisError: failures are to be raised.
        """
        reason = f"gradscope failed: {type(error).__name__}: {error}"
        if self._strict:
            raise AnalysisError(reason) from error
        self.note(reason)
