"""One sentence on a training: its verdict, its loss, and the number of records."""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose.frames import Recorded, read_tables
from gradscope.diagnose.learning import Learning, read
from gradscope.diagnose.progress import learning
from gradscope.diagnose.verdict import Verdict
from gradscope.diagnose.words import plural
from gradscope.types.loss import Change, change

UNKNOWN = "Whether the training learns is not known yet"
VERDICTS: dict[Verdict, str] = {
    "learns": "The training learns",
    "stalls": "The training does not learn",
    "lost": "The training has lost what it had learnt",
    "unknown": UNKNOWN,
}
GUESSED: dict[Verdict, str] = {
    "learns": "By the loss gradient the training seems to learn",
    "stalls": "By the loss gradient the training may stall",
}


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
        return "gradscope has seen no optimizer step."
    count, recorded = steps["step"].nunique(), steps.loc[steps["recorded"].astype(bool), "step"].nunique()
    length = f"{plural(count, 'step')}, {recorded:,} recorded"
    training, loss = learns(run), change(steps)
    if loss is None:
        return f"{GUESSED.get(training.verdict, UNKNOWN)}: {length}."
    if math.isinf(loss.last):
        since = int(steps.loc[steps["nonfinite"] > 0, "step"].min())
        return f"The training diverges: loss {str(loss).replace('->', '→')} (first at step {since:,}), {length}."
    return f"{_verdict(training, loss)}: loss {str(loss).replace('->', '→')}, {length}."


def _verdict(training: Learning, loss: Change) -> str:
    if training.verdict == "stalls" and loss.last < 0.9 * loss.first:
        return "The loss has stopped falling"
    return VERDICTS[training.verdict]
