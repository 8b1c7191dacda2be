"""Plugins: what other packages add to gradscope by entry points, so that the library names none of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from os import PathLike
from typing import Any, Protocol

from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.record.apart import Sink
from gradscope.types import Finding

SINKS, VIEWERS = "gradscope.sinks", "gradscope.viewers"
"""Groups of entry points: functions that make a sink for a run, and functions that show a folder."""


class MakeSink(Protocol):
    """The function that an entry point of the group `gradscope.sinks` names; `attach` calls it with each run."""

    def __call__(
        self, logdir: str | PathLike[str] | None, writer: Any, findings: Callable[[], list[Finding]]
    ) -> Sink | None:
        """A sink for the run, or None if it wants none.

        Args:
            logdir: run folder.
            writer: the `writer` argument of `attach`.
            findings: says what the run shows so far; safe to call in another thread.
        """
        ...


def installed_sinks(
    logdir: str | PathLike[str] | None, writer: Any, findings: Callable[[], list[Finding]]
) -> list[Sink]:
    """The sinks of installed packages for one run; a package that fails costs a warning.

    Raises:
        GradscopeError: a package refuses the arguments.
    """
    made: list[Sink | None] = []
    for entry in entry_points(group=SINKS):
        try:
            make: MakeSink = entry.load()
            made.append(make(logdir, writer, findings))
        except GradscopeError:
            raise
        except Exception as error:
            reason = f"the sink {entry.name} ({entry.value}) is left out: {type(error).__name__}: {error}"
            warnings.warn(reason, GradscopeWarning, stacklevel=6)
    return [sink for sink in made if sink is not None]


def viewer() -> Callable[..., Any]:
    """The function that shows a folder: `(logdir, host, port) -> View`.

    Raises:
        GradscopeError: no installed package has one.
    """
    for entry in entry_points(group=VIEWERS):
        return entry.load()
    raise GradscopeError("no viewer is installed; install gradscope anew: pip install 'gradscope-rnn[tensorboard]'")
