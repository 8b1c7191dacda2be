"""The verdict on a training: for the severity of findings, and as one sentence."""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose.entering import loss_left
from gradscope.diagnose.frames import Recorded, Tables, read_tables
from gradscope.diagnose.learning import UNKNOWN, Learning, read
from gradscope.diagnose.trend import ENOUGH
from gradscope.diagnose.verdict import Verdict
from gradscope.diagnose.words import plural
from gradscope.types import Severity
from gradscope.types.loss import Change, change

FALLS, STAYS = 0.35, 0.6
"""With less than the first share of its loss gradient left a training seems to learn, with more than the second to
stall; in between nobody knows."""
ACCIDENT = 0.01
"""A larger share of steps with non-finite gradients is no accident."""
FALLEN = 0.5
"""A stalled loss that fell by this share may have reached its minimum."""
UNCERTAIN = "Whether the training learns is not known yet"
VERDICTS: dict[Verdict, str] = {
    "learns": "The training learns",
    "stalls": "The training does not learn",
    "lost": "The training has lost what it had learnt",
    "unknown": UNCERTAIN,
}
GUESSED: dict[Verdict, str] = {
    "learns": "By the loss gradient the training seems to learn",
    "stalls": "By the loss gradient the training may stall",
}


def learning(tables: Tables) -> Learning:
    """Judge whether a training learns, by its losses, or without losses by its loss gradient."""
    if "learning" not in tables.known:
        steps = tables["steps"].sort_values("step", kind="stable")
        losses = steps["loss"].to_numpy(dtype=np.float64)
        has_loss = bool(np.isfinite(losses).any())
        numbers = steps["step"].to_numpy(dtype=np.float64)
        tables.known["learning"] = read(numbers, losses) if has_loss else _guess(tables)
    return tables.known["learning"]


def _guess(tables: Tables) -> Learning:
    """Judge by the entering loss gradient: a rough sign, as it may stay or grow in trainings that learn."""
    left = [loss_left(tables, module) for module, _ in tables.by_module]
    least = min((share for share in left if np.isfinite(share)), default=float("nan"))
    if len(tables.records) < ENOUGH or not np.isfinite(least):
        return UNKNOWN
    verdict = "learns" if least <= FALLS else "stalls" if least >= STAYS else "unknown"
    return Learning(verdict, 1.0, least, least, source="loss gradient")


def had_fallen(tables: Tables) -> bool:
    """True if a stalled loss fell far before: it may be at its minimum, or the network gives one answer for all."""
    training = learning(tables)
    return training.verdict == "stalls" and training.fell >= FALLEN


def broken(tables: Tables) -> bool:
    """True if the optimizer took more than one step in a hundred with non-finite gradients."""
    steps = tables["steps"]
    executed = steps[~steps["skipped"].astype(bool)]
    return bool(len(executed)) and float((executed["nonfinite"] > 0).mean()) > ACCIDENT


def in_spite(tables: Tables) -> str:
    """Return the sentence that ends the explanation of a fault in a training that learns; empty if it does not."""
    return " It learns in spite of this, perhaps more slowly or less far." if learning(tables).learns else ""


def severity(tables: Tables, *, critical: bool = False, built: bool = False) -> Severity:
    """Return the severity of a fault that matters in failing trainings: `info` if the training learns or is unclear.

    Args:
        tables: of the run.
        critical: the fault certainly keeps a training from learning, so that one that fails does so because of it.
        built: model, data or loop are made so, and no training makes it right: a warning even if the training learns.
    """
    training = learning(tables)
    if len(tables.records) < ENOUGH:
        return "info"
    if not (training.fails or broken(tables)):
        return "warning" if built else "info"
    return "critical" if critical and (training.source == "loss" or broken(tables)) else "warning"


def learns(run: Recorded) -> Learning:
    """Judge whether a training learns, by its losses, or without losses by its loss gradient."""
    steps = run.frame("steps")
    if not np.isfinite(steps["loss"].to_numpy(dtype=np.float64)).any():
        return learning(read_tables(run))
    losses = steps.groupby("step")["loss"].median()  # of all processes
    return read(losses.index.to_numpy(dtype=np.float64), losses.to_numpy(dtype=np.float64))


def headline(run: Recorded) -> str:
    """Summarise a training in one sentence."""
    steps = run.frame("steps")
    if steps.empty:
        return "gradscope has observed no optimizer step."
    count, recorded = steps["step"].nunique(), steps.loc[steps["recorded"].astype(bool), "step"].nunique()
    length = f"{plural(count, 'step')}, {recorded:,} recorded"
    training, loss = learns(run), change(steps)
    if loss is None:
        return f"{GUESSED.get(training.verdict, UNCERTAIN)}: {length}."
    if math.isinf(loss.last):
        since = int(steps.loc[steps["nonfinite"] > 0, "step"].min())
        return f"The training diverges: loss {str(loss).replace('->', '→')} (first at step {since:,}), {length}."
    return f"{_verdict(training, loss)}: loss {str(loss).replace('->', '→')}, {length}."


def _verdict(training: Learning, loss: Change) -> str:
    if training.verdict == "stalls" and loss.last < 0.9 * loss.first:
        return "The loss has stopped falling"
    return VERDICTS[training.verdict]
