"""Runs as rows of one table: what differs between their settings, and how each of them went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradscope.diagnose.headline import learns
from gradscope.plot import data
from gradscope.record import RunData
from gradscope.report import words
from gradscope.report.layers import RANKS
from gradscope.report.settings import differing, separating, settings_of
from gradscope.types import Finding, LayerKey
from gradscope.types.clips import share
from gradscope.types.loss import change, seen

POINTS = 64
"""Points of a loss curve that are kept."""
MOST = 4
"""Settings that the table has columns for."""
LEARNS = {"learns": "yes", "stalls": "no", "lost": "lost it", "unknown": "–"}


def runs_table(runs: Mapping[str, RunData], findings: Mapping[str, Sequence[Finding]] | None = None) -> dict[str, Any]:
    """One row per run, in their order, and what separates those that learn.

    Args:
        runs: by name.
        findings: of each; without them the table says nothing of findings.
    """
    steps = {name: run.source.read("steps") for name, run in runs.items()}
    verdicts = {name: _verdict(run, steps[name]) for name, run in runs.items()}
    differ = differing({name: settings_of(run, name) for name, run in runs.items()})
    shown = list(differ)[:MOST]
    shades = [_shades(differ[setting]) for setting in shown]
    rows: list[dict[str, Any]] = []
    for name, run in runs.items():
        found = _worst(findings[name]) if findings is not None else None
        told = change(steps[name])
        rows.append(
            {
                "name": name,
                "settings": [words.told(differ[setting][name]) for setting in shown],
                "shades": [shade[name] for shade in shades],
                "loss": str(told).replace("->", "→") if told else "–",
                "curve": _curve(steps[name]),
                "learns": LEARNS[verdicts[name]],
                "horizon": _horizon(run),
                "finding": found.code if found else "–",
                "severity": found.severity if found and found.code != "healthy" else "",
                "clipped": words.percent(share(steps[name], run.source.read("clips"))),
            }
        )
    learn = {name: None if verdict == "unknown" else verdict == "learns" for name, verdict in verdicts.items()}
    rest = list(differ)[MOST:]
    return {"settings": shown, "others": rest, "rows": rows, "separates": separating(differ, learn)}


def _shades(values: Mapping[str, Any]) -> dict[str, float]:
    """How dark the value of each run is: by its place among all that there are, in order."""
    distinct = list(dict.fromkeys(values.values()))
    numbers = all(isinstance(value, int | float) for value in distinct)
    order = sorted(distinct) if numbers else sorted(distinct, key=str)
    return {name: (order.index(value) + 1) / len(order) for name, value in values.items()}


def _verdict(run: RunData, steps: Any) -> str:
    """Whether a run learns; one whose losses end in infinity has lost it."""
    found = change(steps)
    return "lost" if found and math.isinf(found.last) else learns(run).verdict


def _curve(steps: Any) -> list[float]:
    """Its losses, thinned; infinite where they are not finite."""
    losses = seen(steps).sort_values("step")["loss"].fillna(math.inf).tolist()
    return losses[:: max(1, len(losses) // POINTS)]


def _worst(findings: Sequence[Finding]) -> Finding | None:
    faults = [finding for finding in findings if finding.code != "healthy"]
    return min(faults or findings, key=lambda finding: RANKS[finding.severity], default=None)


def _horizon(run: RunData) -> str:
    """Of the layer where that is soonest, over the last recorded steps, and out of how many timesteps."""
    layers = run.source.read("layers").sort_values("step", kind="stable")
    found: list[tuple[float, bool, int]] = []
    for _, mine in layers[layers["horizon"].notna()].groupby(list(LayerKey._fields)):
        late = mine.tail(data.LATE)
        censored = bool(late["horizon_censored"].mean() > 0.5)
        found.append((float(late["horizon"].median()), censored, int(late["timesteps"].max())))
    if not found:
        return "–"
    lag, censored, timesteps = min(found, key=lambda it: (it[1], it[0]))
    return f"{words.lags(lag, censored)} of {timesteps}"
