"""Tracebacks of a script, without the frames of those who ran and watched it."""

from __future__ import annotations

import os
import sys
from types import TracebackType

_HOUSE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def hide_ours() -> None:
    """Have the exception that ends the process shown without our frames, by whatever shows it."""
    show = sys.excepthook

    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        clean(error)
        show(kind, error, error.__traceback__)

    sys.excepthook = shown


def clean(error: BaseException) -> None:
    """Take our frames out of an exception and of those that it came from."""
    waiting, done = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in done:
            continue
        done.add(id(one))
        one.__traceback__ = _without_ours(one.__traceback__)
        causes = (one.__cause__, one.__context__, *getattr(one, "exceptions", ()))
        waiting += [cause for cause in causes if isinstance(cause, BaseException)]


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    frames: list[TracebackType] = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    last = max((place for place, one in enumerate(frames) if _runs_the_script(one)), default=-1)
    kept: TracebackType | None = None
    for one in reversed(frames[last + 1 :]):
        if not one.tb_frame.f_code.co_filename.startswith(_HOUSE):
            kept = TracebackType(kept, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return kept


def _runs_the_script(trace: TracebackType) -> bool:
    """Whether a frame is the one that began the script: what lies before it is not the script's."""
    code = trace.tb_frame.f_code
    return code.co_name == "execute" and code.co_filename.startswith(_HOUSE)
