"""Receives calls of the observed modules, and gives them to the step's recording."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.attach.custom import listen_to_calls
from gradscope.attach.find import is_call_of
from gradscope.attach.kernels import KERNELS
from gradscope.attach.seam import Handle
from gradscope.attach.uncompiled import uncompiled
from gradscope.capture.cell import Cell
from gradscope.capture.cell_call import real
from gradscope.capture.positions import ModuleInputs, SequenceModule
from gradscope.capture.results import tensors_in
from gradscope.capture.snapshot import Dropout, begin_dropout
from gradscope.families import Work
from gradscope.observe.carried import CarriedStates
from gradscope.observe.guard import Guard, guarded
from gradscope.observe.step import Recording
from gradscope.observe.unseen import CalledModules
from gradscope.private import transform
from gradscope.types import KernelCall
from gradscope.types.notes import DISABLED


class CallReceiver:
    """Receives calls on recorded steps, and the first ones after them; on other steps torch is unpatched.

    Args:
        layers: the existing observed layers and cells of torch's, by name.
        own: observed modules that are not torch's.
        limit: the most sequences to analyse; None for all.
        work: what to compute.
        guard: for failures.
        started: called with every call, for the clock of the first step.

    Attributes:
        recording: the step, if it is recorded.
        seen: which modules were called.
        paused: True while calls are not recorded.
        once: step of each remark that is made once in a run, by module and reason.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        own: Sequence[Cell | SequenceModule],
        limit: int | None,
        work: Work,
        guard: Guard,
        started: Callable[[], None],
    ) -> None:
        """See the class."""
        self.guard, self.paused = guard, False
        self.seen = CalledModules(layers, [watched for watched in own if isinstance(watched, SequenceModule)])
        self.once: dict[tuple[str, str], int] = {}
        self.recording: Recording | None = None
        self._layers, self._limit, self._work, self._started = layers, limit, work, started
        self._own: dict[int, list[Cell | SequenceModule]] = {}
        for watched in own:
            self._own.setdefault(id(watched.module), []).append(watched)
        self._carried = CarriedStates(limit)
        self._handles: list[Handle[Any]] = []
        self._always = False

    def listen(self, *, always: bool) -> ExitStack:
        """Begin to listen; closing the result ends it.

        Args:
            always: receive calls on every step, for another listener needs them.
        """
        self._always = always
        with ExitStack() as undo:
            places = [(watched.module, watched.method) for mine in self._own.values() for watched in mine]
            self._handles = [KERNELS.listen(self), *listen_to_calls(places, self)]
            for handle in self._handles:
                undo.callback(handle.remove)
            self._arm()
            return undo.pop_all()

    @property
    def own(self) -> dict[str, nn.Module]:
        """The existing observed modules that are not torch's layers and cells, by name."""
        existing = [watched for parts in self._own.values() for watched in parts if watched.original() is not None]
        return {watched.name: watched.module for watched in existing}

    @property
    def listening(self) -> bool:
        """True if this step needs calls."""
        return self.recording is not None or bool(self._carried.expected)

    def begin(self, recorded: bool) -> None:
        """Begin the next step."""
        last = None if self.recording is None else self.recording.following
        if recorded:
            self.recording = Recording(self._limit, self._work, self._hook)
            self._carried.begin_recorded(self.recording.following, last)
        else:
            self.recording = None
            self._carried.begin_idle(last, self.once)
        self._arm()

    def discard(self) -> None:
        """Forget what has been recorded of this step."""
        if self.recording is not None:
            self.recording.close()
        self.recording = None

    def restart(self) -> None:
        """Forget it, and record anew."""
        if self.recording is not None:
            self.discard()
            self.begin(True)

    def _arm(self) -> None:
        wanted = self._always or self.listening
        for handle in self._handles:
            handle.arm(wanted)

    # --- kernels

    @guarded
    def before_kernel(self, call: KernelCall) -> tuple[str, KernelCall, Dropout | None] | None:
        """Decide whether to record a call."""
        self._started()
        if not self._observes() or call.batch == 0:
            return None
        name = next((n for n, m in self._layers.items() if is_call_of(m, call)), None)
        if name is None:
            return None
        if not torch.is_grad_enabled():
            return (name, call, None) if self._notes_disabled(self._layers[name]) else None
        if self.recording is None:
            self._check_carried(name, call.state, 0 if call.cell else 1)
            return None
        self.seen.add(name)
        if self.paused or not self.recording.takes(name):
            return None
        return name, call, begin_dropout(call)

    @guarded
    def after_kernel(self, token: tuple[str, KernelCall, Dropout | None], result: tuple[Tensor, ...]) -> None:
        """Copy what the analysis needs."""
        name, call, dropout = token
        if self.recording is None:
            return
        if any(tensor.requires_grad for tensor in result):
            self.recording.observe(name, call, result, dropout)
        else:
            self.recording.observe_without(name, call, result)

    # --- modules that are not torch's layers and cells

    def before_call(self, module: nn.Module, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `CallListener`."""
        mine = self._own.get(id(module)) if self.listening else None
        if mine is None or mine[0].original() is not module:
            return None
        return [self._before_call(watched, args, kwargs) for watched in mine if watched.method == method]

    @guarded
    def _before_call(self, watched: Cell | SequenceModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._started()
        if not self._observes():
            return None
        if not torch.is_grad_enabled():
            if self.recording is not None and self._notes_disabled(watched.module):
                self.recording.without[watched.name] = DISABLED
            return None
        if self.recording is None:
            if isinstance(watched, Cell) and watched.name in self._carried.expected:
                self._check_carried(watched.name, [real(x) for x in tensors_in(watched.bind(args, kwargs)[1])], 0)
            return None
        name = watched.seal if isinstance(watched, SequenceModule) else watched.name
        self.seen.add(name)
        if self.paused or not self.recording.takes(name):
            return None
        if isinstance(watched, SequenceModule):
            return watched.begin(args, kwargs)
        return watched, *watched.bind(args, kwargs)

    @guarded
    def after_call(self, token: list[Any], result: Any) -> None:
        """Copy what the analysis needs."""
        recording = self.recording
        if recording is None:
            return
        for part in token:
            if isinstance(part, ModuleInputs):
                recording.observe_positions(part, result)
            elif part is not None:
                cell, arguments, state = part
                recording.observe_cell(cell, arguments, state, result)

    # --- helpers

    def _observes(self) -> bool:
        """True if this step needs calls, and no transform of `torch.func` runs."""
        return self.listening and transform() is None

    def _notes_disabled(self, module: nn.Module) -> bool:
        """True if the recording remembers a call with gradients disabled: validation is in another mode."""
        return self.recording is not None and not self.paused and module.training

    def _check_carried(self, name: str, state: Sequence[Tensor], rows: int) -> None:
        """See `CarriedStates.check`; once all modules have been called, torch is unpatched again."""
        self._carried.check(name, state, rows)
        if not self._carried.expected:
            self._arm()

    @uncompiled
    def _hook(self, receive: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        """A guarded gradient hook that does not keep this receiver alive."""
        me = weakref.ref(self)

        def hook(gradient: Tensor) -> None:
            receiver = me()
            if receiver is not None and not receiver.paused:
                receiver.guard.call(receive, gradient)

        return hook
