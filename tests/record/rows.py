"""Rows whose every value follows from the step, as batches and, written out independently, as plain frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import gradscope
from gradscope.record import TABLES, ParquetStore
from gradscope.run import Run
from gradscope.types import Batch, Rows

EVERY = 3  # every third step is recorded
TIMES = 5
LAYERS = (("encoder.rnn10", 0), ("encoder.rnn2", 0), ("encoder.rnn2", 1))
QUANTITIES = ("grad_h", "jacobian")
SLIM = ("timesteps", "layers", "steps")

ALONE = f"""
import os, sys, time, types
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
sys.modules["gradscope"] = package = types.ModuleType("gradscope")
package.__path__ = {list(gradscope.__path__)!r}
"""
"""How a script begins that loads the room without the rest of the house, which would load torch."""


def batch(step: int) -> Batch:
    """What a scope would hand over for that step."""
    recorded = step % EVERY == 0
    rows = [
        Rows("clips", {"step": step, **_clip(step)}),
        *(block for layer in LAYERS if recorded for block in _layer(step, *layer)),
        Rows("steps", {**_step(step), "recorded": recorded}),
    ]
    return Batch(step, tuple(rows))


def _layer(step: int, module: str, layer: int) -> Iterable[Rows]:
    key = {"module": module, "layer": layer, "direction": "forward", "chain": 0}
    for quantity in QUANTITIES:
        values = np.array([_value(step, layer, t) for t in range(TIMES)])
        spread = {name: values for name in ("p10", "p50", "p90")}
        counts = {"sequences": 4, "nonfinite": np.arange(TIMES) % 2}
        columns = {
            "t": np.arange(TIMES, dtype=np.int32),
            "quantity": quantity,
            **spread,
            "mean": values,
            "se": 0,
            **counts,
        }
        yield Rows("timesteps", {**key, **columns})
    yield Rows("notes", {**key, "reason": f"of step {step}"})
    yield Rows("layers", {**key, **_summary(step)})


def _value(step: int, layer: int, t: int) -> float:
    return {1: math.nan, 2: math.inf, 3: -math.inf}.get(t, 1e-3 * step + layer + t / 7)


def _summary(step: int) -> dict[str, Any]:
    found = {"horizon": 3.0, "horizon_censored": step % 2 == 0, "decay": -0.5, "lyapunov": math.nan}
    return {**found, "residual": 1e-7, "timesteps": TIMES}


def _clip(step: int) -> dict[str, Any]:
    call = {"index": 0, "kind": "norm", "how": "", "threshold": 1.0, "norm_type": 2.0, "parameters": 4}
    norms = {"norm_before": float(step), "norm_after": 1.0, "coefficient": 1 / (1 + step)}
    return {**call, **norms, "clipped": step > 1, "nonfinite": 0}


def _step(step: int) -> dict[str, Any]:
    found = {"optimizer": "Adam", "loss": 1.0, "grad_norm": step / 3, "nonfinite": 0, "skipped": False}
    return {**found, "overhead_s": 0.0, "step_s": 0.1}


def slim(step: int) -> Batch:
    """The same with three tables only, where files are dear."""
    return Batch(step, tuple(rows for rows in batch(step).rows if rows.table in SLIM))


def expected(table: str, steps: Iterable[int]) -> pd.DataFrame:
    """The frame those steps should give, made row by row."""
    return _expected(table, tuple(steps))


@cache
def _expected(table: str, steps: tuple[int, ...]) -> pd.DataFrame:
    found = [{"step": step, **row} for step in steps for row in _plain(table, step)]
    dtypes = {"text": np.dtype(object), "bool": np.dtype(bool)}
    kinds = {name: dtypes.get(kind, kind) for name, kind in TABLES[table].columns.items()}
    return pd.DataFrame(found, columns=list(kinds)).astype(kinds)


def _plain(table: str, step: int) -> Iterable[dict[str, Any]]:
    if table == "steps":
        yield {**_step(step), "recorded": step % EVERY == 0}
    if table == "clips":
        yield _clip(step)
    for module, layer in LAYERS if step % EVERY == 0 else ():
        key = {"module": module, "layer": layer, "direction": "forward", "chain": 0}
        if table == "notes":
            yield {**key, "reason": f"of step {step}"}
        if table == "layers":
            yield {**key, **_summary(step)}
        if table == "timesteps":
            for quantity in QUANTITIES:
                for t in range(TIMES):
                    value = _value(step, layer, t)
                    spread = {name: value for name in ("p10", "p50", "p90", "mean")}
                    yield {**key, "t": t, "quantity": quantity, **spread, "se": 0, "sequences": 4, "nonfinite": t % 2}


def same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Fail unless the frames are equal, up to which dtype of text this pandas has."""
    text = [name for name in found.columns if wanted[name].dtype == object]
    assert all(found[name].dtype == object or pd.api.types.is_string_dtype(found[name]) for name in text)
    pd.testing.assert_frame_equal(found.astype(dict.fromkeys(text, object)), wanted, check_exact=True)


def holds(run: Run, steps: Iterable[int], tables: Iterable[str] = TABLES) -> None:
    """Fail unless the run holds exactly those steps, in those tables."""
    steps, tables = list(steps), set(tables)
    for table in TABLES:
        wanted = expected(table, steps if table in tables else [])
        assert run.source.count(table) == len(wanted)
        if len(wanted):
            same(run.frame(table), wanted)


def write(logdir: Path, steps: Iterable[int], make: Callable[[int], Batch] = batch, **options: Any) -> None:
    """Write those steps as one whole session."""
    steps = list(steps)
    store = ParquetStore(logdir, {"layers": []}, first_step=steps[0] if steps else 0, **options)
    for step in steps:
        store.write(make(step))
    store.close()
