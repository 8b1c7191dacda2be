"""One sentence says how a training went."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from gradscope.diagnose.progress import headline, learns
from gradscope.record import MemoryStore
from gradscope.run import Run
from gradscope.types import Batch, Rows

NOISE = np.random.default_rng(0).normal(0, 0.01, 200)
AT = np.arange(200)


def run_of(losses: Sequence[float], rank: int = 0) -> Run:
    store, told = MemoryStore({}, rank=rank), {"optimizer": "SGD", "grad_norm": 1.0, "skipped": False}
    for step, loss in enumerate(losses):
        row = {**told, "loss": loss, "nonfinite": int(math.isinf(loss)), "recorded": step % 10 == 0}
        store.write(Batch(step, (Rows("steps", {**row, "overhead_s": 0.0, "step_s": 0.1}),)))
    return Run(store)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (2.0 / (1 + AT / 30) + NOISE, "The training learns: loss 1.74 → 0.273, 200 steps, 20 recorded."),
        (1 + NOISE, "The training does not learn: loss "),
        (np.where(AT < 8, 3.0 - AT / 4, 1.0) + NOISE, "The loss has stopped falling: loss "),
        (np.where(AT < 100, 2.0 / (1 + AT / 10), 2.0) + NOISE, "The training has lost what it had learnt: loss "),
        ([1.0, 0.9], "Whether the training learns is not known yet: loss 1.00 → 0.900, 2 steps, 1 recorded."),
        ([math.nan] * 5, "Whether the training learns is not known yet: 5 steps, 1 recorded."),
        (
            [1.0] * 15 + [math.inf] * 85,
            "The training diverges: loss 1.00 → not finite (first at step 15), 100 steps",
        ),
        ([], "gradscope has observed no optimizer step."),
    ],
)
def test_headline(losses: Sequence[float], said: str) -> None:
    assert headline(run_of(losses)).startswith(said)


def test_where_no_loss_was_seen_the_loss_gradient_is_asked() -> None:
    assert learns(run_of([math.nan] * 5)).verdict == "unknown"
