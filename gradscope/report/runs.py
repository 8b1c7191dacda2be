"""Runs as rows of one table: differences of their settings, and the course of each training."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from math import comb
from typing import Any

from gradscope.diagnose.progress import learns
from gradscope.record import RunData
from gradscope.record.fleet import worst
from gradscope.report.words import as_text, lags, percent
from gradscope.types import LATE, Finding, LayerKey
from gradscope.types.clips import share
from gradscope.types.loss import change, known_losses

POINTS = 64
"""Number of points in a loss curve."""
MOST = 4
"""Number of columns for settings."""
LEARNS = {"learns": "yes", "stalls": "no", "lost": "lost it", "unknown": "–"}
Settings = Mapping[str, Any]
IN_NAME = re.compile(r"([A-Za-z_][\w.-]*)=([^,/\\]+)")
NAMES = {"class": "cell"}
OPTIMIZER = {"class": "optimizer"}
CHANCE = 0.1
"""A split that arises by chance with a larger probability gets a word of caution."""


def runs_table(runs: Mapping[str, RunData], findings: Mapping[str, Sequence[Finding]] | None = None) -> dict[str, Any]:
    """Make one row per run, in their order, and name the settings that separate runs that learn.

    Without findings by name the table has no findings.
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
                "settings": [as_text(differ[setting][name]) for setting in shown],
                "shades": [shade[name] for shade in shades],
                "loss": str(loss).replace("->", "→") if loss else "–",
                "curve": _curve(steps[name]),
                "learns": LEARNS[verdicts[name]],
                "horizon": _horizon(run),
                "finding": first.code if first else "–",
                "severity": first.severity if first and first.code != "healthy" else "",
                "clipped": percent(share(steps[name], run.source.read("clips"))),
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
    return f"{lags(lag, censored)} of {timesteps}"


def settings_of(run: RunData, name: str = "") -> dict[str, Any]:
    """Collect the settings of a run's layers and optimizer, and settings in its name such as `lr=0.1`.

    The position identifies a layer, as modules of the same role often have other names in other runs.
    """
    settings: dict[str, Any] = {key: _value(text) for key, text in IN_NAME.findall(name)}
    layers = run.meta.get("layers")
    for place, part in enumerate(layers.values() if isinstance(layers, Mapping) else ()):
        where = f" ({place})" if place else ""
        settings |= {f"{NAMES.get(key, key)}{where}": value for key, value in _single(part)}
    optimizers = run.meta.get("optimizers")
    for place, optimizer in enumerate(optimizers if isinstance(optimizers, list) else ()):
        where = f" ({place})" if place else ""
        settings |= {f"{OPTIMIZER.get(key, key)}{where}": value for key, value in _single(optimizer)}
    return settings


def _single(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield numbers and texts; without `mode`, which repeats `class` and `nonlinearity`."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            if isinstance(value, str | int | float) and key != "mode":
                yield key, value


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def differing(settings: Mapping[str, Settings]) -> dict[str, dict[str, Any]]:
    """Return the settings that all runs have and that differ between them, with the value of each run."""
    names = dict.fromkeys(name for own in settings.values() for name in own)
    table = {
        name: {run: own[name] for run, own in settings.items()}
        for name in names
        if all(name in own for own in settings.values())
    }
    unique: dict[str, dict[str, Any]] = {}
    for name, values in table.items():
        if len({repr(value) for value in values.values()}) > 1 and values not in unique.values():
            unique[name] = values  # settings with equal values appear once
    return unique


def separating(differ: Mapping[str, Mapping[str, Any]], learn: Mapping[str, bool | None]) -> list[str]:
    """Write a sentence on each of some differing settings that separates runs that learn from the others."""
    good, bad = ([run for run, learns in learn.items() if learns is wanted] for wanted in (True, False))
    if not good or not bad:
        return []
    sentences = [_sentence(name, values, good, bad) for name, values in differ.items()]
    sentences = [sentence for sentence in sentences if sentence]
    if sentences and 2 / comb(len(good) + len(bad), len(good)) > CHANCE:
        sentences.append("With so few runs this may be chance.")
    return sentences


def _sentence(name: str, values: Mapping[str, Any], good: list[str], bad: list[str]) -> str:
    """Compare one setting of both kinds of runs; empty if it does not separate them."""
    with_it, without = ([values[run] for run in runs] for runs in (good, bad))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in (*with_it, *without)):
        if max(with_it) < min(without):
            return _compare(name, f"at most {as_text(max(with_it))}", f"at least {as_text(min(without))}", good, bad)
        if min(with_it) > max(without):
            return _compare(name, f"at least {as_text(min(with_it))}", f"at most {as_text(max(without))}", good, bad)
    theirs, others = ({as_text(value) for value in some} for some in (with_it, without))
    alone = len(theirs) + len(others) == len(good) + len(bad) > 2  # each run has a value of its own
    if theirs & others or alone:
        return ""
    return _compare(name, " or ".join(sorted(theirs)), " or ".join(sorted(others)), good, bad)


def _compare(name: str, learning: str, failing: str, good: list[str], bad: list[str]) -> str:
    runs = "The run that learns has" if len(good) == 1 else f"The {len(good)} runs that learn have"
    rest = "the run that does not has" if len(bad) == 1 else f"the {len(bad)} that do not have"
    return f"{runs} {name} {learning}; {rest} {failing}."
