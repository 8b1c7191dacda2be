"""Filters give what plain pandas filtering gives, from memory, from files, and from both at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from record.rows import batch, expected, same, write

from gradscope.errors import GradscopeError
from gradscope.record import MemoryStore, ParquetStore
from gradscope.run import Run, load

STEPS = range(30)


@pytest.fixture(scope="module", params=["memory", "gathered", "folder", "live"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    logdir: Path = tmp_path_factory.mktemp("run")
    if request.param == "folder":
        write(logdir, STEPS, flush_steps=7)
        yield load(logdir)
        return
    live = request.param == "live"
    store = (
        ParquetStore(logdir, {}, flush_steps=8)
        if live
        else MemoryStore(gather_steps=7 if request.param == "gathered" else 99)
    )
    for step in STEPS:
        store.write(batch(step))
    yield Run(store)
    store.close()


Mask = Callable[[pd.DataFrame], pd.Series]
CASES: list[tuple[str, dict[str, object], Mask]] = [
    ("timesteps", {"step": 6}, lambda f: f.step == 6),
    ("timesteps", {"step": 7}, lambda f: f.step == 7),
    ("timesteps", {"step": np.int64(6), "t": 0}, lambda f: (f.step == 6) & (f.t == 0)),
    ("timesteps", {"step": 6.0}, lambda f: f.step == 6.0),
    ("timesteps", {"step": 6.5}, lambda f: f.step == 6.5),
    ("timesteps", {"quantity": "grad_h"}, lambda f: f.quantity == "grad_h"),
    ("timesteps", {"quantity": "gain"}, lambda f: f.quantity == "gain"),
    ("timesteps", {"quantity": ["grad_h", "gain"]}, lambda f: f.quantity.isin(["grad_h", "gain"])),
    ("timesteps", {"module": ("encoder.rnn2",), "layer": {1}}, lambda f: (f.module == "encoder.rnn2") & (f.layer == 1)),
    ("timesteps", {"step": range(0, 20, 6)}, lambda f: f.step.isin(range(0, 20, 6))),
    ("timesteps", {"step": np.array([3, 27, 99])}, lambda f: f.step.isin([3, 27, 99])),
    ("timesteps", {"step": [3.0, 4.5, np.nan, np.inf]}, lambda f: f.step.isin([3.0, 4.5])),
    ("timesteps", {"step": []}, lambda f: f.step < 0),
    ("timesteps", {"step": slice(6, 12)}, lambda f: f.step.between(6, 12)),
    ("timesteps", {"step": slice(5.5, 12.5)}, lambda f: f.step.between(5.5, 12.5)),
    ("timesteps", {"step": slice(None, 12), "t": slice(3, None)}, lambda f: (f.step <= 12) & (f.t >= 3)),
    ("timesteps", {"step": slice(None, None)}, lambda f: f.step >= 0),
    ("timesteps", {"step": slice(-np.inf, np.inf)}, lambda f: f.step >= 0),
    ("timesteps", {"p50": slice(0.1, 1.5)}, lambda f: f.p50.between(0.1, 1.5)),
    ("timesteps", {"p50": np.inf}, lambda f: f.p50 == np.inf),
    ("timesteps", {"p50": np.nan}, lambda f: f.p50 == np.nan),
    ("timesteps", {"p50": [np.nan, np.inf]}, lambda f: f.p50 == np.inf),
    ("timesteps", {"p50": slice(None, np.inf)}, lambda f: f.p50 <= np.inf),
    ("timesteps", {"rank": 0}, lambda f: f.step >= 0),
    ("timesteps", {"rank": slice(1, None)}, lambda f: f.step < 0),
    ("steps", {"recorded": True}, lambda f: f.recorded),
    ("steps", {"recorded": [False]}, lambda f: ~f.recorded),
    ("steps", {"recorded": 2}, lambda f: f.step < 0),
    ("steps", {"grad_norm": 1}, lambda f: f.grad_norm == 1),
    ("clips", {"clipped": np.True_, "step": slice(None, 5)}, lambda f: f.clipped & (f.step <= 5)),
    ("reach", {"lag": 3}, lambda f: f.step >= 0),
]  # fmt: skip


@pytest.mark.parametrize(("table", "filters", "mask"), CASES, ids=[f"{t}-{f}" for t, f, _ in CASES])
def test_filters_are_those_of_pandas(run: Run, table: str, filters: dict[str, object], mask: Mask) -> None:
    whole = expected(table, STEPS).sort_values(_order(table), kind="stable")
    same(run.frame(table, **filters), whole[mask(whole)].reset_index(drop=True))


def _order(table: str) -> list[str]:
    return ["step"] if table in ("steps", "clips") else ["step", "module", "layer", "direction", "chain"]


@pytest.mark.parametrize(
    ("table", "filters", "said"),
    [
        ("timestep", {}, "did you mean 'timesteps'"),
        ("timesteps", {"quantum": "grad_h"}, "no column 'quantum'; did you mean 'quantity'.*nonfinite, rank"),
        ("timesteps", {"quantity": 3}, "quantity=3: 3 is no text"),
        ("timesteps", {"step": "6"}, "step='6': '6' is no number"),
        ("timesteps", {"step": None}, "None is no number"),
        ("timesteps", {"step": slice(0, 10, 2)}, "without a step; pass a range"),
        ("timesteps", {"step": slice(0, "x")}, "'x' is no number"),
        ("timesteps", {"step": slice(np.nan, 3)}, "NaN is no bound"),
        ("timesteps", {"quantity": slice("a", "b")}, "a slice needs a column of numbers"),
        ("steps", {"module": "rnn"}, "table 'steps' has no column 'module'"),
    ],
)
def test_what_cannot_be_asked_is_said(run: Run, table: str, filters: dict[str, object], said: str) -> None:
    with pytest.raises(GradscopeError, match=said):
        run.frame(table, **filters)
