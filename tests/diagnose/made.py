"""Hand-made records: a sound training of one layer, of which a test changes what it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gradscope.diagnose import Tables

T = 21
GATES = {
    "lstm": ("input", "forget", "candidate", "output", "hidden"),
    "gru": ("reset", "update", "candidate", "hidden"),
    "rnn_tanh": ("hidden",),
    "rnn_relu": ("hidden",),
    "": (),
}
Row = dict[str, Any]


def key(module: str = "encoder", layer: int = 0, direction: str = "forward", chain: int = 0) -> Row:
    return {"module": module, "layer": layer, "direction": direction, "chain": chain}


FALLS = [10 ** (-i / 60) for i in range(120)]
STALLS = [1.0] * 120
LOST = [10 ** (-i / 20) for i in range(60)] + [1.0] * 60
GROWS = [1.0 + max(0, i - 20) for i in range(120)]


def course(early: float, late: float, records: int = 8) -> list[float]:
    """The first half at one value, the second at another."""
    return [early] * (records // 2) + [late] * (records - records // 2)


class Training:
    """Tables of a training; `horizon`, `peak`, `radius`, `direct` are numbers by record.

    A sound one by default: all that enters reaches the beginning, no gate is at a limit, and the loss falls.
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
        self.loss: Sequence[float] = FALLS
        self.update: Sequence[float] = [1e-3] * records
        self.state: tuple[float, float, float] = (0.4, 0.5, 0.6)  # p10, p50, p90 of the state's size
        self.constant_from = T  # timestep from which on the state stays as it is
        self.weight_grad = 1.0  # at all timesteps but the first
        self.some_sequences = 1.0  # share of those that the loss enters
        self.ended: dict[int, int] = {}  # timestep -> sequences that go as far
        self.grad_norm: Sequence[float] = [1.0] * 120
        self.nonfinite: Sequence[int] = [0] * 120
        self.skipped: Sequence[bool] = [False] * 120
        self.optimizer = "Adam"
        self.clips: list[Row] = []
        self.notes: list[Row] = []
        self.timesteps = T
        self.shorter: Sequence[int] = [0] * records  # by how many timesteps the sequences of a record are
        self.longest_lag = T - 1  # that anything could reach back
        self.chains = 1

    def as_drawn(self) -> Training:
        """The same with recurrent weights as torch draws them, to the end."""
        self.norm, self.radius = [1.155] * len(self.records), [0.577] * len(self.records)
        return self

    def seen(self) -> Tables:
        modules = {
            self.where["module"]: {"class": "RNN", "mode": self.family.upper(), "input_size": 3, "hidden_size": 4}
        }
        return Tables(self.tables(), modules)

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
                list(self._timesteps(heads)),
                "step module layer direction chain t quantity p10 p50 p90 mean sequences nonfinite",
            ),
            "gates": _frame(list(self._gates(heads)), "step module layer direction chain t gate low high mean"),
            "units": _frame(list(self._units(heads)), "step module layer direction chain gate unit low high"),
            "weights": _frame(
                [
                    {**head, "gate": "hidden", "spectral_radius": r, "spectral_norm": n, "update": u}
                    for head, r, n, u in zip(heads, self.radius, self.norm, self.update, strict=True)
                ],
                "step module layer direction chain gate spectral_radius spectral_norm update",
            ),
            "steps": pd.DataFrame(
                {
                    "step": range(len(self.grad_norm)),
                    "optimizer": self.optimizer,
                    "loss": _stretched(self.loss, len(self.grad_norm)),
                    "grad_norm": np.array(self.grad_norm, dtype=float),
                    "nonfinite": list(self.nonfinite),
                    "recorded": [step in self.records for step in range(len(self.grad_norm))],
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
        for head, size, cut in zip(heads, self.direct, self.shorter, strict=True):
            bad = self.first_nonfinite if head["step"] == 0 else 0
            for t in range(min(self.timesteps, T) - cut):
                row = {**head, "t": t, "sequences": self.ended.get(t, 8), "nonfinite": 0}
                part = size * self.enters.get(t + cut, 0.0)
                typical = part if self.some_sequences > 0.9 else 0.0
                yield {**row, "quantity": "grad_h_direct", **_spread(0.0, typical, typical), "mean": part}
                weight = self.weight_grad if t else 0.0
                yield {**row, "quantity": "weight_grad", **_spread(weight, weight, weight), "mean": weight}
                state = [x * (1 + 0.1 * (-1) ** min(t, self.constant_from)) for x in self.state]
                yield {**row, "quantity": "state", **_spread(*state), "mean": state[1]}
            yield {
                **{**head, "t": T - 1, "quantity": "grad_h", **_spread(size, size, size), "mean": size},
                **{"sequences": 8, "nonfinite": bad},
            }

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


def _stretched(losses: Sequence[float], count: int) -> Any:
    """A course of losses over more steps, or fewer."""
    places = np.linspace(0, len(losses) - 1, count)
    return np.array(losses, dtype=float)[places.round().astype(int)]


def _spread(p10: float, p50: float, p90: float) -> Row:
    return {"p10": p10, "p50": p50, "p90": p90}


def clip(step: int, before: float, after: float, threshold: float = 1.0, kind: str = "norm", how: str = "") -> Row:
    head = {"step": step, "kind": kind, "how": how, "threshold": threshold}
    return {**head, "norm_before": before, "norm_after": after, "clipped": after < before, "nonfinite": 0}


def _frame(rows: list[Row], columns: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns.split())
