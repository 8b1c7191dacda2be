"""The answer of each route: parameters in, JSON or arrays out, independent of WSGI."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tensorboard import errors

from gradscope_integrations.tensorboard import assets, views
from gradscope_integrations.tensorboard.names import FINDINGS, NOTES, VERSION, Family, family_of
from gradscope_integrations.tensorboard.reading import Reader, unreadable
from gradscope_integrations.tensorboard.views import Range, View

MOST = 4096
"""Limit on the rows, columns or points of one picture."""
MOST_ROWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Query:
    """The parameters of a request. An invalid one raises InvalidArgumentError, which TensorBoard answers with 400."""

    parameters: Mapping[str, str]

    def text(self, name: str) -> str:
        """A required parameter."""
        if name not in self.parameters:
            raise errors.InvalidArgumentError(f"the parameter {name!r} is missing")
        return self.parameters[name]

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """A parameter with a fixed set of values."""
        value = self.parameters.get(name, default)
        if value not in choices:
            raise errors.InvalidArgumentError(f"{name}={value!r}: expected one of {', '.join(choices)}")
        return value

    def number(self, name: str, default: float) -> float:
        """A number that is not NaN."""
        try:
            value = float(self.parameters.get(name, default))
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise errors.InvalidArgumentError(f"{name}={self.parameters[name]!r}: expected a number")
        return value

    def count(self, name: str, default: int, most: int = MOST) -> int:
        """A whole number from 1 to a limit."""
        value = self.number(name, default)
        if not 1 <= value <= most or value != int(value):
            got = f"{name}={self.parameters[name]!r}"
            raise errors.InvalidArgumentError(f"{got}: expected a whole number from 1 to {most}")
        return int(value)

    def range(self, prefix: str = "") -> Range:
        """The range of `from` and `to`."""
        return Range(self.number(f"{prefix}from", -math.inf), self.number(f"{prefix}to", math.inf))

    def step(self) -> float:
        """A step, infinite for the last."""
        return math.inf if self.parameters.get("step", "last") == "last" else self.number("step", 0)

    def row(self, family: Family) -> str:
        """A row of a curve."""
        return self.choice("row", family.rows, family.shown)


def runs(reader: Reader, query: Query) -> dict[str, Any]:
    """All runs with gradscope data."""
    states = reader.states()
    labels = {run: run.removesuffix("/gradscope") for run in states}
    names = list(labels.values())
    unique = {run: label if names.count(label) == 1 else run for run, label in labels.items()}
    described = [{"run": run, "label": unique[run], **_described(states[run])} for run in states]
    described.sort(key=lambda about: (_natural(about["label"]), about["run"]))
    return {"version": VERSION, "plotly": assets.plotly_version(), "runs": described}


def _described(state: Any) -> dict[str, Any]:
    if problem := unreadable(state):
        return {"error": f"The tab cannot show this run: {problem}."}
    kinds = state["curves"]
    layers = [{**layer, "curves": kinds[layer["curves"]]} for layer in state["layers"]]
    return {"layers": layers, "state": state["state"]}


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which numbers in a name sort by value."""
    return [(int(word) if word.isdecimal() else -1, word) for word in re.split(r"(\d+)", name)]


def findings(reader: Reader, query: Query) -> dict[str, Any]:
    """The findings of a run."""
    return reader.last_json(query.text("run"), FINDINGS) or {"step": None, "findings": None}


def notes(reader: Reader, query: Query) -> dict[str, Any]:
    """The notes of a run."""
    return reader.last_json(query.text("run"), NOTES) or {"notes": [], "left_out": 0}


def heatmap(reader: Reader, query: Query) -> View:
    """Step by position."""
    curve = reader.curve(query.text("run"), query.text("tag"))
    size = query.count("rows", 400), query.count("cols", 512)
    return views.heatmap(curve, query.row(curve.family), size, query.range(), query.range("t_"))


def profile(reader: Reader, query: Query) -> View:
    """One step."""
    return views.profile(reader.curve(query.text("run"), query.text("tag")), query.step())


def series(reader: Reader, query: Query) -> View:
    """One number per step."""
    curve = reader.curve(query.text("run"), query.text("tag"))
    over = query.parameters.get("over", "median")
    reduced = over if over in (*views.REDUCED, "first", "last") else query.number("over", 0)
    return views.series(curve, query.row(curve.family), reduced, query.count("points", 2000), query.range())


def curves(reader: Reader, query: Query) -> View:
    """A curve of every layer, each at its recorded step nearest to the requested one."""
    run, name = query.text("run"), query.text("curve")
    family, step = family_of(name), query.step()
    row = query.row(family)
    tags = {f"{name}/{layer['key']}": layer["key"] for layer in _layers(reader, run) if name in layer["curves"]}
    last = step == math.inf
    by_tag = reader.last_curves(run, list(tags)) if last else {tag: reader.curve(run, tag) for tag in tags}
    layers, arrays = list[dict[str, Any]](), {}
    for number, (tag, curve) in enumerate(by_tag.items()):
        place = views.nearest(curve, step)
        layers.append({"key": tags[tag], "step": float(curve.steps[place]), "array": str(number)})
        arrays[str(number)] = views.pair(curve, row, place)
    return {"curve": name, "row": row, "axis": family.axis, "layers": layers}, arrays


def units(reader: Reader, query: Query) -> View:
    """Saturation of every unit, gate by gate."""
    return _gates(reader, query, "units")


def spectra(reader: Reader, query: Query) -> View:
    """Eigenvalues, gate by gate."""
    return _gates(reader, query, "spectra")


def _gates(reader: Reader, query: Query, table: str) -> View:
    run, key = query.text("run"), query.text("key")
    names = [name for layer in _layers(reader, run) if layer["key"] == key for name in layer["curves"]]
    gates = {
        name.partition("/")[2]: reader.curve(run, f"{name}/{key}") for name in names if name.startswith(f"{table}/")
    }
    if not gates:
        raise errors.NotFoundError(f"run {run!r} has no {table} of a layer {key!r}")
    return views.several(gates, query.step(), family_of(f"{table}/").rows)


def _layers(reader: Reader, run: str) -> list[dict[str, Any]]:
    return _described(reader.state(run))["layers"]


def layers(reader: Reader, query: Query) -> View:
    """The table `layers`."""
    return views.steps(reader.table(query.text("run"), "layers"), query.count("points", 1000), query.range())


def blocks(reader: Reader, query: Query) -> View:
    """The table `blocks`, of one layer or of all."""
    table, points = reader.table(query.text("run"), "blocks"), query.count("points", 1000)
    return views.steps(table, points, query.range(), query.parameters.get("key"))


def clips(reader: Reader, query: Query) -> View:
    """The table `clips`."""
    return views.rows(reader.table(query.text("run"), "clips"), query.count("rows", 50_000, MOST_ROWS), query.range())


def steps(reader: Reader, query: Query) -> View:
    """The table `steps`."""
    return views.rows(reader.table(query.text("run"), "steps"), query.count("rows", 50_000, MOST_ROWS), query.range())


JSON: Mapping[str, Callable[[Reader, Query], dict[str, Any]]] = {"runs": runs, "findings": findings, "notes": notes}
BINARY: Mapping[str, Callable[[Reader, Query], View]] = {
    **{"heatmap": heatmap, "profile": profile, "series": series, "curves": curves, "units": units, "spectra": spectra},
    **{"layers": layers, "blocks": blocks, "clips": clips, "steps": steps},
}
