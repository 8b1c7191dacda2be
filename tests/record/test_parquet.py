"""The run folder: what is written is read, in time, in few files, by anybody, and within its limit."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
from record.rows import batch, expected, holds, same, write

from gradscope.errors import LoadError, RecordError
from gradscope.record import ParquetStore, parquet
from gradscope.record.thin import size_limit
from gradscope.run import Run, load
from gradscope.types import Batch, Rows


def files(logdir: Path, table: str = "*") -> list[str]:
    return sorted(path.name for path in logdir.glob(f"gradscope/{table}/rank=*/*"))


@pytest.mark.parametrize("flush_steps", [1, 3, 100])
def test_round_trip(tmp_path, flush_steps: int) -> None:
    write(tmp_path, range(12), flush_steps=flush_steps)
    run = load(tmp_path)
    holds(run, range(12))
    values = run.frame("timesteps", step=0, layer=0, quantity="grad_h").p50[:5].tolist()
    assert math.isnan(values[1]) and values[2:4] == [math.inf, -math.inf]
    last = f"{math.ceil(12 / flush_steps):06}"
    name = "part-000001.parquet" if flush_steps == 100 else f"part-000001-{last}.parquet"
    assert files(tmp_path, "steps") == [name]
    assert len(files(tmp_path)) == 5


def test_flushes_by_time_and_by_steps(tmp_path) -> None:
    now = [100.0]
    store = ParquetStore(tmp_path, {}, flush_seconds=30, flush_steps=5, clock=lambda: now[0])
    for step, (clock, parts) in enumerate([(100, 0), (129, 0), (130, 1), (131, 1), (159, 1), (160, 2), (160, 2)]):
        now[0] = clock
        store.write(batch(step))
        assert len(files(tmp_path, "steps")) == parts
    for step in range(7, 11):
        store.write(batch(step))
        assert len(files(tmp_path, "steps")) == 2 + (step == 10)
    holds(load(tmp_path), range(11))
    store.close()


def test_flushes_when_memory_fills(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parquet, "_BUFFER_BYTES", 50_000)
    store = ParquetStore(tmp_path, {})
    for step in range(30):
        store.write(batch(step))
        assert store._tail.size < 50_000
    assert len(files(tmp_path, "steps")) > 2
    store.close()


def test_a_live_store_shows_what_waits_without_flushing_it(tmp_path) -> None:
    store = ParquetStore(tmp_path, {}, flush_steps=4)
    for step in range(10):
        store.write(batch(step))
    holds(Run(store), range(10))
    holds(load(tmp_path), range(8))
    store.close()
    holds(Run(store), range(10))
    store.close()
    with pytest.raises(RecordError, match="is closed"):
        store.write(batch(10))


def test_parts_are_gathered_while_the_run_goes_on(tmp_path) -> None:
    store = ParquetStore(tmp_path, {}, flush_steps=1)
    for step in range(70):
        store.write(batch(step))
    assert len(files(tmp_path, "steps")) == 8
    holds(load(tmp_path), range(70))
    store.close()
    assert files(tmp_path, "steps") == ["part-000001-000070.parquet"]


def test_large_parts_are_left_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("gradscope.record.parts.SEALED_BYTES", 12_000)
    write(tmp_path, range(8), flush_steps=1)
    found = files(tmp_path, "steps")
    assert 1 < len(found) < 8
    holds(load(tmp_path), range(8))


def test_a_run_is_continued(tmp_path) -> None:
    write(tmp_path, range(5), flush_steps=2)
    with pytest.raises(
        RecordError, match="already has steps up to 4, and first_step is 4: pass first_step=5 to continue"
    ):
        ParquetStore(tmp_path, {}, first_step=4)
    store = ParquetStore(tmp_path, {"layers": ["new"]}, first_step=7)
    holds(Run(store), range(5))
    for step in range(7, 12):
        store.write(batch(step))
    store.close()
    run = load(tmp_path)
    holds(run, [*range(5), *range(7, 12)])
    assert run.meta["layers"] == ["new"]
    assert [session["first_step"] for session in run.meta["sessions"]] == [0, 7]
    assert [session["layers"] for session in run.meta["sessions"]] == [[], ["new"]]


def test_rows_without_a_step_row_still_count(tmp_path) -> None:
    store = ParquetStore(tmp_path, {})
    store.write(Batch(3, tuple(rows for rows in batch(3).rows if rows.table != "steps")))
    store.close()
    same(load(tmp_path).frame("layers"), expected("layers", [3]))
    with pytest.raises(RecordError, match="pass first_step=4"):
        ParquetStore(tmp_path, {})


def test_the_description_is_plain_json(tmp_path) -> None:
    told = {
        "path": Path("a"),
        "budget": math.nan,
        "every": max,
        "layers": ({"module": "rnn"},),
        "n": np.int64(3),
        4: None,
    }
    ParquetStore(tmp_path, told).close()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads((tmp_path / "gradscope/run.json").read_text(), parse_constant=refuse)
    assert found["schema_version"] == 2 and found["layers"] == [{"module": "rnn"}]
    assert (found["path"], found["budget"], found["n"], found["4"]) == ("a", "nan", "3", None)
    assert "built-in function max" in found["every"]


def test_ranks_write_side_by_side(tmp_path) -> None:
    stores = [ParquetStore(tmp_path, {"by": rank}, rank=rank) for rank in (1, 0, 10)]
    for step in range(4):
        for store in stores:
            store.write(batch(step))
    for store in stores:
        store.flush()
    frame = Run(stores[0]).frame("steps")
    assert list(frame.columns) == [*expected("steps", []).columns, "rank"]
    assert frame["rank"].tolist() == [0, 1, 10] * 4 and frame.step.tolist() == sorted([*range(4)] * 3)
    assert Run(stores[0]).frame("steps", rank=[1, 10], step=2)["rank"].tolist() == [1, 10]
    for store in stores:
        store.close()
    run = load(tmp_path)
    assert run.source.count("steps") == 12 and run.meta["by"] == 0
    same(run.frame("layers", rank=10).drop(columns="rank"), expected("layers", range(4)))


@pytest.mark.parametrize("finished", [True, False])
def test_any_engine_reads_the_folder(tmp_path, finished: bool) -> None:
    store = ParquetStore(tmp_path, {}, flush_steps=3)
    for step in range(6):
        store.write(batch(step))
    if finished:
        store.close()
    folder = tmp_path / "gradscope/timesteps"
    table = pyarrow.dataset.dataset(folder, partitioning="hive").to_table()
    same(table.drop(["rank"]).to_pandas(), expected("timesteps", range(6)))
    assert set(table.column("rank").to_pylist()) == {0}
    store.close()
    file = pyarrow.parquet.ParquetFile(folder / "rank=0/part-000001-000002.parquet")
    column = {file.schema.names[i]: file.metadata.row_group(0).column(i) for i in range(len(file.schema.names))}
    assert "RLE_DICTIONARY" in column["quantity"].encodings and column["quantity"].compression == "ZSTD"
    assert column["p50"].physical_type == "DOUBLE" and column["step"].statistics.max == 3


def test_duckdb_reads_the_folder(tmp_path) -> None:
    duckdb = pytest.importorskip("duckdb")
    write(tmp_path, range(6))
    found = duckdb.sql(f"select * exclude (rank) from '{tmp_path}/gradscope/timesteps/*/part-*.parquet'").df()
    same(found, expected("timesteps", range(6)))


def _unmakable(tmp_path: Path) -> Path:
    return Path("/proc/gradscope") if os.path.isdir("/proc") else tmp_path / "file" / "below"


@pytest.mark.parametrize(
    ("logdir", "said"),
    [
        (lambda tmp: tmp / "file", "file is a file; mend that, or pass another logdir"),
        (lambda tmp: tmp / "file" / "below", "file is a file"),
        (_unmakable, "cannot write the run folder"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, logdir, said: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=said):
        ParquetStore(logdir(tmp_path), {})


def test_somebody_elses_folder_is_left_alone(tmp_path) -> None:
    folder = tmp_path / "gradscope"
    folder.mkdir()
    (folder / "events.out.tfevents.1.host").write_text("")
    ParquetStore(tmp_path / "fresh", {}).close()
    (folder / "thesis.tex").write_text("")
    with pytest.raises(RecordError, match=r"holds something else \(thesis.tex\).*leaves it alone"):
        ParquetStore(tmp_path, {})
    assert sorted(os.listdir(folder)) == ["events.out.tfevents.1.host", "thesis.tex"]
    (folder / "thesis.tex").unlink()
    ParquetStore(tmp_path, {}).close()


def test_a_newer_run_is_not_continued(tmp_path) -> None:
    write(tmp_path, range(2))
    path = tmp_path / "gradscope/run.json"
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 3'))
    for attempt in (lambda: ParquetStore(tmp_path, {}, first_step=2), lambda: load(tmp_path)):
        with pytest.raises(LoadError, match="newer gradscope .schema 3, this one reads up to 2.*pip install -U"):
            attempt()


def test_a_full_disk_costs_nothing_once_there_is_room(tmp_path, monkeypatch) -> None:
    store = ParquetStore(tmp_path, {}, flush_steps=4)
    for step in range(3):
        store.write(batch(step))
    _fill(monkeypatch, after=2)
    with pytest.raises(
        RecordError, match="cannot write rows up to step 3.*No space left.*they wait for the next flush"
    ):
        store.write(batch(3))
    store.write(batch(4))  # is not tried again at every step
    monkeypatch.undo()
    holds(load(tmp_path), [])
    store.write(batch(5))
    store.close()
    holds(load(tmp_path), range(6))
    assert not any(name.endswith(".tmp") for name in files(tmp_path))


def test_what_waits_for_a_full_disk_is_bounded_and_noted(tmp_path, monkeypatch) -> None:
    store = ParquetStore(tmp_path, {}, flush_steps=4)
    for step in range(4):
        store.write(batch(step))
    monkeypatch.setattr(parquet, "_BUFFER_BYTES", 1)
    _fill(monkeypatch, after=1)
    with pytest.raises(RecordError, match="1 steps up to 4 are lost"):
        store.write(batch(4))
    monkeypatch.undo()
    store.write(batch(5))
    store.close()
    run = load(tmp_path)
    same(run.frame("steps"), expected("steps", [0, 1, 2, 3, 5]))
    assert run.frame("notes", layer=-1).reason.str.contains("1 steps up to 4 are lost: .*No space left").tolist() == [
        True
    ]


def _fill(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    replace, left = os.replace, [after]

    def full(source: str, target: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)


def _heavy(step: int) -> Batch:
    """About 10 kB of noise, which no codec makes smaller."""
    noise = np.random.default_rng(step).random((4, 300))
    key = {"module": "rnn", "layer": 0, "direction": "forward", "chain": 0, "t": np.arange(300), "quantity": "grad_h"}
    spread = dict(zip(("p10", "p50", "p90", "mean"), noise, strict=True))
    timesteps = Rows("timesteps", {**key, **spread, "se": 0.0, "sequences": 1, "nonfinite": 0})
    return Batch(step, (timesteps, *(rows for rows in batch(step).rows if rows.table == "steps")))


def test_beyond_the_disk_limit_older_records_are_thinned(tmp_path) -> None:
    limit = 400_000
    store = ParquetStore(tmp_path, {}, flush_steps=8, disk_limit=limit)
    for step in range(160):
        store.write(_heavy(step))
        assert sum(path.stat().st_size for path in tmp_path.glob("gradscope/*/*/*")) < 1.1 * limit
    store.close()
    run = load(tmp_path)
    same(run.frame("steps"), expected("steps", range(160)))
    frame = run.frame("timesteps")
    kept = frame.step.unique().tolist()
    assert kept[0] == 0 and kept[-12:] == list(range(148, 160)) and 24 < len(kept) < 45
    wanted = np.concatenate([np.random.default_rng(step).random((4, 300))[1] for step in kept])
    assert (frame.p50.to_numpy() == wanted).all()
    said = run.frame("notes").reason
    assert (
        len(said) and said.str.contains("its limit of 390.6 KiB, the run dropped every second of the older steps").all()
    )


def test_a_limit_out_of_reach_does_not_hang(tmp_path) -> None:
    write(tmp_path, range(16), flush_steps=8, disk_limit=1)
    kept = load(tmp_path).frame("steps").step.tolist()
    assert kept[0] == 0 and kept[-1] == 15 and len(kept) < 10


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500000", 500_000),
        ("500M", 500 * 2**20),
        ("2G", 2**31),
        ("1.5 gib", 3 * 2**29),
        ("10KB", 10_240),
        (None, 2**30),
    ],
)
def test_the_limit_is_read_from_the_environment(monkeypatch, text: str | None, size: int) -> None:
    monkeypatch.delenv("GRADSCOPE_DISK_LIMIT", raising=False)
    if text is not None:
        monkeypatch.setenv("GRADSCOPE_DISK_LIMIT", text)
    assert size_limit(None, "GRADSCOPE_DISK_LIMIT", "1G", "disk_limit") == size
    assert size_limit(7, "GRADSCOPE_DISK_LIMIT", "1G", "disk_limit") == 7


@pytest.mark.parametrize("text", ["", "much", "-1", "0", "1X", "nan"])
def test_an_unfit_limit_is_refused(tmp_path, monkeypatch, text: str) -> None:
    monkeypatch.setenv("GRADSCOPE_DISK_LIMIT", text)
    with pytest.raises(RecordError, match=f"GRADSCOPE_DISK_LIMIT is '{text}'; it must be a size in bytes such as"):
        ParquetStore(tmp_path, {})
    assert not list(tmp_path.iterdir())
    with pytest.raises(RecordError, match="disk_limit is '0'"):
        size_limit(0, "GRADSCOPE_DISK_LIMIT", "1G", "disk_limit")


def test_a_run_of_an_earlier_gradscope_is_read_continued_and_merged(tmp_path) -> None:
    """Of what it did not write yet there is NaN."""
    write(tmp_path, range(4))
    for path in (tmp_path / "gradscope/steps").rglob("*.parquet"):
        old = pyarrow.parquet.read_table(path, partitioning=None).drop_columns("loss")
        pyarrow.parquet.write_table(old, path)
    steps = load(tmp_path).frame("steps", step=slice(1, None))
    assert steps["loss"].isna().tolist() == [True] * 3 and steps["grad_norm"].tolist() == [1 / 3, 2 / 3, 1.0]
    write(tmp_path, range(4, 6))
    assert load(tmp_path).frame("steps")["loss"].isna().tolist() == [True] * 4 + [False] * 2
