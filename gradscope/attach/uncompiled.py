"""Where `torch.compile` has its hand in Python's calls, ours are not to be compiled, and the user's as ever."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType
from typing import Any, TypeVar

from torch import nn
from torch._C._dynamo import eval_frame

set_eval_frame: Callable[[Any], Any] = eval_frame.set_eval_frame
F = TypeVar("F", bound=Callable[..., Any])
__all__ = ["as_written", "has_compiled", "inner_module", "set_eval_frame", "uncompiled"]


def uncompiled(function: F) -> F:
    """Have a function of ours, and those defined in it, run as they are where Python calls them.

    Code that is being traced and calls them is traced through them as before.
    """
    pending = [function.__code__]
    while pending:
        code = pending.pop()
        _skip(code)
        pending += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return function


def _skip(code: CodeType) -> None:
    names: Any = eval_frame
    if hasattr(names, "skip_code"):  # until torch 2.7
        names.skip_code(code)
    else:
        skip, default = names._FrameAction.SKIP, names._FrameAction.DEFAULT
        names.set_code_exec_strategy(code, names._FrameExecStrategy(skip, default))


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


def has_compiled() -> bool:
    """Whether `torch.compile` has looked at anything in this process."""
    return bool(getattr(sys.modules.get("torch._dynamo.convert_frame"), "FRAME_COUNTER", 0))


def inner_module(model: nn.Module) -> nn.Module:
    """The module that `torch.compile(module)` has wrapped, or the module itself."""
    wrapper = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", None)
    return model._orig_mod if wrapper is not None and isinstance(model, wrapper) else model  # type: ignore[return-value]
