"""The tables are those of the contract, and rows are held to them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from record.rows import batch

from gradscope.errors import GradscopeError, RecordError
from gradscope.record import TABLES, MemoryStore, ParquetStore
from gradscope.record.schema import KEY, check, lookup
from gradscope.run import Run
from gradscope.types import Rows

CONTRACT = """
timesteps t quantity p10 p50 p90 mean se sequences nonfinite
reach lag p10 p50 p90 mean sequences nonfinite
gates t gate low high mean
units gate unit low high
weights gate spectral_radius spectral_norm orthogonality update
spectra gate index real imag
layers horizon horizon_censored decay lyapunov residual timesteps
clips index kind how threshold norm_type parameters norm_before norm_after coefficient clipped nonfinite
steps optimizer loss grad_norm nonfinite recorded skipped overhead_s step_s
notes reason
"""
WEIGHTS = {
    **{"module": "rnn", "layer": 0, "direction": "forward", "chain": 0, "gate": "hidden"},
    **{"spectral_radius": 0.9, "spectral_norm": 1.1, "orthogonality": 0.2, "update": 1e-3},
}


def test_tables_are_those_of_the_contract() -> None:
    wanted = {name: columns for name, *columns in (line.split() for line in CONTRACT.strip().splitlines())}
    key = ["module", "layer", "direction", "chain"]
    assert list(TABLES) == list(wanted)
    for name, columns in wanted.items():
        unkeyed = name in ("clips", "steps")
        assert list(TABLES[name].columns) == ["step", *([] if unkeyed else key), *columns]
        assert TABLES[name].order == (["step"] if unkeyed else ["step", *key])


@pytest.mark.parametrize("name", TABLES)
def test_empty_frames_have_columns_and_dtypes(name: str, tmp_path) -> None:
    store = ParquetStore(tmp_path, {})
    for source in (MemoryStore(), store):
        frame = Run(source).frame(name)
        assert list(frame.columns) == list(TABLES[name].columns) and len(frame) == 0
        for column, kind in TABLES[name].columns.items():
            text = pd.api.types.is_string_dtype(frame[column]) or frame[column].dtype == object
            assert text if kind == "text" else frame[column].dtype == kind
    store.close()


def test_rows_are_counted() -> None:
    assert check(Rows("weights", WEIGHTS), 0) == 1
    assert check(Rows("weights", {**WEIGHTS, "spectral_norm": np.ones(3, np.float32)}), 0) == 3
    assert check(Rows("weights", {**WEIGHTS, "spectral_norm": np.empty(0)}), 0) == 0
    assert check(Rows("weights", {**WEIGHTS, "step": 7, "layer": np.int64(1)}), 7) == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"gate": None}, "'gate' takes text, not None"),
        ({"gate": np.array(["hidden"])}, "'gate' takes text, not an array of <U6"),
        ({"layer": 0.5}, "'layer' takes int64, not 0.5"),
        ({"layer": np.array([0.5])}, "'layer' takes int64, not an array of float64"),
        ({"spectral_norm": "big"}, "'spectral_norm' takes float64, not 'big'"),
        ({"spectral_norm": np.ones((2, 2))}, "2 dimension"),
        ({"spectral_norm": np.ones(2), "orthogonality": np.ones(3)}, r"differ in length: \[2, 3\]"),
        ({"step": 8}, "the batch of step 7 has rows of step 8"),
        ({"spectral_nrom": 1.0}, "no column 'spectral_nrom'; did you mean 'spectral_norm'"),
    ],
)
def test_unfit_rows_are_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(RecordError, match=f"'weights'.*{said}"):
        check(Rows("weights", {**WEIGHTS, **changed}), 7)


@pytest.mark.parametrize("missing", [*KEY, "gate", "orthogonality"])
def test_a_missing_column_is_named(missing: str) -> None:
    columns = {name: value for name, value in WEIGHTS.items() if name != missing}
    with pytest.raises(RecordError, match=f"'weights' needs the column '{missing}'"):
        check(Rows("weights", columns), 0)
    with pytest.raises(RecordError, match=f"'weights' needs the column '{missing}'"):
        check(Rows("weights", {**columns, "other": 1}), 0)


def test_an_unknown_table_is_named_with_the_likely_one() -> None:
    with pytest.raises(GradscopeError, match="no table 'timestep'; did you mean 'timesteps'.*notes"):
        lookup("timestep")


def test_a_batch_is_taken_whole_or_not_at_all() -> None:
    store = MemoryStore()
    good = batch(0)
    with pytest.raises(RecordError):
        store.write(type(good)(0, (*good.rows, Rows("weights", {}))))
    assert all(store.count(name) == 0 for name in TABLES)
