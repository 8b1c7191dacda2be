"""A thread that reads while another writes sees all rows up to some step, each once, in whatever moment it looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from record.rows import batch

from gradscope.record import MemoryStore, ParquetStore

STEPS = 600


def folder(path: Path) -> ParquetStore:
    return ParquetStore(path, {}, flush_steps=50)


def memory(_: Path) -> MemoryStore:
    return MemoryStore(gather_steps=7)


@pytest.mark.parametrize("make", [folder, memory])
def test_a_reading_thread_sees_whole_steps(make: Callable[[Path], ParquetStore | MemoryStore], tmp_path: Path) -> None:
    store, seen, wrong = make(tmp_path), [], []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for table in ("steps", "timesteps"):
                found = store.read(table)["step"].to_list()
                expected = [step for step in sorted(set(found)) for _ in range(found.count(step))]
                per_step = {found.count(step) for step in set(found)}
                if found != expected or len(per_step) > 1:
                    wrong.append((table, found))
                seen.append(len(found))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for step in range(STEPS):
            store.write(batch(step))
            time.sleep(0.001)
    finally:
        done.set()
        reader.join()
        store.close()
    assert not wrong
    assert len(set(seen)) > 3, "the reader saw it grow"
    assert len(store.read("steps")) == STEPS
