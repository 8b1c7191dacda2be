"""The first remedy of the first finding, applied as it is typed, and whether the training then learns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gradscope.cells
from benchmarks.faults import store
from benchmarks.faults.evaluate import Verdict
from benchmarks.faults.interventions import Loop
from benchmarks.faults.nets import Net
from benchmarks.faults.training import Cure, train

CURED = "-cured"
PREDICTED = ("vanishing_gradient", "exploding_gradient")
RESTORED = 0.75  # share of the healthy twin's score from the same seed


def cure_for(code: str) -> Cure | None:
    """Where a line belongs in the loop; None where code cannot do what it says.

    Lines that clip go between backward and optimizer, in place of the loop's own clipping; lines on the model go before
    training. What changes the loop otherwise is a switch of it.
    """
    if "clip_grad" in code:
        return Cure(gradients=_executed(code))
    for told, switch in SWITCHES.items():
        if told in code:
            return Cure(loop=switch)
    if factor := RATE.search(code):
        return Cure(loop=lambda loop: replace(loop, lr=loop.lr * float(factor[1])))
    return Cure(model=_executed(code)) if code.startswith(("model", "gradscope.cells", "torch.nn.init")) else None


RATE = re.compile(r'group\["lr"\] \*= ([\d.e-]+)$')
SWITCHES: dict[str, Callable[[Loop], Loop]] = {
    "state as it came": lambda loop: replace(loop, window=None),
    "pack_padded_sequence": lambda loop: replace(loop, padded=0),
    "torch.sqrt(x.clamp(min=1e-8))": lambda loop: replace(loop, safe_roots=True),
}
TESTS = ("a decisive test", "see how far", "learn one batch", "compare answers", "check that the optimizer")
"""Titles of what decides between causes and mends nothing."""


def _executed(code: str) -> Callable[[Net], None]:
    compiled = compile(code, "<remedy>", "exec")

    def run(net: Net) -> None:
        exec(compiled, {"torch": torch, "nn": nn, "gradscope": gradscope, "model": net})  # noqa: S102 - our own line

    return run


def first_remedy(verdict: Verdict) -> str:
    """What the first finding says first, as code; tests that decide between causes are left out."""
    remedies = [remedy for finding in verdict.findings[:1] for remedy in finding.remedies]
    return next((remedy.code for remedy in remedies if not remedy.title.startswith(TESTS)), "")


def known_cure(verdict: Verdict, out: Path) -> dict[str, Any] | None:
    """What came of a training with the remedy: `code`, `score`, `goal`, `tried`, `restored`; None if not trained."""
    known = store.kept(store.folder(verdict.kept.case, out, CURED))
    if known is None or known["code"] != first_remedy(verdict):
        return None
    return {**known, "restored": known["score"] >= RESTORED * known["goal"]}


def train_cured(verdict: Verdict, out: Path) -> None:
    """Train again with the remedy, unless that has been done; watched where a horizon was predicted."""
    case, code = verdict.kept.case, first_remedy(verdict)
    if known_cure(verdict, out) is not None:
        return
    place = store.folder(case, out, CURED)
    store.begin(place)
    cure = cure_for(code) if code else None
    watched = place if case.kind is not None and case.kind.code in PREDICTED else None
    score = train(case, watched, cure).score if cure is not None else 0.0
    store.keep(place, {"code": code, "score": score, "goal": verdict.kept.twin, "tried": cure is not None})


def cures(verdicts: Sequence[Verdict], out: Path) -> dict[Verdict, dict[str, Any]]:
    """What came of the remedies, where they were tried."""
    found = {verdict: known_cure(verdict, out) for verdict in verdicts}
    return {verdict: cure for verdict, cure in found.items() if cure is not None}
