"""Gates, or states of a tanh network, at their limits whatever the input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gradscope.diagnose import remedies
from gradscope.diagnose.frames import Frame, Tables
from gradscope.diagnose.progress import had_fallen, in_spite, learning, severity
from gradscope.diagnose.rules.updates import smaller_steps
from gradscope.diagnose.trend import ENOUGH, by_step, early_and_late, rests_on, span, timesteps
from gradscope.diagnose.words import number, percent, place
from gradscope.types import Finding, LayerKey, Remedy, Severity

NEARLY_ALL = 0.95
SATURATED = 0.9
"""Share of a tanh state at its limits."""
BEGINS = 0.99
"""The same in the first record: input that is too large saturates less."""
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
SHUT_AT_FIRST = {**SHUT, ("lstm", "output"): 0.01}
"""The same in the first record: no initialisation on purpose shuts the output gate, as one may shut the input gate."""
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
    """A gate at its limits: its name, the share of its units, its mean activation, and the limit.

    A gate that begins at it and leaves it has the last record at it as `until`.
    """

    gate: str
    share: float
    mean: float
    side: str
    until: int | None = None


def saturated_gate(tables: Tables) -> list[Finding]:
    """Find gates that are saturated early as well as late, and gates that are shut at first and open late.

    An open forget gate is no fault, nor are units of a tanh network at their limits now and then. In a training that
    learns, a gate that came to its limits is a mere fact; one that began there is a fault of the initialisation, for no
    initialisation on purpose shuts a gate so far. If it opens, the layer has learnt nothing until then.
    """
    if len(tables.records) < ENOUGH:
        return []
    findings: list[Finding] = []
    for _, keys in tables.by_module:
        cases = [(key, case) for key in keys for case in _cases(tables, key)]
        shut = [(key, case) for key, case in cases if case.side in ("low", "high")]
        if cases:
            key, case = max(shut or cases, key=lambda pair: (pair[1].until is None, pair[1].share))
            findings.append(_finding(tables, key, case, len(keys)))
    return findings


def _cases(tables: Tables, key: LayerKey) -> Iterator[Saturation]:
    family, gates = tables.family(key.module), tables.of("gates", key)
    both: list[float] = []
    for gate, rows in gates.groupby("gate", sort=False):
        gate = str(gate)
        sides = by_step(rows, "low") + by_step(rows, "high")
        shut = [limits.get((family, gate), -math.inf) for limits in (SHUT, SHUT_AT_FIRST)]
        stuck = STUCK.get((family, gate), -math.inf) / timesteps(tables, key)
        yield from _at_one_limit(rows, "low", gate, *shut)
        yield from _at_one_limit(rows, "high", gate, stuck, stuck)
        if family == "rnn_tanh" and gate == "hidden":
            yield from _state_at_limits(sides, gate, early_and_late(by_step(rows, "mean"))[1])
        if gate not in ("hidden", "candidate"):
            both.append(min(early_and_late(sides)))
    if both and sum(both) / len(both) >= TWO_SIDED:
        yield Saturation("all gates", sum(both) / len(both), math.nan, "both")


def _state_at_limits(shares: Frame, gate: str, mean: float) -> Iterator[Saturation]:
    """Find a state at its limits, early and late, or from the first record up to some later step."""
    known, (early, late) = shares.dropna(), early_and_late(shares)
    if min(early, late) >= SATURATED:
        yield Saturation(gate, min(early, late), mean, "both")
    elif early >= NEARLY_ALL and known.iloc[0] >= BEGINS:
        yield Saturation(gate, early, mean, "both", int(known.index[known >= NEARLY_ALL].max()))


def _at_one_limit(rows: Frame, side: str, gate: str, least: float, first: float) -> Iterator[Saturation]:
    """Find a gate at a limit early, and no further from it than `least` late or than `first` in the first record."""
    shares, means = by_step(rows, side), by_step(rows, "mean").dropna()
    if not len(means):
        return
    away = means if side == "low" else 1 - means
    at_first, (early, late) = bool(away.iloc[0] <= first), early_and_late(shares)
    if early >= NEARLY_ALL and late >= NEARLY_ALL and (at_first or early_and_late(away)[1] <= least):
        yield Saturation(gate, min(early, late), early_and_late(means)[1], side)
    elif early >= NEARLY_ALL and at_first:
        until = int(shares.index[shares >= NEARLY_ALL].max())
        yield Saturation(gate, early, float(means.iloc[0]), side, until)


def _from_start(tables: Tables, key: LayerKey, case: Saturation) -> bool:
    """True if the first record with known gates shows the saturation; otherwise it has another cause."""
    gates = tables.of("gates", key)
    gates = gates[np.isfinite(gates["low"])]
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
    certain = case.until is None and (tables.family(key.module), case.gate, case.side) in CERTAIN
    started = case.until is not None or _from_start(tables, key, case)
    name = "all gates are" if whole else f"{_named(case.gate)} is"
    return Finding(
        code="saturated_gate",
        severity=_severity(tables, certain=certain, started=started),
        layer_key=key,
        title=f"{where}: {name} saturated{'' if case.until is None else f' until step {case.until}'}",
        explanation=_explained(tables, key, case, started=started),
        evidence={
            "gate": case.gate,
            "steps": span(tables),
            "timesteps": timesteps(tables, key),
            "share": case.share,
            "mean": case.mean,
            "side": case.side,
            "from_start": started,
            **({} if case.until is None else {"until": case.until}),
            **learning(tables).evidence,
        },
        remedies=_remedies(tables, key, case, started=started),
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
    if case.until is not None:
        why = f"Until step {case.until} of {span(tables)[1]}, {units} are {limit}: {meaning}. These steps are lost."
    if math.isfinite(case.mean) and case.side != "both":
        why += f" Its mean activation {'is' if case.until is None else 'begins at'} {number(case.mean)}."
    why += f" {learning(tables).sentence}"
    if learning(tables).learns and not started:
        why += " Look here only if it stops falling too early."
    if started:
        why += " The first record shows this already: the initialisation, or the input, puts the gate there."
        why += in_spite(tables)
    return why + rests_on(tables, key)


def _remedies(tables: Tables, key: LayerKey, case: Saturation, *, started: bool) -> tuple[Remedy, ...]:
    """Choose remedies: another initialisation if the first record is saturated, else smaller steps first."""
    if not remedies.can_be_initialised(tables, key):
        return smaller_steps(tables), remedies.torch_layer(key)
    forgets = (case.gate, case.side) == ("forget", "low")
    again = remedies.start_again(key, tables.family(key.module), timesteps(tables, key), forgets=forgets)
    normalised = remedies.layer_norm(tables, key)
    middle = () if normalised is None else (normalised,)
    return (again, *middle, smaller_steps(tables)) if started else (smaller_steps(tables), *middle, again)
