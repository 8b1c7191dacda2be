"""Keeps `torch.compile` from compiling our functions, and leaves the user's functions to it."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any, TypeVar

from gradscope.private import set_eval_frame, skip_code

F = TypeVar("F", bound=Callable[..., Any])


def uncompiled(function: F) -> F:
    """Mark one of our functions, and the functions defined in it, as not to be compiled when Python calls them.

    Tracing of code that calls them still traces through them.
    """
    pending = [function.__code__]
    while pending:
        code = pending.pop()
        skip_code(code)
        pending += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return function


@uncompiled
def as_written(compiler: Any, around: Callable[..., Any], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call `around(original, *args, **kwargs)`, and let the compiler compile nothing but `original`.

    Args:
        compiler: the compiler that `set_eval_frame(None)` has disabled.
        around: our function.
        original: the user's function, or torch's.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
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
