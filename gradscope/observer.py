"""What a scope hears of the training, and what it makes of it: one optimizer step after the other."""

from __future__ import annotations

import functools
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.capture.snapshot import Dropout, begin_dropout
from gradscope.errors import AnalysisError, GradscopeWarning
from gradscope.quantities import keep, needs_full
from gradscope.record.recorder import Recorder
from gradscope.record.summary import summarise
from gradscope.schedule import Schedule
from gradscope.step import Recording
from gradscope.types import KernelCall, LayerKey, Rows

NOT_CALLED = (
    "it received gradient, but torch's fused kernel was not called for it: a class with a forward of its own, or a "
    "compiled one, cannot be observed"
)
WHOLE_MODEL = LayerKey("", -1, "", -1)  # type: ignore[arg-type]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Settings:
    """What `attach` was asked for.

    Attributes:
        wanted: names of the quantities.
        limit: how many sequences to analyse at most; None for all.
        first_step: number of the first step.
        strict: raise where gradscope fails.
    """

    wanted: frozenset[str]
    limit: int | None
    first_step: int
    strict: bool


def observed(method: Callable[Concatenate[Observer, P], R]) -> Callable[Concatenate[Observer, P], R | None]:
    """Count a callback's time as overhead, and keep its failures from the training."""

    @functools.wraps(method)
    def around(self: Observer, *args: P.args, **kwargs: P.kwargs) -> R | None:
        started = time.perf_counter()
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.fail(error)
            return None
        finally:
            self.overhead += time.perf_counter() - started

    return around


class Observer:
    """Listens to kernel calls and optimizer steps, and hands each step's rows to the recorder."""

    def __init__(
        self, model: nn.Module, layers: dict[str, nn.RNNBase], recorder: Recorder, schedule: Schedule, settings: Settings
    ) -> None:
        """Begin with step `settings.first_step`."""
        self._model, self._layers, self._recorder = model, layers, recorder
        self._schedule, self._settings = schedule, settings
        self._owners: weakref.WeakKeyDictionary[Optimizer, tuple[int, bool]] = weakref.WeakKeyDictionary()
        self._failures: list[str] = []
        self._warned: set[str] = set()
        self._gradients: dict[str, Tensor] | None = None
        self._since: float | None = None
        self.overhead = 0.0
        self.paused = False
        self.step = settings.first_step
        self._recording = self._begin()

    # --- kernel calls

    def before_kernel(self, call: KernelCall) -> tuple[str, KernelCall, Dropout | None] | None:
        """Decide whether a call is recorded; on steps that are not, this is all that happens."""
        if self._recording is None and self._since is not None:
            return None
        return self._before_kernel(call)

    @observed
    def _before_kernel(self, call: KernelCall) -> tuple[str, KernelCall, Dropout | None] | None:
        self._since = self._since or time.perf_counter()
        if self._recording is None or self.paused or not torch.is_grad_enabled() or call.batch == 0:
            return None
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return None
        name = next((n for n, m in self._layers.items() if m.__dict__.get("_flat_weights") is call.weights), None)
        if name is None or not self._recording.takes(name):
            return None
        return name, call, begin_dropout(call)

    @observed
    def after_kernel(self, token: tuple[str, KernelCall, Dropout | None], result: tuple[Tensor, ...]) -> None:
        """Copy what the analysis needs."""
        name, call, dropout = token
        if self._recording is not None and any(tensor.requires_grad for tensor in result):
            self._recording.observe(name, call, result, dropout)

    # --- optimizer steps

    @observed
    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Measure the gradients as the optimizer gets them."""
        if self._owns(optimizer) and not has_closure:
            self._gradients = self._measure_gradients()

    def after_step(self, optimizer: Optimizer) -> None:
        """The step is over."""
        if self._owns(optimizer):
            self.finish(type(optimizer).__name__)

    @observed
    def _close_step(self, optimizer: str) -> tuple[list[Rows], dict[str, Tensor]]:
        gradients = self._measure_gradients() if self._gradients is None else self._gradients
        return self.rows(), gradients

    def finish(self, optimizer: str) -> None:
        """Analyse the step, hand on its rows, and begin the next."""
        now = time.perf_counter()
        closed = self._close_step(optimizer)
        rows, gradients = closed or ([], self._unknown_gradients())
        recorded = self._recording is not None
        if self._recording is not None:
            self._recording.close()
        since = now if self._since is None else self._since
        ended = time.perf_counter()
        row = {
            "step": self.step,
            "optimizer": optimizer,
            **gradients,
            "recorded": recorded,
            "skipped": False,
            "overhead_s": self.overhead,
            "step_s": ended - since,
        }
        self._hand_on([*rows, Rows("steps", row)], recorded)
        self._schedule.spent(recorded=recorded, overhead_s=self.overhead, step_s=ended - since)
        self.overhead, self._since, self._gradients = 0.0, ended, None
        self.step += 1
        self._recording = self._begin()

    @observed
    def _hand_on(self, rows: list[Rows], recorded: bool) -> None:
        on_cpu = next((p.device.type == "cpu" for p in self._model.parameters()), True)
        self._recorder.add(self.step, rows, now=recorded or on_cpu)

    def rows(self) -> list[Rows]:
        """Rows of the step so far; the step goes on."""
        notes = [Rows("notes", {"step": self.step, **WHOLE_MODEL._asdict(), "reason": f}) for f in self._failures]
        self._failures = []
        if self._recording is None:
            return notes
        wanted = self._settings.wanted
        found: list[Rows] = []
        for module, chain, analyses in self._recording.analyse():
            for analysis in analyses:
                key = LayerKey(module, analysis.layer, analysis.direction, chain)
                found.extend(rows for rows in summarise(self.step, key, analysis) if keep(rows, wanted))
        return [*found, *self._unseen(), *notes]

    @property
    def unfinished(self) -> bool:
        """Whether gradients have arrived since the last optimizer step."""
        if self._recording is None:
            return False
        return bool(self._recording.calls) or (self.step == self._settings.first_step and bool(self._unseen()))

    def fail(self, error: Exception) -> None:
        """A failure of our own: raised if strict, else noted and warned about once."""
        if self._settings.strict:
            raise AnalysisError(f"gradscope failed at step {self.step}: {type(error).__name__}: {error}") from error
        reason = f"gradscope failed: {type(error).__name__}: {error}"
        self._failures.append(reason)
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"{reason} (training goes on; see the table `notes`)", GradscopeWarning, stacklevel=2)

    def close(self) -> None:
        """Let go of what has not been analysed."""
        if self._recording is not None:
            self._recording.close()
        self._recording = None

    # --- pieces

    def _begin(self) -> Recording | None:
        due = self._due()
        if not due:
            return None
        return Recording(self._settings.limit, needs_full(self._settings.wanted), self._guard)

    @observed
    def _due(self) -> bool:
        return self._schedule.due(self.step)

    def _guard(self, receive: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        """A gradient hook that is observed like any other callback."""
        me = weakref.ref(self)

        def guarded(gradient: Tensor) -> None:
            observer = me()
            if observer is not None and not observer.paused:
                observer.receive(receive, gradient)

        return guarded

    @observed
    def receive(self, receive: Callable[[Tensor], None], gradient: Tensor) -> None:
        """Take a gradient that arrives."""
        receive(gradient)

    def _owns(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer steps watched recurrent parameters; any of the model's, where those are all frozen."""
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._owners.get(optimizer)
        if known is None or known[0] != count:
            mine = {id(p) for p in self._parameters()}
            if not any(p.requires_grad for p in self._parameters()):
                mine |= {id(p) for p in self._model.parameters()}
            owns = any(id(p) in mine for group in optimizer.param_groups for p in group["params"])
            known = self._owners[optimizer] = (count, owns)
        return known[1]

    def _parameters(self) -> list[nn.Parameter]:
        """Parameters of the watched layers, each once."""
        return list({id(p): p for layer in self._layers.values() for p in layer.parameters()}.values())

    def _measure_gradients(self) -> dict[str, Tensor]:
        """2-norm of the recurrent gradients, and how many of them are not finite, on the device."""
        gradients = [p.grad for p in self._parameters() if p.grad is not None and not p.grad.is_sparse]
        if not gradients:
            return self._unknown_gradients()
        narrow = any(g.dtype in (torch.float16, torch.bfloat16) for g in gradients)
        each = torch._foreach_norm(gradients, 2, torch.float32) if narrow else torch._foreach_norm(gradients, 2)
        norms = torch.stack([n.to(gradients[0].device, torch.float64) for n in each])
        return {"grad_norm": norms.norm(), "nonfinite": (~norms.isfinite()).sum()}

    def _unknown_gradients(self) -> dict[str, Tensor]:
        return {"grad_norm": torch.tensor(float("nan")), "nonfinite": torch.tensor(0)}

    def _unseen(self) -> list[Rows]:
        """Notes on layers that have a gradient although no kernel call of theirs was seen."""
        assert self._recording is not None
        found: list[Rows] = []
        for name, layer in self._layers.items():
            if name not in self._recording.called and any(p.grad is not None and p.grad.any() for p in layer.parameters()):
                head = {"step": self.step, "module": name, "layer": -1, "direction": "", "chain": -1}
                found.append(Rows("notes", {**head, "reason": NOT_CALLED}))
        return found
