"""Trials: each remedy on a copy of the model, with a recorded forward and backward pass on one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from gradscope.diagnose.candidates import Candidate, candidates
from gradscope.diagnose.frames import Recorded, read_tables
from gradscope.errors import GradscopeError
from gradscope.types import Finding
from gradscope.whatif.copies import copied, undisturbed
from gradscope.whatif.frames import WhatIf, as_frames

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Loss = Callable[[nn.Module, Any], Tensor]


class Watch(Protocol):
    """The part of a scope that trials need."""

    @property
    def run(self) -> Recorded:
        """The records."""
        ...


Attach = Callable[[nn.Module], "AbstractContextManager[Watch]"]

UNFIT = (TypeError, AttributeError, RuntimeError, ValueError, LookupError, AssertionError, GradscopeError)
"""Exceptions of a model that cannot use the replacement of a module."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One copy: its remedy, its loss, and its records or the reason of a failure."""

    candidate: Candidate | None
    loss: float
    run: Recorded | None
    note: str = ""


def what_if(model: nn.Module, batch: Any, loss: Loss, findings: Sequence[Finding], attach: Attach) -> WhatIf:
    """Try the remedies of findings, and the usual remedies, each on its own copy.

    Args:
        model: the model; every trial copies it.
        batch: argument of `loss`; every trial copies it.
        loss: (copy of the model, batch) -> scalar.
        findings: findings; their remedies come first.
        attach: attaches a scope to a copy.

    Raises:
        GradscopeError: the model cannot be copied; the loss is no scalar with a gradient, or does not use the copy.
    """
    with undisturbed(model) as rewind:
        first = _trial(model, batch, loss, attach, rewind, None)
        if first.run is None or not len(first.run.frame("layers")):
            raise GradscopeError(
                "whatif: `loss(model, batch)` called no recurrent layer of the copy. It has to call its argument "
                "`model`, which is a copy, and not the attached model."
            )
        trials = [first]
        for candidate in candidates(read_tables(first.run), findings):
            try:
                trials.append(_trial(model, batch, loss, attach, rewind, candidate))
            except UNFIT as error:
                trials.append(Trial(candidate, float("nan"), None, f"{type(error).__name__}: {error}"))
    return as_frames([(t.candidate, t.loss, t.run, t.note) for t in trials])


def _trial(
    model: nn.Module, batch: Any, loss: Loss, attach: Attach, rewind: Callable[[], None], candidate: Candidate | None
) -> Trial:
    """Run forward and backward of a copy; remedy and forward pass both begin at the present random streams."""
    twin, data = copied(model, "the model"), copied(batch, "the batch")
    rewind()
    if candidate is not None:
        twin = _apply(twin, candidate)
    rewind()
    with torch.inference_mode(False), torch.enable_grad(), attach(twin) as scope:
        value = loss(twin, data)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise GradscopeError(f"whatif: `loss` has to return a scalar with a gradient, not {_described(value)}.")
        value.backward()
        return Trial(candidate, float(value.detach()), scope.run)


def _apply(model: nn.Module, candidate: Candidate) -> nn.Module:
    """Apply a remedy; returns another module if the remedy replaces the model itself."""
    apply, (parent, _, name) = candidate.remedy.apply, candidate.module.rpartition(".")
    if apply is None:
        return model
    replacement = apply(model.get_submodule(candidate.module))
    if replacement is None:
        return model
    if not candidate.module:
        return replacement
    setattr(model.get_submodule(parent), name, replacement)
    return model


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a tensor of shape {list(value.shape)}{'' if value.requires_grad else ' without one'}"
