"""One sentence on a training: whether it learns, where its loss goes, and how much of it is recorded."""

from __future__ import annotations

import math

import numpy as np

from gradscope.diagnose.frames import Recorded, look_at
from gradscope.diagnose.learning import Learning, Verdict, read
from gradscope.diagnose.progress import learning
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
    """Whether a training learns: from its losses; where none was seen, from its loss gradient."""
    steps = run.frame("steps")
    if not np.isfinite(steps["loss"].to_numpy(dtype=np.float64)).any():
        return learning(look_at(run))
    losses = steps.groupby("step")["loss"].median()  # of all processes
    return read(losses.index.to_numpy(dtype=np.float64), losses.to_numpy(dtype=np.float64))


def headline(run: Recorded) -> str:
    """What a person wants to know first of a training, in one sentence."""
    steps = run.frame("steps")
    if steps.empty:
        return "No optimizer step was seen."
    count, recorded = steps["step"].nunique(), steps.loc[steps["recorded"].astype(bool), "step"].nunique()
    length = f"{plural(count, 'step')}, {recorded:,} recorded"
    said, found = learns(run), change(steps)
    if found is None:
        return f"{GUESSED.get(said.verdict, UNKNOWN)}: {length}."
    if math.isinf(found.last):
        since = int(steps.loc[steps["nonfinite"] > 0, "step"].min())
        return f"The training diverges: loss {str(found).replace('->', '→')} (first at step {since:,}), {length}."
    return f"{_verdict(said, found)}: loss {str(found).replace('->', '→')}, {length}."


def _verdict(said: Learning, found: Change) -> str:
    if said.verdict == "stalls" and found.last < 0.9 * found.first:
        return "The loss has stopped falling"
    return VERDICTS[said.verdict]
