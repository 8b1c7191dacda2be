"""Rows of the layer tables from an analysis, with NaN and notes for values that fail the certificate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gradscope.record.statistics import BLOCKS, STATISTICS, Array, Values, statistics
from gradscope.types import HORIZON_SHARE, Analysis, LayerKey, Rows

GRADIENT_SLACK = 4  # rounding differences grow on the way back through time
COARSE = 1e-2
OF_GRADIENTS = frozenset({"grad_h", "grad_h_direct", "grad_c", "weight_grad"})
STATES_DIFFER = (
    "the layer rebuilt from torch's equations differs from the layer's own result (relative difference "
    "{residual:.2g}): its class, gate order or weights are not those of torch.nn"
)
GRADIENTS_DIFFER = (
    "the rebuilt gradient of weight_hh differs from the accumulated one (relative difference {residual:.2g}): "
    "part of the loss reaches this layer on a path that gradscope does not observe, or reaches its weights directly, "
    "such as a penalty"
)
TOTALS_DIFFER = (
    "the total gradients that follow from the cell's Jacobians differ from autograd's (relative difference "
    "{residual:.2g}), and the record has autograd's: the new state depends on other sequences of the batch "
    "(BatchNorm), the spec's transition is not the cell's, or the cell's output depends on the earlier state by "
    "another path than the new state"
)
OVERFLOWED = (
    "the layer's states overflow in 16-bit numbers, but not in the layer rebuilt in float32: gradscope cannot compare "
    "them, and leaves the values out"
)
ROUNDED = (
    "the gradient rebuilt in float32 differs from the one accumulated in 16-bit numbers (relative difference "
    "{residual:.2g}): rounding has changed it on its way back, or gradscope has not observed part of the loss"
)


def summarise(step: int, key: LayerKey, analysis: Analysis) -> list[Rows]:
    """Make the rows of all layer tables for one layer of one call."""
    host = statistics(analysis)
    unusable = _unusable(analysis, host)
    for name, values in host.items():
        if _withheld(name, unusable) and _quantity(name) not in analysis.witnessed:
            host[name] = np.zeros_like(values) if name.endswith("/nonfinite") else np.full_like(values, np.nan)
    head = {"step": step, **key._asdict()}
    rows = [Rows(table, {**head, **columns}) for table, columns in _tables(analysis, host)]
    return [*rows, *(Rows("notes", {**head, "reason": reason}) for reason in unusable.values())]


def _unusable(a: Analysis, host: Values) -> dict[str, str]:
    """Return the invalid values, `all` or `gradients`, with the reason."""
    if a.reason:
        return {"all": a.reason}
    residual = float(host["residual"])
    if not residual <= a.tolerance:
        overflowed = a.tolerance > COARSE and math.isinf(residual)
        return {"all": OVERFLOWED if overflowed else STATES_DIFFER.format(residual=residual)}
    if "gradient_residual" in host:
        residual = float(host["gradient_residual"])
        # An overflowed gradient cannot be compared: the records show it as it is.
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
    """Return the quantity of `timesteps` in a name, or an empty text."""
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
    """True if a block of rows counts non-finite values, or has a residual that is not finite."""
    counts, residual = rows.columns.get("nonfinite", 0), rows.columns.get("residual", 0.0)
    return bool(np.any(counts)) or not math.isfinite(residual)


def horizon_and_decay(reach: Array) -> tuple[float, bool, float]:
    """Compute the first lag with a median reach below 1e-3, whether there is none, and the slope in decades per lag.

    Args:
        reach: median reach by lag, [lags]; NaN where unknown.

    Returns:
        NaN, False, NaN without any reach; the slope is NaN with fewer than two lags above the floor.
    """
    known = np.isfinite(reach)
    if not known.any():
        return math.nan, False, math.nan
    below = np.flatnonzero(known & (reach < HORIZON_SHARE))
    horizon, censored = (int(below[0]), False) if len(below) else (len(reach) - 1, True)
    lags = np.flatnonzero(known & (reach >= HORIZON_SHARE))
    if len(lags) < 2:
        return horizon, censored, math.nan
    centred, heights = lags - lags.mean(), np.log10(reach[lags])
    return horizon, censored, float(centred @ (heights - heights.mean()) / (centred @ centred))
