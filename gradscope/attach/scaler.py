"""Loss scaling: `torch.amp.GradScaler` and what derives from it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from gradscope.attach.seam import Restore, Seam, replace


class ScalerListener(Protocol):
    """Hears of loss scaling. A call that raises is not reported, save its `before_scaler_step`."""

    def scaled(self, scaler: GradScaler, factor: Tensor | float) -> None:
        """A loss was multiplied by `factor`: a 0-dim tensor of the listener's own, or 1.0 if the scaler is disabled."""
        ...

    def unscaled(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """The optimizer's gradients were divided by that factor, by the user or at the beginning of `scaler.step`."""
        ...

    def before_scaler_step(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """`scaler.step(optimizer)` begins; for all but fused optimizers, it unscales if that has not been done."""
        ...

    def after_scaler_step(self, scaler: GradScaler, optimizer: Optimizer, skipped: Tensor | bool) -> None:
        """`scaler.step(optimizer)` has ended.

        Args:
            scaler: the scaler.
            optimizer: the optimizer; unless it is fused, its own `step` ran only if not skipped.
            skipped: a gradient was not finite, so that no parameter changed; a 0-dim bool tensor on the device.
        """
        ...


def _scale(original: Callable[..., Any], scaler: GradScaler, *args: Any, **kwargs: Any) -> Any:
    result = original(scaler, *args, **kwargs)
    scale = scaler._get_scale_async() if scaler.is_enabled() else None
    factor = 1.0 if scale is None else scale.detach().clone()  # update() writes into the scaler's own
    for listener in SCALER:
        listener.scaled(scaler, factor)
    return result


def _unscale(original: Callable[..., Any], scaler: GradScaler, *args: Any, **kwargs: Any) -> Any:
    result = original(scaler, *args, **kwargs)
    if scaler.is_enabled():
        for listener in SCALER:
            listener.unscaled(scaler, _optimizer(*args, **kwargs))
    return result


def _step(original: Callable[..., Any], scaler: GradScaler, *args: Any, **kwargs: Any) -> Any:
    optimizer = _optimizer(*args, **kwargs)
    for listener in SCALER:
        listener.before_scaler_step(scaler, optimizer)
    result = original(scaler, *args, **kwargs)
    skipped = _skipped(scaler, optimizer)
    for listener in SCALER:
        listener.after_scaler_step(scaler, optimizer, skipped)
    return result


def _optimizer(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Optimizer:
    return optimizer


def _skipped(scaler: GradScaler, optimizer: Optimizer) -> Tensor | bool:
    # A disabled scaler has no states. Looking one up with [] would add it, and then the scaler could not be pickled.
    state = getattr(scaler, "_per_optimizer_states", {}).get(id(optimizer), {})
    found: list[Tensor] = list(state.get("found_inf_per_device", {}).values())
    if not found:
        return False
    return torch.stack([each.to(found[0].device, non_blocking=True) for each in found]).any()


_running = threading.local()


def _outermost(around: Callable[..., Any]) -> Callable[..., Any]:
    """Let a subclass's method that calls `super()` be one call."""

    def once(original: Callable[..., Any], scaler: GradScaler, *args: Any, **kwargs: Any) -> Any:
        running: set[tuple[str, int]] = _running.__dict__.setdefault("calls", set())
        call = (around.__name__, id(scaler))
        if call in running:
            return original(scaler, *args, **kwargs)
        running.add(call)
        try:
            return around(original, scaler, *args, **kwargs)
        finally:
            running.discard(call)

    return once


def _install() -> Restore:
    methods = {"scale": _outermost(_scale), "unscale_": _outermost(_unscale), "step": _outermost(_step)}
    return replace(
        *((kind, name, around) for kind in _kinds(GradScaler) for name, around in methods.items() if name in vars(kind))
    )


def _kinds(kind: type) -> Iterator[type]:
    """The class and all that derive from it: FSDP's `ShardedGradScaler.scale` does not call `super()`."""
    yield kind
    for derived in kind.__subclasses__():
        yield from _kinds(derived)


SCALER: Seam[ScalerListener] = Seam(_install)


class Scaling:
    """Which loss scaling is that of some optimizers, told from the events of all scalers, also other trainings'."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._factors: weakref.WeakKeyDictionary[GradScaler, Tensor | float] = weakref.WeakKeyDictionary()
        self._ours: weakref.WeakKeyDictionary[GradScaler, bool] = weakref.WeakKeyDictionary()
        self._unscaled: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._stepping: tuple[GradScaler, Optimizer] | None = None
        self._scaler: GradScaler | None = None  # of this step's losses; a guess until it meets an optimizer

    @property
    def factor(self) -> Tensor | float:
        """What the losses of this step were multiplied by; 1.0 without a scaler."""
        return 1.0 if self._scaler is None else self._factors.get(self._scaler, 1.0)

    def remaining(self, optimizer: Optimizer | None) -> Tensor | float:
        """What the gradients are still multiplied by: an optimizer's, or those of a loop that has none."""
        unscaled = optimizer in self._unscaled if optimizer else len(self._unscaled) > 0
        return 1.0 if unscaled else self.factor

    def scaled(self, scaler: GradScaler, factor: Tensor | float) -> None:
        """See `ScalerListener`."""
        self._factors[scaler] = factor
        if self._stepping and self._stepping[0] is scaler:
            self._stepping = None  # that step has raised
        if self._ours.get(scaler, self._scaler is None):
            self._scaler = scaler

    def meets(self, scaler: GradScaler, ours: bool) -> None:
        """A scaler unscales or steps an optimizer, one of ours or another."""
        self._ours[scaler] = ours or self._ours.get(scaler, False)
        if ours:
            self._scaler = scaler
        elif self._scaler is scaler and not self._ours[scaler]:
            self._scaler = None

    def unscaled(self, optimizer: Optimizer) -> None:
        """The gradients of one of ours have been divided by the factor."""
        self._unscaled.add(optimizer)

    def is_unscaled(self, optimizer: Optimizer) -> bool:
        """Whether that has happened since its last step."""
        return optimizer in self._unscaled

    def begin(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """A scaler's step of one of ours begins."""
        self._stepping = (scaler, optimizer)

    def steps(self, optimizer: Optimizer) -> bool:
        """Whether it is a scaler that makes this optimizer step."""
        return self._stepping is not None and self._stepping[1] is optimizer

    def without(self, optimizer: Optimizer) -> None:
        """One of ours steps: what was scaled was no loss of ours, unless a scaler has to do with this optimizer."""
        if not self.steps(optimizer) and optimizer not in self._unscaled:
            self._scaler = None

    def over(self, optimizer: Optimizer | None) -> None:
        """The step is over."""
        self._scaler = self._stepping = None
        if optimizer is None:
            self._unscaled.clear()
        else:
            self._unscaled.discard(optimizer)
