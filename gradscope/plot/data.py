"""The numbers behind each figure, as small frames. Reports show the same numbers beside their pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.errors import GradscopeError
from gradscope.types import LATE, LayerKey, loss
from gradscope.types.clips import limiting, looked_at

if TYPE_CHECKING:
    from gradscope.record import RunData

QUANTILES = ("p10", "p50", "p90")
MAX_CELLS = 400
"""Most columns of a heatmap and points of a line; longer sequences appear in bins of several timesteps."""
MAX_POINTS = 1_000
"""Most optimizer steps drawn one by one."""
CALM = 25
"""A running median spans this part of all points to either side, and never more than to the first point; fewer points
than this have no running median."""

Layer = LayerKey | str | None
Steps = int | slice | Iterable[int] | None
Array = np.ndarray[Any, np.dtype[Any]]
Frame = Any
"""A `pandas.DataFrame`; pandas does not type its columns."""


def read(run: RunData, table: str, columns: Sequence[str], filters: dict[str, Any]) -> Frame:
    """Read some columns of some rows, and nothing else from the disk; infinite numbers become NaN."""
    rows = run.source.read(table, filters, columns)
    return rows.replace([np.inf, -np.inf], np.nan)


def chosen(run: RunData, layer: Layer) -> list[LayerKey]:
    """Select layers: all layers, the layers of a module, or one layer.

    Raises:
        GradscopeError: the run has no such layer.
    """
    keys = run.layers
    if layer is None:
        return keys
    layers = [key for key in keys if layer in (key, key.module)]
    if not layers:
        names = ", ".join(sorted({repr(key.module) for key in keys})) or "none"
        raise GradscopeError(f"the run has no layer {layer!r}; its modules with recurrent layers: {names}")
    return layers


def one(run: RunData, layer: Layer) -> LayerKey | None:
    """Select one layer; None in a run without layers.

    Raises:
        GradscopeError: the run has no such layer, or several.
    """
    layers = chosen(run, layer)
    if len(layers) > 1:
        raise GradscopeError(f"this figure shows one layer, not {len(layers)}: pass layer=run.layers[i]")
    return layers[0] if layers else None


def recorded(run: RunData, key: LayerKey) -> list[int]:
    """List a layer's recorded steps with finite gradients, or all recorded steps if there are none."""
    records = run.source.read("layers", key._asdict(), ["step", "horizon"])
    finite = records[sound(run, records)]
    return sorted(set((finite if len(finite) else records)["step"].tolist()))


def sound(run: RunData, records: Frame) -> Any:
    """Mark rows of `layers` with finite gradients of the step, or with a known horizon."""
    unknown = records["horizon"].isna()
    if not unknown.any():
        return ~unknown
    broken = run.source.read("steps", {"nonfinite": slice(1, None)}, ["step"])["step"]
    return ~(unknown & records["step"].isin(set(broken)))


def of(run: RunData, key: LayerKey, step: Steps) -> dict[str, Any]:
    """Make filters for a layer and steps, by default the last finite records."""
    return {**key._asdict(), "step": recorded(run, key)[-LATE:] if step is None else step}


def binned(positions: Array) -> tuple[Array, int]:
    """Return the middle of each position's bin, and the width of the bins: 1 for sequences of ordinary length."""
    last = int(positions.max()) if len(positions) else 0
    width = -(-(last + 1) // MAX_CELLS)
    return (positions if width == 1 else positions // width * width + width // 2), width


def spread(run: RunData, key: LayerKey, quantity: str, step: Steps = None) -> Frame:
    """Return a quantity by timestep: columns `t`, `p10`, `p50`, `p90`, `nonfinite`, the median over the steps."""
    filters = {**of(run, key, step), "quantity": quantity}
    return _median(read(run, "timesteps", ["t", *QUANTILES, "nonfinite"], filters), "t")


def reached(run: RunData, key: LayerKey, step: Steps = None) -> Frame:
    """Return reach by lag: columns `lag`, `p10`, `p50`, `p90`, `nonfinite`, the median over the steps."""
    return _median(read(run, "reach", ["lag", *QUANTILES, "nonfinite"], of(run, key, step)), "lag")


def _median(frame: Frame, over: str) -> Frame:
    by_position = frame.groupby(over)
    medians = by_position[list(QUANTILES)].median().assign(nonfinite=by_position["nonfinite"].sum())
    middle, width = binned(medians.index.to_numpy())
    if width > 1:  # the extremes of a bin stay visible in its band
        medians = medians.groupby(middle).agg({"p10": "min", "p50": "median", "p90": "max", "nonfinite": "sum"})
    return medians.rename_axis(over).reset_index()


def over_training(run: RunData, key: LayerKey, quantity: str) -> Frame:
    """Return the median of a quantity, steps x timesteps."""
    rows = read(run, "timesteps", ["step", "t", "p50"], {**key._asdict(), "quantity": quantity})
    rows["t"] = binned(rows["t"].to_numpy())[0]
    return rows.pivot_table("p50", "step", "t", aggfunc="median", dropna=False)


def saturated(run: RunData, key: LayerKey, over: str, step: Steps = None) -> Frame:
    """Return gate saturation by `t` or `step`: columns `gate`, `over`, `low`, `high`, the mean over the other."""
    filters = of(run, key, step) if over == "t" else {**key._asdict(), "step": recorded(run, key)}
    frame = read(run, "gates", ["step", "t", "gate", "low", "high"], filters)
    if over == "t":
        frame["t"] = binned(frame["t"].to_numpy())[0]
    return frame.groupby(["gate", over], sort=False)[["low", "high"]].mean().reset_index()


def units(run: RunData, key: LayerKey, step: Steps = None) -> Frame:
    """Return each unit's saturation: columns `gate`, `unit`, `low`, `high`, the mean over the steps."""
    frame = read(run, "units", ["gate", "unit", "low", "high"], of(run, key, step))
    return frame.groupby(["gate", "unit"], sort=False)[["low", "high"]].mean().reset_index()


def horizons(run: RunData, key: LayerKey) -> Frame:
    """Return a layer's horizon by step: columns `step`, `horizon`, `horizon_censored`, `decay`, `timesteps`."""
    frame = read(run, "layers", ["step", "horizon", "horizon_censored", "decay", "timesteps"], key._asdict())
    by_step = frame.groupby("step")
    medians = by_step[["horizon", "decay", "timesteps"]].median()
    return medians.assign(horizon_censored=by_step["horizon_censored"].mean() > 0.5).reset_index()


def updates(run: RunData, key: LayerKey) -> Frame:
    """Return the known changes of the recurrent blocks by each step: columns `gate`, `step`, `update`."""
    known = read(run, "weights", ["step", "gate", "update"], key._asdict()).dropna(subset=["update"])
    return known.groupby(["gate", "step"], sort=False)["update"].median().reset_index()


def eigenvalues(run: RunData, key: LayerKey, step: Steps = None) -> Frame:
    """Return eigenvalues of the recurrent blocks at the last of the steps: columns `gate`, `real`, `imag`."""
    frame = read(run, "spectra", ["step", "gate", "real", "imag"], of(run, key, step))
    return frame[frame["step"] == frame["step"].max()][["gate", "real", "imag"]].drop_duplicates(ignore_index=True)


def norms(run: RunData) -> Frame:
    """Return gradient norms by optimizer step: columns `step`, `before`, `after`, `threshold`, `clipped`, `kind`.

    One row per measured call that can clip; without any, one row per step with a look, with the norm of the recurrent
    gradients and an empty `kind`.
    """
    columns = ["step", "kind", "how", "threshold", "norm_before", "norm_after", "clipped", "nonfinite"]
    calls = limiting(run.source.read("clips", None, columns)).replace([np.inf, -np.inf], np.nan)
    if len(calls):
        names = {"norm_before": "before", "norm_after": "after"}
        return calls.rename(columns=names)[["step", "before", "after", "threshold", "clipped", "kind"]]
    steps = run.source.read("steps", None, ["step", "grad_norm", "nonfinite"])
    steps = steps[looked_at(steps)].replace([np.inf, -np.inf], np.nan)
    blank = {"after": steps["grad_norm"], "threshold": np.nan, "clipped": False, "kind": ""}
    return steps.rename(columns={"grad_norm": "before"})[["step", "before"]].assign(**blank)


def binned_norms(frame: Frame) -> Frame:
    """Reduce the result of `norms` to bins of steps: medians, and the 10th and 90th percentile before clipping.

    Columns `step` (the first of its bin), `p10`, `before`, `p90`, `after`, `threshold`, `clipped` (share), `calls`.
    """
    if frame.empty:
        return frame.assign(p10=[], p90=[], calls=[])
    bins = frame.groupby(_bins(frame["step"]))
    before = bins["before"]
    columns = {"p10": before.quantile(0.1), "before": before.median(), "p90": before.quantile(0.9)}
    columns |= {name: bins[name].median() for name in ("after", "threshold")}
    return bins["clipped"].mean().to_frame().assign(**columns, calls=bins.size()).reset_index()


def _bins(steps: Frame) -> Frame:
    """Return the first step of each step's bin: the step itself unless there are too many."""
    width = max(1, -(-int(steps.max() - steps.min() + 1) // MAX_POINTS))
    return steps // width * width


def losses(run: RunData) -> Frame:
    """Return the known losses by optimizer step: columns `step`, `loss`, `nonfinite` (1 or 0)."""
    known = loss.known_losses(run.source.read("steps", None, ["step", "loss", "nonfinite"]))
    infinite = ~np.isfinite(known["loss"].to_numpy(float))
    return known[["step", "loss"]].assign(nonfinite=infinite.astype(int)).sort_values("step", ignore_index=True)


def binned_losses(frame: Frame) -> Frame:
    """Reduce the result of `losses` to bins of steps, with a running median of the bins.

    Columns `step` (the first of its bin), `p10`, `loss` (median), `p90`, `running`, `nonfinite`, `steps`.
    """
    if frame.empty:
        return frame.assign(p10=[], p90=[], running=[], steps=[])
    finite = frame["loss"].where(frame["nonfinite"] == 0)
    bins, by_bin = (column.groupby(_bins(frame["step"])) for column in (finite, frame["nonfinite"]))
    columns = {"p10": bins.quantile(0.1), "loss": bins.median(), "p90": bins.quantile(0.9)}
    columns["running"] = running_median(columns["loss"].to_numpy())
    table = by_bin.sum().to_frame().assign(**columns, steps=by_bin.size()).rename_axis("step").reset_index()
    return table[["step", "p10", "loss", "p90", "running", "nonfinite", "steps"]]


def running_median(values: Array) -> Array:
    """Compute the median around each value, of fewer at the start, so that a steep start stays steep; NaN stays NaN."""
    wide = len(values) // CALM
    near = (values[place - min(place, wide) : place + min(place, wide) + 1] for place in range(len(values)))
    return np.array(
        [np.nan if np.isnan(value) else np.nanmedian(some) for value, some in zip(values, near, strict=True)]
    )


def would_clip(run: RunData, points: int = 101) -> Frame:
    """Compute the effect of other thresholds: columns `threshold`, `share` of the norms above it.

    The thresholds are percentiles of the norms before clipping.
    """
    import pandas as pd

    sizes = norms(run)["before"].to_numpy(float)
    sizes = np.sort(sizes[np.isfinite(sizes) & (sizes > 0)])
    if not len(sizes):
        return pd.DataFrame({"threshold": [], "share": []}, dtype=float)
    thresholds = np.unique(np.quantile(sizes, np.linspace(0, 1, points)))
    shares = 1 - np.searchsorted(sizes, thresholds, "right") / len(sizes)
    return pd.DataFrame({"threshold": thresholds, "share": shares})
