"""What becomes of the gradients between backward and optimizer: clipping, scaling, and changes by hand."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from gradscope.attach.clipping import CLIPPING, Clip
from gradscope.attach.gradients import after_backward, watch_parameter
from gradscope.attach.modified import (
    Change,
    Comparison,
    Reference,
    compare,
    explain,
    glance,
    present_gradients,
    snapshot,
    two_norms,
)
from gradscope.attach.scaler import SCALER
from gradscope.guard import Guard, guarded
from gradscope.record.recorder import Later
from gradscope.types import Rows

CLIPPED_SCALED = (
    "gradients were clipped while still multiplied by the GradScaler's factor, so that the threshold means something "
    "else at every step: call scaler.unscale_(optimizer) before clipping"
)

WATCHED_STEPS = 32
"""After so many steps in which nothing was changed by hand, a glance at the gradients has to do, on the CPU."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """What the optimizer was given.

    Attributes:
        norms: 2-norm of each recurrent gradient, on the device.
        factor: what they are multiplied by, on the device or not; 1.0 without a GradScaler.
    """

    norms: Tensor
    factor: Tensor | float

    def row(self, columns: dict[str, Any], skipped: Tensor | bool) -> Later:
        """The row of `steps`, once the norms are on the host."""
        extra = [x for x in (self.factor, skipped) if isinstance(x, Tensor)]

        def rows(values: Tensor) -> Rows:
            numbers = values.tolist()
            skip = bool(numbers.pop()) if isinstance(skipped, Tensor) else skipped
            factor = numbers.pop() if isinstance(self.factor, Tensor) else self.factor
            bad = sum(not math.isfinite(norm) for norm in numbers)
            found = {"grad_norm": math.hypot(*numbers) / factor, "nonfinite": bad, "skipped": skip}
            return Rows("steps", {**columns, **found})

        return Later(
            torch.cat([self.norms, *(x.to(self.norms).reshape(1) for x in extra)]) if extra else self.norms, rows
        )


class Ledger:
    """Listens to clipping and loss scaling, and compares the gradients at the optimizer with those after backward.

    Args:
        model: whose clipping calls count.
        layers: its watched recurrent layers.
        guard: for failures.
        stepped: called when a GradScaler's step is over, with the optimizer and whether it was skipped.
        owns: whether an optimizer steps watched parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        guard: Guard,
        owns: Callable[[Optimizer], bool],
        stepped: Callable[[Optimizer, Tensor | bool], None],
    ) -> None:
        """See the class."""
        self.guard = guard
        self._layers = layers
        named = [(n, p) for layer in layers for n, p in layer.named_parameters() if p.requires_grad]
        self._parameters = list({p: None for _, p in named})
        self._watched = {id(p) for p in self._parameters}
        self._model = {id(p) for p in model.parameters()} | self._watched
        self._owns, self._stepped = owns, stepped
        self._factors: weakref.WeakKeyDictionary[GradScaler, Tensor | float] = weakref.WeakKeyDictionary()
        self._scaler: GradScaler | None = None
        self._stepping: Optimizer | None = None
        self._unscaled = False
        self._recurrent = [p for n, p in named if n.startswith("weight_hh")] or self._parameters[:1]
        self._reference: Reference | None = None
        self._glanced: Tensor | None = None
        self._steps, self._vigilant = 0, True
        self._pass = -1
        self._rows: list[Rows | Later] = []
        self._expected: Gradients | None = None

    def listen(self) -> ExitStack:
        """Begin to listen; closing what is returned ends it."""
        with ExitStack() as undo:
            for seam in (CLIPPING, SCALER):
                undo.callback(seam.listen(self).remove)
            for layer in self._layers:
                for parameter in [p for p in layer.parameters() if p.requires_grad][:1]:
                    handle, node = watch_parameter(parameter, self._accumulates)
                    undo.callback(lambda handle, node: handle.remove(), handle, node)
            return undo.pop_all()

    # --- backward

    def _accumulates(self, _: Tensor) -> None:
        """The first gradient of a backward pass: look at all of them when it is over."""
        self._pass = after_backward(self._pass, self._backward_over)

    @guarded
    def _backward_over(self) -> None:
        self._pass = -1
        if self._vigilant:
            self._reference = snapshot(self._parameters)
        else:
            self._glanced = glance(self._recurrent)

    # --- clipping

    def wants_clip(self, parameters: Sequence[Tensor]) -> bool:
        """See `ClippingListener`."""
        return any(id(p) in self._model for p in parameters)

    @guarded
    def after_clip(self, clip: Clip) -> None:
        """Enter a clipping call, and expect what it leaves."""
        if self._scaler is not None and not self._unscaled and self._scaler.is_enabled():
            self.guard.note(CLIPPED_SCALED)
        self._rows.append(self._row(clip))
        covered = self._watched & {id(p) for p in clip.parameters}
        if covered:
            self._expect(clip.coefficient if covered == self._watched and clip.kind == "norm" else None)

    def _row(self, clip: Clip) -> Rows:
        return Rows(
            "clips",
            {
                "index": len(self._rows),
                "kind": clip.kind,
                "how": clip.how,
                "threshold": clip.threshold,
                "norm_type": clip.norm_type,
                "parameters": len(clip.parameters),
                "norm_before": clip.norm_before,
                "norm_after": clip.norm_after,
                "coefficient": clip.coefficient,
                "clipped": clip.clipped,
                "nonfinite": clip.nonfinite,
            },
        )

    # --- loss scaling

    @guarded
    def scaled(self, scaler: GradScaler, factor: Tensor | float) -> None:
        """See `ScalerListener`."""
        self._factors[scaler] = factor
        self._scaler, self._stepping = scaler, None

    @guarded
    def unscaled(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """Expect gradients divided by the factor."""
        if not self._owns(optimizer):
            return
        self._unscaled, self._scaler = True, scaler
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._expect(1 / self.factor if self._watched <= mine else None)

    @guarded
    def before_scaler_step(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """See `ScalerListener`."""
        if self._owns(optimizer):
            self._scaler, self._stepping = scaler, optimizer

    @guarded
    def after_scaler_step(self, scaler: GradScaler, optimizer: Optimizer, skipped: Tensor | bool) -> None:
        """The step of a scaler is over, with or without the optimizer's own."""
        if self._owns(optimizer):
            self._stepping = None
            self._stepped(optimizer, skipped)

    @property
    def factor(self) -> Tensor | float:
        """What losses are multiplied by; 1.0 without a GradScaler."""
        return 1.0 if self._scaler is None else self._factors.get(self._scaler, 1.0)

    def within_scaler_step(self, optimizer: Optimizer) -> bool:
        """Whether it is a GradScaler that makes this optimizer step."""
        return self._stepping is optimizer

    # --- optimizer

    def _expect(self, factor: Tensor | float | None) -> None:
        """The gradients have been multiplied by a factor, or changed in a way that is known to be right."""
        if self._glanced is not None:
            self._glanced = glance(self._recurrent)
        elif self._reference is not None:
            self._reference = snapshot(self._parameters) if factor is None else self._reference.times(factor)

    def look(self) -> None:
        """The gradients are what the optimizer will use."""
        if all(p.grad is None for p in self._parameters):
            return
        norms = self._compare() if self._glanced is None else self._explain(self._glanced)
        scaled = self._scaler is not None and not self._unscaled
        self._expected = Gradients(norms, self.factor if scaled else 1.0)

    def _compare(self) -> Tensor:
        """Enter what was changed by hand since the reference; the norms as they are."""
        if self._reference is None:
            return snapshot(self._parameters).norms
        comparison = compare(self._reference, self._parameters)
        if not comparison.known_unchanged:
            self._rows.append(_later(comparison, len(self._rows), len(self._parameters), self._seen))
        return comparison.now.norms

    def _explain(self, glanced: Tensor) -> Tensor:
        norms = torch.stack(two_norms(present_gradients(self._parameters)))
        change = explain(glanced, glance(self._recurrent), math.hypot(*norms.tolist()))
        if change is not None:
            self._rows.append(Rows("clips", _modified(change, len(self._rows), len(self._parameters))))
            self._seen()
        return norms

    def _seen(self) -> None:
        """Gradients are changed by hand: from now on all of them are compared in every step."""
        self._vigilant, self._steps = True, -(2**62)

    def close_step(self) -> tuple[Gradients | None, list[Rows | Later]]:
        """What the optimizer was given, and the rows of `clips`; the next step begins."""
        if self._expected is None:
            self.guard.call(self.look)
        found, rows = self._expected, self._rows
        self._expected, self._rows, self._reference, self._glanced, self._scaler = None, [], None, None, None
        self._unscaled = False
        self._steps += 1
        self._vigilant = self._steps < WATCHED_STEPS or any(p.device.type != "cpu" for p in self._parameters[:1])
        return found, rows


def _later(comparison: Comparison, index: int, parameters: int, seen: Callable[[], None]) -> Later:
    def rows(values: Tensor) -> Rows | None:
        change = comparison.read(values)
        if change is not None:
            seen()
        return None if change is None else Rows("clips", _modified(change, index, parameters))

    return Later(comparison.values, rows)


def _modified(change: Change, index: int, parameters: int) -> dict[str, Any]:
    return {
        "index": index,
        "kind": "modified",
        "how": change.how,
        "threshold": change.threshold,
        "norm_type": 2.0,
        "parameters": parameters,
        "norm_before": change.norm_before,
        "norm_after": change.norm_after,
        "coefficient": change.coefficient,
        "clipped": change.how == "clamped",
        "nonfinite": int(not math.isfinite(change.norm_before)),
    }
