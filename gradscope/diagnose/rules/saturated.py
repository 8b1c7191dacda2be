"""Gates, or the state of a tanh network, that stand at their limits whatever comes in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from gradscope.diagnose import remedies, swaps
from gradscope.diagnose.frames import Frame, Seen
from gradscope.diagnose.trend import by_step, early_and_late, loss_left, rests_on, severity, stalled
from gradscope.diagnose.words import number, percent, place
from gradscope.types import Finding, LayerKey, Remedy

NEARLY_ALL = 0.95
SATURATED = 0.9
"""Share of a tanh state at its limits."""
TWO_SIDED = 0.75
"""Share of all sigmoid gates of a recurrence at one limit or the other."""
LEFT = 0.08
"""A shut gate is no fault in a training that has less than this of its loss gradient left."""

SHUT = {
    ("lstm", "forget"): 0.02,
    ("lstm", "input"): 1e-3,
    ("lstm", "output"): 1e-3,
    ("gru", "update"): 0.02,
}
"""A gate is shut below this mean activation; some gates may rest near 0 for a good reason, but not so near."""
STUCK = {("gru", "update"): 1 - 1e-4}
"""And stuck open above this one: the state never changes."""

MEANS = {
    ("lstm", "forget", "low"): "the cell state is forgotten at every step",
    ("lstm", "input", "low"): "nothing is written to the cell state",
    ("lstm", "output", "low"): "nothing of the cell state is seen outside",
    ("gru", "update", "low"): "the state is replaced at every step and nothing is kept",
    ("gru", "update", "high"): "the state never changes",
}


NOTHING_PASSES = "what comes in hardly changes them, and hardly any gradient passes"


class Saturation(NamedTuple):
    """A gate at its limits: which, how much of it, its mean activation, at which limit and since when."""

    gate: str
    share: float
    mean: float
    side: str


def saturated_gate(seen: Seen) -> list[Finding]:
    """Find gates that are saturated early as well as late.

    That a forget gate stands open, or that units of a tanh network are at their limits now and then, is no fault; nor
    is a gate that is shut in a training that goes well without it.
    """
    found: list[Finding] = []
    for module, keys in seen.modules_seen:
        cases = [(key, case) for key in keys for case in _cases(seen, key)]
        shut = [(key, case) for key, case in cases if case.side in ("low", "high")]
        chosen = shut if shut and stalled(seen, module, LEFT) else [pair for pair in cases if pair not in shut]
        if chosen:
            key, case = max(chosen, key=lambda pair: pair[1].share)
            found.append(_finding(seen, key, case, len(keys)))
    return found


def _cases(seen: Seen, key: LayerKey) -> Iterator[Saturation]:
    family, gates = seen.family(key.module), seen.of("gates", key)
    both: list[float] = []
    for gate, rows in gates.groupby("gate", sort=False):
        gate = str(gate)
        low, high = _always(rows, "low"), _always(rows, "high")
        sides = _at_limits(rows)
        mean = early_and_late(by_step(rows, "mean").to_numpy())[1]
        if low >= NEARLY_ALL and mean <= SHUT.get((family, gate), -math.inf):
            yield Saturation(gate, low, mean, "low")
        if high >= NEARLY_ALL and mean >= STUCK.get((family, gate), math.inf):
            yield Saturation(gate, high, mean, "high")
        if family == "rnn_tanh" and gate == "hidden" and sides >= SATURATED:
            yield Saturation(gate, sides, mean, "both")
        if gate not in ("hidden", "candidate"):
            both.append(sides)
    if both and sum(both) / len(both) >= TWO_SIDED:
        yield Saturation("all gates", sum(both) / len(both), math.nan, "both")


def _always(rows: Frame, column: str) -> float:
    """The smaller of the early and the late share."""
    return min(early_and_late(by_step(rows, column).to_numpy()))


def _at_limits(rows: Frame) -> float:
    """Share at either limit, the smaller of early and late."""
    both = by_step(rows, "low") + by_step(rows, "high")
    return min(early_and_late(both.to_numpy()))


def _from_start(seen: Seen, key: LayerKey, case: Saturation) -> bool:
    """Whether the first record shows it already; otherwise something else has brought it about."""
    gates = seen.of("gates", key)
    first = gates[gates["step"] == gates["step"].min()]
    rows = (
        first[~first["gate"].isin(("hidden", "candidate"))]
        if case.gate == "all gates"
        else first[first["gate"] == case.gate]
    )
    columns = {"low": ["low"], "high": ["high"], "both": ["low", "high"]}[case.side]
    return float(rows[columns].sum(axis=1).mean()) >= TWO_SIDED


def _finding(seen: Seen, key: LayerKey, case: Saturation, count: int) -> Finding:
    where, whole = place(key, count == 1), case.gate == "all gates"
    return Finding(
        code="saturated_gate",
        severity=severity(seen, case.share >= NEARLY_ALL),
        layer_key=key,
        title=f"{where}: all gates are saturated" if whole else f"{where}: {_called(case.gate)} is saturated",
        explanation=_explained(seen, key, case),
        evidence={
            "gate": case.gate,
            "steps": (seen.records[0], seen.records[-1]),
            "timesteps": int(seen.of("layers", key)["timesteps"].max()),
            "share": case.share,
            "mean": case.mean,
            "side": case.side,
            "from_start": _from_start(seen, key, case),
            "loss_gradient_left": loss_left(seen, key.module),
        },
        remedies=_remedies(seen, key),
    )


def _called(gate: str) -> str:
    return {"hidden": "the state", "all gates": "all gates"}.get(gate, f"the {gate} gate")


def _explained(seen: Seen, key: LayerKey, case: Saturation) -> str:
    meaning = MEANS.get((seen.family(key.module), case.gate, case.side), NOTHING_PASSES)
    limit, left = {"low": "at 0", "high": "at 1", "both": "at a limit"}[case.side], loss_left(seen, key.module)
    units = f"{percent(case.share)} of the units of {_called(case.gate)} of {place(key, False)}"
    why = f"{units} are {limit}, early and late in the training: {meaning}."
    if math.isfinite(case.mean) and case.side != "both":
        why += f" Its mean activation is {number(case.mean)}."
    if math.isfinite(left):
        why += f" {percent(left)} of the loss gradient of the beginning is still there."
    return why + rests_on(seen, key)


def _remedies(seen: Seen, key: LayerKey) -> tuple[Remedy, ...]:
    if not remedies.can_be_initialised(seen, key):
        return (remedies.lower_rate(),)
    family, timesteps = seen.family(key.module), int(seen.of("layers", key)["timesteps"].max())
    normalised = swaps.layer_norm(seen, key) if family.startswith("rnn") else None
    more = (remedies.lower_rate(),) if normalised is None else (normalised, remedies.lower_rate())
    return remedies.start_again(key, family, timesteps), *more
