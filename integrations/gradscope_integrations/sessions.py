"""What the integrations of training frameworks share: scopes that open and close with the framework's loop."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import gradscope

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Self


class Sessions:
    """One scope after the other over a training that may stop and go on; steps are numbered through.

    Use it as a context manager, or call `close`, where the loop may end by an exception of which its framework tells
    nobody.

    Args:
        logdir: run folder; None keeps everything in memory.
        **arguments: what else `gradscope.attach` takes; `first_step` is the number of the very first step. A training
            that goes back to a checkpoint has its steps recorded already: `existing="new"`, the default, records it
            beside the earlier run.
    """

    def __init__(self, logdir: str | os.PathLike[str] | None = None, **arguments: Any) -> None:
        self._logdir, self._first = logdir, int(arguments.pop("first_step", 0))
        self._arguments = arguments
        self._scope: gradscope.Scope | None = None
        self._run: gradscope.Run | None = None

    @property
    def run(self) -> gradscope.Run:
        """What the latest session has recorded, as it grows; with a logdir, what those before it have as well.

        Raises:
            GradscopeError: no training has begun in this process.
        """
        if self._run is None:
            elsewhere = f"; what other processes have recorded is in gradscope.load({str(self._logdir)!r})"
            raise gradscope.GradscopeError(
                "nothing is recorded yet: the scope opens when training begins" + (elsewhere if self._logdir else "")
            )
        return self._run

    @property
    def next_step(self) -> int:
        """The number of the next optimizer step."""
        return self._first if self._scope is None else self._scope.next_step

    def open(self, model: nn.Module, *, first_step: int | None = None, **arguments: Any) -> gradscope.Scope:
        """Attach to a model; a session that is still open ends.

        Args:
            model: see `gradscope.attach`.
            first_step: where a resumed training goes on; by default where the session before ended.
            **arguments: what takes the place of the arguments given at first.
        """
        self.close()
        first = first_step or self._first
        given: dict[str, Any] = {"logdir": self._logdir, **self._arguments, **arguments}
        self._scope = gradscope.attach(model, first_step=first, **given)
        self._run, self._logdir = self._scope.run, self._scope.logdir or self._logdir
        return self._scope

    def resume(self, next_step: int) -> None:
        """Go on with that number when the next session begins; one that is open goes on as it is."""
        if self._scope is None:
            self._first = next_step

    def close(self) -> None:
        """End the session; doing so again does nothing."""
        scope, self._first, self._scope = self._scope, self.next_step, None
        if scope is not None:
            scope.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have no scope, and go on with the same number."""
        return {**vars(self), "_first": self.next_step, "_scope": None}
