"""Trials: each remedy on a copy of the model, with a recorded forward and backward pass on one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from gradscope.diagnose import remedies
from gradscope.diagnose.frames import Recorded, Tables, read_tables
from gradscope.errors import GradscopeError
from gradscope.types import Finding, LayerKey, Remedy
from gradscope.whatif.copies import copied, undisturbed
from gradscope.whatif.frames import Candidate, Trial, WhatIf, as_frames

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
    return as_frames(trials)


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


def candidates(tables: Tables, findings: Sequence[Finding]) -> list[Candidate]:
    """List every remedy that changes a module once, module by module; the module of the first finding comes first.

    The list has no remedies that change the loop, such as clipping or another learning rate: they do not change `reach`
    on one batch.
    """
    unique: dict[tuple[str, str], Candidate] = {}
    for candidate in (*_of_findings(tables, findings), *_usual(tables)):
        if candidate.remedy.apply is not None:
            unique.setdefault((candidate.module, candidate.remedy.code), candidate)
    order = list(dict.fromkeys(module for module, _ in unique))
    return sorted(unique.values(), key=lambda candidate: order.index(candidate.module))


def _of_findings(tables: Tables, findings: Sequence[Finding]) -> Iterator[Candidate]:
    known = {module for module, _ in tables.by_module}
    for finding in findings:
        if finding.layer_key is not None and finding.layer_key.module in known:
            yield from (Candidate(finding.layer_key.module, remedy) for remedy in finding.remedies)


def _usual(tables: Tables) -> Iterator[Candidate]:
    for module, keys in tables.by_module:
        if remedies.can_be_initialised(tables, keys[0]):
            usual = _usual_for(tables, keys[0], len(keys))
            yield from (Candidate(module, remedy) for remedy in usual if remedy is not None)


def _usual_for(tables: Tables, key: LayerKey, layers: int) -> list[Remedy | None]:
    family = tables.family(key.module)
    timesteps = int(tables.of("layers", key)["timesteps"].max())
    whole, chrono = remedies.orthogonal(tables, key, layers), remedies.chrono(key, timesteps)
    normalised, bridged = remedies.layer_norm(tables, key), remedies.residual(tables, key)
    if family == "lstm":
        return [whole, remedies.forget_bias(key), chrono, normalised, bridged]
    if family == "gru":
        return [whole, chrono, normalised, bridged]
    if family in ("rnn_tanh", "rnn_relu"):
        return [
            whole,
            remedies.identity(key),
            remedies.gated(tables, key, "LSTM"),
            remedies.gated(tables, key, "GRU"),
            normalised,
            bridged,
        ]
    return []
