"""Measures how far back the gradient of a module's output sequence reaches in the input sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.families.norms import norm, relative, relative_parts
from gradscope.families.reach import Anchors, pick_anchors, reach_by_lag
from gradscope.types import Analysis, Positions

NO_INPUT = "no argument of the module is a sequence with as many timesteps as its output, so the reach is unknown"


def analyse_positions(positions: Positions) -> Analysis:
    """Measure `grad_h` at every position of the output, and `reach` from there to the positions of the input.

    The gradient of an anchor position is carried back alone; `reach` at lag k is the norm of the gradient at the input
    k positions earlier, over that at the anchor's own position. The layer is -1: the module as a whole.
    """
    p = positions
    entering = norm(p.gradient)[:, p.columns]
    steps, batch = entering.shape
    lengths = torch.full((batch,), steps, device=p.output.device)
    reach = torch.zeros(0, batch, device=p.output.device)
    reached, residual = reach.bool(), reach.new_zeros(())
    if p.run is not None:
        anchors = pick_anchors(entering)
        carried, residual = _carry(p, anchors)
        reach, reached = reach_by_lag(anchors, carried)
    return Analysis(
        layer=-1,
        direction="forward",
        lengths=lengths,
        values={"grad_h": entering, "state": norm(p.output)[:, p.columns] / p.output.shape[-1] ** 0.5},
        measured={},
        errors={},
        reach=reach,
        reached=reached,
        gates={},
        blocks={},
        lyapunov=None,
        residual=residual,
        tolerance=p.tolerance,
    )


def _carry(p: Positions, anchors: Anchors) -> tuple[Tensor, Tensor]:
    """Each anchor's gradient at each position of the input, over that at its own, [T, A, B], and the certificate."""
    assert p.run is not None
    source, by_time = p.run()
    residual = relative(relative_parts(by_time.detach().to(p.output.dtype), p.output))
    shares: list[Tensor] = []
    for times in anchors.times:
        seed = torch.zeros_like(p.output)
        here = times >= 0
        seed[times[here], p.columns[here]] = p.gradient[times[here], p.columns[here]]
        size = seed.abs().amax().clamp(min=torch.finfo(seed.dtype).tiny)
        seed = (seed / size).to(by_time.dtype)
        gradient = _input_gradient(by_time, source, seed)
        sizes = norm(gradient.transpose(0, p.dim).flatten(2))[:, p.columns]
        own = sizes.gather(0, times.clamp(min=0).unsqueeze(0))
        shares.append(sizes / own)
    return torch.stack(shares, 1), residual


def _input_gradient(output: Tensor, source: Tensor, seed: Tensor) -> Tensor:
    """Gradient of the input; zeros if the output does not depend on it."""
    if not output.requires_grad:
        return torch.zeros_like(source)
    return torch.autograd.grad(output, source, seed, retain_graph=True, materialize_grads=True)[0]
