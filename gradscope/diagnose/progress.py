"""Whether a training learns, and how bad a finding is for it."""

from __future__ import annotations

import numpy as np

from gradscope.diagnose.entering import loss_left
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.learning import UNKNOWN, Learning, read
from gradscope.diagnose.trend import ENOUGH
from gradscope.types import Severity

FALLS, STAYS = 0.35, 0.6
"""A training seems to learn that has less than the first share of its loss gradient left, and to stall with more than
the second; in between nobody knows."""


ACCIDENT = 0.01
SETTLED = 0.5
"""Share of the loss that is gone."""


def learning(seen: Seen) -> Learning:
    """What the losses of a training say; where none was seen, what the loss gradient does."""
    if "learning" not in seen.known:
        steps = seen["steps"].sort_values("step", kind="stable")
        losses = steps["loss"].to_numpy(dtype=np.float64)
        has_loss = bool(np.isfinite(losses).any())
        seen.known["learning"] = read(steps["step"].to_numpy(dtype=np.float64), losses) if has_loss else _guessed(seen)
    return seen.known["learning"]


def _guessed(seen: Seen) -> Learning:
    """From the loss gradient that enters: a rough sign, for it may stay or grow in trainings that learn."""
    left = [loss_left(seen, module) for module, _ in seen.modules_seen]
    least = min((share for share in left if np.isfinite(share)), default=float("nan"))
    if len(seen.records) < ENOUGH or not np.isfinite(least):
        return UNKNOWN
    verdict = "learns" if least <= FALLS else "stalls" if least >= STAYS else "unknown"
    return Learning(verdict, 1.0, least, least, source="loss gradient")


def settled(seen: Seen) -> bool:
    """Whether a loss that stands had fallen far: it may have reached what there is to learn, or one answer for all."""
    found = learning(seen)
    return found.verdict == "stalls" and found.fell >= SETTLED


def broken(seen: Seen) -> bool:
    """Whether steps were taken with gradients that are not finite, and more than one in a hundred."""
    steps = seen["steps"]
    taken = steps[~steps["skipped"].astype(bool)]
    return bool(len(taken)) and float((taken["nonfinite"] > 0).mean()) > ACCIDENT


def severity(seen: Seen, *, critical: bool = False) -> Severity:
    """Of a fault that matters where a training fails: no more than a fact where it learns, or where nobody knows."""
    found = learning(seen)
    if len(seen.records) < ENOUGH or not (found.fails or broken(seen)):
        return "info"
    return "critical" if critical and (found.source == "loss" or broken(seen)) else "warning"
