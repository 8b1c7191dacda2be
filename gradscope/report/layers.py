"""The layers of a report: their numbers and their order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradscope.plot import data
from gradscope.record import RunData
from gradscope.report import words
from gradscope.types import LATE, SEVERITIES, Finding, LayerKey

Frame = Any
COLUMNS = {
    "horizon": "steps back until 1/1000 of the loss gradient is left: at the first record → at the last four; "
    "one number for fewer than five records",
    "timesteps": "length of the longest sequence",
    "decay": "decades that the loss gradient gains (+) or loses (-) per step back",
    "gradient": "median total gradient at the first and at the last timestep",
    "jacobian": "median size of the state Jacobian; 1 keeps a gradient as it is",
    "saturated": "the gate most at its limits, and at what share of units and timesteps",
    "residual": "largest relative difference between the rebuilt layer and the kernel's results",
}
"""Meanings of the columns in the table of layers."""
OPEN = 12
"""Rows of layers that a page shows unfolded."""


def worst_first(keys: Sequence[LayerKey], findings: Sequence[Finding], run: RunData) -> list[LayerKey]:
    """Sort layers by the severity of their findings, then by the horizon relative to the length of the sequences."""
    severity = dict.fromkeys(keys, -1)
    for finding in findings:
        key = finding.layer_key
        if key in severity and key is not None and finding.code != "healthy":
            severity[key] = max(severity[key], SEVERITIES.index(finding.severity))
    return sorted(keys, key=lambda key: (-severity[key], _reach(data.horizons(run, key)), keys.index(key)))


def _reach(horizons: Frame) -> float:
    """Return the last horizon over the length of the sequences; 1 if unknown."""
    last = horizons[horizons["horizon"].notna()].tail(1)
    if last.empty or bool(last["horizon_censored"].iloc[0]):
        return 1.0
    return float(last["horizon"].iloc[0] / max(1.0, last["timesteps"].iloc[0]))


def numbers(run: RunData, key: LayerKey) -> dict[str, Any]:
    """Compute the numbers of a layer, at the last recorded steps unless their names say otherwise."""
    horizons = data.horizons(run, key)
    recorded, gradient = data.recorded(run, key), data.spread(run, key, "grad_h")
    late = horizons[horizons["step"].isin(recorded[-LATE:])]
    gate, saturated = _most_saturated(data.saturated(run, key, "t"))
    residual = data.read(run, "layers", ["residual"], key._asdict())["residual"]
    return {
        "horizon_first": _horizon(horizons.head(1 if len(recorded) > LATE else 0)),
        "horizon": _horizon(late),
        "timesteps": int(late["timesteps"].max()) if len(late) else 0,
        "decay": _median(late["decay"]),
        "gradient_first": _median(gradient["p50"].head(1)),
        "gradient_last": _median(gradient["p50"].tail(1)),
        "jacobian": _median(data.spread(run, key, "jacobian")["p50"]),
        "gate": gate,
        "saturated": saturated,
        "residual": float(residual.max()),
        "finite_until": recorded[-1] if recorded and recorded[-1] < horizons["step"].max() else None,
    }


def _horizon(rows: Frame) -> dict[str, Any]:
    known = rows[rows["horizon"].notna()]
    censored = len(known) > 0 and bool(known["horizon_censored"].mean() > 0.5)
    return {"lag": _median(known["horizon"]), "censored": censored}


def _most_saturated(frame: Frame) -> tuple[str, float]:
    if frame.empty:
        return "", math.nan
    shares = (frame["low"] + frame["high"]).groupby(frame["gate"], sort=False).mean()
    return ("", math.nan) if shares.isna().all() else (str(shares.idxmax()), float(shares.max()))


def _median(values: Frame) -> float:
    return float(values.median()) if len(values) else math.nan


def cells(numbers: dict[str, Any]) -> dict[str, str]:
    """Write the numbers as text, by column of the table of layers."""
    ends = [words.lags(numbers[name]["lag"], numbers[name]["censored"]) for name in ("horizon_first", "horizon")]
    return {
        "horizon": ends[1] if ends[0] == "–" else " → ".join(ends),
        "timesteps": str(numbers["timesteps"]),
        "decay": "–" if math.isnan(numbers["decay"]) else f"{numbers['decay']:+.3f}",
        "gradient": f"{words.as_text(numbers['gradient_first'])} … {words.as_text(numbers['gradient_last'])}",
        "jacobian": words.as_text(numbers["jacobian"]),
        "saturated": f"{numbers['gate']} {words.percent(numbers['saturated'])}".strip(),
        "residual": words.as_text(numbers["residual"]),
    }
