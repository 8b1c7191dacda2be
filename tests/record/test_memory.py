"""A run in memory: everything it was given, within its bounds."""

from __future__ import annotations

import numpy as np
import pytest
from record.rows import EVERY, batch, expected, holds, same

from gradscope.record import MemoryStore
from gradscope.record.memory import Buffer
from gradscope.record.thin import every_second_of_older_half, note
from gradscope.run import Run
from gradscope.types import Batch


@pytest.mark.parametrize("gather_steps", [1, 4, 1000])
def test_what_is_written_is_read(gather_steps: int) -> None:
    store = MemoryStore({"layers": ["a"]}, gather_steps=gather_steps)
    for step in range(20):
        store.write(batch(step))
    assert Run(store).meta["layers"] == ["a"]
    holds(Run(store), range(20))
    store.close()
    holds(Run(store), range(20))


def test_thinning_drops_every_second_of_the_older_half() -> None:
    assert every_second_of_older_half(np.arange(10)).tolist() == [1, 3]
    assert every_second_of_older_half(np.array([0, 8, 16, 24])).tolist() == [8]
    assert every_second_of_older_half(np.arange(3)).tolist() == []


def test_beyond_the_limit_older_recorded_steps_are_thinned() -> None:
    limit = 150_000
    store = MemoryStore(limit=limit)
    for step in range(300):
        store.write(batch(step))
    assert store._tables.size() <= limit and store._tail.size <= limit // 8
    run = Run(store)
    for table in ("steps", "clips"):
        same(run.frame(table), expected(table, range(300)))
    kept = run.frame("layers").step.unique()
    assert kept[0] == 0 and 20 < len(kept) < 100
    assert kept[-15:].tolist() == list(range(300 - 15 * EVERY, 300, EVERY))
    old, new = np.array_split(np.diff(kept), 2)
    assert old.mean() > 2 * new.mean()
    ordered = ["step", "module", "layer", "direction", "chain"]
    same(run.frame("timesteps"), expected("timesteps", kept).sort_values(ordered, kind="stable", ignore_index=True))
    said = run.frame("notes", layer=-1)
    assert len(said) and said.reason.str.contains("at its limit of 146.5 KiB, the run dropped").all()
    assert said.reason.str.contains(r"steps\) from timesteps, reach").all() and (said.module == "").all()


def test_steps_and_clips_go_last_but_go() -> None:
    store = MemoryStore(limit=60_000)
    for step in range(2000):
        rows = batch(step).rows
        store.write(Batch(step, rows if step < 12 else tuple(row for row in rows if row.table == "steps")))
    run = Run(store)
    assert store._tables.size() <= 60_000
    assert 1 < len(run.frame("layers").step.unique()) < 4
    kept = run.frame("steps").step
    assert kept.iloc[0] == 0 and kept.is_unique and kept.is_monotonic_increasing and 500 < len(kept) < 1600
    assert kept.tolist()[-400:] == list(range(1600, 2000))
    assert run.frame("notes").reason.str.contains(r"steps\) from steps, clips, notes").any()


def test_texts_that_no_row_has_any_more_are_let_go() -> None:
    store = MemoryStore(limit=300_000)
    for step in range(3000):
        store.write(Batch(step, (note(f"{step} " + 100 * "x"),)))
    assert store._tables.size() <= 300_000
    assert Run(store).frame("notes").step.iloc[-1] == 2999


def test_a_write_is_an_append() -> None:
    buffer = Buffer()
    rows = batch(0)
    buffer.append(rows)
    held = [block[1] for blocks in buffer.blocks.values() for block in blocks]
    assert all(any(row is mine for mine in held) for row in rows.rows)
    assert buffer.rows["timesteps"] == len(buffer.table("timesteps")) == 30
