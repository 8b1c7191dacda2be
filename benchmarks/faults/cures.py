"""The first remedy of the first finding, applied as it is typed, and whether the training then learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gradscope.cells
from benchmarks.faults import store
from benchmarks.faults.evaluate import Verdict
from benchmarks.faults.nets import Net
from benchmarks.faults.training import Cure, train

RESTORED = 0.75  # share of the healthy twin's score from the same seed


def cure_for(code: str) -> Cure | None:
    """Where a line belongs in the loop; None where code cannot do what it says.

    Lines that clip go between backward and optimizer, in place of the loop's own clipping; lines on the model go before
    training. Handing the state on as it came is the switch of the loop that detaches it.
    """
    if "clip_grad" in code:
        return Cure(gradients=_executed(code))
    if "state as it came" in code:
        return Cure(loop=lambda loop: replace(loop, window=None))
    if "detect_anomaly" in code or "optimizer" in code or "..." in code:
        return None
    return Cure(model=_executed(code))


def _executed(code: str) -> Callable[[Net], None]:
    compiled = compile(code, "<remedy>", "exec")

    def run(net: Net) -> None:
        exec(compiled, {"torch": torch, "nn": nn, "gradscope": gradscope, "model": net})  # noqa: S102 - our own line

    return run


def cured(verdict: Verdict, out: Path) -> dict[str, Any]:
    """Train again with the remedy, or read what came of it: `code`, `score`, `goal`, `restored`."""
    code = next((f.remedies[0].code for f in verdict.findings if f.remedies), "")
    place = store.folder(verdict.kept.case, out, "-cured")
    known = store.kept(place)
    if known is None or known["code"] != code:
        cure = cure_for(code) if code else None
        score = train(verdict.kept.case, None, cure).score if cure is not None else 0.0
        known = {"code": code, "score": score, "goal": verdict.kept.twin, "tried": cure is not None}
        store.keep(place, known)
    return {**known, "restored": known["score"] >= RESTORED * known["goal"]}


def restored(verdicts: Sequence[Verdict], out: Path) -> dict[Verdict, dict[str, Any]]:
    """Every verdict's cure."""
    return {verdict: cured(verdict, out) for verdict in store.progress(verdicts, "cured", len(verdicts))}
