"""Gates, or states of a tanh network, at their limits whatever the input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from gradscope.diagnose import remedies
from gradscope.diagnose.frames import Tables
from gradscope.diagnose.progress import had_fallen, in_spite, learning, severity
from gradscope.diagnose.rules.updates import smaller_steps
from gradscope.diagnose.trend import ENOUGH, by_step, early_and_late, rests_on, span, timesteps
from gradscope.diagnose.words import number, percent, place
from gradscope.types import Finding, LayerKey, Remedy, Severity

NEARLY_ALL = 0.95
SATURATED = 0.9
"""Share of a tanh state at its limits."""
TWO_SIDED = 0.75
"""Share of all sigmoid gates of a recurrence at one limit or the other."""
CERTAIN = {("lstm", "input", "low"), ("lstm", "output", "low"), ("gru", "update", "high")}
"""Gates that let nothing in, or nothing out, at this limit."""

SHUT = {
    ("lstm", "forget"): 0.02,
    ("lstm", "input"): 1e-3,
    ("lstm", "output"): 1e-3,
    ("gru", "update"): 0.02,
}
"""A gate is shut below this mean activation; some gates rest near 0 for good reasons, but not so near."""
STUCK = {("gru", "update"): 0.05}
"""A gate is stuck open if it replaces at most this share of the state in a whole sequence: the state never changes."""

MEANS = {
    ("lstm", "forget", "low"): "the layer forgets its cell state at every step",
    ("lstm", "input", "low"): "the layer writes nothing to its cell state",
    ("lstm", "output", "low"): "the output shows nothing of the cell state",
    ("gru", "update", "low"): "the layer replaces its whole state at every step and remembers nothing",
    ("gru", "update", "high"): "the state never changes",
}


NOTHING_PASSES = "the input hardly changes them, and hardly any gradient passes"


class Saturation(NamedTuple):
    """A gate at its limits: its name, the share of its units, its mean activation, and the limit."""

    gate: str
    share: float
    mean: float
    side: str


def saturated_gate(tables: Tables) -> list[Finding]:
    """Find gates that are saturated early as well as late.

    An open forget gate is no fault, nor are units of a tanh network at their limits now and then. In a training that
    learns, a gate that came to its limits is a mere fact; one that began there is a fault of the initialisation.
    """
    if len(tables.records) < ENOUGH:
        return []
    findings: list[Finding] = []
    for _, keys in tables.by_module:
        cases = [(key, case) for key in keys for case in _cases(tables, key)]
        shut = [(key, case) for key, case in cases if case.side in ("low", "high")]
        if cases:
            key, case = max(shut or cases, key=lambda pair: pair[1].share)
            findings.append(_finding(tables, key, case, len(keys)))
    return findings


def _cases(tables: Tables, key: LayerKey) -> Iterator[Saturation]:
    family, gates = tables.family(key.module), tables.of("gates", key)
    both: list[float] = []
    for gate, rows in gates.groupby("gate", sort=False):
        gate = str(gate)
        lows, highs = by_step(rows, "low"), by_step(rows, "high")
        low, high, sides = (min(early_and_late(shares)) for shares in (lows, highs, lows + highs))
        mean = early_and_late(by_step(rows, "mean"))[1]
        if low >= NEARLY_ALL and mean <= SHUT.get((family, gate), -math.inf):
            yield Saturation(gate, low, mean, "low")
        replaced = (1 - mean) * timesteps(tables, key)
        if high >= NEARLY_ALL and replaced <= STUCK.get((family, gate), -math.inf):
            yield Saturation(gate, high, mean, "high")
        if family == "rnn_tanh" and gate == "hidden" and sides >= SATURATED:
            yield Saturation(gate, sides, mean, "both")
        if gate not in ("hidden", "candidate"):
            both.append(sides)
    if both and sum(both) / len(both) >= TWO_SIDED:
        yield Saturation("all gates", sum(both) / len(both), math.nan, "both")


def _from_start(tables: Tables, key: LayerKey, case: Saturation) -> bool:
    """True if the first record shows the saturation; otherwise it has another cause."""
    gates = tables.of("gates", key)
    first = gates[gates["step"] == gates["step"].min()]
    rows = (
        first[~first["gate"].isin(("hidden", "candidate"))]
        if case.gate == "all gates"
        else first[first["gate"] == case.gate]
    )
    columns = {"low": ["low"], "high": ["high"], "both": ["low", "high"]}[case.side]
    return float(rows[columns].sum(axis=1).mean()) >= TWO_SIDED


def _finding(tables: Tables, key: LayerKey, case: Saturation, count: int) -> Finding:
    where, whole = place(key, count == 1), case.gate == "all gates"
    certain = (tables.family(key.module), case.gate, case.side) in CERTAIN
    started = _from_start(tables, key, case)
    return Finding(
        code="saturated_gate",
        severity=_severity(tables, certain=certain, started=started),
        layer_key=key,
        title=f"{where}: all gates are saturated" if whole else f"{where}: {_named(case.gate)} is saturated",
        explanation=_explained(tables, key, case, started=started),
        evidence={
            "gate": case.gate,
            "steps": span(tables),
            "timesteps": timesteps(tables, key),
            "share": case.share,
            "mean": case.mean,
            "side": case.side,
            "from_start": started,
            **learning(tables).evidence,
        },
        remedies=_remedies(tables, key, started=started),
    )


def _severity(tables: Tables, *, certain: bool, started: bool) -> Severity:
    """Grade the finding: saturation that arose while the loss fell may be right."""
    return "info" if not started and had_fallen(tables) else severity(tables, critical=certain, built=started)


def _named(gate: str) -> str:
    return {"hidden": "the state", "all gates": "all gates"}.get(gate, f"the {gate} gate")


def _explained(tables: Tables, key: LayerKey, case: Saturation, *, started: bool) -> str:
    meaning = MEANS.get((tables.family(key.module), case.gate, case.side), NOTHING_PASSES)
    limit = {"low": "at 0", "high": "at 1", "both": "at a limit"}[case.side]
    units = f"{percent(case.share)} of the units of {_named(case.gate)} of {place(key, False)}"
    why = f"{units} are {limit}, early and late in the training: {meaning}."
    if math.isfinite(case.mean) and case.side != "both":
        why += f" Its mean activation is {number(case.mean)}."
    why += f" {learning(tables).sentence}"
    if learning(tables).learns and not started:
        why += " Look here only if it stops falling too early."
    if started:
        why += " The first record shows this already: the initialisation, or the input, puts the gate there."
        why += in_spite(tables)
    return why + rests_on(tables, key)


def _remedies(tables: Tables, key: LayerKey, *, started: bool) -> tuple[Remedy, ...]:
    """Choose remedies: another initialisation if the first record is saturated, else smaller steps first."""
    if not remedies.can_be_initialised(tables, key):
        return smaller_steps(tables), remedies.torch_layer(key)
    again = remedies.start_again(key, tables.family(key.module), timesteps(tables, key))
    normalised = remedies.layer_norm(tables, key)
    middle = () if normalised is None else (normalised,)
    return (again, *middle, smaller_steps(tables)) if started else (smaller_steps(tables), *middle, again)
