"""Optimizer steps, whatever the optimizer is called and wherever it was made.

A step is the outermost call: a subclass that calls `super().step()`, or an optimizer that steps another one over the
same parameters (SAM, Lookahead, a wrapper around several), is one step.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gradscope.attach.seam import Restore, Seam
from gradscope.attach.uncompiled import uncompiled


class OptimizerListener(Protocol):
    """Hears of optimizer steps. A `step` that raises is begun and not ended."""

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """`optimizer.step()` begins. Gradients are final, but for a closure and for pre-hooks of the optimizer's own.

        Args:
            optimizer: the one whose `step` the training loop called.
            has_closure: backward passes may run inside this step, and parameters change between them.
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


@dataclass(eq=False, slots=True)
class _Step:
    """One `step` that has begun; of one within another that shares its parameters, nobody hears."""

    optimizer: weakref.ref[Optimizer]
    inside: bool = False


_begun = threading.local()


@uncompiled
def _before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    steps: list[_Step] = _begun.__dict__.setdefault("steps", [])
    step = _Step(weakref.ref(optimizer))
    if steps:  # a step around this one, or one that has raised: for that there is no post hook
        frames = [frame.f_locals["self"] for frame in _steps_under_way()][1:]
        steps[:] = [each for each in steps if each.optimizer() in frames]
        step.inside = any(_same_parameters(each, optimizer) for each in frames)
    steps.append(step)
    if not step.inside:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        for listener in OPTIMIZERS:
            listener.before_step(optimizer, callable(closure))


@uncompiled
def _after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    steps: list[_Step] = _begun.__dict__.setdefault("steps", [])
    while steps:
        step = steps.pop()
        if step.optimizer() is optimizer:
            break
    else:
        return  # it began before anybody listened
    if not step.inside:
        for listener in OPTIMIZERS:
            listener.after_step(optimizer)


# What torch wraps around every `step`, calling the hooks. Its frames on the stack are the steps under way.
_STEP = next((code for code in Optimizer.profile_hook_step.__code__.co_consts if isinstance(code, CodeType)), None)


def _steps_under_way() -> Iterator[FrameType]:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _STEP:
            yield frame
        frame = frame.f_back


def _same_parameters(one: Optimizer, other: Optimizer) -> bool:
    return one is other or not _parameters(one).isdisjoint(_parameters(other))


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


OPTIMIZERS: Seam[OptimizerListener] = Seam(_install)
