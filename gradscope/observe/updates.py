"""The change of the recurrent weights by an optimizer's step: `weights.update`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from gradscope.observe.observed import ObservedCall
from gradscope.types import Analysis, Block


def with_updates(analyses: Sequence[Analysis], call: ObservedCall) -> list[Analysis]:
    """Add the relative change of each block since a call, if it is known.

    It is unknown for a weight that is made anew for each call: the next one does not exist yet.

    Args:
        analyses: of a layer of torch's, one for each layer and direction; of a cell, one.
        call: a call with the weights before the step.
    """
    return [replace(a, blocks=_updated(a, _changes(call, n, a))) for n, a in enumerate(analyses)]


def _updated(analysis: Analysis, changes: Mapping[str, Tensor]) -> dict[str, Block]:
    return {gate: replace(block, update=changes.get(gate)) for gate, block in analysis.blocks.items()}


def _changes(call: ObservedCall, number: int, analysis: Analysis) -> dict[str, Tensor]:
    if call.custom is None:
        now, gates = call.weight_gradients[number].weight(), tuple(analysis.blocks)
        return {} if now is None else _relative(call.snapshot.weights[number].hh, now, gates)
    parameters, changes = dict(call.custom.module.named_parameters()), dict[str, Tensor]()
    for name, gates in call.custom.spec.blocks.items():
        if name in parameters and name in call.snapshot.weights:
            changes.update(_relative(call.snapshot.weights[name], parameters[name], tuple(gates)))
    return changes


def _relative(before: Tensor, now: Tensor, gates: Sequence[str]) -> dict[str, Tensor]:
    """Norm of the change over the norm of the weights, for each gate's block of rows."""
    if now.grad_fn is not None or now.shape != before.shape or not gates or len(before) % len(gates) or _freed(now):
        return {}
    wide = torch.float64 if before.dtype == torch.float64 else torch.float32
    old, new = (x.to(wide).reshape(len(gates), -1) for x in (before, now))
    change = torch.linalg.vector_norm(new - old, dim=1) / torch.linalg.vector_norm(old, dim=1)
    return dict(zip(gates, change.double().unbind(), strict=True))


def _freed(weight: Tensor) -> bool:
    """True if its memory is gone: `fully_shard` gathers a weight for a call, and frees the memory afterwards."""
    return type(weight) not in (Tensor, nn.Parameter) or not weight.untyped_storage().nbytes()
