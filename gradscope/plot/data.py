"""The numbers behind each figure: what is drawn, as small frames. Reports show the same ones beside their pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.errors import GradscopeError
from gradscope.types import LayerKey, loss
from gradscope.types.clips import limiting, looked_at

if TYPE_CHECKING:
    from gradscope.record import RunData

LATE = 4
"""Recorded steps at the end that are taken together, as a single batch tells little."""
QUANTILES = ("p10", "p50", "p90")
MAX_CELLS = 400
"""Columns of a heatmap and points of a line, at most; longer sequences are drawn in bins of several timesteps."""
MAX_POINTS = 1_000
"""Optimizer steps drawn one by one, at most."""
CALM = 25
"""A running median looks this part of all points to either side, and never further than to the first point; with fewer
points than this, each stands for itself."""

Layer = LayerKey | str | None
Steps = int | slice | Iterable[int] | None
Array = np.ndarray[Any, np.dtype[Any]]
Frame = Any
"""A `pandas.DataFrame`: what pandas says of the types of its columns is too little to check by."""


def read(run: RunData, table: str, columns: Sequence[str], filters: dict[str, Any]) -> Frame:
    """Some columns of some rows, and nothing else from the disk; infinite numbers become NaN."""
    found = run.source.read(table, filters, columns)
    return found.replace([np.inf, -np.inf], np.nan)


def chosen(run: RunData, layer: Layer) -> list[LayerKey]:
    """The layers meant: all of them, those of a module, or one.

    Raises:
        GradscopeError: the run has no such layer.
    """
    keys = run.layers
    if layer is None:
        return keys
    found = [key for key in keys if layer in (key, key.module)]
    if not found:
        names = ", ".join(sorted({repr(key.module) for key in keys})) or "none"
        raise GradscopeError(f"the run has no layer {layer!r}; its modules with recurrent layers: {names}")
    return found


def one(run: RunData, layer: Layer) -> LayerKey | None:
    """The one layer meant; None in a run without any.

    Raises:
        GradscopeError: the run has no such layer, or several.
    """
    found = chosen(run, layer)
    if len(found) > 1:
        raise GradscopeError(f"this figure shows one layer, and {len(found)} are meant: pass layer=run.layers[i]")
    return found[0] if found else None


def label(key: LayerKey) -> str:
    """A layer's name on a figure."""
    chain = f" chain {key.chain}" if key.chain else ""
    return f"{key.module or 'model'}[{key.layer}]{'' if key.direction == 'forward' else ' reverse'}{chain}"


def recorded(run: RunData, key: LayerKey) -> list[int]:
    """The steps of which a layer has records, up to where its gradients are not finite any more, if ever they were."""
    records = run.source.read("layers", key._asdict(), ["step", "horizon"])
    found = records[sound(run, records)]
    return sorted(set((found if len(found) else records)["step"].tolist()))


def sound(run: RunData, records: Frame) -> Any:
    """Which rows of `layers` are of steps whose gradients are finite, or of layers that know their horizon there."""
    unknown = records["horizon"].isna()
    if not unknown.any():
        return ~unknown
    broken = run.source.read("steps", {"nonfinite": slice(1, None)}, ["step"])["step"]
    return ~(unknown & records["step"].isin(set(broken)))


def of(run: RunData, key: LayerKey, step: Steps) -> dict[str, Any]:
    """Filters for a layer at the steps meant, the last finite records by default."""
    return {**key._asdict(), "step": recorded(run, key)[-LATE:] if step is None else step}


def binned(positions: Array) -> tuple[Array, int]:
    """The middle of the bin of each position, and the width of the bins: 1 for sequences of ordinary length."""
    last = int(positions.max()) if len(positions) else 0
    width = -(-(last + 1) // MAX_CELLS)
    return (positions if width == 1 else positions // width * width + width // 2), width


def spread(run: RunData, key: LayerKey, quantity: str, step: Steps = None) -> Frame:
    """A quantity by timestep: columns `t`, `p10`, `p50`, `p90`, `nonfinite`, the median over the steps."""
    filters = {**of(run, key, step), "quantity": quantity}
    return _gathered(read(run, "timesteps", ["t", *QUANTILES, "nonfinite"], filters), "t")


def reached(run: RunData, key: LayerKey, step: Steps = None) -> Frame:
    """Reach by lag: columns `lag`, `p10`, `p50`, `p90`, `nonfinite`, the median over the steps."""
    return _gathered(read(run, "reach", ["lag", *QUANTILES, "nonfinite"], of(run, key, step)), "lag")


def _gathered(frame: Frame, over: str) -> Frame:
    by_position = frame.groupby(over)
    found = by_position[list(QUANTILES)].median().assign(nonfinite=by_position["nonfinite"].sum())
    middle, width = binned(found.index.to_numpy())
    if width > 1:  # the extremes of a bin stay visible in its band
        found = found.groupby(middle).agg({"p10": "min", "p50": "median", "p90": "max", "nonfinite": "sum"})
    return found.rename_axis(over).reset_index()


def over_training(run: RunData, key: LayerKey, quantity: str) -> Frame:
    """The median of a quantity, steps x timesteps."""
    found = read(run, "timesteps", ["step", "t", "p50"], {**key._asdict(), "quantity": quantity})
    found["t"] = binned(found["t"].to_numpy())[0]
    return found.pivot_table("p50", "step", "t", aggfunc="median", dropna=False)


def saturated(run: RunData, key: LayerKey, over: str, step: Steps = None) -> Frame:
    """Gate saturation by `t` or by `step`: columns `gate`, `over`, `low`, `high`, the mean over the other."""
    filters = of(run, key, step) if over == "t" else {**key._asdict(), "step": recorded(run, key)}
    frame = read(run, "gates", ["step", "t", "gate", "low", "high"], filters)
    if over == "t":
        frame["t"] = binned(frame["t"].to_numpy())[0]
    return frame.groupby(["gate", over], sort=False)[["low", "high"]].mean().reset_index()


def units(run: RunData, key: LayerKey, step: Steps = None) -> Frame:
    """Saturation of each unit: columns `gate`, `unit`, `low`, `high`, the mean over the steps."""
    frame = read(run, "units", ["gate", "unit", "low", "high"], of(run, key, step))
    return frame.groupby(["gate", "unit"], sort=False)[["low", "high"]].mean().reset_index()


def horizons(run: RunData, key: LayerKey) -> Frame:
    """A layer's horizon over training: columns `step`, `horizon`, `horizon_censored`, `decay`, `timesteps`."""
    frame = read(run, "layers", ["step", "horizon", "horizon_censored", "decay", "timesteps"], key._asdict())
    by_step = frame.groupby("step")
    found = by_step[["horizon", "decay", "timesteps"]].median()
    return found.assign(horizon_censored=by_step["horizon_censored"].mean() > 0.5).reset_index()


def updates(run: RunData, key: LayerKey) -> Frame:
    """How much each step's optimizer changed the recurrent blocks: columns `gate`, `step`, `update`, where known."""
    found = read(run, "weights", ["step", "gate", "update"], key._asdict()).dropna(subset=["update"])
    return found.groupby(["gate", "step"], sort=False)["update"].median().reset_index()


def eigenvalues(run: RunData, key: LayerKey, step: Steps = None) -> Frame:
    """Eigenvalues of the recurrent blocks at the last of the steps: columns `gate`, `real`, `imag`."""
    frame = read(run, "spectra", ["step", "gate", "real", "imag"], of(run, key, step))
    return frame[frame["step"] == frame["step"].max()][["gate", "real", "imag"]].drop_duplicates(ignore_index=True)


def norms(run: RunData) -> Frame:
    """Gradient norms by optimizer step: columns `step`, `before`, `after`, `threshold`, `clipped`, `kind`.

    One row per measured call that can clip; where there is none, the norm of the recurrent gradients by step that was
    looked at, `kind` empty.
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
    """What `norms` gave, with steps in bins where there are many: medians, and the 10th and 90th percentile before.

    Columns `step` (the first of its bin), `p10`, `before`, `p90`, `after`, `threshold`, `clipped` (share), `calls`.
    """
    if frame.empty:
        return frame.assign(p10=[], p90=[], calls=[])
    bins = frame.groupby(_bins(frame["step"]))
    before = bins["before"]
    found = {"p10": before.quantile(0.1), "before": before.median(), "p90": before.quantile(0.9)}
    found |= {name: bins[name].median() for name in ("after", "threshold")}
    return bins["clipped"].mean().to_frame().assign(**found, calls=bins.size()).reset_index()


def _bins(steps: Frame) -> Frame:
    """The first step of each step's bin: the step itself, where there are not too many."""
    width = max(1, -(-int(steps.max() - steps.min() + 1) // MAX_POINTS))
    return steps // width * width


def losses(run: RunData) -> Frame:
    """The loss of every optimizer step at which it was seen: columns `step`, `loss`, `nonfinite` (1 or 0)."""
    found = loss.seen(run.source.read("steps", None, ["step", "loss", "nonfinite"]))
    infinite = ~np.isfinite(found["loss"].to_numpy(float))
    return found[["step", "loss"]].assign(nonfinite=infinite.astype(int)).sort_values("step", ignore_index=True)


def binned_losses(frame: Frame) -> Frame:
    """What `losses` gave, with steps in bins where there are many, and a running median of the bins.

    Columns `step` (the first of its bin), `p10`, `loss` (median), `p90`, `running`, `nonfinite`, `steps`.
    """
    if frame.empty:
        return frame.assign(p10=[], p90=[], running=[], steps=[])
    finite = frame["loss"].where(frame["nonfinite"] == 0)
    bins, by_bin = (it.groupby(_bins(frame["step"])) for it in (finite, frame["nonfinite"]))
    found = {"p10": bins.quantile(0.1), "loss": bins.median(), "p90": bins.quantile(0.9)}
    found["running"] = running_median(found["loss"].to_numpy())
    table = by_bin.sum().to_frame().assign(**found, steps=by_bin.size()).rename_axis("step").reset_index()
    return table[["step", "p10", "loss", "p90", "running", "nonfinite", "steps"]]


def running_median(values: Array) -> Array:
    """The median around each value; at the beginning of fewer, so that a steep start stays steep. NaN stays NaN."""
    wide = len(values) // CALM
    near = (values[place - min(place, wide) : place + min(place, wide) + 1] for place in range(len(values)))
    return np.array(
        [np.nan if np.isnan(value) else np.nanmedian(some) for value, some in zip(values, near, strict=True)]
    )


def would_clip(run: RunData, points: int = 101) -> Frame:
    """What other thresholds would have done: columns `threshold`, `share` of the norms above it.

    The thresholds are the percentiles of the norms that were seen before clipping.
    """
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

    seen = norms(run)["before"].to_numpy(float)
    seen = np.sort(seen[np.isfinite(seen) & (seen > 0)])
    if not len(seen):
        return pd.DataFrame({"threshold": [], "share": []}, dtype=float)
    thresholds = np.unique(np.quantile(seen, np.linspace(0, 1, points)))
    return pd.DataFrame({"threshold": thresholds, "share": 1 - np.searchsorted(seen, thresholds, "right") / len(seen)})
