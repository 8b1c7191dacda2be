"""Sequences of a single timestep from a zero state: nothing recurs."""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.frames import Frame, Tables
from gradscope.diagnose.progress import broken, learning
from gradscope.diagnose.trend import rests_on, span
from gradscope.diagnose.words import plural, typed
from gradscope.types import Finding, LayerKey, Remedy


def single_timestep(tables: Tables) -> list[Finding]:
    """Find modules whose calls are all one timestep long and begin from a zero state."""
    if broken(tables):
        return []
    return [_finding(tables, module, keys[0]) for module, keys in tables.by_module if _single(tables, module)]


def _single(tables: Tables, module: str) -> bool:
    layers, rows = _of(tables["layers"], module), _of(tables["timesteps"], module)
    weight = rows.loc[rows["quantity"] == "weight_grad", "mean"].to_numpy(dtype=np.float64)
    known = weight[np.isfinite(weight)]
    return int(layers["timesteps"].max()) == 1 and bool(len(known)) and not known.any()


def _of(frame: Frame, module: str) -> Frame:
    return frame[frame["module"] == module]


def _finding(tables: Tables, module: str, key: LayerKey) -> Finding:
    layers, name = _of(tables["layers"], module), typed(module)
    chains = int(layers.groupby("step")["chain"].nunique().median())
    times = f"{plural(chains, 'call')} a step, each of one timestep from a zero state"
    why = (
        f"{name} receives one timestep at a time, and begins each time from a zero state ({times}). Earlier timesteps "
        "cannot influence the answer, and the recurrent weights, multiplied by zero, receive no gradient: the module "
        "works like a layer without recurrence. This matters only if the answer needs earlier timesteps. "
        f"{learning(tables).sentence}"
    )
    return Finding(
        code="single_timestep",
        severity="critical" if learning(tables).fails else "warning",
        layer_key=key,
        title=f"{name}: every sequence is one timestep long, and nothing recurs",
        explanation=why + rests_on(tables, key),
        evidence={"steps": span(tables), "timesteps": 1, "chains": chains, **learning(tables).evidence},
        remedies=_remedies(tables, module, chains),
    )


def _remedies(tables: Tables, module: str, chains: int) -> tuple[Remedy, ...]:
    name, cell = typed(module), str(tables.modules.get(module, {}).get("class", "")).endswith("Cell")
    sequences = Remedy(
        "pass whole sequences: windows of a series, episodes of a replay memory, the words of a sentence",
        f"output, state = {name}(x)  # x of shape (batch, time, features) with batch_first=True, time > 1",
    )
    state = "state = None\nfor x_t in x:  # time first\n" + f"    state = {name}(x_t, state)"
    carry = Remedy("pass the state of one call to the next", state)
    linear = Remedy("without earlier timesteps, a linear layer does the same", "torch.nn.Linear(features, hidden)")
    return (carry, sequences, linear) if cell or chains > 1 else (sequences, carry, linear)
