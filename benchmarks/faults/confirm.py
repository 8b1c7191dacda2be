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


@dataclass(frozen=True, slots=True)
class Kept:
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
    """The set, and what was left out of it and why: group -> scores."""

    faulty: list[Kept]
    healthy: list[Kept]
    dropped: dict[str, str]


def confirm(cases: Sequence[Case], out: Path) -> Confirmed:
    """Sort trainings that are there into faulty, healthy and dropped."""
    results = {case: store.kept(store.folder(case, out)) for case in cases}
    groups: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.part, case.group].append(case)
    found = Confirmed([], [], {})
    for (part, group), members in groups.items():
        why, kept = _judge(members, results, out)
        if why:
            found.dropped[f"{part}: {group}"] = why
        else:
            (found.faulty if members[0].fault else found.healthy).extend(kept)
    return found


def _judge(members: list[Case], results: dict[Case, Any], out: Path) -> tuple[str, list[Kept]]:
    known = [results.get(case) for case in members]
    twins = [results.get(case.twin()) if case.fault else None for case in members]
    if any(result is None for result in known) or any(
        t is None for t, c in zip(twins, members, strict=True) if c.fault
    ):
        return "not trained", []
    if any("unobservable" in result for result in (*known, *twins) if result is not None):
        return "not observable", []
    scores = [result["score"] for result in known if result is not None]
    goals = [score if twin is None else twin["score"] for score, twin in zip(scores, twins, strict=True)]
    told = ", ".join(f"{score:.2f}" for score in scores)
    if min(goals) < LEARNT:
        return f"the healthy one does not learn at every seed: {', '.join(f'{goal:.2f}' for goal in goals)}", []
    if members[0].fault and any(score > FAILED * goal for score, goal in zip(scores, goals, strict=True)):
        return f"the fault does not prevent learning: {told}", []
    kept = zip(members, scores, goals, known, strict=True)
    return "", [Kept(case, store.folder(case, out), score, goal, result or {}) for case, score, goal, result in kept]
