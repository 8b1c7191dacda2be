"""Sequences of a single timestep from a zero state: nothing recurs."""

from __future__ import annotations

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Frame, Seen
from gradscope.diagnose.progress import broken, learning
from gradscope.diagnose.trend import rests_on, span
from gradscope.diagnose.words import plural, typed
from gradscope.types import Finding, LayerKey, Remedy


def single_timestep(seen: Seen) -> list[Finding]:
    """Find modules whose every call is one step long and begins from zeros, as often as they are called."""
    if broken(seen):
        return []
    return [_finding(seen, module, keys[0]) for module, keys in seen.modules_seen if _single(seen, module)]


def _single(seen: Seen, module: str) -> bool:
    layers, rows = _of(seen["layers"], module), _of(seen["timesteps"], module)
    weight = rows.loc[rows["quantity"] == "weight_grad", "mean"].to_numpy(dtype=np.float64)
    known = weight[np.isfinite(weight)]
    return int(layers["timesteps"].max()) == 1 and bool(len(known)) and not known.any()


def _of(frame: Frame, module: str) -> Frame:
    return frame[frame["module"] == module]


def _finding(seen: Seen, module: str, key: LayerKey) -> Finding:
    layers, name = _of(seen["layers"], module), typed(module)
    chains = int(layers.groupby("step")["chain"].nunique().median())
    times = f"{plural(chains, 'call')} a step, each of one timestep from a zero state"
    why = (
        f"{name} is given one timestep at a time, and begins each time from a zero state ({times}). What came before "
        "has no way into the answer, and its recurrent weights, multiplied by zero, get no gradient at all: it works "
        f"like a layer without recurrence. That is the matter if the answer needs what came before. "
        f"{learning(seen).sentence}"
    )
    return Finding(
        code="single_timestep",
        severity="critical" if learning(seen).fails else "warning",
        layer_key=key,
        title=f"{name}: every sequence is one timestep long, and nothing recurs",
        explanation=why + rests_on(seen, key),
        evidence={"steps": span(seen), "timesteps": 1, "chains": chains, **learning(seen).evidence},
        remedies=_remedies(seen, module, chains),
    )


def _remedies(seen: Seen, module: str, chains: int) -> tuple[Remedy, ...]:
    name, cell = typed(module), str(seen.modules.get(module, {}).get("class", "")).endswith("Cell")
    sequences = loops.read(
        "give it whole sequences: windows of a series, episodes of a replay memory, the words of a sentence",
        f"output, state = {name}(x)  # x of shape (batch, time, features) with batch_first=True, time > 1",
    )
    state = "state = None\nfor x_t in x:  # time first\n" + f"    state = {name}(x_t, state)"
    handed = loops.read("hand the state of one call on to the next", state)
    without = loops.read(
        "if nothing comes before, use a linear layer: it does the same", "torch.nn.Linear(features, hidden)"
    )
    return (handed, sequences, without) if cell or chains > 1 else (sequences, handed, without)
