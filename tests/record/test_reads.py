"""A filtered frame reads only the columns and the row groups that it needs: bytes are counted, not seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_runs import ENCODER

import gradscope
from gradscope.record import ParquetStore, parts
from gradscope.types import Batch, Rows

COUNTER = Path("/proc/self/io")
pytestmark = pytest.mark.skipif(not COUNTER.exists(), reason="the system does not count what a process reads")
STEPS, LENGTH = 40, 4_000


def read(do: Callable[[], object]) -> int:
    """How many bytes this process asks the system for meanwhile."""
    before = _counted()
    do()
    return _counted() - before


def _counted() -> int:
    return next(int(line.split()[1]) for line in COUNTER.read_text().splitlines() if line.startswith("rchar"))


def test_only_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_GROUP_ROWS", LENGTH)
    store, random = ParquetStore(tmp_path, {}), np.random.default_rng(0)
    for step in range(STEPS):
        numbers = {name: random.random(LENGTH) for name in ("p10", "p50", "p90", "mean", "se")}
        counts = {"t": np.arange(LENGTH), "quantity": "grad_h", "sequences": 8, "nonfinite": 0}
        store.write(Batch(step, (Rows("timesteps", {**ENCODER._asdict(), **numbers, **counts}),)))
    store.close()
    run = gradscope.load(tmp_path)
    run.frame("timesteps")  # whatever is loaded only once has been
    whole = read(lambda: run.frame("timesteps"))
    step = read(lambda: run.frame("timesteps", step=20))
    few = read(lambda: run.source.read("timesteps", {"step": 20}, ["p50"]))
    none = read(lambda: run.frame("timesteps", step=STEPS))
    assert whole > STEPS * LENGTH * 5 * 7  # five columns of random numbers hardly become smaller
    assert step < whole / 8 and few < step / 2 and none < whole / 20
    assert len(run.frame("timesteps", step=20)) == LENGTH
