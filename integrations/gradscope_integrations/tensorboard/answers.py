"""What each route answers: parameters in, JSON or arrays out; nothing here knows of WSGI."""

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
"""Rows, columns or points of one picture."""
MOST_ROWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Query:
    """The parameters of a request; a wrong one raises InvalidArgumentError, which TensorBoard answers with 400."""

    given: Mapping[str, str]

    def text(self, name: str) -> str:
        """One that must be there."""
        if name not in self.given:
            raise errors.InvalidArgumentError(f"the parameter {name!r} is missing")
        return self.given[name]

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of several words."""
        found = self.given.get(name, default)
        if found not in choices:
            raise errors.InvalidArgumentError(f"{name}={found!r}: expected one of {', '.join(choices)}")
        return found

    def number(self, name: str, default: float) -> float:
        """Any number but NaN."""
        try:
            found = float(self.given.get(name, default))
        except ValueError:
            found = math.nan
        if math.isnan(found):
            raise errors.InvalidArgumentError(f"{name}={self.given[name]!r}: expected a number")
        return found

    def count(self, name: str, default: int, most: int = MOST) -> int:
        """A whole number from 1 to a limit."""
        found = self.number(name, default)
        if not 1 <= found <= most or found != int(found):
            raise errors.InvalidArgumentError(f"{name}={self.given[name]!r}: expected a whole number from 1 to {most}")
        return int(found)

    def range(self, prefix: str = "") -> Range:
        """`from` and `to`."""
        return Range(self.number(f"{prefix}from", -math.inf), self.number(f"{prefix}to", math.inf))

    def step(self) -> float:
        """A step, infinite for the last."""
        return math.inf if self.given.get("step", "last") == "last" else self.number("step", 0)

    def row(self, family: Family) -> str:
        """A row of a curve."""
        return self.choice("row", family.rows, family.shown)


def runs(reader: Reader, query: Query) -> dict[str, Any]:
    """All runs with data of ours."""
    states = reader.states()
    labels = {run: run.removesuffix("/gradscope") for run in states}
    taken = list(labels.values())
    unique = {run: label if taken.count(label) == 1 else run for run, label in labels.items()}
    found = [{"run": run, "label": unique[run], **_described(states[run])} for run in states]
    found.sort(key=lambda about: (_natural(about["label"]), about["run"]))
    return {"version": VERSION, "plotly": assets.plotly_version(), "runs": found}


def _described(state: Any) -> dict[str, Any]:
    if problem := unreadable(state):
        return {"error": f"This run cannot be shown: {problem}."}
    kinds = state["curves"]
    layers = [{**layer, "curves": kinds[layer["curves"]]} for layer in state["layers"]]
    return {"layers": layers, "state": state["state"]}


def _natural(name: str) -> list[tuple[int, str]]:
    """A name such that numbers in it sort by value."""
    return [(int(word) if word.isdecimal() else -1, word) for word in re.split(r"(\d+)", name)]


def findings(reader: Reader, query: Query) -> dict[str, Any]:
    """What the run shows."""
    return reader.last_json(query.text("run"), FINDINGS) or {"step": None, "findings": None}


def notes(reader: Reader, query: Query) -> dict[str, Any]:
    """What could not be observed."""
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
    over = query.given.get("over", "median")
    reduced = over if over in (*views.REDUCED, "first", "last") else query.number("over", 0)
    return views.series(curve, query.row(curve.family), reduced, query.count("points", 2000), query.range())


def curves(reader: Reader, query: Query) -> View:
    """A curve of every layer, at the recorded step of each that is nearest to one."""
    run, name = query.text("run"), query.text("curve")
    family, step = family_of(name), query.step()
    row = query.row(family)
    tags = {f"{name}/{layer['key']}": layer["key"] for layer in _layers(reader, run) if name in layer["curves"]}
    last = step == math.inf
    found = reader.last_curves(run, list(tags)) if last else {tag: reader.curve(run, tag) for tag in tags}
    layers, arrays = list[dict[str, Any]](), {}
    for number, (tag, curve) in enumerate(found.items()):
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
    return views.steps(table, points, query.range(), query.given.get("key"))


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
