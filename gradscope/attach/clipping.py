"""Calls of torch's gradient clipping, however and whenever a program has imported its functions.

`clip_grad_norm_`, `clip_grads_with_norm_` and `clip_grad_value_` are closures over the functions that do the work.
The seam replaces the functions inside the closures: every reference to a closure stays valid, and is observed.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad, get_total_norm

from gradscope.attach.modified import largest, local, present_gradients, two_norms, vector
from gradscope.attach.seam import Handle, Restore, Seam, replace
from gradscope.private import clip_grads_with_norm, wrapped_cell


class Outcome(NamedTuple):
    """The effect of a clipping call, in numbers.

    Attributes:
        threshold: `max_norm` or `clip_value`.
        norm_before: norm of all gradients together: torch's own, for `value` the 2-norm; NaN if not measured.
        norm_after: the same norm after the call.
        coefficient: torch's factor on the gradients; for `value` the ratio of the norms.
        clipped: True if the call limited anything; False if not measured.
        nonfinite: True if the norm before was infinite or NaN.
    """

    threshold: float
    norm_before: float
    norm_after: float
    coefficient: float
    clipped: bool
    nonfinite: bool


@dataclass(slots=True, eq=False)
class Clip:
    """One clipping call. Its tensors are 0-dim and detached, and may still be the training's own.

    Attributes:
        how: name of the function.
        kind: `norm` limits the norm of all gradients together, `value` the size of each element.
        parameters: the argument, with and without gradient; listeners must not retain it.
        threshold: `max_norm` or `clip_value`.
        norm_type: order of the norms; NaN if the caller measured the norm.
        measured: for `norm` torch's norm; for `value` the 2-norm before and after and the largest absolute element
            before, or nothing if no listener looks at gradients.
        refused: True if `error_if_nonfinite` made the call raise, with the gradients unchanged.
    """

    how: str
    kind: Literal["norm", "value"]
    parameters: Sequence[Tensor]
    threshold: float | Tensor
    norm_type: float
    measured: tuple[Tensor, ...]
    refused: bool = False

    @property
    def factor(self) -> Tensor | None:
        """Torch's factor on all gradients; None if the call did something else."""
        if self.refused or self.kind == "value":
            return None
        return torch.clamp(self.threshold / (self.measured[0] + 1e-6), max=1.0)

    def outcome(self, threshold: float, *measured: float) -> Outcome:
        """The effect of the call.

        Args:
            threshold: the value of `threshold`.
            measured: the values of `measured`.
        """
        if not measured:
            return Outcome(threshold, math.nan, math.nan, math.nan, False, False)
        before, after, largest = measured if self.kind == "value" else (measured[0], math.nan, math.nan)
        if self.kind == "value":
            coefficient, clipped = (after / before if before else 1.0), largest > threshold
        else:
            coefficient = 1.0 if self.refused else _coefficient(threshold, before, self.measured[0].dtype)
            after, clipped = before * coefficient, coefficient < 1
        return Outcome(threshold, before, after, coefficient, clipped, not math.isfinite(before))


def _coefficient(threshold: float, norm: float, kind: torch.dtype) -> float:
    """Torch's coefficient, in the precision of the norm: rounding decides for norms near the threshold."""
    number = np.float64 if kind == torch.float64 else np.float32
    with np.errstate(all="ignore"):
        coefficient = number(1) / (number(norm) + number(1e-6)) * number(threshold)
    return float(coefficient) if not coefficient > 1 else 1.0


class ClippingListener(Protocol):
    """Receives the clipping calls that concern it.

    Attributes:
        looking: True if gradscope looks at gradients in this step, and may compute norms besides torch's own.
    """

    @property
    def looking(self) -> bool:
        """See the class."""
        ...

    def wants_clip(self, parameters: Sequence[Tensor]) -> bool:
        """True to receive a call over these parameters, before it changes their gradients."""
        ...

    def after_clip(self, clip: Clip) -> None:
        """A call that the listener wants has returned, or raised because of `error_if_nonfinite`."""
        ...


Observed = tuple[Clip, Any]
"""A clipping call, and its result: an exception that is to be raised, if `error_if_nonfinite` refused it."""


def _clip_grad_norm_(
    run: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    *_: Any,
    **__: Any,
) -> Observed:
    threshold = max_norm if type(max_norm) is float else _reference(max_norm)
    try:
        result: Any = run()
        norm, refused = _reference(result), False
    except RuntimeError as error:
        if not error_if_nonfinite:
            raise
        result, norm, refused = error, get_total_norm(present_gradients(parameters), norm_type), True
    return Clip("clip_grad_norm_", "norm", parameters, threshold, float(norm_type), (norm,), refused), result


def _clip_grads_with_norm_(
    run: Callable[[], None], parameters: Sequence[Tensor], max_norm: float, total_norm: Tensor, *_: Any, **__: Any
) -> Observed:
    norm = _reference(torch.as_tensor(total_norm))
    result = run()
    return Clip("clip_grads_with_norm_", "norm", parameters, _reference(max_norm), math.nan, (norm,)), result


def _clip_grad_value_(
    run: Callable[[], None], parameters: Sequence[Tensor], clip_value: float, *_: Any, **__: Any
) -> Observed:
    clip = functools.partial(Clip, "clip_grad_value_", "value", parameters, _reference(clip_value), 2.0)
    if not any([one.looking for handle in CLIPPING.handles if (one := handle.listener) is not None]):
        return clip(()), run()
    gradients = present_gradients(parameters)
    before, bound = _together(two_norms(gradients), 2), _together(largest(gradients), math.inf)
    result = run()
    # On the CPU the bound shows for free whether the call changes anything.
    unchanged = bound.device.type == "cpu" and bool(bound <= clip_value)
    after = before if unchanged else _together(two_norms(gradients), 2)
    return clip((before, after, bound)), result


def _reference(value: Any) -> Any:
    """The local part of a tensor, without a graph; anything else as a number."""
    if type(value) is Tensor:
        return value.detach() if value.requires_grad else value
    return local(value.detach()) if isinstance(value, Tensor) else float(value)


def _together(norms: list[Tensor], order: float) -> Tensor:
    return torch.linalg.vector_norm(vector(torch.stack, norms or [torch.zeros(())]), order)


class _Thread(threading.local):
    """True while a clipping call runs in this thread."""

    running = False


_thread = _Thread()


def _observed(observe: Callable[..., Observed]) -> Callable[..., Any]:
    """Wrap a clipping function: listeners receive its outermost calls."""

    def around(original: Callable[..., Any], parameters: Any, *args: Any, **kwargs: Any) -> Any:
        if _thread.running:
            return original(parameters, *args, **kwargs)
        _thread.running = True
        try:
            parameters, readable = _readable(parameters)
            wanted: list[Handle[ClippingListener]] = []
            for handle in CLIPPING.handles:
                if (listener := handle.listener) is not None and listener.wants_clip(readable):
                    wanted.append(handle)  # no comprehension: before Python 3.12 it is one more call
            run = functools.partial(original, parameters, *args, **kwargs)
            if not wanted:
                return run()
            clip, result = observe(run, readable, *args, **kwargs)
            for handle in wanted:
                if (listener := handle.listener) is not None:
                    listener.after_clip(clip)
        finally:
            _thread.running = False
        if clip.refused:
            raise result
        return result

    return around


def _readable(parameters: Any) -> tuple[Any, Sequence[Tensor]]:
    """The argument for torch, not yet iterated over, and the same parameters as a sequence."""
    if isinstance(parameters, Tensor):
        return parameters, [parameters]
    readable = list(parameters)
    if not hasattr(parameters, "__next__"):
        return parameters, readable
    return readable or parameters, readable  # torch warns of an empty generator


def _install() -> Restore:
    observed = {
        clip_grad.clip_grad_norm_: _clip_grad_norm_,
        clip_grads_with_norm: _clip_grads_with_norm_,
        clip_grad.clip_grad_value_: _clip_grad_value_,
    }
    cells = ((wrapped_cell(function), _observed(observe)) for function, observe in observed.items() if function)
    return replace(*((cell, "cell_contents", around) for cell, around in cells if cell))


CLIPPING: Seam[ClippingListener] = Seam(_install)
