"""A sweep of small runs on the disk, each a little different; and its table, in plain pandas, run by run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from made_runs import META, layer

import gradscope
from gradscope.record import ParquetStore
from gradscope.types import Batch, LayerKey, Rows

HOSTILE = "'; DROP TABLE steps; -- [x]*?/rank=0/<b>$files"


def sweep(root: Path, number: int) -> list[str]:
    """Runs of 24 steps under `root`; the seventh has an awkward name, the last two no layers, and no steps at all."""
    names = [HOSTILE if place == 6 else f"lr={place % 3}/seed={place}" for place in range(number)]
    for place, name in enumerate(names):
        store = ParquetStore(root / name, META)
        for step in range(0 if place == number - 1 else 24):
            store.write(Batch(step, tuple(_rows(step, np.random.default_rng([place, step]), place, number))))
        store.close()
    return names


def _rows(step: int, random: np.random.Generator, place: int, number: int) -> list[Rows]:
    norm = np.nan if place == 3 and step in (5, 9) else float(random.lognormal())
    looked_at = place not in UNSEEN or step % 4 == 0
    loss, lost = _loss(step, place)
    told = {
        "optimizer": "SGD",
        "loss": loss,
        "grad_norm": norm if looked_at else np.nan,
        "recorded": step % 4 == 0,
        "skipped": place == 2 and step == 7,
    }
    rows = [Rows("steps", {**told, "nonfinite": int(np.isnan(norm) or lost), "overhead_s": 0.001, "step_s": 0.01})]
    if place % 4 and (looked_at or place % 4 != 3):
        kind = "value" if place in UNSEEN else "modified" if place % 4 == 3 else "norm"
        rows.append(Rows("clips", _clip(norm, kind, random) | ({} if looked_at else UNMEASURED)))
    if place == 5 and step == 0:
        rows.append(Rows("notes", {"module": "", "layer": -1, "direction": "", "chain": -1, "reason": "no reason"}))
    if step % 4 == 0 and place < number - 2:
        for index in range(1 + place % 3):
            rows += layer(LayerKey("encoder", index, "forward", 0), 8 + place % 5, float(random.uniform(-1, 0.1)))
    return rows


UNSEEN = (8, 9, 11)
"""Runs whose gradients are looked at in every fourth step only: without clipping, with clipping by value, by hand."""
UNMEASURED = {"norm_before": np.nan, "norm_after": np.nan, "coefficient": np.nan, "clipped": False}


def _loss(step: int, place: int) -> tuple[float, bool]:
    """A run's loss, and whether it is not finite: some see none, or not always, one loses it, one falls below 0."""
    if place == 1 or (place == 4 and (step < 5 or step % 3)):
        return np.nan, False
    if place == 3 and (step in (5, 9) or step > 21):
        return (np.inf if step == 9 else np.nan), True
    noise = np.random.default_rng([place, step, 0]).lognormal(0, 0.2)
    return float(2.3 / (1 + step) * noise) - 3 * (place == 7), False


def _clip(norm: float, kind: str, random: np.random.Generator) -> dict[str, Any]:
    how = "" if kind != "modified" else str(random.choice(["clamped", "scaled"]))
    told = {"index": 0, "kind": kind, "how": how, "threshold": 1.0, "norm_type": 2.0, "parameters": 4, "nonfinite": 0}
    return {**told, "norm_before": norm, "norm_after": min(norm, 1.0), "coefficient": 1.0, "clipped": norm > 1}


def by_pandas(run: gradscope.Run) -> dict[str, Any]:
    """One run's row of the fleet's table, but for its findings: from its frames, with nothing but pandas."""
    steps, clips, layers = run.frame("steps"), run.frame("clips"), run.frame("layers")
    key = ["module", "layer", "direction", "chain"]
    late = layers[layers.groupby(key)["step"].rank("dense", ascending=False) <= 4] if len(layers) else layers
    ends = late.groupby(key).agg(
        horizon=("horizon", "median"), decay=("decay", "median"), cut=("horizon_censored", "mean")
    )
    first = ends.assign(cut=ends["cut"] > 0.5).sort_values(["horizon", "cut"]).head(1)
    counts = (clips["kind"] != "modified") | (clips["how"] == "clamped")
    unmeasured = clips[counts & clips["norm_before"].isna() & (clips["nonfinite"] == 0)]["step"].nunique()
    called = (clips["kind"] != "modified").any()
    looked_at = (steps["grad_norm"].notna() | (steps["nonfinite"] > 0)).sum()
    attempts = len(steps) - unmeasured if called else looked_at
    finite = steps["grad_norm"][np.isfinite(steps["grad_norm"])]
    seconds = steps["step_s"].sum()
    return {
        "horizon": first["horizon"].iloc[0] if len(first) else np.nan,
        "horizon_censored": bool(first["cut"].iloc[0]) if len(first) else False,
        "timesteps": late["timesteps"].max() if len(late) else 0,
        "decay_min": ends["decay"].min(),
        "decay_max": ends["decay"].max(),
        "clip_rate": clips[counts & clips["clipped"]]["step"].nunique() / attempts if attempts else np.nan,
        **dict(zip(("loss_first", "loss_last"), _losses(steps), strict=True)),
        "nonfinite_steps": int((steps["nonfinite"] > 0).sum()),
        "skipped_steps": int(steps["skipped"].sum()),
        "grad_norm": finite.median(),
        "grad_norm_max": finite.max(),
        "steps": len(steps),
        "recorded": layers["step"].nunique(),
        "layers": len(ends),
        "residual": layers["residual"].max(),
        "notes": run.frame("notes")["reason"].nunique(),
        "seconds": seconds if len(steps) else np.nan,
        "overhead": steps["overhead_s"].sum() / seconds if len(steps) else np.nan,
    }


def _losses(steps: pd.DataFrame) -> tuple[float, float]:
    """The medians of the first and the last two of 24 steps, or of one where fewer have a loss."""
    told = {row.step: row.loss for row in steps.itertuples() if not np.isnan(row.loss) or row.nonfinite}
    if not np.isfinite(list(told.values())).any():
        return np.nan, np.nan
    places = range(min(told), max(told) + 1)
    near = (places[: max(1, len(places) // 10)], places[-max(1, len(places) // 10) :])
    values = [[np.inf if np.isnan(told[step]) else told[step] for step in some if step in told] for some in near]
    return float(np.median(values[0])), float(np.median(values[1]))


def table_by_pandas(fleet: Any) -> pd.DataFrame:
    """The table of all runs, run by run."""
    rows = [{"run": name, **by_pandas(run), "path": str(fleet.root / name)} for name, run in fleet.items()]
    return pd.DataFrame(rows)
