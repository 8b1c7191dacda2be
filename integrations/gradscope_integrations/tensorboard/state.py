"""The state record of a run: counts of steps, counts in the event file, and failures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gradscope_integrations.tensorboard.curves import chains_left_out, key_of
from gradscope_integrations.tensorboard.names import VERSION, Key, compact

if TYPE_CHECKING:
    from gradscope import Rows

NOTES = 200
"""Limit on the number of different notes."""


class State:
    """Counts of a run, including earlier sessions in the same folder.

    Args:
        before: the last JSON record of the previous session, or None.
    """

    def __init__(self, before: bytes | None = None) -> None:
        self.counts = {"steps": 0, "recorded": 0, "written": 0, "lost": 0, "clips": 0, "chains_left_out": 0}
        self.first_step: int | None = None
        self.last_step: int | None = None
        self.stride = 1
        self.findings: int | None = None
        self.failures: list[str] = []
        self.closed = False
        self.number = 0
        self._curves: dict[Key, tuple[str, ...]] = {}
        self._notes: dict[tuple[Key, str], list[int]] = {}
        self._notes_left_out = 0
        if before is not None:
            self._continue(json.loads(before))

    def _continue(self, before: Mapping[str, Any]) -> None:
        if before.get("version") == VERSION:
            self.counts |= {name: before["state"][name] for name in self.counts}
            self.first_step = before["state"]["first_step"]
            self.number = before.get("number", 0)
            for layer in before["layers"]:
                key = Key(layer["module"], layer["layer"], layer["direction"], layer["chain"])
                self._curves[key] = tuple(before["curves"][layer["curves"]])

    def count(self, step: int, rows: Iterable[Rows]) -> None:
        """Count a step."""
        self.first_step = step if self.first_step is None else self.first_step
        self.last_step = step
        for block in rows:
            if block.table in ("steps", "clips"):  # blocks of one row
                self.counts[block.table] += 1
            elif block.table == "notes":
                self._note(step, block)

    @property
    def notes(self) -> int:
        """The number of different notes."""
        return len(self._notes)

    def recorded(self, rows: tuple[Rows, ...]) -> None:
        """Count a recorded step."""
        self.counts["recorded"] += 1
        self.counts["chains_left_out"] = max(self.counts["chains_left_out"], chains_left_out(rows))

    def _note(self, step: int, block: Rows) -> None:
        about = key_of(block.columns), str(block.columns["reason"])
        if about not in self._notes and len(self._notes) >= NOTES:
            self._notes_left_out += 1
            return
        steps = self._notes.setdefault(about, [step, step, 0])
        steps[1:] = step, steps[2] + 1

    def add_curves(self, curves: Mapping[Key, Iterable[str]]) -> bool:
        """Add the curves of every layer; True if any of them is new."""
        grown = {key: tuple(dict.fromkeys((*self._curves.get(key, ()), *names))) for key, names in curves.items()}
        new = any(self._curves.get(key) != names for key, names in grown.items())
        self._curves |= grown
        return new

    def failed(self, reason: str) -> bool:
        """Add the reason of a failure; True for the first one."""
        first = not self.failures
        if reason not in self.failures and len(self.failures) < 10:
            self.failures.append(reason)
        return first

    def next_number(self) -> int:
        """The number of a record that belongs to no step: the time in microseconds, larger than any earlier number.

        So no loader takes a record for a repetition, even if the clock goes back between two sessions.
        """
        self.number = max(self.number + 1, int(time.time() * 1e6))
        return self.number

    def as_json(self) -> bytes:
        """The record of the tag `run/state`."""
        kinds = list(dict.fromkeys(self._curves.values()))
        layers = [
            {"key": str(key), **key._asdict(), "curves": kinds.index(names)} for key, names in self._curves.items()
        ]
        state = {
            **{"first_step": self.first_step, "last_step": self.last_step, **self.counts, "stride": self.stride},
            **{"notes": len(self._notes), "findings": self.findings, "failures": self.failures},
            **{"closed": self.closed, "time": time.time()},
        }
        return compact({"version": VERSION, "number": self.number, "curves": kinds, "layers": layers, "state": state})

    def notes_as_json(self) -> bytes:
        """The record of the tag `run/notes`."""
        notes = [
            {**key._asdict(), "reason": reason, "first_step": first, "last_step": last, "count": count}
            for (key, reason), (first, last, count) in self._notes.items()
        ]
        return compact({"notes": notes, "left_out": self._notes_left_out})
