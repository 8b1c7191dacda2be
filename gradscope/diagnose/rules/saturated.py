"""Gates, or the state of a tanh network, that stand at their limits whatever comes in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from gradscope.diagnose import loops, remedies, swaps
from gradscope.diagnose.frames import Frame, Seen
from gradscope.diagnose.progress import learning, settled, severity
from gradscope.diagnose.trend import ENOUGH, by_step, early_and_late, rests_on, span, timesteps
from gradscope.diagnose.words import number, percent, place
from gradscope.types import Finding, LayerKey, Remedy, Severity

NEARLY_ALL = 0.95
SATURATED = 0.9
"""Share of a tanh state at its limits."""
TWO_SIDED = 0.75
"""Share of all sigmoid gates of a recurrence at one limit or the other."""
CERTAIN = {("lstm", "input", "low"), ("lstm", "output", "low"), ("gru", "update", "high")}
"""Gates that let nothing in, or nothing out, when they stand so."""

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

    That a forget gate stands open, or that units of a tanh network are at their limits now and then, is no fault. In a
    training that learns a gate at its limits is a fact and no more.
    """
    if len(seen.records) < ENOUGH:
        return []
    found: list[Finding] = []
    for _, keys in seen.modules_seen:
        cases = [(key, case) for key in keys for case in _cases(seen, key)]
        shut = [(key, case) for key, case in cases if case.side in ("low", "high")]
        if cases:
            key, case = max(shut or cases, key=lambda pair: pair[1].share)
            found.append(_finding(seen, key, case, len(keys)))
    return found


def _cases(seen: Seen, key: LayerKey) -> Iterator[Saturation]:
    family, gates = seen.family(key.module), seen.of("gates", key)
    both: list[float] = []
    for gate, rows in gates.groupby("gate", sort=False):
        gate = str(gate)
        low, high = _always(rows, "low"), _always(rows, "high")
        sides = _at_limits(rows)
        mean = early_and_late(by_step(rows, "mean"))[1]
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
    return min(early_and_late(by_step(rows, column)))


def _at_limits(rows: Frame) -> float:
    """Share at either limit, the smaller of early and late."""
    both = by_step(rows, "low") + by_step(rows, "high")
    return min(early_and_late(both))


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
    certain = (seen.family(key.module), case.gate, case.side) in CERTAIN
    started = _from_start(seen, key, case)
    return Finding(
        code="saturated_gate",
        severity=_severity(seen, certain=certain, started=started),
        layer_key=key,
        title=f"{where}: all gates are saturated" if whole else f"{where}: {_called(case.gate)} is saturated",
        explanation=_explained(seen, key, case),
        evidence={
            "gate": case.gate,
            "steps": span(seen),
            "timesteps": timesteps(seen, key),
            "share": case.share,
            "mean": case.mean,
            "side": case.side,
            "from_start": started,
            **learning(seen).evidence,
        },
        remedies=_remedies(seen, key, started=started),
    )


def _severity(seen: Seen, *, certain: bool, started: bool) -> Severity:
    """What a network has made itself while its loss fell, it may have had reasons for."""
    return "info" if not started and settled(seen) else severity(seen, critical=certain)


def _called(gate: str) -> str:
    return {"hidden": "the state", "all gates": "all gates"}.get(gate, f"the {gate} gate")


def _explained(seen: Seen, key: LayerKey, case: Saturation) -> str:
    meaning = MEANS.get((seen.family(key.module), case.gate, case.side), NOTHING_PASSES)
    limit = {"low": "at 0", "high": "at 1", "both": "at a limit"}[case.side]
    units = f"{percent(case.share)} of the units of {_called(case.gate)} of {place(key, False)}"
    why = f"{units} are {limit}, early and late in the training: {meaning}."
    if math.isfinite(case.mean) and case.side != "both":
        why += f" Its mean activation is {number(case.mean)}."
    why += f" {learning(seen).sentence}"
    if learning(seen).learns:
        why += " It does so all the same; look here if it stops falling too early."
    return why + rests_on(seen, key)


def _remedies(seen: Seen, key: LayerKey, *, started: bool) -> tuple[Remedy, ...]:
    """Of what was saturated from the start, another start; of what became so, smaller steps."""
    if not remedies.can_be_initialised(seen, key):
        return loops.rate(0.1), remedies.torch_layer(key)
    again = remedies.start_again(key, seen.family(key.module), timesteps(seen, key))
    normalised = swaps.layer_norm(seen, key)
    held = () if normalised is None else (normalised,)
    return (again, *held, loops.rate(0.1)) if started else (loops.rate(0.1), *held, again)
