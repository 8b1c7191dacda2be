"""A run that several processes have written, whole and by rank; made by hand."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import ENCODER, VANISHING, layer, timesteps

import gradscope
from gradscope.diagnose import merge_ranks
from gradscope.record import ParquetStore, meta
from gradscope.run import Run
from gradscope.types import Batch, Finding, Rows

STEPS = 6
STEP = {
    "optimizer": "Adam",
    "loss": 1.0,
    "grad_norm": 1.0,
    "recorded": True,
    "skipped": False,
    "overhead_s": 0.01,
    "step_s": 1.0,
}
HEALTHY = Finding("healthy", "info", None, "no rule finds a fault", "No rule finds a fault.", {})
NONFINITE = Finding("nonfinite_gradient", "critical", None, "NaN from step 4 on", "All later.", {"steps": (4, 5)})


def write(logdir: Path, rank: int, ill_from: int = STEPS) -> ParquetStore:
    """One process's part: from some step on its own gradients are not finite, and from step 4 on everybody's."""
    store = ParquetStore(logdir, {"processes": 2, "told_by": rank}, rank=rank)
    for step in range(STEPS):
        rows = [*layer(ENCODER, 5, -0.5), Rows("steps", {**STEP, "nonfinite": int(step >= 4)})]
        if step >= ill_from:
            ill = timesteps(ENCODER, "grad_h", np.full(5, np.nan))
            rows[0] = Rows("timesteps", {**ill.columns, "nonfinite": 2})
        store.write(Batch(step, tuple(rows)))
    return store


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Run:
    logdir = tmp_path_factory.mktemp("two")
    for store in [write(logdir, 1, ill_from=4), write(logdir, 0)]:  # side by side, in one folder
        store.close()
    return gradscope.load(logdir)


def test_a_column_says_which_process(two: Run) -> None:
    frame = two.frame("steps")
    assert frame["rank"].tolist() == [0, 1] * STEPS and frame["step"].is_monotonic_increasing
    assert len(two.frame("steps", rank=1)) == STEPS


def test_one_process_alone(two: Run) -> None:
    one = two.of_rank(1)
    assert "rank" not in one.frame("steps") and len(one.frame("steps")) == STEPS
    assert one.frame("steps", rank=0).empty and one.source.count("steps") == STEPS
    assert one.layers == [ENCODER] and one.meta == two.meta
    with pytest.raises(gradscope.GradscopeError, match=r"rank 7.*\[0, 1\]"):
        two.of_rank(7)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_the_first_rank_tells_what_the_run_is(tmp_path: Path, order: tuple[int, ...]) -> None:
    for rank in order:
        meta.begin(tmp_path, {"told_by": rank}, rank, 0)
    assert meta.read(tmp_path)["told_by"] == 0
    assert os.listdir(tmp_path) == [meta.FILE]


def test_another_rank_never_takes_the_place_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 begins between the other's look at the folder and its writing."""
    exists = Path.exists

    def late(path: Path, **options: bool) -> bool:
        found = exists(path, **options)
        if path.name == meta.FILE and not found:
            monkeypatch.setattr(Path, "exists", exists)
            meta.begin(tmp_path, {"told_by": 0}, 0, 0)
        return found

    monkeypatch.setattr(Path, "exists", late)
    meta.begin(tmp_path, {"told_by": 1}, 1, 0)
    assert json.loads((tmp_path / meta.FILE).read_text())["told_by"] == 0
    assert os.listdir(tmp_path) == [meta.FILE]


@pytest.mark.parametrize(("place", "name"), [(Path, "exists"), (os, "listdir")])
def test_a_folder_that_another_rank_begins_meanwhile_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    """The other rank is there between two looks of this one."""
    look = getattr(place, name)

    def late(*arguments: Any, **options: Any) -> Any:
        found = look(*arguments, **options)
        monkeypatch.undo()
        meta.begin(tmp_path, {}, 0, 0)
        return found

    monkeypatch.setattr(place, name, late)
    meta.refuse_foreign(tmp_path)


def test_what_all_show_is_said_once(two: Run) -> None:
    runs = {rank: two.of_rank(rank) for rank in (0, 1)}
    assert merge_ranks({0: [VANISHING], 1: [VANISHING]}, runs) == [VANISHING]
    assert merge_ranks({0: [HEALTHY], 1: [HEALTHY]}, runs) == [HEALTHY]


def test_what_one_shows_names_it(two: Run) -> None:
    runs = {rank: two.of_rank(rank) for rank in (0, 1)}
    (finding,) = merge_ranks({0: [HEALTHY], 1: [VANISHING]}, runs)
    assert finding.title == f"{VANISHING.title} (rank 1 of 2)" and finding.evidence["ranks"] == (1,)
    assert "rank 1 alone" in finding.explanation and finding.remedies == VANISHING.remedies


def test_where_what_is_not_finite_began(two: Run) -> None:
    """After the reduction every process has it; before, one had."""
    runs = {rank: two.of_rank(rank) for rank in (0, 1)}
    (finding,) = merge_ranks({0: [NONFINITE], 1: [NONFINITE]}, runs)
    assert "begun on rank 1" in finding.title and finding.evidence["ranks"] == (1,)
    (finding,) = merge_ranks({r: [replace(NONFINITE, evidence={"steps": (3, 5)})] for r in runs}, runs)
    assert "rank" not in finding.title  # at that step nobody's own gradients were seen to be ill


def test_the_run_s_findings(two: Run) -> None:
    (finding,) = [f for f in two.findings() if f.code == "nonfinite_gradient"]
    assert "begun on rank 1" in finding.title


def test_the_report_shows_all(two: Run) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("seaborn")
    report = two.report()
    told = report.summary["processes"]["entries"]
    assert [(e["rank"], e["steps"], e["own_nonfinite"], e["nonfinite_steps"]) for e in told] == [
        (0, 6, 0, 2),
        (1, 6, 2, 2),
    ]
    assert report.summary["facts"]["steps"] == STEPS and report.summary["facts"]["processes"] == 2
    assert "PROCESSES" in report.text() and "begun on rank 1" in report.text()
    assert "## Processes" in report.markdown() and "| 1 | 6 |" in report.markdown()
    assert report.summary["processes"]["heads"][4] in report.html()
    alone = two.of_rank(0).report()
    assert "PROCESSES" not in alone.text()
