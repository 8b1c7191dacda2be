"""The description of a scope in one line."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from gradscope.observe.observer import Observer

NAMED = 3


def about(observer: Observer, *, of: str, since: datetime, closed: bool, logdir: Path | None) -> str:
    """Describe a scope: the model, the time of `attach`, the number of records, and their place.

    Args:
        observer: of the scope.
        of: class of the model.
        since: time of `attach`.
        closed: True if the scope is closed.
        logdir: the run folder, if there is one.
    """
    steps = observer.step - observer.first_step
    state = "closed" if closed else "paused" if observer.calls.paused else "open"
    begun = f" from step {observer.first_step}" if observer.first_step else ""
    counted = f"{observer.records:,} of {steps:,} step{'s' * (steps != 1)}{begun} recorded"
    where = "in memory" if logdir is None else f"in {logdir}"
    return f"<Scope of {of} ({_layers(observer.observed)}), {state}, since {since:%Y-%m-%d %H:%M}: {counted} {where}>"


def _layers(observed: Mapping[str, str]) -> str:
    named = [f"{name}: {kind}" if name else kind for name, kind in list(observed.items())[:NAMED]]
    return ", ".join([*named, f"and {len(observed) - NAMED} more"] if len(observed) > NAMED else named)
