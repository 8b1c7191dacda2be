"""A run as its user sees it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from made_runs import made
from record.rows import ALONE, batch, expected, holds, same, write

from gradscope.errors import LoadError
from gradscope.record import Joined, MemoryStore, ParquetStore
from gradscope.run import Run, load
from gradscope.types import Batch, LayerKey, Rows


def _layers(*modules: str) -> MemoryStore:
    store = MemoryStore()
    row = {"direction": "forward", "chain": 0, "horizon": 1.0, "horizon_censored": False, "decay": 0.0, "lyapunov": 0.0}
    rows = [{"module": name, "layer": 0, **row, "residual": 0.0, "timesteps": 1} for name in modules]
    store.write(Batch(0, tuple(Rows("layers", one) for one in rows)))
    return store


def test_frames_are_sorted_by_step_then_layer_key_then_as_written() -> None:
    store = MemoryStore()
    for step in (3, 0, 6):
        store.write(batch(step))
    frame = Run(store).frame("timesteps")
    wanted = expected("timesteps", [0, 3, 6]).sort_values(["step", "module", "layer"], kind="stable", ignore_index=True)
    same(frame, wanted)
    assert frame.module.iloc[0] == "encoder.rnn10"
    assert frame.quantity.iloc[:10].tolist() == ["grad_h"] * 5 + ["jacobian"] * 5


def test_layers_are_in_natural_order() -> None:
    run = Run(_layers("rnn10", "rnn2", "", "rnn2", "a.1.b", "a.b"))
    assert [key.module for key in run.layers] == ["", "a.1.b", "a.b", "rnn2", "rnn10"]
    assert run.layers[0] == LayerKey("", 0, "forward", 0) and isinstance(run.layers[0].layer, int)


def test_text_compares_and_groups_without_ghosts() -> None:
    store = MemoryStore()
    store.write(batch(0))
    frame = Run(store).frame("timesteps", quantity="grad_h")
    assert (frame.quantity == "grad_h").all()
    assert list(frame.groupby("quantity").groups) == ["grad_h"]


def test_representations_are_short_and_escaped() -> None:
    run = Run(_layers("<script>"))
    assert repr(run) == "<Run: 0 steps, 1 layer; rows: layers 1>"
    html = run._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;, layer 0" in html
    assert repr(Run(MemoryStore())) == "<Run: 0 steps, 0 layers; rows: none yet>"
    assert repr(made()).startswith("<Run: 60 steps, 1 layer, loss 2.06 -> 0.978; rows: ")


def test_a_step_not_yet_written_can_be_joined(tmp_path) -> None:
    store, pending = ParquetStore(tmp_path, {"a": 1}, flush_steps=2), MemoryStore()
    for step in range(5):
        store.write(batch(step))
    pending.write(batch(5))
    joined = Run(Joined(store, pending))
    holds(joined, range(6))
    assert joined.meta["a"] == 1
    store.close()


def test_load_takes_the_logdir_or_the_folder_in_it(tmp_path) -> None:
    write(tmp_path / "exp", range(3))
    for path in (tmp_path / "exp", str(tmp_path / "exp"), tmp_path / "exp" / "gradscope"):
        holds(load(path), range(3))


def test_load_says_what_to_do(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadError, match="file is a file"):
        load(tmp_path / "file")
    with pytest.raises(LoadError, match="nothing does not exist.*pass the logdir"):
        load(tmp_path / "nothing")
    with pytest.raises(LoadError, match="holds no run"):
        load(tmp_path)
    write(tmp_path / "exp1", range(1))
    assert list(load(tmp_path)) == ["exp1"]
    (tmp_path / "run.json").write_text('{"name": "somebody else\'s"}')
    with pytest.raises(LoadError, match="lacks the number 'schema_version'"):
        load(tmp_path)


def test_the_room_loads_nothing_heavy() -> None:
    code = "import gradscope.record; print({'pandas', 'pyarrow', 'torch'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", ALONE + code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
