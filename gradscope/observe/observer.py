"""What a scope hears of the training, and what it makes of it: one optimizer step after the other."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.attach.find import is_call_of
from gradscope.attach.uncompiled import uncompiled
from gradscope.capture.cell import Cell, real
from gradscope.capture.layout import choose_sequences
from gradscope.capture.positions import Given, SequenceModule
from gradscope.capture.results import tensors_in
from gradscope.capture.snapshot import Dropout, begin_dropout
from gradscope.observe.alarm import Alarm, lost
from gradscope.observe.following import CARRIED, ONCE, Asked, Finals
from gradscope.observe.guard import Guard, guarded
from gradscope.observe.ledger import Ledger
from gradscope.observe.quantities import keep, needs_full
from gradscope.observe.schedule import Schedule
from gradscope.observe.step import Recording
from gradscope.observe.unseen import COMPILED, NO_CALL, Calls
from gradscope.record.recorder import Recorder
from gradscope.record.summary import nonfinite, summarise
from gradscope.types import KernelCall, LayerKey, Rows

WHOLE_MODEL = LayerKey("", -1, "", -1)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Settings:
    """What `attach` was asked for.

    Attributes:
        wanted: names of the quantities.
        limit: how many sequences to analyse at most; None for all.
        first_step: number of the first step.
        strict: raise where gradscope fails.
        jumps: record the step after a jump of the gradient norm beyond the schedule.
    """

    wanted: frozenset[str]
    limit: int | None
    first_step: int
    strict: bool
    jumps: bool = False


class Observer:
    """Listens to kernel calls and optimizer steps, and hands each step's rows to the recorder."""

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, nn.Module],
        own: Sequence[Cell | SequenceModule],
        recorder: Recorder,
        schedule: Schedule,
        settings: Settings,
    ) -> None:
        """Begin with step `settings.first_step`."""
        self._model, self._layers, self._recorder = model, layers, recorder
        self._own: dict[int, list[Cell | SequenceModule]] = {}
        for watched in own:
            self._own.setdefault(id(watched.module), []).append(watched)
        self._schedule, self._settings = schedule, settings
        self._owners: weakref.WeakKeyDictionary[Optimizer, tuple[int, bool]] = weakref.WeakKeyDictionary()
        self._since: float | None = None
        on_cuda = any(p.device.type == "cuda" for layer in layers.values() for p in layer.parameters())
        self.guard = Guard(settings.strict, cuda=on_cuda)
        sequences = [watched for watched in own if isinstance(watched, SequenceModule)]
        modules = [watched.module for watched in sequences]
        self.ledger = Ledger(model, list(layers.values()), modules, self.guard, self._owns, self._scaler_stepped)
        self.paused = False
        self._alarm, self._lost = Alarm(jumps=settings.jumps), list[tuple[LayerKey, str]]()
        self._calls = Calls(layers, sequences)
        self.step = settings.first_step
        self._awaited: dict[str, Finals] = {}  # what a recorded step returned, until the next step's first calls
        self._asked: list[Asked] = []  # what modules went on from, in steps that were not recorded
        self._said: dict[tuple[str, str], int] = {}  # in which step a remark was made that is made once in a run
        self._recording: Recording | None = None
        self._recording = self._begin()
        self.guard.by_device(self._recording is not None)

    @property
    def model(self) -> nn.Module:
        """What is attached."""
        return self._model

    @property
    def own(self) -> list[nn.Module]:
        """The observed modules that are not torch's layers and cells."""
        return [watched[0].module for watched in self._own.values()]

    # --- kernel calls

    @property
    def listening(self) -> bool:
        """Whether calls are of interest: on steps that are not recorded, this is all that happens."""
        return self._recording is not None or self._since is None or bool(self._awaited)

    @guarded
    def before_kernel(self, call: KernelCall) -> tuple[str, KernelCall, Dropout | None] | None:
        """Decide whether a call is recorded."""
        self._since = self._since or time.perf_counter()
        if not self._observes() or call.batch == 0:
            return None
        name = next((n for n, m in self._layers.items() if is_call_of(m, call)), None)
        if name is None:
            return None
        if self._recording is None:
            self._look_back(name, call.state, 0 if call.cell else 1)
            return None
        self._calls.saw(name)
        if self.paused or not self._recording.takes(name):
            return None
        return name, call, begin_dropout(call)

    @guarded
    def after_kernel(self, token: tuple[str, KernelCall, Dropout | None], result: tuple[Tensor, ...]) -> None:
        """Copy what the analysis needs."""
        name, call, dropout = token
        if self._recording is not None and any(tensor.requires_grad for tensor in result):
            self._recording.observe(name, call, result, dropout)

    # --- calls of modules that are not torch's layers and cells

    def before_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `CallListener`."""
        if id(module) not in self._own or not self.listening:
            return None
        return [self._before_call(watched, args, kwargs) for watched in self._own[id(module)]]

    @guarded
    def _before_call(self, watched: Cell | SequenceModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._since = self._since or time.perf_counter()
        if not self._observes():
            return None
        if self._recording is None:
            if isinstance(watched, Cell) and watched.name in self._awaited:
                self._look_back(watched.name, [real(x) for x in tensors_in(watched.bind(args, kwargs)[1])], 0)
            return None
        if isinstance(watched, SequenceModule):
            self._calls.saw(watched.seal)
            taken = not self.paused and self._recording.takes(watched.seal)
            return watched.begin(args, kwargs) if taken else None
        self._calls.saw(watched.name)
        if self.paused or not self._recording.takes(watched.name):
            return None
        return watched, *watched.bind(args, kwargs)

    def _observes(self) -> bool:
        """Whether a call that is made now may be of interest."""
        if (self._recording is None and not self._awaited) or not torch.is_grad_enabled():
            return False
        return torch._C._functorch.peek_interpreter_stack() is None  # type: ignore[attr-defined]

    def _look_back(self, name: str, state: Sequence[Tensor], rows: int) -> None:
        """The first call of a step that is not recorded: does it go on from what the recorded step before returned?

        Args:
            name: of the module.
            state: its parts, with the sequences in dimension `rows`.
            rows: 0 or 1.
        """
        finals = self._awaited.pop(name, None)
        if finals is None or not state or any(part.requires_grad for part in state):
            return
        chosen = choose_sequences(state[0].shape[rows], self._settings.limit)
        columns = slice(None) if chosen is None else torch.tensor(chosen, device=state[0].device)
        parts = [part.detach().unsqueeze(0) if rows == 0 else part.detach() for part in state]
        self._asked.append(Asked(name, [part[:, columns].clone() for part in parts], [(CARRIED, list(finals))]))

    @guarded
    def after_call(self, token: list[Any], result: Any) -> None:
        """Copy what the analysis needs."""
        recording = self._recording
        if recording is None:
            return
        for part in token:
            if isinstance(part, Given):
                recording.observe_positions(part, result)
            elif part is not None:
                cell, arguments, state = part
                recording.observe_cell(cell, arguments, state, result)

    # --- optimizer steps

    @guarded
    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Look at the gradients as the optimizer gets them."""
        if self._owns(optimizer) and not has_closure:
            self.ledger.look(optimizer)
            if not self.ledger.on_host:
                return
            if self._recording is not None and not self.ledger.nonfinite:
                self._recording.release()
            if self._alarm.armed and self.ledger.nonfinite:
                own = {watched.name: watched.module for parts in self._own.values() for watched in parts}
                self._lost = lost({**own, **self._layers})

    def after_step(self, optimizer: Optimizer) -> None:
        """The step is over, unless a GradScaler makes it."""
        if self._owns(optimizer) and not self.ledger.scaling.steps(optimizer):
            self.finish(type(optimizer).__name__, False, optimizer)

    def _scaler_stepped(self, optimizer: Optimizer, skipped: Tensor | bool) -> None:
        self.finish(type(optimizer).__name__, skipped, optimizer)

    @contextmanager
    def aside(self) -> Generator[None]:
        """Nothing that happens meanwhile is part of the training, nor of its time."""
        paused, since, began = self.paused, self._since, time.perf_counter()
        self.paused = True
        try:
            yield
        finally:
            self.paused = paused
            self._since = None if since is None else since + time.perf_counter() - began

    def finish(self, name: str, skipped: Tensor | bool = False, optimizer: Optimizer | None = None) -> None:
        """Analyse the step, hand on its rows, and begin the next.

        Args:
            name: class of the optimizer, empty without one.
            skipped: a GradScaler has left the parameters as they were.
            optimizer: the one that stepped.
        """
        if self._since is None:
            self._since = time.perf_counter()
        self.guard.call(self._finish, name, skipped, optimizer)

    def _finish(self, name: str, skipped: Tensor | bool, optimizer: Optimizer | None) -> None:
        if optimizer is not None:
            self.ledger.scaling.without(optimizer)
        rows = self.rows()
        recorded = any(block.table == "layers" for block in rows)
        self.guard.take_reasons()  # they are among the rows
        if self._recording is not None:
            self._recording.close()
            self._calls.step()
        gradients, clips = self.ledger.close_step(optimizer)
        ended = time.perf_counter()
        overhead = self.guard.take_overhead(ended)
        duration = max(ended - (self._since or ended), overhead.host_s)  # the clock may start a moment after ours
        row = {
            "step": self.step,
            "optimizer": name,
            "loss": math.nan,
            "grad_norm": math.nan,
            "nonfinite": 0,
            "recorded": recorded,
            "skipped": skipped,
            "overhead_s": overhead.host_s,
            "step_s": duration,
        }
        ending = Rows("steps", row) if gradients is None else gradients.row(row, skipped, overhead, self._alarm.hear)
        rows += [Rows("notes", {"step": self.step, **key._asdict(), "reason": reason}) for key, reason in self._lost]
        self._lost = []
        self.guard.call(self._recorder.add, self.step, [*rows, *clips, ending], now=recorded)
        cost = overhead.seconds() if recorded else overhead.host_s  # a recorded step has waited for the device anyway
        self._schedule.spent(recorded=recorded, overhead_s=cost, step_s=duration)
        self._since = ended
        self.step += 1
        self._recording = self._begin()
        self.guard.by_device(self._recording is not None)

    def rows(self) -> list[Rows]:
        """Rows of the step so far; the step goes on."""
        found = self.guard.call(self._analysed) or []
        head = {"step": self.step, **WHOLE_MODEL._asdict()}
        return [*found, *(Rows("notes", {**head, "reason": reason}) for reason in self.guard.reasons)]

    def _analysed(self) -> list[Rows]:
        if self._recording is None:
            return []
        wanted = self._settings.wanted
        found: list[Rows] = []
        for module, chain, analyses in self._recording.analyse(self.ledger.scaling.factor):
            for analysis in analyses:
                key = LayerKey(module, analysis.layer, analysis.direction, chain)
                found.extend(summarise(self.step, key, analysis))
        kept = [rows for rows in found if keep(rows, wanted)]
        return [*kept, *(self.guard.call(self._origin, found) or []), *self._remarks(), *self._unseen()]

    def _origin(self, found: Sequence[Rows]) -> list[Rows]:
        """Where values that are not finite were born, where there are any."""
        recording = self._recording
        if recording is None or not found:
            return []
        if not (any(map(nonfinite, found)) or self.ledger.nonfinite or recording.spoilt):
            return []
        born = recording.origin(self.ledger.scaling.factor)
        if born is None:
            return []
        key, origin = born
        return [Rows("notes", {"step": self.step, **key._asdict(), "reason": origin.reason})]

    def _remarks(self) -> list[Rows]:
        """Notes on what could not be followed between calls."""
        remarks = [] if self._recording is None else self._recording.following.tell()
        once = [r for r in remarks if any(part in r[1] for part in ONCE)]
        remarks = [r for r in remarks if r not in once or self._said.setdefault(r, self.step) == self.step]
        key = {"layer": -1, "direction": "", "chain": -1}
        return [Rows("notes", {"step": self.step, "module": m, **key, "reason": reason}) for m, reason in remarks]

    @property
    def unfinished(self) -> bool:
        """Whether gradients have arrived since the last optimizer step."""
        if self._recording is None:
            return False
        return self._recording.any or (self.step == self._settings.first_step and bool(self._unseen()))

    @property
    def progress(self) -> tuple[int, int]:
        """Step, and gradients that have arrived in it."""
        return self.step, 0 if self._recording is None else self._recording.arrivals

    def close(self) -> None:
        """Let go of what has not been analysed."""
        if self._recording is not None:
            self._recording.close()
        self._recording = None

    # --- pieces

    def _begin(self) -> Recording | None:
        last = self._recording
        due = self.guard.call(self._schedule.due, self.step)  # both are asked at every step
        if not self._alarm.due() and not due:
            known = {} if last is None else last.following.recent
            self._awaited = {name: finals for name, finals in known.items() if (name, CARRIED) not in self._said}
            return None
        self._awaited = {}
        recording = Recording(self._settings.limit, needs_full(self._settings.wanted), self._hook)
        if last is not None:
            recording.following.before = last.following.recent
        recording.following.asked, self._asked = self._asked, []
        return recording

    @uncompiled
    def _hook(self, receive: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        """A gradient hook under the guard, which does not keep this observer alive."""
        me = weakref.ref(self)

        def hook(gradient: Tensor) -> None:
            observer = me()
            if observer is not None and not observer.paused:
                observer.guard.call(receive, gradient)

        return hook

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

    def _unseen(self) -> list[Rows]:
        """Notes on what has received gradient for calls that were not seen, or is not there any more."""
        found: list[Rows] = []
        for name, reason in self._calls.unseen(self._model, self.ledger.has_arrived):
            if reason == NO_CALL and self._said.setdefault((name, reason), self.step) != self.step:
                continue
            if reason.startswith(COMPILED):
                self.guard.warn(f"{name or 'the model'}: {reason}")
            head = {"step": self.step, "module": name, "layer": -1, "direction": "", "chain": -1}
            found.append(Rows("notes", {**head, "reason": reason}))
        return found
