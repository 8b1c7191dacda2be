"""The table of a fleet, computed by Dask on a cluster of this machine."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fleets import by_pandas, sweep
from pandas.testing import assert_frame_equal

import gradscope

pytest.importorskip("duckdb")
dataframe: Any = pytest.importorskip("dask.dataframe")
distributed: Any = pytest.importorskip("distributed")


def row(path: str) -> pd.DataFrame:
    return pd.DataFrame([{**by_pandas(gradscope.load(path)), "path": path}])


def test_dask_agrees(tmp_path: Path) -> None:
    sweep(tmp_path, 9)
    found = gradscope.load(tmp_path).table(findings=False).drop(columns="run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the cluster says of its ports and of its threads
        local = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
        with distributed.LocalCluster(**local) as cluster, distributed.Client(cluster):
            table = dataframe.from_map(row, list(found["path"]), meta=row(found["path"].iloc[0]).iloc[:0]).compute()
    assert_frame_equal(found, table[found.columns].reset_index(drop=True), check_dtype=False, rtol=1e-12)
