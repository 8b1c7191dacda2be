"""A run in memory that has reached its limit grows no more; and one that keeps what it should not would be seen."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from reliability.meter import Use, can_measure, frozen, in_use
from reliability.soak import Tiny

import gradscope
from gradscope.record import MemoryStore
from gradscope.types import Batch

STEPS, LOOKS = 240, 80
"""In a window. Rows are gathered and thinned many times in each; the least that was in use is what counts."""
BLOCKS, NATIVE = STEPS // 2, 512 * STEPS
"""Half an object of Python's for each step, and half a KiB in C."""
FILLED = """
import re
import numpy as np
from gradscope.record import MemoryStore
from gradscope.types import Batch, Rows

def memory(what):
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(what + r":\\s+(\\d+)", file.read())[1])

limit, rows = 48 * 2**20, 1000
key = {"module": "rnn", "layer": 0, "direction": "forward", "chain": 0, "gate": "update"}
store, before = MemoryStore(limit=limit), memory("VmRSS")
for step in range(2 * limit // (rows * 60)):
    columns = {name: np.arange(rows, dtype=float) for name in ("low", "high", "mean")}
    store.write(Batch(step, (Rows("gates", {**key, "t": np.arange(rows), **columns}),)))
print((memory("VmHWM") - before) / limit, len(store.read("notes")))
"""
"""Twice as many rows as a run may hold; how large the process became, in limits, and how often it thinned."""
pytestmark = pytest.mark.skipif(not can_measure(), reason="needs glibc's mallinfo2")


def grown(monkeypatch: pytest.MonkeyPatch) -> Use:
    """From the second window of a run, which has reached its limit in the first, to the third."""
    monkeypatch.setenv("GRADSCOPE_MEMORY_LIMIT", "64K")
    tiny, found = Tiny(), np.zeros((3, LOOKS, len(Use._fields)), np.int64)  # made before, so as not to be measured
    with frozen(), gradscope.attach(tiny.model, every=8, strict=True) as scope:
        for step in range(3 * STEPS):
            tiny.step()
            window, look = divmod(step, STEPS)
            if look % (STEPS // LOOKS) == 0:
                found[window, look // (STEPS // LOOKS)] = in_use()
    assert scope.run.frame("notes")["reason"].str.contains("at its limit").sum() > 10
    _, second, third = found.min(1)
    return Use(*map(int, third - second))


def test_at_its_limit_a_run_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    found = grown(monkeypatch)
    assert found.blocks < BLOCKS and found.native < NATIVE


def test_what_is_kept_of_every_step_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number, and a small tensor: one alone is more than is allowed to a run."""
    kept, write = list[Any](), MemoryStore.write

    def keep(store: MemoryStore, batch: Batch) -> None:
        kept.append((len(kept) + 10**6, torch.ones(512)))
        write(store, batch)

    monkeypatch.setattr(MemoryStore, "write", keep)
    found = grown(monkeypatch)
    assert len(kept) == 3 * STEPS and found.blocks > BLOCKS and found.native > NATIVE


def test_thinning_does_not_take_many_times_the_limit() -> None:
    """It was more than six times before rows were gathered in place and texts left as codes."""
    run = subprocess.run([sys.executable, "-c", FILLED], capture_output=True, text=True, check=True)
    peak, thinned = map(float, run.stdout.split())
    assert 1 < peak < 4.5 and thinned >= 2
