"""Calls of torch's gradient clipping, however and whenever its functions were imported.

`clip_grad_norm_`, `clip_grads_with_norm_` and `clip_grad_value_` are closures over the functions that do the work.
What the closures hold is exchanged: every reference to them, old or new, stays what it was and is observed.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad, get_total_norm

from gradscope.attach.modified import largest, local, present_gradients, two_norms, vector
from gradscope.attach.seam import Restore, Seam, replace

Report = Callable[["Clip"], None]


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """One clipping call. Its tensors are 0-dim, on the device and nobody else's, to be read whenever it suits.

    Attributes:
        how: name of the function.
        kind: `norm` limits the norm of all gradients together, `value` the size of each element.
        parameters: as passed, with and without gradient; not to be kept.
        threshold: `max_norm` or `clip_value`.
        norm_type: order of the norms; NaN if the caller measured the norm.
        norm_before: of all gradients together: the one torch used, for `value` the 2-norm.
        refused: gradients were left alone, because `error_if_nonfinite` made the call raise.
        measured: for `value`, the 2-norm after and the largest absolute element before.
    """

    how: str
    kind: Literal["norm", "value"]
    parameters: Sequence[Tensor]
    threshold: float | Tensor
    norm_type: float
    norm_before: Tensor
    refused: bool = False
    measured: tuple[Tensor, Tensor] | None = None

    @property
    def coefficient(self) -> Tensor:
        """What torch multiplied the gradients by; for `value` the ratio of the norms."""
        if self.refused:
            return torch.ones_like(self.norm_before)
        if self.measured:
            return torch.where(self.norm_before == 0, 1.0, self.measured[0] / self.norm_before)
        return torch.clamp(self.threshold / (self.norm_before + 1e-6), max=1.0)

    @property
    def norm_after(self) -> Tensor:
        """Norm of all gradients together after the call."""
        return self.measured[0] if self.measured else self.norm_before * self.coefficient

    @property
    def clipped(self) -> Tensor:
        """Whether anything was limited."""
        return self.measured[1] > self.threshold if self.measured else self.coefficient < 1

    @property
    def nonfinite(self) -> Tensor:
        """Whether the norm before was infinite or NaN."""
        return ~torch.isfinite(self.norm_before)


class ClippingListener(Protocol):
    """Hears of the clipping calls that concern it."""

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
    def clip(norm: Tensor, refused: bool) -> Clip:
        return Clip("clip_grad_norm_", "norm", parameters, _own(max_norm), float(norm_type), norm, refused)

    try:
        norm = run()
    except RuntimeError:
        if error_if_nonfinite:
            report(clip(get_total_norm(present_gradients(parameters), norm_type), refused=True))
        raise
    report(clip(_own(norm), refused=False))
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
    run()
    report(Clip("clip_grads_with_norm_", "norm", parameters, _own(max_norm), math.nan, _own(total_norm)))


def _clip_grad_value_(
    run: Callable[[], None], report: Report, parameters: Sequence[Tensor], clip_value: float, *_: Any, **__: Any
) -> None:
    gradients = present_gradients(parameters)
    before, bound = _together(two_norms(gradients), 2), _together(largest(gradients), math.inf)
    run()
    unchanged = bound.device.type == "cpu" and bool(
        bound <= clip_value
    )  # known at no cost, where nothing is waited for
    after = before if unchanged else _together(two_norms(gradients), 2)
    report(Clip("clip_grad_value_", "value", parameters, _own(clip_value), 2.0, before, measured=(after, bound)))


def _own(value: Any) -> Any:
    """A copy, if the user could write into it."""
    return local(value.detach()).clone() if isinstance(value, Tensor) else float(value)


def _together(norms: list[Tensor], order: float) -> Tensor:
    return torch.linalg.vector_norm(vector(torch.stack, norms or [torch.zeros(())]), order)


_running = threading.local()


def _observed(observe: Callable[..., Any]) -> Callable[..., Any]:
    """Around a clipping function: those who want the call hear of it, and a call within a call is part of it."""

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
    wanted = [listener for listener in CLIPPING if listener.wants_clip(readable)]

    def run() -> Any:
        return original(parameters, *args, **kwargs)

    def report(clip: Clip) -> None:
        for listener in CLIPPING:
            if any(listener is each for each in wanted):
                listener.after_clip(clip)

    return observe(run, report, readable, *args, **kwargs) if wanted else run()


def _readable(parameters: Any) -> tuple[Any, Sequence[Tensor]]:
    """What torch is to be given, as good as new, and what we may iterate over as often as we like."""
    if isinstance(parameters, Tensor):
        return parameters, [parameters]
    readable = list(parameters)
    if not isinstance(parameters, Iterator):
        return parameters, readable
    return (each for each in readable), readable


def _install() -> Restore:
    observed = {
        clip_grad.clip_grad_norm_: _clip_grad_norm_,
        clip_grad._clip_grads_with_norm_: _clip_grads_with_norm_,
        clip_grad.clip_grad_value_: _clip_grad_value_,
    }
    cells = ((_cell(function), _observed(observe)) for function, observe in observed.items())
    return replace(*((cell, "cell_contents", around) for cell, around in cells if cell))


def _cell(function: Any) -> Any:
    """The cell that holds what `torch.nn.utils.clip_grad._no_grad` wrapped; a replacement by somebody else has none."""
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)).get("func")


CLIPPING: Seam[ClippingListener] = Seam(_install)
