"""Findings must not change when the loss is multiplied by a number, and the loop with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults import store
from benchmarks.faults.confirm import Kept
from benchmarks.faults.evaluate import Verdict, judge
from benchmarks.faults.training import watch

SCALES = (1e-4, 1e4)
EVERY = 9  # of the confirmed trainings


def scaled(verdicts: Sequence[Verdict], out: Path) -> list[tuple[Kept, float, list[str], list[str]]]:
    """Train every ninth again at each scale: case, scale, codes before and codes after."""
    chosen = [(verdict, scale) for verdict in verdicts[::EVERY] for scale in SCALES]
    found: list[tuple[Kept, float, list[str], list[str]]] = []
    for verdict, scale in store.progress(chosen, "scaled", len(chosen)):
        place = store.folder(verdict.kept.case, out, f"-times{scale:g}")
        if store.kept(place) is None:
            store.begin(place)
            store.keep(place, watch(verdict.kept.case, place, change={"scale": scale, "rescaled": True}))
        kept = Kept(verdict.kept.case, place, 0.0, 0.0, {})
        found.append((kept, scale, verdict.codes, judge([kept])[0].codes))
    return found
