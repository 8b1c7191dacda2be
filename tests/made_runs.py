"""Small runs made by hand, in memory: every number in them follows from the arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gradscope.record import MemoryStore
from gradscope.run import Run
from gradscope.types import Batch, Finding, LayerKey, Remedy, Rows

ENCODER = LayerKey("encoder", 0, "forward", 0)
QUANTITIES = ("grad_h", "jacobian", "jacobian_h", "gain")
GATES = ("reset", "update", "candidate", "hidden")
WEIGHTS = {"spectral_radius": 0.9, "spectral_norm": 1.1, "orthogonality": 0.3}
META = {
    "versions": {"torch": "2.13.0", "python": "3.11.7"},
    "layers": {"encoder": {"class": "GRU"}},
    "arguments": {"every": 10},
}
HOSTILE = "<script>alert('x')</script>|`\x1b[31m"


def made(
    keys: Sequence[LayerKey] = (ENCODER,),
    recorded: Iterable[int] = range(0, 60, 10),
    length: int = 12,
    clip: bool = True,
    meta: dict[str, Any] | None = None,
    steps: int = 60,
) -> Run:
    """A run of 60 steps in which every layer loses half a decade of gradient per step back."""
    store, wanted = MemoryStore(META if meta is None else meta), set(recorded)
    for step in range(steps):
        rows = [Rows("steps", _step(step, step in wanted))]
        if clip:
            rows.append(Rows("clips", _clip(step)))
        for index, key in enumerate(keys if step in wanted else ()):
            rows += layer(key, length, -0.5 - 0.05 * index)
        store.write(Batch(step, tuple(rows)))
    return Run(store)


def of(*rows: Rows, step: int = 0) -> Run:
    """A run of one step with those rows."""
    store = MemoryStore({})
    store.write(Batch(step, rows))
    return Run(store)


def _step(step: int, recorded: bool) -> dict[str, Any]:
    told = {
        "optimizer": "Adam",
        "loss": loss(step),
        "grad_norm": _norm(step),
        "nonfinite": 0,
        "recorded": recorded,
        "skipped": False,
    }
    return {**told, "overhead_s": 0.001, "step_s": 0.1}


def loss(step: int, seed: int = 0) -> float:
    """A loss as of a classifier of ten things, which falls from 2.3 and is noisy."""
    return 0.3 + 2.0 / (1 + step / 30) * float(np.random.default_rng([seed, step]).lognormal(0, 0.15))


def spread(steps: int) -> list[int]:
    """The steps that are recorded by default where time allows: eight to each doubling."""
    return [step for step in range(steps) if step % max(1, 1 << max(0, step.bit_length() - 4)) == 0]


def _norm(step: int) -> float:
    return 10.0 if step % 15 == 0 else 0.1 + 0.01 * step


def _clip(step: int) -> dict[str, Any]:
    before = _norm(step)
    told = {"index": 0, "kind": "norm", "how": "clip_grad_norm_", "threshold": 0.5, "norm_type": 2.0, "parameters": 4}
    norms = {"norm_before": before, "norm_after": min(before, 0.5), "coefficient": min(1.0, 0.5 / before)}
    return {**told, **norms, "clipped": before > 0.5, "nonfinite": 0}


def layer(key: LayerKey, length: int, decay: float) -> Iterator[Rows]:
    """All tables of one layer at one step."""
    name, times = key._asdict(), np.arange(length)
    back = 10.0 ** (decay * (length - 1 - times))
    values = {"grad_h": 0.01 * back, "jacobian": np.full(length, 0.5), "jacobian_h": np.full(length, 0.5), "gain": back}
    for quantity in QUANTITIES:
        yield timesteps(key, quantity, values[quantity])
    reach = 10.0 ** (decay * times)
    spread = {"p10": reach / 2, "p50": reach, "p90": reach * 2, "mean": reach}
    yield Rows("reach", {**name, "lag": times, **spread, "sequences": 8, "nonfinite": 0})
    for place, gate in enumerate(GATES):
        low, high = np.full(length, 0.1 * place), np.full(length, 0.05)
        yield Rows("gates", {**name, "t": times, "gate": gate, "low": low, "high": high, "mean": low})
        share = np.linspace(0, 1, 5)
        yield Rows("units", {**name, "gate": gate, "unit": np.arange(5), "low": share * 0.95, "high": share * 0.02})
    for place, gate in enumerate(GATES[:-1]):
        yield Rows(
            "weights",
            {**name, "gate": gate, **WEIGHTS, "update": 1e-3 * (1 + place)},
        )
        angle = np.arange(5) * 2 * np.pi / 5
        plane = {"real": 0.9 * np.cos(angle), "imag": 0.9 * np.sin(angle)}
        yield Rows("spectra", {**name, "gate": gate, "index": np.arange(5), **plane})
    horizon = next((lag for lag in range(length) if reach[lag] < 1e-3), length - 1)
    told = {"horizon": float(horizon), "horizon_censored": bool(reach.min() >= 1e-3), "decay": decay}
    yield Rows("layers", {**name, **told, "lyapunov": math.nan, "residual": 1e-7, "timesteps": length})


def timesteps(key: LayerKey, quantity: str, values: Any, nonfinite: Any = 0) -> Rows:
    """The rows of one quantity, with a band of half to twice the median."""
    values = np.asarray(values, float)
    spread = {"p10": values / 2, "p50": values, "p90": values * 2, "mean": values}
    counts = {"se": 0.0, "sequences": 8, "nonfinite": nonfinite}
    return Rows("timesteps", {**key._asdict(), "t": np.arange(len(values)), "quantity": quantity, **spread, **counts})


VANISHING = Finding(
    "vanishing_gradient",
    "critical",
    ENCODER,
    "The loss gradient is gone 7 steps back",
    "Median reach falls below 1e-3 at lag 7 of 11, at each of the last 4 recorded steps.",
    {"horizon": 7.0, "decay": -0.5, "steps": [20, 30, 40, 50]},
    (
        Remedy("Start with an orthogonal recurrent matrix", "nn.init.orthogonal_(model.encoder.weight_hh_l0)"),
        Remedy("Clip less", "clip_grad_norm_(\n    model.parameters(), max_norm=10.0\n)"),
    ),
)
CLIPPING = Finding(
    "excessive_clipping",
    "warning",
    None,
    "Clipping changed the gradients at a third of the steps",
    "20 of 60 calls.",
    {"clipped": 1 / 3},
)
HEALTHY = Finding("healthy", "info", None, "Nothing to report", "All 9 rules passed.", {})
