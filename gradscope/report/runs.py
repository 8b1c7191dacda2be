"""Runs as rows of one table: differences of their settings, and the course of each training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradscope.diagnose.headline import learns
from gradscope.record import RunData
from gradscope.record.fleet import worst
from gradscope.report import words
from gradscope.report.settings import differing, separating, settings_of
from gradscope.types import LATE, Finding, LayerKey
from gradscope.types.clips import share
from gradscope.types.loss import change, known_losses

POINTS = 64
"""Number of points in a loss curve."""
MOST = 4
"""Number of columns for settings."""
LEARNS = {"learns": "yes", "stalls": "no", "lost": "lost it", "unknown": "–"}


def runs_table(runs: Mapping[str, RunData], findings: Mapping[str, Sequence[Finding]] | None = None) -> dict[str, Any]:
    """Make one row per run, in their order, and name the settings that separate runs that learn.

    Args:
        runs: runs by name.
        findings: findings by name; without them the table has no findings.
    """
    steps = {name: run.source.read("steps") for name, run in runs.items()}
    verdicts = {name: _verdict(run, steps[name]) for name, run in runs.items()}
    differ = differing({name: settings_of(run, name) for name, run in runs.items()})
    shown = list(differ)[:MOST]
    shades = [_shades(differ[setting]) for setting in shown]
    rows: list[dict[str, Any]] = []
    for name, run in runs.items():
        first = worst(findings[name]) if findings and findings[name] else None
        loss = change(steps[name])
        rows.append(
            {
                "name": name,
                "settings": [words.as_text(differ[setting][name]) for setting in shown],
                "shades": [shade[name] for shade in shades],
                "loss": str(loss).replace("->", "→") if loss else "–",
                "curve": _curve(steps[name]),
                "learns": LEARNS[verdicts[name]],
                "horizon": _horizon(run),
                "finding": first.code if first else "–",
                "severity": first.severity if first and first.code != "healthy" else "",
                "clipped": words.percent(share(steps[name], run.source.read("clips"))),
            }
        )
    learn = {name: None if verdict == "unknown" else verdict == "learns" for name, verdict in verdicts.items()}
    rest = list(differ)[MOST:]
    return {"settings": shown, "others": rest, "rows": rows, "separates": separating(differ, learn)}


def _shades(values: Mapping[str, Any]) -> dict[str, float]:
    """Compute the shade of each run's value from its place among all values, in order."""
    distinct = list(dict.fromkeys(values.values()))
    numbers = all(isinstance(value, int | float) for value in distinct)
    order = sorted(distinct) if numbers else sorted(distinct, key=str)
    return {name: (order.index(value) + 1) / len(order) for name, value in values.items()}


def _verdict(run: RunData, steps: Any) -> str:
    """Judge whether a run learns; `lost` if its losses end in infinity."""
    loss = change(steps)
    return "lost" if loss and math.isinf(loss.last) else learns(run).verdict


def _curve(steps: Any) -> list[float]:
    """Return the thinned losses; infinite if not finite."""
    losses = known_losses(steps).sort_values("step")["loss"].fillna(math.inf).tolist()
    return losses[:: max(1, len(losses) // POINTS)]


def _horizon(run: RunData) -> str:
    """Write the shortest horizon of a layer over the last recorded steps, and its number of timesteps."""
    layers = run.source.read("layers").sort_values("step", kind="stable")
    horizons: list[tuple[float, bool, int]] = []
    for _, rows in layers[layers["horizon"].notna()].groupby(list(LayerKey._fields)):
        late = rows.tail(LATE)
        censored = bool(late["horizon_censored"].mean() > 0.5)
        horizons.append((float(late["horizon"].median()), censored, int(late["timesteps"].max())))
    if not horizons:
        return "–"
    lag, censored, timesteps = min(horizons, key=lambda horizon: (horizon[1], horizon[0]))
    return f"{words.lags(lag, censored)} of {timesteps}"
