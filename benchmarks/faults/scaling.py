"""Findings must not change when the loss is multiplied by a number, and the loop with it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults import store
from benchmarks.faults.cases import Case
from benchmarks.faults.confirm import Saved
from benchmarks.faults.evaluate import Verdict, judge
from benchmarks.faults.training import watch

SCALES = (1e-4, 1e4)
SHARE = 1 / 9  # of the confirmed trainings


def chosen(case: Case) -> bool:
    """Whether a case is trained again at other scales: by its name alone."""
    return random.Random(f"{case.part}/{case.name}").random() < SHARE


def train_scaled(case: Case, out: Path) -> None:
    """Train at each scale, unless that has been done."""
    for scale in SCALES:
        place = _place(case, scale, out)
        if store.kept(place) is None:
            store.begin(place)
            store.keep(place, watch(case, place, change={"scale": scale, "rescaled": True}))


def scaled(verdicts: Sequence[Verdict], out: Path) -> list[tuple[Saved, float, list[str], list[str]]]:
    """What was trained at other scales: case, scale, codes before and codes after."""
    found: list[tuple[Saved, float, list[str], list[str]]] = []
    for verdict in verdicts:
        for scale in SCALES if chosen(verdict.kept.case) else ():
            place = _place(verdict.kept.case, scale, out)
            known = store.kept(place)
            if known is not None and "unobservable" not in known:
                kept = Saved(verdict.kept.case, place, 0.0, 0.0, known)
                found.append((kept, scale, verdict.codes, judge([kept])[0].codes))
    return found


def _place(case: Case, scale: float, out: Path) -> Path:
    return store.folder(case, out, f"-times{scale:g}")
