"""Reads arrays from the data provider: one run and one tag at a time, with a cache of the last ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorboard import errors
from tensorboard.data import provider

from gradscope_integrations.tensorboard import tables
from gradscope_integrations.tensorboard.cache import Cache
from gradscope_integrations.tensorboard.names import PLUGIN, STATE, TABLES, VERSION, Family, family_of

Array = np.ndarray[Any, np.dtype[Any]]

ALL = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Curve:
    """All records of one tag, in the order of steps.

    Attributes:
        family: its rows and its axis.
        steps: float64 [N], ascending.
        positions: float64 [n] for each step; steps with the same positions share one array.
        values: float32 [rows, n] for each step; without the row `nonfinite` if all of it is 0.
    """

    family: Family
    steps: Array
    positions: Sequence[Array]
    values: Sequence[Array]

    def row(self, place: int, name: str) -> Array:
        """One row of the step at a place, float32 [n]."""
        index, values = self.family.rows.index(name), self.values[place]
        return values[index] if index < len(values) else np.zeros(values.shape[1], np.float32)


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of one table: numbers by column, and the texts of the codes in text columns."""

    columns: dict[str, Array]
    texts: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads for one request.

    Attributes:
        provider: TensorBoard's data provider, of either loader.
        context: context of the request.
        experiment: experiment of the request.
        cache: cache of all requests.
    """

    provider: Any
    context: Any
    experiment: str
    cache: Cache

    def states(self) -> dict[str, Any]:
        """The state of every run with gradscope data: run -> JSON of `run/state`, or None if it is no JSON."""
        by_run = self._read(None, [STATE], last=True)
        return {run: as_json(tags[STATE][-1].numpy) for run, tags in by_run.items() if tags.get(STATE)}

    def state(self, run: str) -> dict[str, Any]:
        """The state of one run.

        Raises:
            NotFoundError: there is no such run.
            InvalidArgumentError: its data are unreadable.
        """
        data = self._read([run], [STATE], last=True).get(run, {}).get(STATE)
        if not data:
            raise errors.NotFoundError(f"run {run!r} has no gradscope data")
        state = as_json(data[-1].numpy)
        if problem := unreadable(state):
            raise errors.InvalidArgumentError(f"run {run!r}: {problem}")
        return state

    def last_json(self, run: str, tag: str) -> Any:
        """The last JSON record of a tag, or None."""
        self.state(run)
        data = self._read([run], [tag], last=True).get(run, {}).get(tag)
        return as_json(data[-1].numpy) if data else None

    def last_curves(self, run: str, tags: Sequence[str]) -> dict[str, Curve]:
        """The newest step of several tags; tags without data are missing."""
        by_tag = self._read([run], tags, last=True).get(run, {})
        curves = {tag: _curve(tag, by_tag[tag]) for tag in tags if tag in by_tag}
        return {tag: curve for tag, curve in curves.items() if len(curve.steps)}

    def curve(self, run: str, tag: str) -> Curve:
        """All steps of one tag.

        Raises:
            NotFoundError: there is no such run or tag, or it is no curve.
        """

        def make() -> tuple[Curve, int]:
            curve = _curve(tag, self._read([run], [tag]).get(run, {}).get(tag, ()))
            return curve, sum(values.nbytes for values in curve.values)

        curve = self.cache.get((self.experiment, run, tag), self._stamp(run, tag), make)
        if not len(curve.steps):
            raise errors.NotFoundError(f"run {run!r} has no curve {tag!r}")
        return curve

    def table(self, run: str, name: str) -> Table:
        """All rows of one table; none if there is no such table yet.

        Raises:
            NotFoundError: there is no such run.
        """
        tag = TABLES[name]

        def make() -> tuple[Table, int]:
            data = self._read([run], [tag]).get(run, {}).get(tag, ())
            records = [datum.numpy.tolist() for datum in data if datum.numpy.shape == (2,)]
            columns, texts = tables.decode(name, records)
            return Table(columns, texts), sum(column.nbytes for column in columns.values())

        try:
            stamp = self._stamp(run, tag)
        except errors.NotFoundError:
            self.state(run)
            return Table(*tables.decode(name, []))
        return self.cache.get((self.experiment, run, tag), stamp, make)

    def _stamp(self, run: str, tag: str) -> Any:
        """A stamp that changes when a tag has new data."""
        wanted = provider.RunTagFilter(runs=[run], tags=[tag])
        listed = self.provider.list_tensors(
            self.context, experiment_id=self.experiment, plugin_name=PLUGIN, run_tag_filter=wanted
        )
        series = listed.get(run, {}).get(tag)
        if series is None:
            raise errors.NotFoundError(f"run {run!r} has no data {tag!r}")
        return series.max_step, series.max_wall_time

    def _read(self, runs: Sequence[str] | None, tags: Sequence[str], *, last: bool = False) -> Any:
        return self.provider.read_tensors(
            self.context,
            experiment_id=self.experiment,
            plugin_name=PLUGIN,
            downsample=1 if last else ALL,
            run_tag_filter=provider.RunTagFilter(runs=runs, tags=tags),
        )


def as_json(array: Array) -> Any:
    """Parse a JSON record; None if it is not JSON."""
    try:
        return json.loads(array.item())
    except (ValueError, TypeError):
        return None


def unreadable(state: Any) -> str:
    """The reason why the tab cannot show a run; empty if it can."""
    if not isinstance(state, dict) or not {"version", "curves", "layers", "state"} <= state.keys():
        return "its event data are damaged"
    if state["version"] != VERSION:
        return f"it was written by another gradscope (event data version {state['version']!r:.20}, not {VERSION})"
    return ""


def _curve(tag: str, data: Iterable[Any]) -> Curve:
    """Make a curve from records in the order of writing.

    If a training begins again at a step, earlier records of this and later steps are void.
    """
    family = family_of(tag)
    fitting = [datum for datum in data if _fits(datum.numpy, family)]
    steps = np.array([datum.step for datum in fitting], np.float64)
    later = np.append(np.minimum.accumulate(steps[::-1])[::-1][1:], np.inf)
    current = [datum for datum, valid in zip(fitting, steps < later, strict=True) if valid]
    known: dict[bytes, Array] = {}
    positions = [_positions(datum.numpy, family, known) for datum in current]
    values = [datum.numpy[: len(family.rows)] for datum in current]
    return Curve(family, steps[steps < later], positions, values)


def _fits(array: Array, family: Family) -> bool:
    if array.dtype != np.float32 or array.ndim != 2 or not array.shape[1]:
        return False
    optional = "nonfinite" in family.rows
    return len(family.rows) - optional <= len(array) <= len(family.rows) + 1


def _positions(array: Array, family: Family, known: dict[bytes, Array]) -> Array:
    explicit = len(array) > len(family.rows)
    name = array[-1].tobytes() if explicit else array.shape[1].to_bytes(8, "little")
    if name not in known:
        known[name] = array[-1].astype(np.float64) if explicit else np.arange(array.shape[1], dtype=np.float64)
    return known[name]
