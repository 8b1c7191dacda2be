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
    told = {
        "optimizer": "SGD",
        "loss": 1.0,
        "grad_norm": norm,
        "recorded": step % 4 == 0,
        "skipped": place == 2 and step == 7,
    }
    rows = [Rows("steps", {**told, "nonfinite": int(np.isnan(norm)), "overhead_s": 0.001, "step_s": 0.01})]
    if place % 4:
        rows.append(Rows("clips", _clip(norm, "modified" if place % 4 == 3 else "norm", random)))
    if place == 5 and step == 0:
        rows.append(Rows("notes", {"module": "", "layer": -1, "direction": "", "chain": -1, "reason": "no reason"}))
    if step % 4 == 0 and place < number - 2:
        for index in range(1 + place % 3):
            rows += layer(LayerKey("encoder", index, "forward", 0), 8 + place % 5, float(random.uniform(-1, 0.1)))
    return rows


def _clip(norm: float, kind: str, random: np.random.Generator) -> dict[str, Any]:
    how = "" if kind == "norm" else str(random.choice(["clamped", "scaled"]))
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
    counted = clips[clips["clipped"] & ((clips["kind"] != "modified") | (clips["how"] == "clamped"))]
    finite = steps["grad_norm"][np.isfinite(steps["grad_norm"])]
    seconds = steps["step_s"].sum()
    return {
        "horizon": first["horizon"].iloc[0] if len(first) else np.nan,
        "horizon_censored": bool(first["cut"].iloc[0]) if len(first) else False,
        "timesteps": late["timesteps"].max() if len(late) else 0,
        "decay_min": ends["decay"].min(),
        "decay_max": ends["decay"].max(),
        "clip_rate": counted["step"].nunique() / len(steps) if len(steps) else np.nan,
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


def table_by_pandas(fleet: Any) -> pd.DataFrame:
    """The table of all runs, run by run."""
    rows = [{"run": name, **by_pandas(run), "path": str(fleet.root / name)} for name, run in fleet.items()]
    return pd.DataFrame(rows)
