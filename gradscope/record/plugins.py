"""Plugins: other packages extend gradscope by entry points, so the library names none of them."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from os import PathLike
from typing import Any, Protocol

from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.record.sink_thread import Sink
from gradscope.types import Finding

SINKS, VIEWERS = "gradscope.sinks", "gradscope.viewers"
"""Groups of entry points: functions that make a sink for a run, and functions that show a folder."""


class MakeSink(Protocol):
    """The function behind an entry point of the group `gradscope.sinks`; `attach` calls it for each run."""

    def __call__(
        self, logdir: str | PathLike[str] | None, writer: Any, findings: Callable[[], list[Finding]]
    ) -> Sink | None:
        """Make a sink for the run, or return None.

        Args:
            logdir: run folder.
            writer: the `writer` argument of `attach`.
            findings: returns the findings so far; safe to call in another thread.
        """
        ...


def installed_sinks(
    logdir: str | PathLike[str] | None, writer: Any, findings: Callable[[], list[Finding]]
) -> list[Sink]:
    """Make the sinks of installed packages for one run; a failing package leads to a warning.

    Raises:
        GradscopeError: a package refuses the arguments.
    """
    sinks: list[Sink | None] = []
    for entry in _installed(SINKS, tuple(sys.path)):
        try:
            make: MakeSink = entry.load()
            sinks.append(make(logdir, writer, findings))
        except GradscopeError:
            raise
        except Exception as error:
            reason = f"the sink {entry.name} ({entry.value}) is left out: {type(error).__name__}: {error}"
            warnings.warn(reason, GradscopeWarning, stacklevel=6)
    return [sink for sink in sinks if sink is not None]


def viewer() -> Callable[..., Any]:
    """Load the function that shows a folder: `(logdir, host, port) -> View`.

    Raises:
        GradscopeError: no installed package has a viewer.
    """
    for entry in _installed(VIEWERS, tuple(sys.path)):
        return entry.load()
    raise GradscopeError("no viewer is installed; reinstall gradscope: pip install 'gradscope-rnn[tensorboard]'")


@functools.cache
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Find the entry points of a group on this `sys.path` once: it takes 10 to 40 ms, as every package is read."""
    return tuple(entry_points(group=group))
