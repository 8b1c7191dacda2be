"""Where `torch.compile` has its hand in Python's calls, ours are not to be compiled, and the user's as ever."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any, TypeVar

from gradscope.private import set_eval_frame, skip_code

F = TypeVar("F", bound=Callable[..., Any])


def uncompiled(function: F) -> F:
    """Have a function of ours, and those defined in it, run as they are where Python calls them.

    Code that is being traced and calls them is traced through them as before.
    """
    pending = [function.__code__]
    while pending:
        code = pending.pop()
        skip_code(code)
        pending += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return function


@uncompiled
def as_written(compiler: Any, around: Callable[..., Any], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """`around(original, *args, **kwargs)`, of which nothing but what `original` does may be compiled.

    Args:
        compiler: what `set_eval_frame(None)` has put out of action.
        around: ours.
        original: the user's, or torch's.
        args: of the call.
        kwargs: of the call.
    """

    def compiled(*args: Any, **kwargs: Any) -> Any:
        set_eval_frame(compiler)
        try:
            return original(*args, **kwargs)
        finally:
            set_eval_frame(None)

    try:
        return around(compiled, *args, **kwargs)
    finally:
        set_eval_frame(compiler)
