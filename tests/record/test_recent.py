"""What is read of a run while it is written: its last stretch, and all of it once it is closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from record.rows import batch
from torch import nn

import gradscope
from gradscope.record import MemoryStore, ParquetStore, live
from gradscope.run import Run

LAST, STEPS = 99, 30
FIRST = LAST - STEPS + 1
FILTERS: tuple[tuple[Any, set[int]], ...] = (
    (None, set(range(FIRST, LAST + 1))),
    (7, set()),
    (80, {80}),
    ([7, 80, 90], {80, 90}),
    (slice(None, None), set(range(FIRST, LAST + 1))),
    (slice(7, 75), set(range(FIRST, 76))),
    (slice(90, None), set(range(90, LAST + 1))),
)


@pytest.fixture(params=[ParquetStore, MemoryStore])
def store(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ParquetStore | MemoryStore:
    monkeypatch.setattr(live, "STEPS", STEPS)
    store = ParquetStore(tmp_path, {"told": 1}, flush_steps=17) if request.param is ParquetStore else MemoryStore()
    for step in range(LAST + 1):
        store.write(batch(step))
    return store


@pytest.mark.parametrize(("asked", "expected"), FILTERS)
def test_it_is_the_last_stretch(store: Any, asked: Any, expected: set[int]) -> None:
    filters = {} if asked is None else {"step": asked}
    found = Run(live.Recent(store)).frame("steps", **filters)
    assert set(found["step"]) == expected
    store.close()


def test_it_is_everything_when_the_store_is_closed(store: Any) -> None:
    one = live.Recent(store)
    assert one.count("steps") == STEPS and one.ranks == store.ranks and one.meta == store.meta
    store.close()
    assert one.count("steps") == LAST + 1
    assert one.read("layers").equals(store.read("layers"))


def test_a_short_run_is_all_there(tmp_path: Path) -> None:
    with_few = MemoryStore()
    with_few.write(batch(3))
    assert Run(live.Recent(with_few)).frame("steps")["step"].tolist() == [3]


def test_findings_for_the_tab_look_back_on_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tab = pytest.importorskip("gradscope_integrations.tensorboard")
    monkeypatch.setattr(live, "STEPS", 3)
    asked: list[Any] = []
    monkeypatch.setattr(tab, "make_sink", lambda logdir, writer, findings: asked.append(findings))
    model = nn.GRU(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    with gradscope.attach(model, tmp_path, every=1) as scope:
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.ones(2, 2, 2))[0].sum().backward()
            optimizer.step()
        scope.run.frame("steps")
        assert asked[0]()[0].evidence["records"] == 3
    assert asked[0]()[0].evidence["records"] == 10
