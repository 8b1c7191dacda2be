"""All that is trained of a configuration: its seeds until it is out, then with the remedy, then at other scales."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults import cures, scaling, store
from benchmarks.faults.cases import Case
from benchmarks.faults.confirm import NOT_OBSERVED, NOT_TRAINED, confirm_one
from benchmarks.faults.evaluate import judge
from benchmarks.faults.training import watch


def train_all(members: Sequence[Case], out: Path, again: bool = False) -> None:
    """Train what is not there yet, the healthy twin first; stop where the scores leave the configuration out.

    With `again` also what could not be observed the last time.
    """
    for case in members:
        for one in (case.twin(), case) if case.fault else (case,):
            why = confirm_one(members, out)[0]
            if why not in ((NOT_TRAINED, NOT_OBSERVED) if again else (NOT_TRAINED,)):
                return
            place = store.folder(one, out)
            known = store.kept(place)
            if known is None or (again and "unobservable" in known):
                store.begin(place)
                store.keep(place, watch(one, place))


def follow_up(members: Sequence[Case], out: Path, with_cures: bool, with_scales: bool) -> None:
    """Train a confirmed configuration again: with the first remedy, and some at other scales of the loss."""
    for verdict in judge(confirm_one(members, out)[1]):
        if with_cures and verdict.kept.case.fault:
            cures.train_cured(verdict, out)
        if with_scales and scaling.chosen(verdict.kept.case):
            scaling.train_scaled(verdict.kept.case, out)
