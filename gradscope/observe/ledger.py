"""What becomes of the gradients between backward and optimizer: clipping, scaling, and changes by hand."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from gradscope.attach.clipping import CLIPPING, Clip
from gradscope.attach.gradients import watch_parameter
from gradscope.attach.modified import Change, Reference, compare, snapshot
from gradscope.attach.scaler import SCALER, Scaling
from gradscope.attach.uncompiled import uncompiled
from gradscope.observe.guard import Guard, guarded
from gradscope.observe.owners import Owners
from gradscope.observe.passes import Passes
from gradscope.observe.tree import Tree
from gradscope.record.recorder import Later, Number, keep, known
from gradscope.types import Rows

CLIPPED_SCALED = (
    "gradients were clipped while still multiplied by the GradScaler's factor, so that the threshold means something "
    "else at every step: call scaler.unscale_(optimizer) before clipping"
)
GLANCED = 4
"""Layers of which one element of a gradient is read, on the host, where no clipping call tells of NaN."""
READABLE = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Gradients:
    """What the optimizer was given.

    Attributes:
        norms: 2-norm of each recurrent gradient, on the device.
        factor: what they are multiplied by, on the device or not; 1.0 without a GradScaler.
    """

    norms: Tensor
    factor: Tensor | float


class Ledger:
    """Listens to clipping and loss scaling, and compares the gradients at the optimizer with those after backward.

    Clipping calls are entered at every step. Gradients are looked at where the observer says so.

    Args:
        model: whose clipping calls count.
        layers: its watched recurrent layers.
        others: modules of which it is only known whether gradient arrives; without layers they take their place.
        passes: told what GradScalers scale.
        guard: for failures.
        owners: which optimizers step watched parameters.
        stepped: called when a GradScaler's step is over, with the optimizer and whether it was skipped.

    Attributes:
        scaling: what a GradScaler does to it.
        looking: gradients are looked at in this step.
        on_host: gradients can be looked at without waiting for a device.
        looked_s: seconds that looking has taken in this step.
        norm: of the last clipping call of this step.
        suspect: on the host, that of one is known not to be finite.
    """

    def __init__(
        self,
        model: Tree,
        layers: Sequence[nn.Module],
        others: Sequence[nn.Module],
        passes: Passes,
        guard: Guard,
        owners: Owners,
        stepped: Callable[[Optimizer, Tensor | bool], None],
    ) -> None:
        """See the class."""
        self.guard, self.passes = guard, passes
        self._whole_model, self._heard = model, [weakref.ref(module) for module in (*layers, *others)]
        self._count = len(layers or others)
        self._owners, self._stepped = owners, stepped
        self._take()
        self.scaling = Scaling()
        self.looking, self.looked_s = True, 0.0
        self.norm: Number | None = None
        self.suspect = False
        self._clipped, self._arrived = set[int](), set[int]()
        self._watching, self._arrivals_watched = ExitStack(), False
        self._reference: Reference | None = None
        self._rows: list[Rows | Later] = []
        self._expected: Gradients | None = None

    def listen(self) -> ExitStack:
        """Begin to listen; closing what is returned ends it."""
        with ExitStack() as undo:
            for seam in (CLIPPING, SCALER):
                undo.callback(seam.listen(self).remove)
            undo.callback(lambda: self._watching.close())
            return undo.pop_all()

    def _take(self) -> None:
        """The parameters as they are."""
        named = [(n, p) for layer in self._present() for n, p in layer.named_parameters()]
        self._parameters = list({p: None for _, p in named})
        self.watched = {id(p) for p in self._parameters}
        self._model = {id(p) for p in self._whole_model.parameters()} | self.watched
        self._recurrent = ([p for n, p in named if n.startswith("weight_hh")] or self._parameters[:1])[:GLANCED]
        self.on_host = all(parameter.is_cpu for parameter in self._parameters[:1])
        self._first = self._firsts()

    def recurrent(self) -> list[Tensor]:
        """The parameters of the layers as they are now, those that are trained."""
        return [p for layer in self._present() for p in layer.parameters() if p.requires_grad]

    def _present(self) -> list[nn.Module]:
        """The layers that are still there, or the others where there are none."""
        return [layer for reference in self._heard[: self._count] if (layer := reference()) is not None]

    def _firsts(self) -> list[Tensor | None]:
        """The first parameter of each module, None where that is gone."""
        return [None if (module := heard()) is None else next(module.parameters(), None) for heard in self._heard]

    def _renew(self) -> None:
        """Take the parameters anew if others have taken their places, as `fully_shard` makes them."""
        if all(now is p for now, p in zip(self._firsts(), self._first, strict=True)) or self._whole_model.gone:
            return
        self._take()
        self._owners.renew()
        self.passes.anew()
        self._reference = None
        self.forget_arrivals()

    # --- backward

    def has_arrived(self, index: int) -> bool:
        """Whether a layer, or one of the others behind them, has received a gradient in this step, which is recorded.

        Where parameters are sharded, any is taken for one: what shards them writes their gradients by itself.
        """
        return index in self._arrived or hasattr(self._first[index], "to_local")

    def watch_arrivals(self) -> None:
        """From now until the step is over, keep which layers receive gradients in this process."""
        if self._arrivals_watched:
            return
        self._arrivals_watched = True
        for index, heard in enumerate(self._heard):
            module = heard()
            for parameter in [p for p in module.parameters() if p.requires_grad][:1] if module is not None else ():
                handle, node = watch_parameter(parameter, partial(self._accumulates, index))
                self._watching.callback(lambda handle, node: handle.remove(), handle, node)

    def forget_arrivals(self) -> None:
        """A step is over, or other parameters have taken the places of those that were watched."""
        self._watching.close()
        self._arrivals_watched = False
        self._arrived = set()

    @uncompiled
    def _accumulates(self, index: int, _: Tensor) -> None:
        self._arrived.add(index)

    def backward_over(self) -> None:
        """A pass that concerns the layers is over, and gradients are looked at."""
        began = time.perf_counter()
        self._renew()
        self._reference = snapshot(self._parameters)
        self.looked_s += time.perf_counter() - began

    # --- clipping

    def wants_clip(self, parameters: Sequence[Tensor]) -> bool:
        """See `ClippingListener`."""
        return not self._model.isdisjoint(map(id, parameters))

    @guarded
    def after_clip(self, clip: Clip) -> None:
        """Enter a clipping call, and expect what it leaves."""
        threshold = clip.threshold
        values = [keep(threshold) if isinstance(threshold, Tensor) else threshold, *map(keep, clip.measured)]
        if clip.measured:
            self.norm = values[1]
            self.suspect |= type(self.norm) is float and not math.isfinite(self.norm)
        told = len(self._rows), clip.kind, clip.how, clip.norm_type, len(clip.parameters)
        outcome = clip.outcome

        def rows(*numbers: Any) -> Rows:
            found = outcome(*map(float, numbers))
            index, kind, how, norm_type, parameters = told
            return Rows(
                "clips",
                {"index": index, "kind": kind, "how": how, "norm_type": norm_type, "parameters": parameters}
                | found._asdict()
                | {"nonfinite": int(found.nonfinite)},
            )

        self._rows.append(Later(values, rows))
        if self.looking:
            touched = {id(p) for p in clip.parameters if p.grad is not None}
            self._clipped |= touched
            if touched & self.watched:
                self._expect(clip.factor if self._whole(touched) else None)

    def _whole(self, parameters: set[int]) -> bool:
        """Whether all recurrent gradients are among these."""
        return all(id(p) in parameters for p in self._parameters if p.grad is not None)

    # --- loss scaling

    @guarded
    def scaled(self, scaler: GradScaler, given: Any, result: Any) -> None:
        """See `ScalerListener`."""
        self.scaling.scaled(scaler, looking=self.looking)
        if scaler.is_enabled():
            self.passes.losses.scaled(given, result)

    @guarded
    def unscaled(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """Expect gradients divided by the factor."""
        if self._meets(scaler, optimizer):
            self.scaling.unscaled(optimizer)
            if self.looking:
                self._expect(1 / self.scaling.factor if self._whole(self._owners.of(optimizer).share) else None)

    @guarded
    def before_scaler_step(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """See `ScalerListener`."""
        if self._meets(scaler, optimizer):
            self.scaling.begin(scaler, optimizer)

    @guarded
    def after_scaler_step(self, scaler: GradScaler, optimizer: Optimizer) -> None:
        """The step of a scaler is over, with or without the optimizer's own."""
        if self._owners.of(optimizer).watched:
            self._stepped(optimizer, self.scaling.skipped)

    def _meets(self, scaler: GradScaler, optimizer: Optimizer) -> bool:
        ours = self._owners.of(optimizer).watched
        self.scaling.meets(scaler, ours)
        if not ours:
            return False
        if self._clipped and scaler.is_enabled() and not self.scaling.is_unscaled(optimizer):
            if self._clipped & self._owners.of(optimizer).share:
                self.guard.note(CLIPPED_SCALED)
        return True

    # --- optimizer

    def _expect(self, factor: Tensor | float | None) -> None:
        """The gradients have been multiplied by a factor, or changed in a way that is known to be right."""
        if self._reference is not None:
            self._reference = snapshot(self._parameters) if factor is None else self._reference.times(factor)

    def look(self, optimizer: Optimizer | None = None) -> None:
        """The gradients are what the optimizer will use; or those of a loop that has none, which may be zeroed."""
        self._expected = None
        began = time.perf_counter()
        self._renew()
        chosen = self._chosen(optimizer)
        parameters = [p for p, choice in zip(self._parameters, chosen, strict=True) if choice]
        if all(p.grad is None for p in parameters):
            norms = self._reference.norms if optimizer is None and self._reference is not None else None
        else:
            norms = self._compare(parameters, chosen, zeroed=optimizer is None)
        if norms is not None:
            self._expected = Gradients(norms, self.scaling.remaining(optimizer))
        self.looked_s += time.perf_counter() - began

    @property
    def nonfinite(self) -> bool:
        """Whether what the optimizer is given, or else what backward has left, is known not to be finite."""
        known = self._expected or (self._reference if self.looking else None)
        if known is not None:
            return not bool(known.norms.isfinite().all())
        return self.suspect

    @property
    def spoilt(self) -> bool:
        """Whether an element of a recurrent gradient, read from memory, is not finite: that spreads over all of it."""
        return any(not math.isfinite(_element(parameter)) for parameter in self._recurrent)

    def _chosen(self, optimizer: Optimizer | None) -> list[bool]:
        """Which parameters an optimizer steps; what is frozen does not matter."""
        if optimizer is None:
            return [True] * len(self._parameters)
        mine = self._owners.of(optimizer).share
        return [id(p) in mine or not p.requires_grad for p in self._parameters]

    def _compare(self, parameters: Sequence[Tensor], chosen: Sequence[bool], *, zeroed: bool) -> Tensor:
        """Enter what was changed by hand since the reference; the norms as they are."""
        if self._reference is None:
            return snapshot(parameters).norms
        before = self._reference.only(chosen)
        comparison = compare(before, parameters)
        if not comparison.known_unchanged:
            index, count = len(self._rows), len(parameters)

            def rows(values: Tensor) -> Rows | None:
                change = comparison.read(values)
                unchanged = change is None or (zeroed and change.norm_after == 0)
                return None if change is None or unchanged else Rows("clips", _modified(change, index, count))

            later = Later((comparison.values,), rows)
            row = rows(comparison.values) if known(later.values) else later
            self._rows += [] if row is None else [row]
        now = comparison.now.norms
        return torch.where(now.any(), now, before.norms) if zeroed and now.shape == before.norms.shape else now

    def close_step(self, optimizer: Optimizer | None = None) -> tuple[Gradients | None, list[Rows | Later]]:
        """What the optimizer was given, as far as it was looked at, and the rows of `clips`; the next step begins."""
        if self._expected is None and self.looking:
            self.guard.call(self.look, optimizer)
        found, rows = self._expected, self._rows
        self._expected, self._rows, self.norm, self.suspect = None, [], None, False
        if self._clipped:
            self._clipped.clear()
        if self._reference is not None and all(self._chosen(optimizer)):
            self._reference = None  # else another optimizer's gradients are still to be looked at
        if self.scaling.used:
            self.scaling.over(optimizer)
        return found, rows


def _element(parameter: Tensor) -> float:
    """One element of its gradient, 0 where it cannot be read."""
    gradient = parameter.grad
    if type(gradient) is not Tensor or gradient.requires_grad or gradient.dtype not in READABLE or not gradient.numel():
        return 0.0
    return float(gradient.numpy()[(0,) * gradient.dim()])


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
