"""Calls of torch's gradient clipping, however and whenever its functions were imported.

`clip_grad_norm_`, `clip_grads_with_norm_` and `clip_grad_value_` are closures over the functions that do the work.
What the closures hold is exchanged: every reference to them, old or new, stays what it was and is observed.
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

Report = Callable[["Clip"], None]


class Outcome(NamedTuple):
    """What a clipping call did, in numbers.

    Attributes:
        threshold: `max_norm` or `clip_value`.
        norm_before: of all gradients together: the one torch used, for `value` the 2-norm; NaN if it was not measured.
        norm_after: the same after the call.
        coefficient: what torch multiplied the gradients by; for `value` the ratio of the norms.
        clipped: whether anything was limited; False if that was not measured.
        nonfinite: whether the norm before was infinite or NaN.
    """

    threshold: float
    norm_before: float
    norm_after: float
    coefficient: float
    clipped: bool
    nonfinite: bool


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """One clipping call. Its tensors are 0-dim and detached, and may still be the training's own.

    Attributes:
        how: name of the function.
        kind: `norm` limits the norm of all gradients together, `value` the size of each element.
        parameters: as passed, with and without gradient; not to be kept.
        threshold: `max_norm` or `clip_value`.
        norm_type: order of the norms; NaN if the caller measured the norm.
        measured: for `norm` the norm that torch used; for `value` the 2-norm before and after and the largest absolute
            element before, or nothing where no listener looks at gradients.
        refused: gradients were left alone, because `error_if_nonfinite` made the call raise.
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
        """What torch multiplied all gradients by; None where it did something else."""
        if self.refused or self.kind == "value":
            return None
        return torch.clamp(self.threshold / (self.measured[0] + 1e-6), max=1.0)

    def outcome(self, threshold: float, *measured: float) -> Outcome:
        """What the call did.

        Args:
            threshold: the number in `threshold`.
            measured: the numbers in `measured`.
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
    """As torch computes it, in the precision of the norm: that decides whether a norm near the threshold is clipped."""
    number = np.float64 if kind == torch.float64 else np.float32
    with np.errstate(all="ignore"):
        found = number(1) / (number(norm) + number(1e-6)) * number(threshold)
    return float(found) if not found > 1 else 1.0


class ClippingListener(Protocol):
    """Receives the clipping calls that concern it.

    Attributes:
        looking: whether gradients are looked at in this step: only then are more norms computed than torch computes.
    """

    @property
    def looking(self) -> bool:
        """See the class."""
        ...

    def wants_clip(self, parameters: Sequence[Tensor]) -> bool:
        """A call over these parameters begins, their gradients being as they were: does it concern the listener?"""
        ...

    def after_clip(self, clip: Clip) -> None:
        """A call that was wanted has returned, or raised because of `error_if_nonfinite`."""
        ...


def _clip_grad_norm_(
    run: Callable[[], Tensor],
    report: Report,
    parameters: Sequence[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    *_: Any,
    **__: Any,
) -> Tensor:
    what = "clip_grad_norm_", "norm", parameters, _reference(max_norm), float(norm_type)
    try:
        norm = run()
    except RuntimeError:
        if error_if_nonfinite:
            report(Clip(*what, (get_total_norm(present_gradients(parameters), norm_type),), refused=True))
        raise
    report(Clip(*what, (_reference(norm),)))
    return norm


def _clip_grads_with_norm_(
    run: Callable[[], None],
    report: Report,
    parameters: Sequence[Tensor],
    max_norm: float,
    total_norm: Tensor,
    *_: Any,
    **__: Any,
) -> None:
    norm = torch.as_tensor(total_norm)
    run()
    report(Clip("clip_grads_with_norm_", "norm", parameters, _reference(max_norm), math.nan, (_reference(norm),)))


def _clip_grad_value_(
    run: Callable[[], None], report: Report, parameters: Sequence[Tensor], clip_value: float, *_: Any, **__: Any
) -> None:
    clip = functools.partial(Clip, "clip_grad_value_", "value", parameters, _reference(clip_value), 2.0)
    if not any([one.looking for handle in CLIPPING.handles if (one := handle.listener) is not None]):
        run()
        report(clip(()))
        return
    gradients = present_gradients(parameters)
    before, bound = _together(two_norms(gradients), 2), _together(largest(gradients), math.inf)
    run()
    # On the host it is known for nothing whether anything was changed.
    unchanged = bound.device.type == "cpu" and bool(bound <= clip_value)
    after = before if unchanged else _together(two_norms(gradients), 2)
    report(clip((before, after, bound)))


def _reference(value: Any) -> Any:
    """A tensor without its graph, and what this process has of it; anything else as a number."""
    if isinstance(value, Tensor):
        return value.detach() if type(value) is Tensor else local(value.detach())
    return float(value)


def _together(norms: list[Tensor], order: float) -> Tensor:
    return torch.linalg.vector_norm(vector(torch.stack, norms or [torch.zeros(())]), order)


_running = threading.local()


def _observed(observe: Callable[..., Any]) -> Callable[..., Any]:
    """Around a clipping function: those who want the call receive it, and a call within a call is part of it."""

    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if getattr(_running, "now", False):
            return original(*args, **kwargs)
        _running.now = True
        try:
            return _observe(observe, original, *args, **kwargs)
        finally:
            _running.now = False

    return around


def _observe(
    observe: Callable[..., Any], original: Callable[..., Any], parameters: Any, *args: Any, **kwargs: Any
) -> Any:
    parameters, readable = _readable(parameters)
    wanted: list[Handle[ClippingListener]] = []
    for handle in CLIPPING.handles:
        if (one := handle.listener) is not None and one.wants_clip(readable):
            wanted.append(handle)  # no comprehension: before Python 3.12 it is one more call on every idle step
    if not wanted:
        return original(parameters, *args, **kwargs)

    def run() -> Any:
        return original(parameters, *args, **kwargs)

    def report(clip: Clip) -> None:
        for handle in wanted:
            if (listener := handle.listener) is not None:
                listener.after_clip(clip)

    return observe(run, report, readable, *args, **kwargs)


def _readable(parameters: Any) -> tuple[Any, Sequence[Tensor]]:
    """What torch is to be given, as good as new, and what we may iterate over as often as we like."""
    if isinstance(parameters, Tensor):
        return parameters, [parameters]
    readable = list(parameters)
    if not hasattr(parameters, "__next__"):
        return parameters, readable
    return readable or parameters, readable  # torch warns of a generator that has nothing


def _install() -> Restore:
    observed = {
        clip_grad.clip_grad_norm_: _clip_grad_norm_,
        clip_grads_with_norm: _clip_grads_with_norm_,
        clip_grad.clip_grad_value_: _clip_grad_value_,
    }
    cells = ((wrapped_cell(function), _observed(observe)) for function, observe in observed.items() if function)
    return replace(*((cell, "cell_contents", around) for cell, around in cells if cell))


CLIPPING: Seam[ClippingListener] = Seam(_install)
