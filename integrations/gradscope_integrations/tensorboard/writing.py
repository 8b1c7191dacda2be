"""Writes a step's rows in the sink's thread: curves at once; losses, table rows and counts at intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ParamSpec

from gradscope_integrations.scalars import Scalars, layer_name, recorded
from gradscope_integrations.tensorboard import tables
from gradscope_integrations.tensorboard.curves import curves
from gradscope_integrations.tensorboard.events import EventFile, Point, SharedWriter
from gradscope_integrations.tensorboard.findings import as_json
from gradscope_integrations.tensorboard.names import FINDINGS, NOTES, STATE, TABLES, Key
from gradscope_integrations.tensorboard.pace import Beat, Looks, Thinner
from gradscope_integrations.tensorboard.state import State
from gradscope_integrations.tensorboard.stock import LOSS, layout
from gradscope_integrations.tensorboard.summaries import Value, curve_value, scalar_value, text_value

if TYPE_CHECKING:
    from gradscope import Batch, Finding

Findings = Callable[[], Sequence["Finding"]]
P = ParamSpec("P")

CURVE_BYTES = 512 * 2**20
TABLE_BYTES = 32 * 2**20
LOSSES = 1000
"""Losses for the stock dashboards, which show no more points; then every second one, every fourth, ..."""
BATCH = 2048
"""Rows of a table in one record, unless a second has passed."""
LOOKING = 0.005
"""Limit on the share of time for findings."""


class Writing:
    """The writer of the sink's thread; other threads may read only `failure`.

    Args:
        out: the destination.
        before: the last state record of the previous session, or None.
        findings: see `TensorBoardSink`.
    """

    def __init__(self, out: EventFile | SharedWriter, before: bytes | None, findings: Findings | None) -> None:
        self.failure = ""
        self._out, self._findings, self._looks = out, findings, Looks(LOOKING)
        self._state = State(before)
        self._stock, self._beat = Scalars(), Beat()
        self._curve_pace, self._table_pace, self._loss_pace = (Thinner(n) for n in (CURVE_BYTES, TABLE_BYTES, LOSSES))
        self._rows: dict[str, list[tables.Row]] = {}
        self._losses: list[Point] = []
        self._skipped_loss: Point | None = None
        self._seen: set[tuple[str, Key]] = set()
        self._layout = isinstance(out, EventFile)  # the user's writer may have the user's layout
        self._noted = 0

    @property
    def waiting(self) -> bool:
        """True if there are unwritten rows or losses."""
        return bool(self._rows or self._losses)

    def guarded(self, action: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run an action, and store the reason of a failure."""
        try:
            action(*args, **kwargs)
        except Exception as error:  # no failure may reach the training
            reason = f"{type(error).__name__}: {error}"
            self._state.failed(reason)
            self.failure = self.failure or reason

    def take(self, batch: Batch) -> None:
        """Write the rows of one step, or store them for later."""
        self._state.count(batch.step, batch.rows)
        self._stock.count(batch.rows)
        if self._table_pace.keeps():
            self._keep(tables.every_step(batch.step, batch.rows))
        self._keep_loss(batch.step)
        if recorded(batch.rows):
            try:
                self._record(batch)
            except Exception:
                self._state.counts["lost"] += 1
                raise
            self.flush_if_due()

    def _keep_loss(self, step: int) -> None:
        """Store a loss, at evenly spaced steps, as many as the stock dashboards show; `close` writes the last."""
        if math.isnan(self._stock.loss):
            return
        point = time.time(), step, self._stock.loss
        if self._loss_pace.keeps():
            self._loss_pace.wrote(1)
            self._losses.append(point)
            self._skipped_loss = None
        else:
            self._skipped_loss = point

    def _record(self, batch: Batch) -> None:
        """Write the curves and scalars of a recorded step."""
        state = self._state
        state.recorded(batch.rows)
        if not self._curve_pace.keeps():
            return
        names: dict[Key, list[str]] = {}
        values: list[Value] = []
        for key, name, numbers in curves(batch.rows):
            names.setdefault(key, []).append(name)
            values.append(curve_value(f"{name}/{key}", numbers, first=self._first(name, key)))
        self._keep(tables.recorded_step(batch.step, batch.rows))
        if not values:  # the sink has dropped them
            state.counts["lost"] += 1
            return
        values += [scalar_value(tag, number) for tag, number in self._stock.scalars(batch.rows)]
        self._curve_pace.wrote(self._out.write(batch.step, values))
        state.counts["written"] += 1
        state.stride = self._curve_pace.stride
        if state.add_curves(names):
            self._announce(sorted({layer_name(key._asdict()) for key in names if key.chain == 0}))
        if self._looks.due(state.counts["recorded"]):
            self._looks.look(state.counts["recorded"], lambda: self.guarded(self._look))

    def _first(self, name: str, key: Key) -> bool:
        new = (name, key) not in self._seen
        self._seen.add((name, key))
        return new

    def _keep(self, rows: Iterable[tuple[str, tables.Row]]) -> None:
        for table, row in rows:
            self._rows.setdefault(table, []).append(row)

    def _announce(self, layers: Sequence[str]) -> None:
        """Write the layers and curves; the first time also a layout for the stock dashboards."""
        if self._layout:
            self._layout = False
            self._write([layout(layers)])
        self.flush()

    def flush_if_due(self) -> None:
        """Write stored rows if there are many, or if they have waited long."""
        if self._beat.due():
            self.flush()
        elif full := [table for table, rows in self._rows.items() if len(rows) >= BATCH]:
            self._write(self._encoded(full))

    def flush(self) -> None:
        """Write stored rows, and the state of the run."""
        self._beat.reset()
        if self._losses:
            losses, self._losses = self._losses, []
            self._out.write_scalars(LOSS, losses)
        number = self._state.next_number()  # first: the state contains its own number
        values = self._encoded(list(self._rows))
        values.append(text_value(STATE, [self._state.as_json()]))
        if self._state.notes > self._noted:
            self._noted = self._state.notes
            values.append(text_value(NOTES, [self._state.notes_as_json()]))
        self._out.write(number, values)

    def close(self) -> None:
        """Write the rest, after a last diagnosis."""
        if self._state.counts["recorded"]:
            self.guarded(self._look)
        if self._skipped_loss is not None:
            self._losses.append(self._skipped_loss)
        self._state.closed, self._noted = True, 0
        self.guarded(self.flush)
        self.guarded(self._out.close)

    def _look(self) -> None:
        if self._findings is not None:
            findings = self._findings()
            self._state.findings = len(findings)
            self._write([text_value(FINDINGS, [as_json(self._state.last_step, findings)])])

    def _encoded(self, names: Iterable[str]) -> list[Value]:
        records = {table: tables.encode(table, self._rows.pop(table)) for table in names}
        self._table_pace.wrote(sum(len(part) for t in ("clips", "steps") for part in records.get(t, ())))
        return [text_value(TABLES[table], record) for table, record in records.items()]

    def _write(self, values: Sequence[Value]) -> None:
        """Write records that belong to no step."""
        self._out.write(self._state.next_number(), values)
