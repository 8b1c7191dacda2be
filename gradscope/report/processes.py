"""The processes of a distributed training side by side; each has its own data."""

from __future__ import annotations

import math
from typing import Any

from gradscope.record import RunData
from gradscope.report import words

HEADS = {
    "rank": "rank",
    "steps": "steps",
    "recorded": "recorded",
    "nonfinite_steps": "steps not finite",
    "own_nonfinite": "own gradients not finite",
    "skipped": "skipped",
    "gradient": "median grad_h",
    "horizon": "median horizon",
    "overhead": "overhead",
}
"""Numbers of each process; the processes share a step's gradients, their own are from before the reduction."""


def processes(run: RunData) -> dict[str, Any]:
    """Return the numbers of each process, and their text, if there are several processes."""
    ranks = run.source.ranks
    entries = [_process(run.of_rank(rank), rank) for rank in ranks] if len(ranks) > 1 else []
    rows = [[_cell(name, entry[name]) for name in HEADS] for entry in entries]
    return {"entries": entries, "heads": list(HEADS.values()), "rows": rows}


def _process(run: RunData, rank: int) -> dict[str, Any]:
    steps = run.frame("steps")
    columns = ["step", "p50", "nonfinite"]
    gradients = run.source.read("timesteps", {"quantity": "grad_h"}, columns)
    whole, own = float(steps["step_s"].sum()), float(steps["overhead_s"].sum())
    return {
        "rank": rank,
        "steps": len(steps),
        "recorded": int(steps["recorded"].sum()),
        "nonfinite_steps": int((steps["nonfinite"] > 0).sum()),
        "own_nonfinite": int(gradients.loc[gradients["nonfinite"] > 0, "step"].nunique()),
        "skipped": int(steps["skipped"].sum()),
        "gradient": float(gradients["p50"].median()),
        "horizon": float(run.source.read("layers", None, ["horizon"])["horizon"].median()),
        "overhead": own / whole if whole else math.nan,
    }


def _cell(name: str, value: Any) -> str:
    return words.percent(value) if name == "overhead" else words.as_text(value)
