"""Which trainings are what they are said to be: the mended one learns, the one that ails does clearly worse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.field import store
from benchmarks.field.case import Case

LEARNS = {
    "prose": 0.25,
    "source": 0.25,
    "words": 0.15,
    "docstrings": 0.1,
    "chorale": 0.2,
}  # share that a healthy one explains at least
USUALLY = 0.3
FAILED = 0.67  # share of its mended twin's score that one that ails reaches at most
NOT_TRAINED = "not trained"


def why_not(case: Case, out: Path) -> str:
    """Why a case is left out of the figures; empty if it is what it is said to be."""
    own, twin = store.known(case.key(), out), store.known(case.twin_key(), out)
    if own is None or twin is None:
        return NOT_TRAINED
    wanted = LEARNS.get(case.task, USUALLY)
    if twin["score"] < wanted:
        return f"the healthy one does not learn: {twin['score']:.2f}"
    if case.key() != case.twin_key() and own["score"] > FAILED * twin["score"]:
        return f"nothing ails it: {own['score']:.2f} of {twin['score']:.2f}"
    return ""


def train_bare(cases: Sequence[Case], out: Path) -> Iterator[str]:
    """Train every case and its twin without gradscope, and say of each what it came to."""
    for case in cases:
        own = store.bare(case.work, case.setup, case.seed, out)
        twin = store.bare(case.work, case.mended, case.seed, out)
        losses = own["losses"]
        course = " ".join(f"{losses[i]:.2f}" for i in range(0, len(losses), max(1, len(losses) // 5)))
        scores = f"{own['score']:5.2f} {twin['score']:5.2f}" if case.codes or not case.fine else f"{own['score']:5.2f}"
        verdict = why_not(case, out) or "ok"
        yield f"{verdict:44s} {case.half:8s} {scores:11s} {own['cpu_s']:5.1f} s  {case.name}  [{course}]"
