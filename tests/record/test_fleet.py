"""Many runs as one: the same figures as pandas over each of them, whatever the folders are called."""

from __future__ import annotations

import sys
from math import inf, nan
from pathlib import Path

import pandas as pd
import pytest
from fleets import HOSTILE, sweep, table_by_pandas
from made_runs import CLIPPING, HEALTHY, META, VANISHING
from pandas.testing import assert_frame_equal

import gradscope
from gradscope.record import ParquetStore
from gradscope.record.fleet import COLUMNS, worst
from gradscope.run import Fleet
from gradscope.types import Batch, Rows
from gradscope.types.clips import share
from gradscope.types.loss import change

pytest.importorskip("duckdb")
parquet = pytest.importorskip("pyarrow.parquet")
NUMBER = 20
CLIP = {"kind": "norm", "how": "", "threshold": 1.0, "norm_type": 2.0, "parameters": 4, "nonfinite": 0,
        "norm_before": 2.0, "norm_after": 1.0, "coefficient": 0.5}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    sweep(root, NUMBER)
    return root


@pytest.fixture(scope="module")
def fleet(root: Path) -> Fleet:
    found = gradscope.load(root)
    assert isinstance(found, Fleet)
    return found


def test_holds_every_run_by_name(fleet: Fleet, root: Path) -> None:
    assert len(fleet) == NUMBER and HOSTILE in fleet
    seeds = [int(name.rpartition("=")[2]) for name in fleet if name.startswith("lr=0")]
    assert seeds == sorted(seeds) and max(seeds) > 9
    assert fleet["lr=1/seed=4"].frame("steps").equals(gradscope.load(root / "lr=1/seed=4").frame("steps"))
    with pytest.raises(KeyError):
        fleet["lr=9"]
    assert f"{NUMBER} runs" in repr(fleet)


def test_table_is_that_of_pandas(fleet: Fleet) -> None:
    found, expected = fleet.table(findings=False), table_by_pandas(fleet)
    assert_frame_equal(found, expected[found.columns], check_dtype=False, rtol=1e-12)
    assert found["clip_rate"].nunique() > 5 and found["horizon"].nunique() > 3  # not all the same
    assert found["horizon_censored"].any() and not found["horizon_censored"].all()


def test_table_says_of_each_run_what_its_report_says(fleet: Fleet) -> None:
    found = fleet.table(findings=False).set_index("run")
    for name, run in fleet.items():
        steps, row = run.frame("steps"), found.loc[name]
        ends = change(steps)
        assert row["clip_rate"] == pytest.approx(share(steps, run.frame("clips")), nan_ok=True)
        assert (row["loss_first"], row["loss_last"]) == pytest.approx(ends[:2] if ends else (nan, nan), nan_ok=True)
    assert found["loss_last"].isna().sum() == 2 and found["loss_last"].eq(inf).sum() == 1


def test_runs_of_an_earlier_gradscope_have_no_loss(tmp_path: Path) -> None:
    names = sweep(tmp_path, 4)
    for path in tmp_path.rglob("gradscope/steps/*/*.parquet"):
        parquet.write_table(parquet.read_table(path, partitioning=None).drop_columns("loss"), path)
    fleet = gradscope.load(tmp_path)
    found = fleet.table(findings=False)
    assert found["loss_first"].isna().all() and sorted(found["steps"]) == [0, 24, 24, 24]
    assert fleet.frame("steps", run=names[0])["loss"].isna().tolist() == [True] * 24


def test_table_has_the_worst_finding(root: Path) -> None:
    fleet, told = Fleet(root, ["lr=0/seed=3", "lr=2/seed=5"]), []
    found = fleet.table(progress=lambda done, total: told.append((done, total))).set_index("run")
    assert list(found.columns) == list(COLUMNS)[1:] and told == [(1, 2), (2, 2)]
    for name in fleet:
        mine = fleet[name].findings()
        first = worst(mine)
        faults = [finding for finding in mine if finding.code != "healthy"]
        expected = (first.code, first.severity if faults else "", len(faults))
        assert (*found.loc[name, ["finding", "severity", "findings"]],) == expected


@pytest.mark.parametrize(
    "table, filters",
    [
        ("steps", {}),
        ("steps", {"step": slice(3, 9), "skipped": False}),
        ("steps", {"loss": slice(0.1, None), "grad_norm": slice(None, 5.0)}),
        ("clips", {"kind": "modified", "how": ["clamped", "'; --"]}),
        ("timesteps", {"quantity": "grad_h", "step": [0, 4], "t": slice(2, None)}),
        ("layers", {"decay": slice(-0.5, 0.0), "module": "encoder"}),
        ("gates", {"step": []}),
        ("spectra", {"rank": 1}),
    ],
)
def test_frame_is_the_stack_of_all(fleet: Fleet, table: str, filters: dict[str, object]) -> None:
    parts = [run.frame(table, **filters).assign(rank=0).assign(run=name) for name, run in fleet.items()]
    expected = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    found = fleet.frame(table, **filters)
    assert_frame_equal(found, expected[["run", *expected.columns[:-1]]], check_dtype=bool(len(expected)))
    some = ["lr=1/seed=4", HOSTILE]
    chosen = expected[expected["run"].isin(some)]
    assert len(fleet.frame(table, run=some, **filters)) == len(chosen)


def test_what_is_not_there(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(gradscope.GradscopeError, match="no run 'lr=0/seed=99'.*it has"):
        fleet.frame("steps", run="lr=0/seed=99")
    with pytest.raises(gradscope.GradscopeError, match="no column 'quantity'"):
        fleet.frame("steps", quantity="grad_h")
    with pytest.raises(gradscope.GradscopeError, match="nor below it"):
        gradscope.load(tmp_path)


def test_damaged_parts_are_skipped_with_a_warning(tmp_path: Path) -> None:
    names = sweep(tmp_path, 4)
    (victim,) = (tmp_path / names[1] / "gradscope" / "clips").rglob("*.parquet")
    victim.write_bytes(b"PAR1 and nothing more")
    fleet = gradscope.load(tmp_path)
    with pytest.warns(gradscope.GradscopeWarning, match="damaged"):
        found = fleet.table(findings=False)
    rows = found.set_index("run").loc[names]
    assert (rows["clip_rate"] > 0).tolist() == [False, False, True, False]
    assert rows["steps"].tolist() == [24, 24, 24, 0]


def test_parts_that_a_merge_replaced_count_once(tmp_path: Path) -> None:
    names = sweep(tmp_path, 4)
    folder = tmp_path / names[1] / "gradscope" / "steps" / "rank=0"
    (part,) = folder.glob("*.parquet")
    part.rename(folder / "part-000001-000003.parquet")
    (folder / "part-000002.parquet").write_bytes((folder / "part-000001-000003.parquet").read_bytes())
    assert gradscope.load(tmp_path).table(findings=False).set_index("run").loc[names[1], "steps"] == 24


def test_a_step_of_several_ranks_counts_once(tmp_path: Path) -> None:
    told = {"optimizer": "SGD", "recorded": True, "overhead_s": 0.0, "step_s": 1.0}
    for rank, steps in ((0, 8), (1, 5)):
        store = ParquetStore(tmp_path / "both", META, rank=rank)
        for step in range(steps):
            row = {
                **told,
                "loss": 1.0,
                "grad_norm": 1.0,
                "skipped": step == 2,
                "nonfinite": int(step in (3, 4 + 3 * rank)),
            }
            clips = [Rows("clips", {**CLIP, "index": index, "clipped": step == 1 + rank}) for index in range(2)]
            store.write(Batch(step, (Rows("steps", row), *clips)))
        store.close()
    sweep(tmp_path, 2)
    row = gradscope.load(tmp_path).table(findings=False).set_index("run").loc["both"]
    assert (row["steps"], row["nonfinite_steps"], row["skipped_steps"]) == (8, 2, 1)
    assert row["clip_rate"] == 2 / 13 and row["seconds"] == 13


def test_says_what_to_install(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert len(fleet["lr=1/seed=4"].frame("steps")) == 24
    for ask in (fleet.table, lambda: fleet.frame("steps")):
        with pytest.raises(gradscope.GradscopeError, match=r"pip install 'gradscope-rnn\[fleet\]'"):
            ask()
    assert "gradscope-rnn[fleet]" in fleet._repr_html_()


def test_compares_and_reports(fleet: Fleet) -> None:
    pytest.importorskip("seaborn")
    from gradscope.report import fleet as fleet_report

    findings = {name: [(HEALTHY, VANISHING, CLIPPING)[place % 3]] for place, name in enumerate(fleet)}
    report = fleet_report(fleet.data, fleet, findings)
    assert [row["run"] for row in report.summary["rows"]].count(HOSTILE) == 1
    ranks = [("critical", "warning", "info", "").index(row["severity"]) for row in report.summary["rows"]]
    assert ranks == sorted(ranks)
    assert sum(found["runs"] for found in report.summary["findings"] if found["code"] == "healthy") == ranks.count(3)
    page = report.html()
    assert (
        page.count("<svg") - page.count('<svg class="spark"') == 5
        and "<b>$files" not in page
        and "&lt;b&gt;$files" in page
    )
    assert f"{NUMBER} runs" in report.text() and max(map(len, report.text().splitlines())) <= 140
    some = {name: fleet[name] for name in list(fleet)[:2]}
    assert gradscope.compare(some).frame("steps")["run"].nunique() == 2
    assert f"{NUMBER} runs" in fleet._repr_html_() and "<b>$files" not in fleet._repr_html_()
