"""Tracebacks of a script, without gradscope's frames."""

from __future__ import annotations

import os
import sys
from types import TracebackType

_HOUSE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def hide_ours() -> None:
    """Hide gradscope's frames in the exception that ends the process."""
    show = sys.excepthook

    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        clean(error)
        show(kind, error, error.__traceback__)

    sys.excepthook = shown


def clean(error: BaseException) -> None:
    """Remove gradscope's frames from an exception and from its causes."""
    pending, done = [error], set[int]()
    while pending:
        error = pending.pop()
        if id(error) in done:
            continue
        done.add(id(error))
        error.__traceback__ = _without_ours(error.__traceback__)
        causes = (error.__cause__, error.__context__, *getattr(error, "exceptions", ()))
        pending += [cause for cause in causes if isinstance(cause, BaseException)]


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    frames: list[TracebackType] = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    last = max((place for place, frame in enumerate(frames) if _runs_the_script(frame)), default=-1)
    rest: TracebackType | None = None
    for frame in reversed(frames[last + 1 :]):
        if not frame.tb_frame.f_code.co_filename.startswith(_HOUSE):
            rest = TracebackType(rest, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return rest


def _runs_the_script(trace: TracebackType) -> bool:
    """True for the frame that began the script: earlier frames are not the script's."""
    code = trace.tb_frame.f_code
    return code.co_name == "execute" and code.co_filename.startswith(_HOUSE)
