"""Reading a folder that is damaged, or that changes meanwhile."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import pandas as pd
import pytest
from record.rows import batch, expected, holds, same, write

from gradscope.errors import GradscopeWarning, LoadError
from gradscope.record import ParquetStore, parts
from gradscope.run import load


@pytest.fixture
def logdir(tmp_path) -> Path:
    """Three flushes of two steps, not yet merged."""
    store = ParquetStore(tmp_path, {}, flush_steps=2)
    for step in range(6):
        store.write(batch(step))
    store._lock.release()
    return tmp_path


def _flip(content: bytes) -> bytes:
    """One bit of the first data page, which only a checksum can notice."""
    return content[:40] + bytes([content[40] ^ 1]) + content[41:]


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"PAR1" * 9, _flip])
@pytest.mark.parametrize(("table", "left"), [("steps", [0, 1, 4, 5]), ("clips", [0, 1, 4, 5]), ("layers", [0])])
def test_a_damaged_part_is_skipped_and_named(logdir: Path, damage, table: str, left: list[int]) -> None:
    path = logdir / f"gradscope/{table}/rank=0/part-000002.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(GradscopeWarning, match=f"{table}/rank=0/part-000002.parquet is damaged and was skipped"):
        same(load(logdir).frame(table), expected(table, left))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(load(logdir).frame("timesteps"), expected("timesteps", range(6)))


def test_a_damaged_part_survives_continuing_and_merging(logdir: Path) -> None:
    path = logdir / "gradscope/timesteps/rank=0/part-000002.parquet"
    content = path.read_bytes()[:-9]
    path.write_bytes(content)
    write(logdir, range(6, 9))
    assert path.read_bytes() == content
    holds_steps(load(logdir).frame("steps"), range(9))
    with pytest.warns(GradscopeWarning, match="part-000002"):
        same(load(logdir).frame("timesteps"), expected("timesteps", [0, 6]))


def holds_steps(frame: pd.DataFrame, steps: range) -> None:
    same(frame, expected("steps", steps))


def test_a_foreign_file_among_the_parts_is_skipped(logdir: Path) -> None:
    folder = logdir / "gradscope/steps/rank=0"
    pd.DataFrame({"step": [5]}).to_parquet(folder / "part-000003.parquet")
    with pytest.warns(GradscopeWarning, match="part-000003.parquet is damaged"):
        same(load(logdir).frame("steps"), expected("steps", range(4)))
    pd.DataFrame({"name": ["x"]}).to_parquet(folder / "part-000002.parquet")
    write(logdir, range(6, 8))
    with pytest.warns(GradscopeWarning, match="part-00000[23].parquet is damaged"):
        same(load(logdir).frame("steps"), expected("steps", [0, 1, 6, 7]))
    for name in ("part-x.parquet", "part-1.parquet.bak", "notes.txt"):
        (folder / name).write_bytes(pickle.dumps(object()))
    (folder.parent / "rank=x").mkdir()
    assert load(logdir).source.ranks == [0]


def test_an_unfinished_flush_does_not_count(logdir: Path) -> None:
    folder = logdir / "gradscope"
    (folder / "steps/rank=0/part-000003.parquet").unlink()
    (folder / "steps/rank=0/.part-000003.parquet.tmp").write_bytes(b"PAR1")
    holds(load(logdir), range(4))
    write(logdir, range(4, 7))
    holds(load(logdir), range(7))
    assert not list(folder.glob("*/*/.*"))


def test_a_merge_meanwhile_is_not_noticed(logdir: Path, monkeypatch) -> None:
    read = parts.read

    def merged_meanwhile(*arguments):
        monkeypatch.setattr(parts, "read", read)
        parts.merge(logdir / "gradscope", 0)
        return read(*arguments)

    monkeypatch.setattr(parts, "read", merged_meanwhile)
    same(load(logdir).frame("steps"), expected("steps", range(6)))
    assert not (logdir / "gradscope/steps/rank=0/part-000001.parquet").exists()


def test_a_part_that_is_always_gone_is_warned_about(logdir: Path, monkeypatch) -> None:
    def gone(*_):
        raise FileNotFoundError

    monkeypatch.setattr(parts, "read", gone)
    with pytest.warns(GradscopeWarning, match="rank 0 of 'steps' changes too fast"):
        assert not len(load(logdir).frame("steps"))


@pytest.mark.parametrize("content", ["", "{", "[1]", '"x"', "{}", '{"schema_version": "1"}'])
def test_a_damaged_description_is_named(logdir: Path, content: str) -> None:
    (logdir / "gradscope/run.json").write_text(content)
    with pytest.raises(LoadError, match="run.json"):
        load(logdir)


def test_reading_changes_nothing(logdir: Path) -> None:
    def look() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in logdir.rglob("*")}

    before = look()
    run = load(logdir)
    holds(run, range(6))
    assert repr(run) and run.layers and look() == before
