"""Hand-made records: a sound training of one layer, of which a test changes what it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gradscope.diagnose import Seen

T = 21
GATES = {
    "lstm": ("input", "forget", "candidate", "output", "hidden"),
    "gru": ("reset", "update", "candidate", "hidden"),
    "rnn_tanh": ("hidden",),
    "rnn_relu": ("hidden",),
}
Row = dict[str, Any]


def key(module: str = "encoder", layer: int = 0, direction: str = "forward", chain: int = 0) -> Row:
    return {"module": module, "layer": layer, "direction": direction, "chain": chain}


def course(early: float, late: float, records: int = 8) -> list[float]:
    """The first half at one value, the second at another."""
    return [early] * (records // 2) + [late] * (records - records // 2)


class Training:
    """Tables of a training; `horizon`, `peak`, `radius`, `direct` are numbers by record.

    A sound one by default: all that enters reaches the beginning, no gate is at a limit, and the loss gradient falls.
    """

    def __init__(self, family: str = "rnn_tanh", records: int = 8, where: Row | None = None) -> None:
        self.family, self.where = family, where or key()
        self.records = [16 * i for i in range(records)]
        self.horizon = [float(T - 1)] * records
        self.peak = [1.0] * records
        self.radius = [1.0] * records
        self.norm = [1.0 + 0.1 * i for i in range(records)]
        self.direct = course(1.0, 0.05, records)
        self.enters = {T - 1: 1.0}  # timestep -> how much of `direct` enters there
        self.first_nonfinite = 0
        self.gates: dict[str, Row] = {gate: {"low": 0.0, "high": 0.0, "mean": 0.5} for gate in GATES[family]}
        self.dead, self.low_if_dead = 0.0, 1.0
        self.grad_norm: Sequence[float] = [1.0] * 120
        self.nonfinite: Sequence[int] = [0] * 120
        self.skipped: Sequence[bool] = [False] * 120
        self.optimizer = "Adam"
        self.clips: list[Row] = []
        self.notes: list[Row] = []
        self.timesteps = T
        self.longest_lag = T - 1  # that anything could reach back
        self.chains = 1

    def seen(self) -> Seen:
        modules = {
            self.where["module"]: {"class": "RNN", "mode": self.family.upper(), "input_size": 3, "hidden_size": 4}
        }
        return Seen(self.tables(), modules)

    def tables(self) -> Mapping[str, pd.DataFrame]:
        heads = [{"step": step, **self.where} for step in self.records]
        last = min(self.longest_lag, self.timesteps - 1)
        return {
            "layers": _frame(
                self._layers(heads), "step module layer direction chain horizon horizon_censored decay timesteps"
            ),
            "reach": _frame(
                [
                    {**head, "lag": lag, "p50": p}
                    for head, peak in zip(heads, self.peak, strict=True)
                    for lag, p in {0: 1.0, last: min(1.0, peak), min(5, last): peak}.items()
                ],
                "step module layer direction chain lag p50",
            ),
            "timesteps": _frame(
                list(self._timesteps(heads)), "step module layer direction chain t quantity mean sequences nonfinite"
            ),
            "gates": _frame(list(self._gates(heads)), "step module layer direction chain t gate low high mean"),
            "units": _frame(list(self._units(heads)), "step module layer direction chain gate unit low high"),
            "weights": _frame(
                [
                    {**head, "gate": "hidden", "spectral_radius": r, "spectral_norm": n}
                    for head, r, n in zip(heads, self.radius, self.norm, strict=True)
                ],
                "step module layer direction chain gate spectral_radius spectral_norm",
            ),
            "steps": pd.DataFrame(
                {
                    "step": range(len(self.grad_norm)),
                    "optimizer": self.optimizer,
                    "grad_norm": np.array(self.grad_norm, dtype=float),
                    "nonfinite": list(self.nonfinite),
                    "skipped": list(self.skipped),
                }
            ),
            "clips": _frame(self.clips, "step kind how threshold norm_before norm_after clipped nonfinite"),
            "notes": _frame(self.notes, "step module layer direction chain reason"),
        }

    def _layers(self, heads: list[Row]) -> list[Row]:
        return [
            {
                **head,
                "chain": chain,
                "horizon": h,
                "horizon_censored": h >= self.longest_lag,
                "decay": -0.1,
                "timesteps": self.timesteps,
            }
            for head, h in zip(heads, self.horizon, strict=True)
            for chain in range(self.chains)
        ]

    def _timesteps(self, heads: list[Row]) -> Any:
        for head, size in zip(heads, self.direct, strict=True):
            bad = self.first_nonfinite if head["step"] == 0 else 0
            for t in range(T):
                part = size * self.enters.get(t, 0.0)
                yield {**head, "t": t, "quantity": "grad_h_direct", "mean": part, "sequences": 8, "nonfinite": 0}
            yield {**head, "t": T - 1, "quantity": "grad_h", "mean": size, "sequences": 8, "nonfinite": bad}

    def _gates(self, heads: list[Row]) -> Any:
        for i, head in enumerate(heads):
            for gate, found in self.gates.items():
                row = found["by_record"][i] if "by_record" in found else found
                yield {**head, "t": 0, "gate": gate, **{name: row[name] for name in ("low", "high", "mean")}}

    def _units(self, heads: list[Row]) -> Any:
        for head in heads:
            for unit in range(100):
                yield {
                    **head,
                    "gate": "hidden",
                    "unit": unit,
                    "low": self.low_if_dead if unit < 100 * self.dead else 0.0,
                    "high": 0.0,
                }


def clip(step: int, before: float, after: float, threshold: float = 1.0, kind: str = "norm", how: str = "") -> Row:
    head = {"step": step, "kind": kind, "how": how, "threshold": threshold}
    return {**head, "norm_before": before, "norm_after": after, "clipped": after < before, "nonfinite": 0}


def _frame(rows: list[Row], columns: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns.split())
