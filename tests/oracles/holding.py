"""Holding a run to the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from oracles.sequences import CORE, KEY, STATISTICS

EXACT = ("horizon", "horizon_censored", "timesteps", "sequences", "nonfinite", "se")
ROWS = {  # what names a row of each table beside the key, and what is compared in it
    "timesteps": (["quantity", "t"], STATISTICS),
    "reach": (["lag"], STATISTICS),
    "gates": (["gate", "t"], ["low", "high", "mean"]),
    "units": (["gate", "unit"], ["low", "high"]),
    "weights": (["gate"], ["spectral_radius", "spectral_norm", "orthogonality"]),
    "layers": ([], ["horizon", "horizon_censored", "decay", "lyapunov", "timesteps"]),
}


def assert_agrees(run: Any, *expected: dict[str, pd.DataFrame], rtol: float = 1e-10, quantities: str = "full") -> None:
    """The run holds exactly the rows of `expected`, within `rtol` of each quantity's maximum over t and sequences."""
    for table, (names, columns) in ROWS.items():
        want = pd.concat([tables[table] for tables in expected], ignore_index=True)
        if quantities == "core" and table == "timesteps":
            want = want[want["quantity"].isin(CORE)]
        if quantities == "core" and table == "layers":
            columns = [column for column in columns if column != "lyapunov"]
        assert_rows(table, run.frame(table), want, KEY + names, columns, rtol)
    spectra = pd.concat([tables["spectra"] for tables in expected], ignore_index=True)
    if quantities == "full":
        _assert_spectra(run.frame("spectra"), spectra, rtol)


def assert_rows(table, got: pd.DataFrame, want: pd.DataFrame, key: list[str], columns: list[str], rtol: float) -> None:
    """Column by column in numpy: pandas would take ten times as long for tables this small."""
    rows, wanted = _keys(got, key), _keys(want, key)
    places = {row: place for place, row in enumerate(rows)}
    assert len(places) == len(rows), f"{table}: rows that are there twice, {len(rows) - len(places)} of {len(rows)}"
    missing, extra = sorted(set(wanted) - set(rows)), sorted(set(rows) - set(wanted))
    assert not missing, f"{table}: {len(missing)} rows are missing, such as {missing[:5]}"
    assert not extra, f"{table}: {len(extra)} rows too many, such as {extra[:5]}"
    order = [places[row] for row in wanted]
    if not wanted:
        return
    scale = _numbers(want, "scale") if "scale" in want else None
    for column in columns + [c for c in EXACT if c in want and c not in columns]:
        mine, truth = _numbers(got, column)[order], _numbers(want, column)
        unit = np.maximum(1.0, np.abs(truth)) if scale is None else scale
        with np.errstate(invalid="ignore"):  # infinities that are equal
            close = np.abs(mine - truth) <= (0.0 if column in EXACT else rtol) * unit
        wrong = ~(close | (mine == truth) | (np.isnan(mine) & np.isnan(truth)))
        shown = [f"{wanted[k]}: got {mine[k]!r}, want {truth[k]!r}" for k in np.flatnonzero(wrong)[:8]]
        assert not wrong.any(), f"{table}.{column}: {wrong.sum()} of {len(wrong)} rows differ\n" + "\n".join(shown)


def _keys(frame: pd.DataFrame, key: list[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(frame[name].tolist() for name in key), strict=True)) if len(frame) else []


def _numbers(frame: pd.DataFrame, column: str) -> np.ndarray:
    """As floats, with None as NaN."""
    return np.array([math.nan if value is None else float(value) for value in frame[column].tolist()])


def _assert_spectra(got: pd.DataFrame, want: pd.DataFrame, rtol: float) -> None:
    """Eigenvalues as multisets: each expected one is taken by the nearest of what was got."""
    found, expected = _by_gate(got), _by_gate(want)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        left = dict(found[key])
        assert sorted(left) == list(range(len(values))), f"spectra {key}: {sorted(left)}"
        for value in values.values():
            nearest = min(left, key=lambda index: abs(left[index] - value))  # noqa: B023
            distance = abs(left.pop(nearest) - value)
            assert distance <= rtol * max(1.0, abs(value)), f"spectra {key}: {value} is not in {found[key]}"


def _by_gate(spectra: pd.DataFrame) -> dict[tuple[Any, ...], dict[int, complex]]:
    gates: dict[tuple[Any, ...], dict[int, complex]] = {}
    for key, index, real, imag in zip(
        _keys(spectra, [*KEY, "gate"]), *(spectra[name].tolist() for name in ("index", "real", "imag")), strict=True
    ):
        gates.setdefault(key, {})[index] = complex(real, imag)
    return gates
