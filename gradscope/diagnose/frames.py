"""The input of the rules: the tables of a run, restricted to a bounded number of recorded steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any, Protocol, TypeAlias

import numpy as np

from gradscope.types import LayerKey

Frame: TypeAlias = Any
"""A `pandas.DataFrame`; no type describes its columns."""

KEY = list(LayerKey._fields)
RECORDS = 40
ROWS = 1_000_000
BEFORE, AFTER = 3, 2
QUANTITIES = ("grad_h", "grad_h_direct", "state", "weight_grad")


class Recorded(Protocol):
    """A `Run`, or another source of its tables."""

    @property
    def meta(self) -> dict[str, Any]:
        """Metadata with `layers`: class and sizes by qualified name."""
        ...

    def frame(self, table: str, /, **filters: Any) -> Frame:
        """Read one table."""
        ...


@dataclass(frozen=True)
class Tables:
    """Tables of some recorded steps, the first and the last among them; `steps`, `clips` and `notes` of all steps.

    Attributes:
        frames: frame by name.
        modules: class and sizes of each layer from `attach`, by qualified name.
        known: cached results.
    """

    frames: Mapping[str, Frame]
    modules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, "Mapping[str, Any]"])
    known: dict[str, Any] = field(default_factory=dict[str, Any], repr=False, compare=False)

    def __getitem__(self, table: str) -> Frame:
        """Return a table."""
        return self.frames[table]

    def of(self, table: str, key: LayerKey) -> Frame:
        """Return the rows of one recurrence, sorted by step."""
        frame = self.frames[table]
        if table not in self.known:
            self.known[table] = frame.groupby(KEY, sort=False).indices if len(frame) else {}
        places = self.known[table].get(tuple(key), [])
        return frame if len(places) == len(frame) else frame.iloc[places]

    def noted(self, text: str) -> Frame:
        """Return the notes whose reason begins with a text."""
        notes = self.frames["notes"]
        return notes[notes["reason"].str.startswith(text)]

    @cached_property
    def keys(self) -> list[LayerKey]:
        """All recurrences by module, the lowest layer first; later chains of a step follow the first."""
        rows = self.frames["layers"][KEY].drop_duplicates()
        return sorted(LayerKey(str(m), int(n), d, int(c)) for m, n, d, c in rows.itertuples(index=False))

    @cached_property
    def first_chains(self) -> list[LayerKey]:
        """All recurrences once, by their first chain."""
        return [key for key in self.keys if key.chain == 0]

    @cached_property
    def in_pieces(self) -> set[LayerKey]:
        """Those of them that have several chains in a step."""
        return {key._replace(chain=0) for key in self.keys if key.chain}

    @cached_property
    def by_module(self) -> list[tuple[str, list[LayerKey]]]:
        """The recurrences of each module."""
        return [(module, list(keys)) for module, keys in groupby(self.first_chains, lambda key: key.module)]

    @cached_property
    def records(self) -> list[int]:
        """The recorded steps of these tables."""
        return sorted({int(step) for step in self.frames["layers"]["step"]})

    @property
    def recorded(self) -> int:
        """Number of all recorded steps, with steps that these tables leave out."""
        return int(self.frames["steps"]["recorded"].astype(bool).sum())

    @cached_property
    def _gates(self) -> dict[str, set[str]]:
        """Names of the gates by module."""
        rows = self.frames["gates"][["module", "gate"]].drop_duplicates()
        return {str(module): {*gates} for module, gates in rows.groupby("module")["gate"]}

    def family(self, module: str) -> str:
        """Return `"lstm"`, `"gru"`, `"rnn_relu"` or `"rnn_tanh"`, or an empty text for other cells."""
        gates = self._gates.get(module, set[str]())
        if "forget" in gates:
            return "lstm"
        if "update" in gates:
            return "gru"
        if gates != {"hidden"}:
            return ""
        known = self.modules.get(module, {})
        relu = "relu" in (str(known.get("mode", "")) + str(known.get("nonlinearity", ""))).lower()
        return "rnn_relu" if relu else "rnn_tanh"


def read_tables(run: Recorded) -> Tables:
    """Read the input of the rules: at most `RECORDS` recorded steps, fewer if a step has very many timesteps."""
    layers, every = run.frame("layers"), run.frame("steps")
    chosen = _spread(layers, _around(layers, every))
    recorded: dict[str, Any] = {"step": chosen}
    frames = {name: run.frame(name, **recorded) for name in ("reach", "gates", "units", "weights")}
    frames["layers"] = layers[layers["step"].isin(chosen)].reset_index(drop=True)
    frames["timesteps"] = run.frame("timesteps", quantity=list(QUANTITIES), **recorded)
    frames["steps"] = every
    for name in ("clips", "notes"):
        frames[name] = run.frame(name)
    return Tables(frames, run.meta.get("layers", {}))


def _around(layers: Frame, steps: Frame) -> set[int]:
    """Return the last recorded steps before the first non-finite gradients, and the first steps from there on."""
    bad = steps.loc[(steps["nonfinite"] > 0) & ~steps["skipped"].astype(bool), "step"]
    if not len(bad):
        return set()
    recorded = np.unique(layers["step"].to_numpy(dtype=np.int64))
    place = int(np.searchsorted(recorded, bad.min()))
    return {*recorded[max(0, place - BEFORE) : place + AFTER].tolist()}


def _spread(layers: Frame, others: set[int]) -> list[int]:
    """Choose recorded steps, half evenly spaced over the records and half over the training, and add some others."""
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
        places[1:-1:2] += 1  # so that optimizers that take turns both appear
    return sorted({*(steps[min(int(place), last)] for place in (*records, *times)), *others})
