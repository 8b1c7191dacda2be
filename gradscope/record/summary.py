"""From an analysis on the device to rows on the host: statistics over sequences, and one copy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradscope.types import Analysis, LayerKey, Rows

FLOOR = 1e-3
GRADIENT_SLACK = 4  # rounding differences grow on the way back through time
COARSE = 1e-2
STATISTICS = ("p10", "p50", "p90", "mean")
BLOCKS = ("spectral_radius", "spectral_norm", "orthogonality", "update")
QUANTILES = (0.1, 0.5, 0.9)
OF_GRADIENTS = frozenset({"grad_h", "grad_h_direct", "grad_c", "weight_grad"})
STATES_DIFFER = (
    "the layer rebuilt from torch's equations differs from what it computed (relative difference {residual:.2g}): "
    "its class, gate order or weights are not those of torch.nn"
)
GRADIENTS_DIFFER = (
    "the rebuilt gradient of weight_hh differs from the accumulated one (relative difference {residual:.2g}): "
    "part of the loss reaches this layer by a way that was not observed, or its weights by another, such as a penalty"
)
TOTALS_DIFFER = (
    "the total gradients that follow from the cell's Jacobians differ from those of autograd (relative difference "
    "{residual:.2g}), which are given: the new state depends on more than the call's own sequence, such as the others "
    "of the batch (BatchNorm), the transition given is not that of the cell, or what it returns beside the state "
    "follows from the earlier state by a way of its own"
)
OVERFLOWED = (
    "the layer's states overflow in 16-bit numbers, and rebuilt in float32 they do not: what cannot be compared is "
    "not given"
)
ROUNDED = (
    "the gradient rebuilt in float32 differs from the one accumulated in 16-bit numbers (relative difference "
    "{residual:.2g}): rounding has changed it on its way back, or part of the loss was not observed"
)

Array = np.ndarray[Any, np.dtype[Any]]
Values = dict[str, Array]


def summarise(step: int, key: LayerKey, analysis: Analysis) -> list[Rows]:
    """Rows of all layer tables for one layer of one call.

    Args:
        step: number of the optimizer step.
        key: which layer.
        analysis: its measurements, on any device.
    """
    host = _statistics(analysis)
    unusable = _unusable(analysis, host)
    for name, values in host.items():
        if _withheld(name, unusable) and _quantity(name) not in analysis.witnessed:
            host[name] = np.zeros_like(values) if name.endswith("/nonfinite") else np.full_like(values, np.nan)
    head = {"step": step, **key._asdict()}
    rows = [Rows(table, {**head, **columns}) for table, columns in _tables(analysis, host)]
    return [*rows, *(Rows("notes", {**head, "reason": reason}) for reason in unusable.values())]


def _statistics(a: Analysis) -> Values:
    """Everything that the rows need, on the host, by name; brought there in one copy."""
    a, valid = _aligned(a)
    blocks = [getattr(block, part) for block in a.blocks.values() for part in BLOCKS]
    single = [a.residual, a.gradient_residual, *blocks]
    lyapunov = [] if a.lyapunov is None else [_median(a.lyapunov[~a.lyapunov.isnan()])]
    parts = {
        "spread": _spread(*_stacked(a, valid)),
        "single": torch.stack([_number(x, a.residual) for x in (*single, *lyapunov)]),
        "timesteps": valid.any(1).sum(),
        "gates": _gates(a, valid),
        "units": torch.stack([x for gate in a.gates.values() for x in (gate.unit_low, gate.unit_high)] or [a.residual]),
        **{
            f"spectrum/{g}": torch.view_as_real(b.eigenvalues) for g, b in a.blocks.items() if b.eigenvalues is not None
        },
        **{f"se/{name}": _root_mean_square(errors, valid) for name, errors in a.errors.items()},
    }
    return _named(a, _to_host(parts))


def _stacked(a: Analysis, valid: Tensor) -> tuple[Tensor, Tensor]:
    """All quantities, and `reach` last, as [Q, T, B], and where they count."""
    values = torch.stack([x.double() for x in a.values.values()])
    where = valid.expand_as(values)
    if a.measured:
        where = torch.stack([a.measured.get(name, valid) for name in a.values])
    if not len(a.reach):
        return values, where
    missing = (0, 0, 0, len(valid) - len(a.reach))
    reach = torch.nn.functional.pad(a.reach.double(), missing)
    reached = torch.nn.functional.pad(a.reached, missing)
    return torch.cat([values, reach.unsqueeze(0)]), torch.cat([where, reached.unsqueeze(0)])


def _gates(a: Analysis, valid: Tensor) -> Tensor:
    """Mean over the sequences of what gates do at each timestep, [G * 3, T]."""
    if not a.gates:
        return a.residual
    parts = torch.stack([x for gate in a.gates.values() for x in (gate.low, gate.high, gate.mean)])
    return parts.masked_fill(~valid, 0).sum(-1) / valid.sum(1).clamp(min=1)


def _number(x: Tensor | None, like: Tensor) -> Tensor:
    return like.new_full((), math.nan) if x is None else x.to(like.dtype)


def _root_mean_square(errors: Tensor, valid: Tensor) -> Tensor:
    """Over the sequences, of those that are finite, [T]."""
    finite = valid & errors.isfinite()
    squares = torch.where(finite, errors.double(), 0).square().sum(1)
    return (squares / finite.sum(1).clamp(min=1)).sqrt()


def _named(a: Analysis, host: Values) -> Values:
    """The statistics one by one, by the names under which rows look for them."""
    names = (*STATISTICS, "sequences", "nonfinite")
    found: Values = {"timesteps": host["timesteps"]}
    kinds = [f"value/{name}" for name in a.values] + (["reach"] if len(a.reach) else [])
    for place, kind in enumerate(kinds):
        stop = len(a.reach) if kind == "reach" else None
        found |= {f"{kind}/{part}": host["spread"][place, :stop, n] for n, part in enumerate(names)}
    found |= {f"value/{name}/se": host[f"se/{name}"] for name in a.errors}
    numbers = iter(host["single"])
    found["residual"], found["gradient_residual"] = next(numbers), next(numbers)
    if a.gradient_residual is None:
        del found["gradient_residual"]
    for name, block in a.blocks.items():
        found |= {f"block/{name}/{part}": next(numbers) for part in BLOCKS}
        if block.eigenvalues is not None:
            real, imaginary = host[f"spectrum/{name}"].T
            found |= {f"spectrum/{name}/real": real, f"spectrum/{name}/imag": imaginary}
    if a.lyapunov is not None:
        found["lyapunov"] = next(numbers)
    for place, name in enumerate(a.gates):
        found |= {f"gate/{name}/{part}": host["gates"][3 * place + n] for n, part in enumerate(("low", "high", "mean"))}
        found |= {f"unit/{name}/{part}": host["units"][2 * place + n] for n, part in enumerate(("low", "high"))}
    return found


def _aligned(a: Analysis) -> tuple[Analysis, Tensor]:
    """Every sequence moved to where it begins in the chain, and where there is anything, [T, B]."""
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
    """p10, p50, p90 (linear interpolation) and mean over the last dimension, sequences and non-finite ones: [..., 6].

    Args:
        values: [..., B].
        where: which of them count, [..., B].
    """
    finite = where & values.isfinite()
    count = finite.sum(-1, keepdim=True)
    last, known = (count - 1).clamp_(min=0), torch.where(finite, values, torch.inf)
    ranked = known.sort(-1).values
    position = torch.tensor(QUANTILES, dtype=torch.float64, device=values.device) * last
    low = position.long()
    below, above = ranked.gather(-1, low), ranked.gather(-1, torch.minimum(low + 1, last))
    quantiles = torch.where(count == 0, torch.nan, torch.lerp(below, above, position - low))
    mean = torch.where(finite, values, 0).sum(-1, keepdim=True) / count
    present = where.sum(-1, keepdim=True)
    return torch.cat([quantiles, mean, present, present - count], -1)


def _median(values: Tensor) -> Tensor:
    """With the mean of the middle two, also where they are infinite; NaN of nothing."""
    if not len(values):
        return values.new_full((), math.nan)
    ranked = values.sort().values
    return (ranked[(len(values) - 1) // 2] + ranked[len(values) // 2]) / 2


def _to_host(parts: Mapping[str, Tensor]) -> Values:
    """One copy from the device; each part in its own form, in float64."""
    flat = torch.cat([x.reshape(-1).double() for x in parts.values()]).cpu().numpy()
    ends = np.cumsum([x.numel() for x in parts.values()])
    pieces = zip(parts.items(), np.split(flat, ends[:-1]), strict=True)
    return {name: piece.reshape(tuple(x.shape)) for (name, x), piece in pieces}


def _unusable(a: Analysis, host: Values) -> dict[str, str]:
    """What cannot be given, `all` or `gradients`, and why."""
    if a.reason:
        return {"all": a.reason}
    residual = float(host["residual"])
    if not residual <= a.tolerance:
        overflowed = a.tolerance > COARSE and math.isinf(residual)
        return {"all": OVERFLOWED if overflowed else STATES_DIFFER.format(residual=residual)}
    if "gradient_residual" in host:
        residual = float(host["gradient_residual"])
        # Where the gradient itself overflowed there is nothing to compare: the records show it as it is.
        if residual > GRADIENT_SLACK * a.tolerance and math.isfinite(residual):
            if a.witnessed and a.tolerance <= COARSE:
                return {"all": TOTALS_DIFFER.format(residual=residual)}
            reason = ROUNDED if a.tolerance > COARSE else GRADIENTS_DIFFER
            return {"gradients": reason.format(residual=residual)}
    return {}


def _withheld(name: str, unusable: Mapping[str, str]) -> bool:
    kind = name.partition("/")[0]
    if not unusable or kind in ("residual", "gradient_residual", "timesteps") or name.endswith("/sequences"):
        return False
    if "all" in unusable:
        return True
    return kind == "reach" or _quantity(name) in OF_GRADIENTS


def _quantity(name: str) -> str:
    """Of `timesteps`; empty where the name is of something else."""
    kind, _, rest = name.partition("/")
    return rest.split("/")[0] if kind == "value" else ""


def _tables(a: Analysis, host: Values) -> Iterator[tuple[str, dict[str, Any]]]:
    steps = np.arange(int(host["timesteps"]))
    n = len(steps)
    for name in a.values:
        rows = host[f"value/{name}/sequences"][:n] > 0
        spread = {part: host[f"value/{name}/{part}"][:n][rows] for part in STATISTICS}
        errors = host.get(f"value/{name}/se")
        yield (
            "timesteps",
            {
                "t": steps[rows],
                "quantity": name,
                **spread,
                "se": 0.0 if errors is None else errors[:n][rows],
                **_counts(host, f"value/{name}", rows, n),
            },
        )
    if "reach/p50" in host:
        lags = np.arange(len(host["reach/p50"]))
        spread = {part: host[f"reach/{part}"] for part in STATISTICS}
        yield "reach", {"lag": lags, **spread, **_counts(host, "reach", slice(None), len(lags))}
    for gate in a.gates:
        yield "gates", {"t": steps, "gate": gate, **{p: host[f"gate/{gate}/{p}"][:n] for p in ("low", "high", "mean")}}
        units = {part: host[f"unit/{gate}/{part}"] for part in ("low", "high")}
        yield "units", {"gate": gate, "unit": np.arange(len(units["low"])), **units}
    yield from _weight_tables(a, host)
    yield "layers", _layer_row(host)


def _weight_tables(a: Analysis, host: Values) -> Iterator[tuple[str, dict[str, Any]]]:
    for gate, block in a.blocks.items():
        yield "weights", {"gate": gate, **{part: float(host[f"block/{gate}/{part}"]) for part in BLOCKS}}
        if block.eigenvalues is not None:
            spectrum = {part: host[f"spectrum/{gate}/{part}"] for part in ("real", "imag")}
            yield "spectra", {"gate": gate, "index": np.arange(len(spectrum["real"])), **spectrum}


def _counts(host: Values, name: str, rows: Array | slice, n: int) -> dict[str, Array]:
    return {part: host[f"{name}/{part}"][:n][rows].astype(np.int64) for part in ("sequences", "nonfinite")}


def _layer_row(host: Values) -> dict[str, Any]:
    horizon, censored, decay = horizon_and_decay(host.get("reach/p50", np.empty(0)))
    residuals = [float(host[name]) for name in ("residual", "gradient_residual") if name in host]
    return {
        "horizon": horizon,
        "horizon_censored": censored,
        "decay": decay,
        "lyapunov": float(host["lyapunov"]) if "lyapunov" in host else math.nan,
        "residual": max(residuals, key=lambda r: math.inf if math.isnan(r) else r),
        "timesteps": int(host["timesteps"]),
    }


def nonfinite(rows: Rows) -> bool:
    """Whether a block tells of values that are not finite: counted, or such that nothing could be certified."""
    counts, residual = rows.columns.get("nonfinite", 0), rows.columns.get("residual", 0.0)
    return bool(np.any(counts)) or not math.isfinite(residual)


def horizon_and_decay(reach: Array) -> tuple[float, bool, float]:
    """First lag at which median reach falls below 1e-3, whether it never does, and its slope in decades per lag.

    Args:
        reach: median reach by lag, [lags]; NaN where it is not known.

    Returns:
        NaN, False, NaN without any reach; the slope is NaN with fewer than two lags above the floor.
    """
    known = np.isfinite(reach)
    if not known.any():
        return math.nan, False, math.nan
    below = np.flatnonzero(known & (reach < FLOOR))
    horizon, censored = (int(below[0]), False) if len(below) else (len(reach) - 1, True)
    lags = np.flatnonzero(known & (reach >= FLOOR))
    if len(lags) < 2:
        return horizon, censored, math.nan
    centred, heights = lags - lags.mean(), np.log10(reach[lags])
    return horizon, censored, float(centred @ (heights - heights.mean()) / (centred @ centred))
