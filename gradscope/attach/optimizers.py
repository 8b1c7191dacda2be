"""Steps of any optimizer.

A step is the outermost call. A subclass that calls `super().step()`, or an optimizer that steps another one over the
same parameters (SAM, Lookahead, a wrapper around several), makes one step.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from types import FrameType
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gradscope.attach.seam import Restore, Seam
from gradscope.attach.uncompiled import uncompiled
from gradscope.private import STEP


class OptimizerListener(Protocol):
    """Receives optimizer steps. A `step` that raises begins and does not end."""

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """`optimizer.step()` begins. Gradients are final, except for a closure and the optimizer's own pre-hooks.

        Args:
            optimizer: the optimizer whose `step` the training loop called.
            has_closure: True if backward passes may run inside this step, and parameters change between them.
        """
        ...

    def after_step(self, optimizer: Optimizer) -> None:
        """`optimizer.step()` has ended."""
        ...


def _install() -> Restore:
    with ExitStack() as undo:
        undo.callback(register_optimizer_step_pre_hook(_before).remove)
        undo.callback(register_optimizer_step_post_hook(_after).remove)
        return undo.pop_all().close


class _Thread(threading.local):
    """The open steps of each thread.

    Attributes:
        begun: the optimizer's identity, and True if the step is nested in a step over its parameters.
    """

    def __init__(self) -> None:
        self.begun: list[tuple[int, bool]] = []


_thread = _Thread()


@uncompiled
def _before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    steps, inside = _thread.begun, False
    if steps:  # an outer step, or a step that has raised: torch calls no post hook then
        frames = {id(each): each for each in [frame.f_locals["self"] for frame in _steps_under_way()][1:]}
        steps[:] = [each for each in steps if each[0] in frames]
        inside = any(_same_parameters(each, optimizer) for each in frames.values())
    steps.append((id(optimizer), inside))
    if not inside:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        for handle in OPTIMIZERS.handles:
            if (listener := handle.listener) is not None:
                listener.before_step(optimizer, closure is not None and callable(closure))


@uncompiled
def _after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    steps = _thread.begun
    while steps:
        identity, inside = steps.pop()
        if identity == id(optimizer):
            break
    else:
        return  # it began before any listener came
    if not inside:
        for handle in OPTIMIZERS.handles:
            if (listener := handle.listener) is not None:
                listener.after_step(optimizer)


def _steps_under_way() -> Iterator[FrameType]:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is STEP:
            yield frame
        frame = frame.f_back


def _same_parameters(one: Optimizer, other: Optimizer) -> bool:
    return one is other or not _parameters(one).isdisjoint(_parameters(other))


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


OPTIMIZERS: Seam[OptimizerListener] = Seam(_install)
