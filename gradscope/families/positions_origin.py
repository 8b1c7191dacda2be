"""Finds the first value that is not finite in a call of a module that is observed by position."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.types import Origin, Positions, WholeCall


def find_position_origin(call: WholeCall) -> Origin | None:
    """Find the origin in causal order: parameters and arguments, input, output, gradient from above, way back."""
    output, gradient = call.positions.output, call.positions.gradient
    batch = output.shape[1]
    bad = [name for name, weight in call.parameters.items() if not bool(weight.isfinite().all())]
    bad += [name for name, tensor in call.others.items() if bool(tensor.isnan().any())]
    if bad:
        return Origin("forward", bad[0], sequences=batch, analysed=batch, entire=True)
    forward = {"output": output} if call.input is None else {"input": call.input, "output": output}
    for what, rows in forward.items():
        where = ~rows.isfinite().all(-1)
        if bool(where.any()):
            t, b = where.nonzero()[0].tolist()
            return _origin("forward", what, where, t, b)
    for what in ("gradient from above", "way back"):
        where = ~(gradient if what == "gradient from above" else _input_gradient(call.positions)).isfinite().all(-1)
        if bool(where.any()):
            t, b = where.flip(0).nonzero()[0].tolist()
            return _origin("backward", what, where, len(where) - 1 - t, b)
    return None


def _origin(phase: str, what: str, where: Tensor, t: int, b: int) -> Origin:
    affected = int(where.any(0).sum())
    return Origin("forward" if phase == "forward" else "backward", what, "", t, b, affected, where.shape[1], True)


def _input_gradient(positions: Positions) -> Tensor:
    """Loss gradient of the input through the module alone, [T, B, D]."""
    if positions.run is None:
        return positions.gradient
    source, output = positions.run()
    if not output.requires_grad:
        return positions.gradient
    gradient = positions.gradient.to(output.dtype)
    (result,) = torch.autograd.grad(output, source, gradient, materialize_grads=True)
    return result.transpose(0, positions.dim).flatten(2)
