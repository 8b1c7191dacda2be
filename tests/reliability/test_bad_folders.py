"""Run folders with files that are cut, corrupted, foreign or hostile: each is named, the rest is read, nothing run."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import gradscope

HOSTILE = [
    "<script>alert(1)</script>",
    "../../../../etc/passwd",
    "a/b\\c",
    "\x00\x1b[31m",
    "{{7*7}}",
    "%s%n",
    "é" * 300,
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    model = nn.GRU(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.attach(model, folder, every=1, strict=True):
        for _ in range(3):
            model(torch.randn(4, 2, 2))[0].sum().backward()
            optimizer.step()
    return folder


def tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("gradscope/*/rank=*/part-*.parquet"))


def read(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Rows of every table, and what was warned of."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run = gradscope.load(folder)
        sizes = {name: len(run.frame(name)) for name in ("timesteps", "gates", "layers", "steps", "notes", "weights")}
    assert all(issubclass(w.category, gradscope.GradscopeWarning) for w in warned)
    return sizes, [str(w.message) for w in warned]


quiet = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quiet
@given(which=st.integers(0, 100), at=st.floats(0, 1), junk=st.binary(max_size=40), keep=st.booleans())
def test_a_file_that_is_cut_or_overwritten(
    made: Path, tmp_path: Path, which: int, at: float, junk: bytes, keep: bool
) -> None:
    """Named in a warning if it cannot be read; every other table is as it was."""
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder)
    whole, _ = read(folder)
    path = tables(folder)[which % len(tables(folder))]
    data = path.read_bytes()
    cut = int(at * len(data))
    path.write_bytes(data[:cut] + junk + (data[cut + len(junk) :] if keep else b""))
    sizes, warned = read(folder)
    table = path.parent.parent.name
    assert {name: n for name, n in sizes.items() if name != table} == {n: k for n, k in whole.items() if n != table}
    assert sizes.get(table, 0) in (0, whole.get(table, 0))
    assert all(str(path) in warning for warning in warned)
    if sizes.get(table, 0) < whole.get(table, 0):
        assert warned and "damaged and was skipped" in warned[0]


@quiet
@given(
    text=st.text()
    | st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(
        json.dumps
    )
)
def test_a_run_json_of_any_kind(made: Path, tmp_path: Path, text: str) -> None:
    """Refused in words, or read: never anything else."""
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder)
    (folder / "gradscope/run.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        run = gradscope.load(folder)
    except gradscope.GradscopeError as error:
        assert "run.json" in str(error)
    else:
        assert len(run.frame("steps")) == 3


class Trap:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "name", ["part-000009.parquet", "x.pkl", "data.pt", ".part-000001.parquet.tmp", "part-x.parquet"]
)
def test_foreign_files_are_not_opened_as_anything_else(made: Path, tmp_path: Path, name: str) -> None:
    """Least of all unpickled."""
    folder, mark = tmp_path / "run", tmp_path / "mark"
    shutil.copytree(made, folder)
    before, _ = read(folder)
    for table in ("steps", "timesteps", "foreign"):
        place = folder / "gradscope" / table / "rank=0" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(pickle.dumps(Trap(mark)))
    (folder / "gradscope" / name).write_bytes(pickle.dumps(Trap(mark)))
    (folder / "gradscope/steps/rank=../../x").mkdir(parents=True, exist_ok=True)
    sizes, warned = read(folder)
    assert sizes == before and not mark.exists()
    assert bool(warned) == (name == "part-000009.parquet")


def test_nothing_of_ours_can_unpickle() -> None:
    house = Path(gradscope.__file__).parent
    for path in sorted(house.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "import pickle" not in text and "torch.load" not in text and "allow_pickle" not in text, path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose layers and notes are called as nobody's should be."""
    from gradscope.record import ParquetStore
    from gradscope.types import Batch, Rows

    folder = tmp_path_factory.mktemp("hostile")
    meta = {"layers": {name: {"class": name, "mode": name} for name in HOSTILE}, "arguments": {"every": HOSTILE[0]}}
    store = ParquetStore(folder, meta)
    layer = {"horizon": 1.0, "horizon_censored": False, "decay": -1.0, "lyapunov": 0.0, "residual": 0.0, "timesteps": 2}
    told = {"optimizer": HOSTILE[0], "loss": 1.0, "grad_norm": 1.0, "nonfinite": 1, "recorded": True, "skipped": False}
    for step in range(4):
        rows = [Rows("steps", {**told, "overhead_s": 0.0, "step_s": 1.0})]
        for name in HOSTILE:
            key = {"module": name, "layer": 0, "direction": "forward", "chain": 0}
            rows += [Rows("notes", {**key, "reason": name}), Rows("layers", {**key, **layer})]
            rows += [Rows("gates", {**key, "t": 0, "gate": name, "low": 0.0, "high": 0.9, "mean": 0.9})]
        store.write(Batch(step, tuple(rows)))
    store.close()
    return folder


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
def test_names_from_a_folder_are_text_and_no_paths(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a report, which writes where it is told to and nowhere else."""
    monkeypatch.chdir(tmp_path)
    before = {path for path in hostile.rglob("*")}
    run, path = gradscope.load(hostile), tmp_path / "report.html"
    run.report().save(path)
    page = path.read_text(encoding="utf-8")
    assert "<script>alert(1)</script>" not in page and "&lt;script&gt;alert(1)" in page
    assert "49" not in page.split("{{7*7}}")[0][-20:] and "{{7*7}}" in page
    assert "<script>" not in run._repr_html_()
    assert run.findings()
    assert {path.name for path in tmp_path.iterdir()} == {"report.html"}
    assert {path for path in hostile.rglob("*")} == before
