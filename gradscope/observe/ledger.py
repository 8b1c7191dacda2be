"""What becomes of the gradients between backward and optimizer: clipping, scaling, and changes by hand."""

from __future__ import annotations

import functools
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
    Reference,
    compare,
    explain,
    glance,
    present_gradients,
    snapshot,
    two_norms,
)
from gradscope.attach.scaler import SCALER, Scaling
from gradscope.attach.uncompiled import uncompiled
from gradscope.observe.guard import Guard, Overhead, guarded
from gradscope.record.recorder import Later
from gradscope.types import Rows

CLIPPED_SCALED = (
    "gradients were clipped while still multiplied by the GradScaler's factor, so that the threshold means something "
    "else at every step: call scaler.unscale_(optimizer) before clipping"
)

WATCHED_STEPS = 32
"""After so many steps in which nothing was changed by hand, a glance at the gradients has to do."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """What the optimizer was given.

    Attributes:
        norms: 2-norm of each recurrent gradient, on the device.
        factor: what they are multiplied by, on the device or not; 1.0 without a GradScaler.
    """

    norms: Tensor
    factor: Tensor | float

    def row(
        self,
        columns: dict[str, Any],
        skipped: Tensor | bool,
        overhead: Overhead,
        hear: Callable[[float, int], None] = lambda norm, nonfinite: None,
    ) -> Rows | Later:
        """The row of `steps`: at once if the norms are on the host, or when they are.

        Args:
            columns: what is known of it.
            skipped: a GradScaler has left the parameters as they were.
            overhead: of the step.
            hear: is told the norm, and how many parameters' are not finite, of a step that was not skipped.
        """
        extra = [x for x in (self.factor, skipped) if isinstance(x, Tensor)]

        def rows(values: Tensor) -> Rows:
            numbers = values.tolist()
            skip = bool(numbers.pop()) if isinstance(skipped, Tensor) else skipped
            factor = numbers.pop() if isinstance(self.factor, Tensor) else self.factor
            bad = sum(not math.isfinite(norm) for norm in numbers)
            found = {"grad_norm": math.hypot(*numbers) / factor, "nonfinite": bad, "skipped": skip}
            if not skip:
                hear(found["grad_norm"], bad)
            return Rows("steps", {**columns, **found, "overhead_s": overhead.seconds()})

        values = torch.cat([self.norms, *(x.to(self.norms).reshape(1) for x in extra)]) if extra else self.norms
        return rows(values) if values.device.type == "cpu" else Later(values, rows)


class Ledger:
    """Listens to clipping and loss scaling, and compares the gradients at the optimizer with those after backward.

    Args:
        model: whose clipping calls count.
        layers: its watched recurrent layers.
        others: modules of which it is only known whether gradient arrives; without layers they take their place.
        guard: for failures.
        stepped: called when a GradScaler's step is over, with the optimizer and whether it was skipped.
        owns: whether an optimizer steps watched parameters.

    Attributes:
        scaling: what a GradScaler does to it.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        others: Sequence[nn.Module],
        guard: Guard,
        owns: Callable[[Optimizer], bool],
        stepped: Callable[[Optimizer, Tensor | bool], None],
    ) -> None:
        """See the class."""
        self.guard = guard
        self._whole_model, self._layers = model, layers or others
        self._heard = [*layers, *others]
        self._owns, self._stepped = owns, stepped
        self._shares: weakref.WeakKeyDictionary[Optimizer, tuple[int, set[int]]] = weakref.WeakKeyDictionary()
        self._watching = ExitStack()
        self._take()
        self.scaling = Scaling()
        self._arrived: set[int] = set()
        self._clipped: set[int] = set()
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
            undo.callback(lambda: self._watching.close())
            self._watch()
            return undo.pop_all()

    def _take(self) -> None:
        """The parameters as they are."""
        named = [(n, p) for layer in self._layers for n, p in layer.named_parameters()]
        self._parameters = list({p: None for _, p in named})
        self._watched = {id(p) for p in self._parameters}
        self._model = {id(p) for p in self._whole_model.parameters()} | self._watched
        self._recurrent = [p for n, p in named if n.startswith("weight_hh")] or self._parameters[:1]
        self._first = [next(module.parameters(), None) for module in self._heard]

    def _watch(self) -> None:
        self._watching.close()
        for index, module in enumerate(self._heard):
            for parameter in [p for p in module.parameters() if p.requires_grad][:1]:
                handle, node = watch_parameter(parameter, functools.partial(self._accumulates, index))
                self._watching.callback(lambda handle, node: handle.remove(), handle, node)

    def _renew(self) -> None:
        """Take the parameters anew if others have taken their places, as `fully_shard` makes them."""
        if all(next(m.parameters(), None) is p for m, p in zip(self._heard, self._first, strict=True)):
            return
        self._take()
        self._watch()
        self._shares.clear()
        self._reference = self._glanced = None

    # --- backward

    def has_arrived(self, index: int) -> bool:
        """Whether a layer, or one of the others behind them, has received a gradient in this step.

        Where parameters are sharded, any is taken for one: what shards them writes their gradients by itself.
        """
        return index in self._arrived or hasattr(self._first[index], "to_local")

    @uncompiled
    def _accumulates(self, index: int, _: Tensor) -> None:
        """The first gradient of a backward pass: look at all of the layers' when it is over."""
        self._arrived.add(index)
        if index < len(self._layers):
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
        self._renew()
        return any(id(p) in self._model for p in parameters)

    @guarded
    def after_clip(self, clip: Clip) -> None:
        """Enter a clipping call, and expect what it leaves."""
        self._rows.append(self._row(clip))
        touched = {id(p) for p in clip.parameters if p.grad is not None}
        self._clipped |= touched
        if touched & self._watched:
            self._expect(clip.coefficient if clip.kind == "norm" and self._whole(touched) else None)

    def _whole(self, parameters: set[int]) -> bool:
        """Whether all recurrent gradients are among these."""
        return all(id(p) in parameters for p in self._parameters if p.grad is not None)

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
        self.scaling.scaled(scaler, factor)

    @guarded
    def unscaled(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """Expect gradients divided by the factor."""
        if self._meets(scaler, optimizer):
            self.scaling.unscaled(optimizer)
            self._expect(1 / self.scaling.factor if self._whole(self._share(optimizer)) else None)

    @guarded
    def before_scaler_step(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """See `ScalerListener`."""
        if self._meets(scaler, optimizer):
            self.scaling.begin(scaler, optimizer)

    @guarded
    def after_scaler_step(self, scaler: GradScaler, optimizer: Optimizer, skipped: Tensor | bool) -> None:
        """The step of a scaler is over, with or without the optimizer's own."""
        if self._owns(optimizer):
            self._stepped(optimizer, skipped)

    def _meets(self, scaler: GradScaler, optimizer: Optimizer) -> bool:
        ours = self._owns(optimizer)
        self.scaling.meets(scaler, ours)
        if not ours:
            return False
        if scaler.is_enabled() and not self.scaling.is_unscaled(optimizer) and self._clipped & self._share(optimizer):
            self.guard.note(CLIPPED_SCALED)
        return True

    def _share(self, optimizer: Optimizer) -> set[int]:
        """The parameters that an optimizer steps."""
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._shares.get(optimizer)
        if known is None or known[0] != count:
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            known = self._shares[optimizer] = (count, mine)
        return known[1]

    # --- optimizer

    def _expect(self, factor: Tensor | float | None) -> None:
        """The gradients have been multiplied by a factor, or changed in a way that is known to be right."""
        if self._glanced is not None:
            self._glanced = glance(self._recurrent)
        elif self._reference is not None:
            self._reference = snapshot(self._parameters) if factor is None else self._reference.times(factor)

    def look(self, optimizer: Optimizer | None = None) -> None:
        """The gradients are what the optimizer will use; or those of a loop that has none, which may be zeroed."""
        self._expected = None
        self._renew()
        chosen = self._chosen(optimizer)
        parameters = [p for p, choice in zip(self._parameters, chosen, strict=True) if choice]
        if optimizer is not None:
            self.scaling.without(optimizer)
        if optimizer is None or not all(chosen):
            self._seen()  # a glance is too little to tell what belongs to whom
        if all(p.grad is None for p in parameters):
            norms = self._reference.norms if optimizer is None and self._reference is not None else None
        elif self._glanced is not None and all(chosen):
            norms = self._explain(self._glanced)
        else:
            norms = self._compare(parameters, chosen, zeroed=optimizer is None)
        if norms is not None:
            self._expected = Gradients(norms, self.scaling.remaining(optimizer))

    @property
    def on_host(self) -> bool:
        """Whether gradients can be looked at without waiting for a device."""
        return all(parameter.device.type == "cpu" for parameter in self._parameters[:1])

    @property
    def nonfinite(self) -> bool:
        """Whether what the optimizer is given, or else what backward has left, is known not to be finite."""
        known = self._expected or self._reference
        return known is not None and not bool(known.norms.isfinite().all())

    def _chosen(self, optimizer: Optimizer | None) -> list[bool]:
        """Which parameters an optimizer steps; what is frozen does not matter."""
        if optimizer is None:
            return [True] * len(self._parameters)
        mine = self._share(optimizer)
        return [id(p) in mine or not p.requires_grad for p in self._parameters]

    def _compare(self, parameters: Sequence[Tensor], chosen: Sequence[bool], *, zeroed: bool) -> Tensor:
        """Enter what was changed by hand since the reference; the norms as they are."""
        if self._reference is None:
            return snapshot(parameters).norms
        before = self._reference.only(chosen)
        comparison = compare(before, parameters)
        if not comparison.known_unchanged:

            def read(values: Tensor) -> Change | None:
                change = comparison.read(values)
                return None if change is not None and zeroed and change.norm_after == 0 else change

            self._enter(comparison.values, read, len(parameters), now=comparison.values.device.type == "cpu")
        now = comparison.now.norms
        return torch.where(now.any(), now, before.norms) if zeroed and now.shape == before.norms.shape else now

    def _explain(self, glanced: Tensor) -> Tensor:
        """The norms as they are; what was changed by hand is entered, on a device when its numbers are on the host."""
        norms, now = torch.stack(two_norms(present_gradients(self._parameters))), glance(self._recurrent)
        if self.on_host and torch.equal(glanced, now):
            return norms
        sizes = [len(glanced), len(now), len(norms)]

        def read(values: Tensor) -> Change | None:
            before, after, each = values.split(sizes)
            return explain(before, after, math.hypot(*each.tolist()))

        values = torch.cat([glanced.to(norms), now.to(norms), norms])
        self._enter(values, read, len(self._parameters), now=self.on_host)
        return norms

    def _enter(self, values: Tensor, read: Callable[[Tensor], Change | None], parameters: int, *, now: bool) -> None:
        """Enter what `read` says was changed by hand, now or when its numbers are on the host."""
        index, seen = len(self._rows), self._seen

        def rows(values: Tensor) -> Rows | None:
            change = read(values)
            if change is None:
                return None
            seen()
            return Rows("clips", _modified(change, index, parameters))

        row = rows(values) if now else Later(values, rows)
        self._rows += [row] if row is not None else []

    def _seen(self) -> None:
        """Gradients are changed by hand: from now on all of them are compared in every step."""
        self._vigilant, self._steps = True, -(2**62)

    def close_step(self, optimizer: Optimizer | None = None) -> tuple[Gradients | None, list[Rows | Later]]:
        """What the optimizer was given, and the rows of `clips`; the next step begins."""
        if self._expected is None:
            self.guard.call(self.look, optimizer)
        found, rows = self._expected, self._rows
        self._expected, self._rows, self._glanced, self._clipped = None, [], None, set()
        self._arrived.clear()
        if all(self._chosen(optimizer)):
            self._reference = None  # else another optimizer's gradients are still to be looked at
        self.scaling.over(optimizer)
        self._steps += 1
        self._vigilant = self._steps < WATCHED_STEPS
        return found, rows


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
