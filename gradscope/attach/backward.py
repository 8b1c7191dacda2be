"""Backward passes that accumulate into `.grad`, whoever starts them.

`Tensor.backward` and `torch.autograd.backward` enter the engine through one function of `torch.autograd`;
`torch.autograd.grad` calls the same function with another flag. The function returns when all parts of the pass are
done, including a reduction over processes and the sharding of gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from gradscope.attach.seam import Handle, Restore, Seam, replace
from gradscope.private import ENGINE, backward_pass


class BackwardListener(Protocol):
    """Receives backward passes."""

    def before_backward(self, roots: Sequence[Any]) -> Any:
        """A pass begins at these tensors or graph edges. `after_backward` receives the result as its token."""
        ...

    def after_backward(self, token: Any) -> None:
        """The pass of this token has ended."""
        ...

    def broken_backward(self, token: Any) -> None:
        """The pass of this token has raised."""
        ...


def _around(original: Callable[..., Any], roots: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
    # A nested pass, as in activation checkpointing, is part of the outer one.
    if not kwargs.get("accumulate_grad") or backward_pass() != -1:
        return original(roots, *args, **kwargs)
    tokens: list[tuple[Handle[BackwardListener], Any]] = []
    for handle in BACKWARD.handles:
        if (listener := handle.listener) is not None:
            tokens.append((handle, listener.before_backward(roots)))
    ended = False
    try:
        result = original(roots, *args, **kwargs)
        ended = True
    finally:
        for handle, token in tokens:
            if token is not None and (listener := handle.listener) is not None:
                (listener.after_backward if ended else listener.broken_backward)(token)
    return result


def _around_backward(original: Callable[..., Any], tensors: Any, *args: Any, **kwargs: Any) -> Any:
    def run(roots: Any, *args: Any, accumulate_grad: bool, **kwargs: Any) -> Any:
        return original(tensors, *args, **kwargs)

    roots = tensors if isinstance(tensors, Sequence) else (tensors,)
    return _around(run, roots, *args, accumulate_grad=True, **kwargs)


def _install() -> Restore:
    name, around = (ENGINE, _around) if ENGINE else ("backward", _around_backward)
    return replace((torch.autograd, name, around))


BACKWARD: Seam[BackwardListener] = Seam(_install)
