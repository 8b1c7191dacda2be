"""The truth as the tables of the contract."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from oracles.sequences import BLOCKS, FLOOR, Cell, Track, Truth, choose_sequences


def frames(
    truth: Truth, *, module: str = "", chain: int = 0, step: int = 0, max_sequences: int | None = None
) -> dict[str, pd.DataFrame]:
    """The layer tables of the contract for one call, with the quantities of `full`.

    `timesteps` and `reach` have one column more, `scale`: the largest finite size of that quantity over t and
    sequences, to which tolerances are relative.
    """
    tables: dict[str, list[pd.DataFrame]] = {}
    for layer in truth.layers:
        chosen = choose_sequences(len(layer.tracks), max_sequences)
        tracks = [layer.tracks[b] for b in chosen]
        key = {"step": step, "module": module, "layer": layer.layer, "direction": layer.direction, "chain": chain}
        for name, rows in _layer_tables(layer.cell, tracks).items():
            tables.setdefault(name, []).append(pd.DataFrame([{**key, **row} for row in rows]))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}


def _layer_tables(cell: Cell, tracks: list[Track]) -> dict[str, list[dict[str, Any]]]:
    reach = reach_rows(tracks)
    return {
        "timesteps": _timestep_rows(tracks),
        "reach": reach,
        "gates": _gate_rows(cell, tracks),
        "units": _unit_rows(cell, tracks),
        "weights": weight_rows(cell),
        "spectra": spectrum_rows(cell),
        "layers": [_layer_row(tracks, reach)],
    }


def statistics(values: Sequence[float]) -> dict[str, float]:
    """p10, p50, p90 and mean of what is finite; how many there are, and how many of them are not finite."""
    finite = np.array([value for value in values if math.isfinite(value)])
    p10, p50, p90 = np.percentile(finite, [10, 50, 90]) if len(finite) else [math.nan] * 3
    mean = finite.mean() if len(finite) else math.nan
    counts = {"sequences": len(values), "nonfinite": len(values) - len(finite)}
    return {"p10": p10, "p50": p50, "p90": p90, "mean": mean, **counts}


def _scale(values: Sequence[float]) -> float:
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0)


def _longest(tracks: list[Track]) -> int:
    return max(len(track.steps) for track in tracks)


def _timestep_rows(tracks: list[Track]) -> list[dict[str, Any]]:
    values: dict[tuple[str, int], list[float]] = {}
    for track in tracks:
        for t in range(len(track.steps)):
            for quantity, value in track.measure(t).items():
                values.setdefault((quantity, t), []).append(value)
    scales = {q: _scale([v for (other, _), vs in values.items() if other == q for v in vs]) for q, _ in values}
    return [
        {"t": t, "quantity": q, **statistics(found), "se": 0.0, "scale": scales[q]} for (q, t), found in values.items()
    ]


def reach_rows(tracks: list[Track]) -> list[dict[str, Any]]:
    curves = [track.reach for track in tracks]
    scale = _scale([value for curve in curves for value in curve])
    longest = max(map(len, curves))
    return [
        {"lag": lag, **statistics([curve[lag] for curve in curves if len(curve) > lag]), "scale": scale}
        for lag in range(longest)
    ]


def saturated(cell: Cell, gate: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """Where a gate is as good as closed and as good as open."""
    if cell.family == "RNN" and cell.nonlinearity == "relu":
        return values == 0, torch.zeros_like(values, dtype=torch.bool)
    lowest = -0.9 if gate in ("candidate", "hidden") else 0.1
    return values < lowest, values > 0.9


def _gate_values(tracks: list[Track], gate: str, t: int | None = None) -> Tensor:
    """[rows, units]: all sequences that are valid at t, or all timesteps of all sequences."""
    steps = [step for track in tracks for at, step in enumerate(track.steps) if t is None or t == at]
    return torch.stack([step.gates[gate].detach() for step in steps])


def _gate_rows(cell: Cell, tracks: list[Track]) -> list[dict[str, Any]]:
    rows = []
    for gate in tracks[0].steps[0].gates:
        for t in range(_longest(tracks)):
            values = _gate_values(tracks, gate, t)
            low, high = (float(where.double().mean()) for where in saturated(cell, gate, values))
            rows.append({"t": t, "gate": gate, "low": low, "high": high, "mean": float(values.mean())})
    return rows


def _unit_rows(cell: Cell, tracks: list[Track]) -> list[dict[str, Any]]:
    rows = []
    for gate in tracks[0].steps[0].gates:
        low, high = (w.double().mean(0).tolist() for w in saturated(cell, gate, _gate_values(tracks, gate)))
        rows += [{"gate": gate, "unit": u, "low": low[u], "high": high[u]} for u in range(len(low))]
    return rows


def _blocks(cell: Cell) -> dict[str, Tensor]:
    names = BLOCKS[cell.family]
    return dict(zip(names, cell.U.detach().chunk(len(names)), strict=True))


def _eigenvalues(cell: Cell, block: Tensor) -> Tensor:
    square = block if cell.R is None else block @ cell.R.detach()
    return torch.linalg.eigvals(square)


def weight_rows(cell: Cell) -> list[dict[str, Any]]:
    rows = []
    for gate, block in _blocks(cell).items():
        columns = block.shape[1]
        departure = block.T @ block - torch.eye(columns, dtype=block.dtype)
        rows.append(
            {
                "gate": gate,
                "spectral_radius": float(_eigenvalues(cell, block).abs().max()),
                "spectral_norm": float(torch.linalg.matrix_norm(block, 2)),
                "orthogonality": float(departure.norm()) / math.sqrt(columns),
            }
        )
    return rows


def spectrum_rows(cell: Cell) -> list[dict[str, Any]]:
    rows = []
    for gate, block in _blocks(cell).items():
        values = sorted(_eigenvalues(cell, block).tolist(), key=lambda z: (-abs(z), -z.real, -z.imag))
        rows += [{"gate": gate, "index": k, "real": z.real, "imag": z.imag} for k, z in enumerate(values)]
    return rows


def _layer_row(tracks: list[Track], reach: list[dict[str, Any]]) -> dict[str, Any]:
    exponents = [track.lyapunov for track in tracks if track.lyapunov is not None and not math.isnan(track.lyapunov)]
    lyapunov = float(np.median(exponents)) if exponents else math.nan
    row = {"lyapunov": lyapunov, "timesteps": _longest(tracks)}
    if not reach:  # no gradient came: there is no horizon, and none that lies beyond what was seen
        return {**row, "horizon": math.nan, "horizon_censored": False, "decay": math.nan}
    median = [r["p50"] for r in reach]
    below = [lag for lag, value in enumerate(median) if value < FLOOR]
    horizon = below[0] if below else len(median) - 1
    return {**row, "horizon": horizon, "horizon_censored": not below, "decay": decay(median)}


def decay(median: list[float]) -> float:
    lags = [lag for lag, value in enumerate(median) if value >= FLOOR]
    if len(lags) < 2:
        return math.nan
    return float(np.polyfit(lags, [math.log10(median[lag]) for lag in lags], 1)[0])
