"""Calls of the watched modules: which of them the step's recording gets."""

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
from gradscope.capture.layout import choose_sequences
from gradscope.capture.positions import Given, SequenceModule
from gradscope.capture.results import tensors_in
from gradscope.capture.snapshot import Dropout, begin_dropout
from gradscope.families import Work
from gradscope.observe.following import CARRIED, Asked, Finals
from gradscope.observe.guard import Guard, guarded
from gradscope.observe.step import Recording
from gradscope.observe.unseen import Calls
from gradscope.private import transform
from gradscope.types import KernelCall


class CallReceiver:
    """Receives calls while a step is recorded, and the first ones after that; on other steps torch is as it was.

    Args:
        layers: watched layers and cells of torch's, by name; those that are still there.
        own: watched modules that are not torch's.
        limit: how many sequences to analyse at most.
        work: what to compute of them.
        guard: for failures.
        started: called when there is a call, for the clock of the first step.

    Attributes:
        recording: the step, if it is recorded.
        seen: which modules were called.
        paused: calls are not recorded.
        once: module and reason of remarks that are made once in a run, and in which step they were.
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
        self.seen = Calls(layers, [watched for watched in own if isinstance(watched, SequenceModule)])
        self.once: dict[tuple[str, str], int] = {}
        self.recording: Recording | None = None
        self._layers, self._limit, self._work, self._started = layers, limit, work, started
        self._own: dict[int, list[Cell | SequenceModule]] = {}
        for watched in own:
            self._own.setdefault(id(watched.module), []).append(watched)
        self._awaited: dict[str, Finals] = {}  # what a recorded step returned, until the next step's first calls
        self._asked: list[Asked] = []  # what modules went on from, in steps that were not recorded
        self._handles: list[Handle[Any]] = []
        self._always = False

    def listen(self, *, always: bool) -> ExitStack:
        """Begin to listen; closing what is returned ends it.

        Args:
            always: on every step, for somebody else needs the calls.
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
        """The watched modules that are not torch's layers and cells, by name."""
        there = [watched for parts in self._own.values() for watched in parts if watched.original() is not None]
        return {watched.name: watched.module for watched in there}

    @property
    def listening(self) -> bool:
        """True if this step needs calls."""
        return self.recording is not None or bool(self._awaited)

    def begin(self, recorded: bool) -> None:
        """The next step begins, and is recorded or not."""
        last, self.recording = self.recording, None
        self._awaited = {}
        if recorded:
            self.recording = Recording(self._limit, self._work, self._hook)
            self.recording.following.asked, self._asked = self._asked, []
            if last is not None:
                self.recording.following.before = last.following.recent
        elif last is not None:
            known = last.following.recent
            self._awaited = {name: finals for name, finals in known.items() if (name, CARRIED) not in self.once}
        self._arm()

    def _arm(self) -> None:
        wanted = self._always or self.listening
        for handle in self._handles:
            handle.arm(wanted)

    # --- kernels

    @guarded
    def before_kernel(self, call: KernelCall) -> tuple[str, KernelCall, Dropout | None] | None:
        """Decide whether a call is recorded."""
        self._started()
        if not self._observes() or call.batch == 0:
            return None
        name = next((n for n, m in self._layers.items() if is_call_of(m, call)), None)
        if name is None:
            return None
        if self.recording is None:
            self._look_back(name, call.state, 0 if call.cell else 1)
            return None
        self.seen.saw(name)
        if self.paused or not self.recording.takes(name):
            return None
        return name, call, begin_dropout(call)

    @guarded
    def after_kernel(self, token: tuple[str, KernelCall, Dropout | None], result: tuple[Tensor, ...]) -> None:
        """Copy what the analysis needs."""
        name, call, dropout = token
        if self.recording is not None and any(tensor.requires_grad for tensor in result):
            self.recording.observe(name, call, result, dropout)

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
        if self.recording is None:
            if isinstance(watched, Cell) and watched.name in self._awaited:
                self._look_back(watched.name, [real(x) for x in tensors_in(watched.bind(args, kwargs)[1])], 0)
            return None
        name = watched.seal if isinstance(watched, SequenceModule) else watched.name
        self.seen.saw(name)
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
            if isinstance(part, Given):
                recording.observe_positions(part, result)
            elif part is not None:
                cell, arguments, state = part
                recording.observe_cell(cell, arguments, state, result)

    # --- pieces

    def _observes(self) -> bool:
        """Whether a call that is made now may be of interest."""
        if not self.listening or not torch.is_grad_enabled():
            return False
        return transform() is None

    def _look_back(self, name: str, state: Sequence[Tensor], rows: int) -> None:
        """The first call of a step that is not recorded: does it go on from what the recorded step before returned?

        Args:
            name: of the module.
            state: its parts, with the sequences in dimension `rows`.
            rows: 0 or 1.
        """
        finals = self._awaited.pop(name, None)
        if not self._awaited:
            self._arm()
        if finals is None or not state or any(part.requires_grad for part in state):
            return
        chosen = choose_sequences(state[0].shape[rows], self._limit)
        columns = slice(None) if chosen is None else torch.tensor(chosen, device=state[0].device)
        parts = [part.detach().unsqueeze(0) if rows == 0 else part.detach() for part in state]
        self._asked.append(Asked(name, [part[:, columns].clone() for part in parts], [(CARRIED, list(finals))]))

    @uncompiled
    def _hook(self, receive: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        """A gradient hook under the guard, which does not keep this receiver alive."""
        me = weakref.ref(self)

        def hook(gradient: Tensor) -> None:
            receiver = me()
            if receiver is not None and not receiver.paused:
                receiver.guard.call(receive, gradient)

        return hook
