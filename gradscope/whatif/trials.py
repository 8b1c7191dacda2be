"""Each remedy on a copy of the model: forward and backward on one batch, watched."""

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
    """An attached scope, as far as it is needed here."""

    @property
    def run(self) -> Recorded:
        """What it has recorded."""
        ...


Attach = Callable[[nn.Module], "AbstractContextManager[Watch]"]

UNFIT = (TypeError, AttributeError, RuntimeError, ValueError, LookupError, AssertionError, GradscopeError)
"""How a model says that it cannot use what has been put in a module's place."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One copy: with which remedy, its loss, what was recorded, and why nothing was."""

    candidate: Candidate | None
    loss: float
    run: Recorded | None
    note: str = ""


def what_if(model: nn.Module, batch: Any, loss: Loss, findings: Sequence[Finding], attach: Attach) -> WhatIf:
    """Try the remedies of findings, and the usual ones, each on a copy of its own.

    Args:
        model: copied for every trial.
        batch: given to `loss`, copied as well.
        loss: (copy of the model, batch) -> scalar.
        findings: whose remedies come first.
        attach: watches a copy.

    Raises:
        GradscopeError: the model cannot be copied; the loss is no scalar with a gradient, or is not made by the copy.
    """
    with undisturbed(model) as rewind:
        first = _trial(model, batch, loss, attach, rewind, None)
        if first.run is None or not len(first.run.frame("layers")):
            raise GradscopeError(
                "whatif: no recurrent layer of the copy was called. `loss(model, batch)` has to call the model that it "
                "is given, which is a copy, and not the one that is attached."
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
    """Forward and backward of a copy; remedy and forward pass both begin where the random streams stand."""
    tried, given = copied(model, "the model"), copied(batch, "the batch")
    rewind()
    if candidate is not None:
        tried = _changed(tried, candidate)
    rewind()
    with torch.inference_mode(False), torch.enable_grad(), attach(tried) as scope:
        value = loss(tried, given)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise GradscopeError(f"whatif: `loss` has to give a scalar with a gradient, and gave {_described(value)}.")
        value.backward()
        return Trial(candidate, float(value.detach()), scope.run)


def _changed(model: nn.Module, candidate: Candidate) -> nn.Module:
    """The copy with the remedy; another module where it is the model itself that was replaced."""
    apply, (parent, _, name) = candidate.remedy.apply, candidate.module.rpartition(".")
    if apply is None:
        return model
    made = apply(model.get_submodule(candidate.module))
    if made is None:
        return model
    if not candidate.module:
        return made
    setattr(model.get_submodule(parent), name, made)
    return model


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a tensor of shape {list(value.shape)}{'' if value.requires_grad else ' without one'}"
