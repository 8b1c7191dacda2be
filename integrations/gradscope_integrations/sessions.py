"""The common base of the framework integrations: scopes that open and close with the framework's loop."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import gradscope

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Self


class Sessions:
    """A series of scopes over a training that may stop and resume, with consecutive step numbers.

    If the framework does not report exceptions, use it as a context manager, or call `close`.

    Args:
        logdir: run folder; None keeps everything in memory.
        **arguments: further arguments of `gradscope.attach`; `first_step` is the number of the very first step. If a
            training goes back to a checkpoint, its folder already has later steps: `existing="new"`, the default,
            records beside the earlier run.
    """

    def __init__(self, logdir: str | os.PathLike[str] | None = None, **arguments: Any) -> None:
        self._logdir, self._first = logdir, int(arguments.pop("first_step", 0))
        self._arguments = arguments
        self._scope: gradscope.Scope | None = None
        self._run: gradscope.Run | None = None

    @property
    def run(self) -> gradscope.Run:
        """The growing record of the latest session; with a logdir, also of the earlier sessions.

        Raises:
            GradscopeError: no training has begun in this process.
        """
        if self._run is None:
            elsewhere = f"; for records of other processes, see gradscope.load({str(self._logdir)!r})"
            raise gradscope.GradscopeError(
                "nothing is recorded yet: the scope opens when training begins" + (elsewhere if self._logdir else "")
            )
        return self._run

    @property
    def next_step(self) -> int:
        """The number of the next optimizer step."""
        return self._first if self._scope is None else self._scope.next_step

    def open(self, model: nn.Module, *, first_step: int | None = None, **arguments: Any) -> gradscope.Scope:
        """Attach to a model, and close any open session.

        Args:
            model: see `gradscope.attach`.
            first_step: first step of a resumed training; by default the step after the previous session.
            **arguments: replacements for the arguments of the constructor.
        """
        self.close()
        first = first_step or self._first
        options: dict[str, Any] = {"logdir": self._logdir, **self._arguments, **arguments}
        self._scope = gradscope.attach(model, first_step=first, **options)
        self._run, self._logdir = self._scope.run, self._scope.logdir or self._logdir
        return self._scope

    def resume(self, next_step: int) -> None:
        """Start the next session at this step; an open session is unaffected."""
        if self._scope is None:
            self._first = next_step

    def close(self) -> None:
        """End the session. Idempotent."""
        scope, self._first, self._scope = self._scope, self.next_step, None
        if scope is not None:
            scope.close()

    def __enter__(self) -> Self:
        """The object itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """The state of copies and pickles: without the scope, with the number of the next step."""
        return {**vars(self), "_first": self.next_step, "_scope": None}
