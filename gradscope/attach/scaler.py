"""Loss scaling: `torch.amp.GradScaler` and what derives from it."""

from __future__ import annotations

import threading
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
