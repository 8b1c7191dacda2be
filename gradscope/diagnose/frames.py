"""What the rules look at: the tables of a run, cut down to a bounded number of recorded steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from gradscope.types import LayerKey

Frame: TypeAlias = Any
"""A `pandas.DataFrame`, the columns of which no type says."""

KEY = list(LayerKey._fields)
RECORDS = 40
ROWS = 1_000_000
BEFORE, AFTER = 3, 2
QUANTITIES = ("grad_h", "grad_h_direct", "state", "weight_grad")


class Recorded(Protocol):
    """What is diagnosed: a `Run`, or anything that gives its tables."""

    @property
    def meta(self) -> dict[str, Any]:
        """Says `layers`: class and sizes by qualified name."""
        ...

    def frame(self, table: str, /, **filters: Any) -> Frame:
        """One table."""
        ...


@dataclass(frozen=True, slots=True)
class Seen:
    """Tables of some recorded steps, the first and the last among them; `steps`, `clips` and `notes` of all steps.

    Attributes:
        tables: frame by name.
        modules: what `attach` knew of each layer (class, sizes), by qualified name.
        known: what has been worked out from these and is asked for again.
    """

    tables: Mapping[str, Frame]
    modules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, "Mapping[str, Any]"])
    known: dict[str, Any] = field(default_factory=dict[str, Any], repr=False, compare=False)

    def __getitem__(self, table: str) -> Frame:
        """A table."""
        return self.tables[table]

    def of(self, table: str, key: LayerKey) -> Frame:
        """The rows of one recurrence, sorted by step."""
        frame = self.tables[table]
        if table not in self.known:
            self.known[table] = frame.groupby(KEY, sort=False).indices if len(frame) else {}
        return frame.iloc[self.known[table].get(tuple(key), [])]

    @property
    def keys(self) -> list[LayerKey]:
        """Every recurrence, of each module the lowest layer first; later chains of a step stand behind the first."""
        found = self.tables["layers"][KEY].drop_duplicates()
        return sorted(LayerKey(str(m), int(n), d, int(c)) for m, n, d, c in found.itertuples(index=False))

    @property
    def first_chains(self) -> list[LayerKey]:
        """Every recurrence once, by its first chain."""
        return [key for key in self.keys if key.chain == 0]

    @property
    def modules_seen(self) -> Iterator[tuple[str, list[LayerKey]]]:
        """The recurrences of each module."""
        keys = self.first_chains
        for module in dict.fromkeys(key.module for key in keys):
            yield module, [key for key in keys if key.module == module]

    @property
    def records(self) -> list[int]:
        """The recorded steps that are looked at."""
        return sorted({int(step) for step in self.tables["layers"]["step"]})

    @property
    def recorded(self) -> int:
        """How many steps were recorded, whether or not they are looked at."""
        return int(self.tables["steps"]["recorded"].astype(bool).sum())

    def family(self, module: str) -> str:
        """`"lstm"`, `"gru"`, `"rnn_relu"`, `"rnn_tanh"` or, of a cell that is none of these, empty."""
        gates = {*self.tables["gates"].loc[self.tables["gates"]["module"] == module, "gate"]}
        if "forget" in gates:
            return "lstm"
        if "update" in gates:
            return "gru"
        if gates != {"hidden"}:
            return ""
        known = self.modules.get(module, {})
        relu = "relu" in (str(known.get("mode", "")) + str(known.get("nonlinearity", ""))).lower()
        return "rnn_relu" if relu else "rnn_tanh"


def look_at(run: Recorded) -> Seen:
    """Read what the rules need: at most `RECORDS` recorded steps, fewer where a step has very many timesteps."""
    layers, every = run.frame("layers"), run.frame("steps")
    chosen = _spread(layers, _around(layers, every))
    recorded: dict[str, Any] = {"step": chosen}
    tables = {name: run.frame(name, **recorded) for name in ("reach", "gates", "units", "weights")}
    tables["layers"] = layers[layers["step"].isin(chosen)].reset_index(drop=True)
    tables["timesteps"] = run.frame("timesteps", quantity=list(QUANTITIES), **recorded)
    tables["steps"] = every
    for name in ("clips", "notes"):
        tables[name] = run.frame(name)
    return Seen(tables, run.meta.get("layers", {}))


def _around(layers: Frame, steps: Frame) -> set[int]:
    """The last recorded steps before gradients were not finite for the first time, and the first from there on."""
    bad = steps.loc[(steps["nonfinite"] > 0) & ~steps["skipped"].astype(bool), "step"]
    if not len(bad):
        return set()
    recorded = np.unique(layers["step"].to_numpy(dtype=np.int64))
    place = int(np.searchsorted(recorded, bad.min()))
    return {*recorded[max(0, place - BEFORE) : place + AFTER].tolist()}


def _spread(layers: Frame, others: set[int]) -> list[int]:
    """Recorded steps, half of them evenly spaced over the records and half over the training, and some others."""
    steps = sorted({int(step) for step in layers["step"]})
    if not steps:
        return []
    rows = len(QUANTITIES) * float(layers["timesteps"].sum()) / len(steps)
    count = int(min(RECORDS, max(8.0, ROWS / max(rows, 1.0))))
    if len(steps) <= count:
        return steps
    half, last = (count + 1) // 2, len(steps) - 1
    records = np.linspace(0, last, half).round().astype(int)
    times = np.searchsorted(steps, np.linspace(steps[0], steps[-1], half))
    for places in (records, times):
        places[1:-1:2] += 1  # two optimizers may take turns, and both are to be seen
    return sorted({*(steps[min(int(place), last)] for place in (*records, *times)), *others})
