"""Statistics of an analysis over its sequences, computed on the device and copied to the host at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradscope.types import Analysis

STATISTICS = ("p10", "p50", "p90", "mean")
BLOCKS = ("spectral_radius", "spectral_norm", "orthogonality", "update")
QUANTILES = (0.1, 0.5, 0.9)
Array = np.ndarray[Any, np.dtype[Any]]
Values = dict[str, Array]


def statistics(a: Analysis) -> Values:
    """Compute all numbers of the rows, by name, and copy them to the host at once."""
    a, valid = _aligned(a)
    blocks = [getattr(block, part) for block in a.blocks.values() for part in BLOCKS]
    single = [a.residual, a.gradient_residual, *blocks]
    lyapunov = [] if a.lyapunov is None else [_median(a.lyapunov[~a.lyapunov.isnan()])]
    parts = {
        "spread": _spread(*_stacked(a, valid)),
        "single": torch.stack([_number(x, a.residual) for x in (*single, *lyapunov)]),
        "present": valid.sum(1),
        "gates": _gates(a, valid),
        "units": torch.stack([x for gate in a.gates.values() for x in (gate.unit_low, gate.unit_high)] or [a.residual]),
        **{
            f"spectrum/{g}": torch.view_as_real(b.eigenvalues) for g, b in a.blocks.items() if b.eigenvalues is not None
        },
        **{f"se/{name}": _root_mean_square(errors, valid) for name, errors in a.errors.items()},
    }
    return _named(a, _to_host(parts))


def _stacked(a: Analysis, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Stack all quantities, `reach` last, as [Q, T, B], with a mask of the valid values."""
    values, where = list(a.values.values()), [a.measured.get(name, valid) for name in a.values]
    if len(a.reach):
        missing = (0, 0, 0, len(valid) - len(a.reach))
        for rows, row in ((values, a.reach), (where, a.reached)):
            rows.append(torch.nn.functional.pad(row, missing) if missing[-1] else row)
    return torch.stack([x.double() for x in values]), torch.stack(where)


def _gates(a: Analysis, valid: Tensor) -> Tensor:
    """Sum the numbers of the gates over the sequences, [G * 3, T]."""
    if not a.gates:
        return a.residual
    parts = torch.stack([x for gate in a.gates.values() for x in (gate.low, gate.high, gate.mean)])
    return parts.masked_fill_(~valid, 0).sum(-1)


def _number(x: Tensor | None, like: Tensor) -> Tensor:
    return like.new_full((), math.nan) if x is None else x.to(like.dtype)


def _root_mean_square(errors: Tensor, valid: Tensor) -> Tensor:
    """Compute the root mean square over the sequences with finite values, [T]."""
    finite = valid & errors.isfinite()
    squares = torch.where(finite, errors.double(), 0).square().sum(1)
    return (squares / finite.sum(1).clamp(min=1)).sqrt()


def _named(a: Analysis, host: Values) -> Values:
    """Split the statistics, and name them for the rows."""
    names = (*STATISTICS, "sequences", "nonfinite")
    values: Values = {"timesteps": np.asarray(np.count_nonzero(host["present"]))}
    kinds = [f"value/{name}" for name in a.values] + (["reach"] if len(a.reach) else [])
    for place, kind in enumerate(kinds):
        stop = len(a.reach) if kind == "reach" else None
        values |= {f"{kind}/{part}": host["spread"][place, :stop, n] for n, part in enumerate(names)}
    values |= {f"value/{name}/se": host[f"se/{name}"] for name in a.errors}
    numbers = iter(host["single"])
    values["residual"], values["gradient_residual"] = next(numbers), next(numbers)
    if a.gradient_residual is None:
        del values["gradient_residual"]
    for name, block in a.blocks.items():
        values |= {f"block/{name}/{part}": next(numbers) for part in BLOCKS}
        if block.eigenvalues is not None:
            real, imaginary = host[f"spectrum/{name}"].T
            values |= {f"spectrum/{name}/real": real, f"spectrum/{name}/imag": imaginary}
    if a.lyapunov is not None:
        values["lyapunov"] = next(numbers)
    means = host["gates"] / host["present"].clip(1)
    for place, name in enumerate(a.gates):
        values |= {f"gate/{name}/{part}": means[3 * place + n] for n, part in enumerate(("low", "high", "mean"))}
        values |= {f"unit/{name}/{part}": host["units"][2 * place + n] for n, part in enumerate(("low", "high"))}
    return values


def _aligned(a: Analysis) -> tuple[Analysis, Tensor]:
    """Move every sequence to its start in the chain; returns the analysis and a mask of the valid values, [T, B]."""
    steps = next(iter(a.values.values())).shape[0]
    if a.starts is None or not bool(a.starts.any()):
        return a, torch.arange(steps, device=a.lengths.device).unsqueeze(1) < a.lengths
    times = torch.arange(int((a.starts + a.lengths).max()), device=a.lengths.device).unsqueeze(1)
    source = times - a.starts

    def move(x: Tensor) -> Tensor:
        return x.gather(0, source.clamp(0, steps - 1))

    moved = {name: {k: move(v) for k, v in getattr(a, name).items()} for name in ("values", "measured", "errors")}
    gates = {
        name: replace(gate, low=move(gate.low), high=move(gate.high), mean=move(gate.mean))
        for name, gate in a.gates.items()
    }
    valid = (source >= 0) & (source < a.lengths)
    measured = {name: m & valid for name, m in moved.pop("measured").items()}
    return replace(a, gates=gates, measured=measured, **moved), valid


def _spread(values: Tensor, where: Tensor) -> Tensor:
    """Compute p10, p50, p90 (linear interpolation) and mean over the last dimension, and count: [..., 6].

    The last two are the numbers of sequences, and of non-finite values.

    Args:
        values: none below 0, [..., B]; overwritten.
        where: mask of the valid values, [..., B].
    """
    finite = where & (values < torch.inf)
    ranked = values.masked_fill_(~finite, torch.nan).sort(-1).values  # NaN last
    count, present = finite.sum(-1, keepdim=True), where.sum(-1, keepdim=True)
    position = _quantiles(values.device) * (count - 1).clamp_(min=0)
    below, above = ranked.gather(-1, position.long()), ranked.gather(-1, position.ceil().long())
    quantiles, mean = torch.lerp(below, above, position.frac_()), values.nansum(-1, keepdim=True) / count
    return torch.cat([quantiles, mean, present, present - count], -1)


@functools.lru_cache(maxsize=16)
def _quantiles(device: torch.device) -> Tensor:
    return torch.tensor(QUANTILES, dtype=torch.float64, device=device)


def _median(values: Tensor) -> Tensor:
    """Compute the median, with the mean of the middle two, even infinite ones; NaN for no values."""
    if not len(values):
        return values.new_full((), math.nan)
    ranked = values.sort().values
    return (ranked[(len(values) - 1) // 2] + ranked[len(values) // 2]) / 2


def _to_host(parts: Mapping[str, Tensor]) -> Values:
    """Copy all parts from the device at once; each keeps its shape, in float64."""
    flat = torch.cat([x.flatten() for x in parts.values()]).double().cpu().numpy()  # one of them is float64
    ends = np.cumsum([x.numel() for x in parts.values()])
    pieces = zip(parts.items(), np.split(flat, ends[:-1]), strict=True)
    return {name: piece.reshape(tuple(x.shape)) for (name, x), piece in pieces}
