"""Loss scaling: `torch.amp.GradScaler` and its subclasses."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from gradscope.attach.seam import Restore, Seam, replace
from gradscope.private import scale_of


class ScalerListener(Protocol):
    """Receives loss scaling. A call that raises only reports its `before_scaler_step`."""

    def scaled(self, scaler: GradScaler, given: Any, result: Any) -> None:
        """`scaler.scale(given)` has returned `result`."""
        ...

    def unscaled(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """The user or the beginning of `scaler.step` has divided the optimizer's gradients by the factor."""
        ...

    def before_scaler_step(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """`scaler.step(optimizer)` begins. Except for fused optimizers, it unscales gradients that are still scaled."""
        ...

    def after_scaler_step(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """`scaler.step(optimizer)` has ended. Unless the optimizer is fused, its own `step` ran only if not skipped."""
        ...


def factor_of(scaler: GradScaler) -> Tensor | float:
    """A scaler's factor on losses: a 0-dim copy, or 1.0 if the scaler is disabled."""
    scale = scale_of(scaler) if scaler.is_enabled() else None
    if isinstance(scale, Tensor):
        return scale.detach().clone()  # update() writes into the scaler's own
    return 1.0 if scale is None else scale


def _scale(original: Callable[..., Any], scaler: GradScaler, *args: Any, **kwargs: Any) -> Any:
    result = original(scaler, *args, **kwargs)
    given = args[0] if args else next(iter(kwargs.values()), None)
    for handle in SCALER.handles:
        if (listener := handle.listener) is not None:
            listener.scaled(scaler, given, result)
    return result


def _unscale(original: Callable[..., Any], scaler: GradScaler, *args: Any, **kwargs: Any) -> Any:
    result = original(scaler, *args, **kwargs)
    if scaler.is_enabled():
        for handle in SCALER.handles:
            if (listener := handle.listener) is not None:
                listener.unscaled(scaler, _optimizer(*args, **kwargs))
    return result


def _step(original: Callable[..., Any], scaler: GradScaler, *args: Any, **kwargs: Any) -> Any:
    optimizer = _optimizer(*args, **kwargs)
    for handle in SCALER.handles:
        if (listener := handle.listener) is not None:
            listener.before_scaler_step(scaler, optimizer)
    result = original(scaler, *args, **kwargs)
    for handle in SCALER.handles:
        if (listener := handle.listener) is not None:
            listener.after_scaler_step(scaler, optimizer)
    return result


def _optimizer(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Optimizer:
    return optimizer


_running = threading.local()


def _outermost(around: Callable[..., Any]) -> Callable[..., Any]:
    """Count a subclass's method that calls `super()` as one call."""

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
    """The class and all its subclasses: FSDP's `ShardedGradScaler.scale` does not call `super()`."""
    yield kind
    for derived in kind.__subclasses__():
        yield from _kinds(derived)


SCALER: Seam[ScalerListener] = Seam(_install)


class Scaling:
    """The loss scaling of our optimizers, from the events of all scalers, also those of other trainings.

    Attributes:
        used: True once any scaler has been used.
    """

    def __init__(self) -> None:
        """Start without any scaler."""
        self._factors: weakref.WeakKeyDictionary[GradScaler, Tensor | float] = weakref.WeakKeyDictionary()
        self._ours: weakref.WeakKeyDictionary[GradScaler, bool] = weakref.WeakKeyDictionary()
        self._unscaled: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._stepping: tuple[GradScaler, Optimizer] | None = None
        self.used = False
        self._skipped: Tensor | bool = True
        self._scaler: GradScaler | None = None  # the scaler of this step's losses; a guess until it meets an optimizer

    @property
    def factor(self) -> Tensor | float:
        """The factor on the losses of this step; 1.0 without a scaler."""
        return 1.0 if self._scaler is None else self._factors.get(self._scaler, 1.0)

    def remaining(self, optimizer: Optimizer | None) -> Tensor | float:
        """The factor that is still on the gradients of an optimizer, or of a loop without one."""
        unscaled = optimizer in self._unscaled if optimizer else len(self._unscaled) > 0
        return 1.0 if unscaled else self.factor

    def scaled(self, scaler: GradScaler, *, looking: bool) -> None:
        """A scaler has scaled a loss. `looking`: gradscope looks at gradients in this step and needs the factor."""
        self.used = True
        self._factors[scaler] = factor_of(scaler) if looking else 1.0
        if self._stepping and self._stepping[0] is scaler:
            self._stepping = None  # that step has raised
        if self._ours.get(scaler, self._scaler is None):
            self._scaler = scaler

    def meets(self, scaler: GradScaler, ours: bool) -> None:
        """A scaler unscales or steps an optimizer; `ours` if it is one of ours."""
        self.used = True
        self._ours[scaler] = ours or self._ours.get(scaler, False)
        if ours:
            self._scaler = scaler
        elif self._scaler is scaler and not self._ours[scaler]:
            self._scaler = None

    def unscaled(self, optimizer: Optimizer) -> None:
        """A scaler has unscaled the gradients of one of our optimizers."""
        self._unscaled.add(optimizer)

    def is_unscaled(self, optimizer: Optimizer) -> bool:
        """True if a scaler has unscaled its gradients since its last step."""
        return optimizer in self._unscaled

    def begin(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """A scaler's step of one of our optimizers begins. It is skipped unless the optimizer's own step follows."""
        self._stepping, self._skipped = (scaler, optimizer), True

    def steps(self, optimizer: Optimizer) -> bool:
        """True if a scaler makes this optimizer step."""
        return self._stepping is not None and self._stepping[1] is optimizer

    def stepped(self, optimizer: Optimizer) -> None:
        """The optimizer's own step begins. A fused optimizer decides by its own tensor whether to skip."""
        if self.steps(optimizer):
            self._skipped = getattr(optimizer, "found_inf", False)

    @property
    def skipped(self) -> Tensor | bool:
        """True, or a non-zero tensor, if the scaler's last step left the parameters unchanged."""
        return self._skipped

    def without(self, optimizer: Optimizer) -> None:
        """One of our optimizers steps: unless a scaler takes part, scaled losses belong to another training."""
        if not self.steps(optimizer) and optimizer not in self._unscaled:
            self._scaler = None

    def over(self, optimizer: Optimizer | None) -> None:
        """The step has ended."""
        self._scaler = self._stepping = None
        if optimizer is None:
            self._unscaled.clear()
        else:
            self._unscaled.discard(optimizer)
