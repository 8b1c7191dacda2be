"""Which trainings are what they were meant to be, by the held-out score over all their seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults import store
from benchmarks.faults.cases import Case

LEARNT = 0.5  # a healthy training reaches this at every seed
FAILED = 0.5  # a faulty one at most this share of its twin's score, at every seed
NOT_OBSERVED = "not observable"
NOT_TRAINED = "not trained"


@dataclass(frozen=True, slots=True)
class Saved:
    """A training that is confirmed.

    Attributes:
        case: what it is.
        place: its folder.
        score: on held-out data.
        twin: score of its healthy twin from the same seed; its own if it is healthy.
        result: all that was kept.
    """

    case: Case
    place: Path
    score: float
    twin: float
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The set, and what was left out of it and why: group -> reason."""

    faulty: list[Saved]
    healthy: list[Saved]
    dropped: dict[str, str]


def configurations(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases by what they have in common: all but the seed."""
    found: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in cases:
        found[case.part, case.group].append(case)
    return list(found.values())


def confirm(cases: Sequence[Case], out: Path) -> Confirmed:
    """Sort trainings that are there into faulty, healthy and dropped."""
    found = Confirmed([], [], {})
    for members in configurations(cases):
        why, kept = confirm_one(members, out)
        if why:
            found.dropped[f"{members[0].part}: {members[0].group}"] = why
        else:
            (found.faulty if members[0].fault else found.healthy).extend(kept)
    return found


def confirm_one(members: Sequence[Case], out: Path) -> tuple[str, list[Saved]]:
    """Why a configuration is left out; or its trainings."""
    results = {case: store.kept(store.folder(case, out)) for case in (*members, *(case.twin() for case in members))}
    why = _why_not(members, results)
    if why:
        return why, []
    kept: list[Saved] = []
    for case in members:
        result, goal = results[case], results[case.twin()] if case.fault else results[case]
        if result is None or goal is None:
            return NOT_TRAINED, []
        kept.append(Saved(case, store.folder(case, out), result["score"], goal["score"], result))
    return "", kept


def _why_not(members: Sequence[Case], results: dict[Case, dict[str, Any] | None]) -> str:
    """Why a configuration is left out, as far as its trainings are known: one seed is enough to leave it out."""
    pairs = [(results[case], results[case.twin()] if case.fault else results[case]) for case in members]
    if any(result is not None and "unobservable" in result for pair in pairs for result in pair):
        return NOT_OBSERVED
    for _, goal in pairs:
        if goal is not None and goal["score"] < LEARNT:
            return f"the healthy one does not learn at every seed: {goal['score']:.2f}"
    for result, goal in pairs if members[0].fault else ():
        if result is not None and goal is not None and result["score"] > FAILED * goal["score"]:
            return f"the fault does not prevent learning: {result['score']:.2f} of {goal['score']:.2f}"
    return ""
