"""Does a training learn? The verdict on its losses, as numbers and as a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from gradscope.diagnose.curve import Array, Curve
from gradscope.diagnose.verdict import Verdict, verdict
from gradscope.diagnose.words import percent
from gradscope.types.loss import ends
from gradscope.types.loss import number as loss_number

Source = Literal["loss", "loss gradient"]

LEAST = 20
"""Fewer losses allow no verdict."""
GOES_ON = 0.1
"""Losses whose first step is larger than this share of their number continue a training that may have learnt before."""


@dataclass(frozen=True, slots=True)
class Learning:
    """The course of a training's loss.

    Attributes:
        verdict: the training learns, stalls, has lost what it had learnt, or nobody knows.
        begin: loss at the beginning.
        end: loss over the last tenth of the steps.
        best: the lowest level over a tenth of the steps.
        best_at: step in the middle of that tenth.
        peak: the highest level over a twentieth of the steps.
        stopped: step since which the loss no longer falls; None while it falls.
        source: basis of the verdict.
        resumed: the losses continue a training whose beginning is not in the run.
        first_and_last: first and last loss as in all other texts.
    """

    verdict: Verdict
    begin: float = math.nan
    end: float = math.nan
    best: float = math.nan
    best_at: int = 0
    peak: float = math.nan
    stopped: int | None = None
    source: Source = "loss"
    resumed: bool = False
    first_and_last: tuple[float, float] = (math.nan, math.nan)

    @property
    def learns(self) -> bool:
        """True if the loss falls."""
        return self.verdict == "learns"

    @property
    def fails(self) -> bool:
        """True if the training stalls, or has lost what it had learnt."""
        return self.verdict in ("stalls", "lost")

    @property
    def fell(self) -> float:
        """Share of the first loss by which the loss fell."""
        return 1 - self.end / self.begin if self.begin > 0 else math.nan

    @property
    def evidence(self) -> dict[str, Any]:
        """The numbers of the sentence, by name."""
        if self.source == "loss gradient":
            return {"learning": self.verdict, "loss_gradient_left": self.end}
        return {"learning": self.verdict, "loss": self.first_and_last}

    @property
    def sentence(self) -> str:
        """The verdict and its numbers."""
        if self.source == "loss gradient":
            seems = {"learns": "seems to learn", "stalls": "may stall"}.get(self.verdict, "may or may not learn")
            return f"By the loss gradient, of which {percent(self.end)} is left, the training {seems}."
        return self._of_loss()

    def _of_loss(self) -> str:
        begin, best, end = map(loss_number, (self.first_and_last[0], self.best, self.first_and_last[1]))
        since = f" since step {self.stopped}" if self.stopped else ""
        share = 1 - self.first_and_last[1] / self.first_and_last[0] if self.first_and_last[0] > 0 else 0.0
        if self.verdict == "learns":
            fall = f" by {percent(share)}" if share > 0 else ""
            stands = f", and has stood still{since}" if since else ""
            return f"The loss has fallen{fall}, from {begin} to {end}{stands}."
        if self.verdict == "lost":
            fell = f"had fallen from {begin} to {best} (step {self.best_at}) and"
            return f"The loss {fell if self.best < self.begin else f'was {begin} and'} is now {end}."
        if self.verdict == "stalls":
            fallen = share > 0.01 and self.stopped
            stalled = f"it fell from {begin} to {end} at first, and has stood still{since}"
            return f"The loss stalls: {stalled if fallen else f'it was {begin}, and is {end}'}."
        if self.resumed:
            return f"The loss was {begin} at the start of the run, and is {end}; earlier learning is unknown."
        return "The losses do not show whether the training learns."


UNKNOWN = Learning("unknown")


def read(steps: Array, losses: Array) -> Learning:
    """Judge a training by its losses, NaN where unknown, at rising numbers of steps."""
    known = np.isfinite(losses)
    if int(known.sum()) < LEAST:
        return UNKNOWN
    training = _of_curve(Curve(steps[known], losses[known]))
    late = float(steps[0]) > GOES_ON * len(steps)
    return replace(training, verdict="unknown", resumed=True) if late and training.verdict == "stalls" else training


def _of_curve(curve: Curve) -> Learning:
    first, last, *_ = ends(curve.steps, curve.losses)
    return Learning(
        verdict=verdict(curve),
        begin=curve.begin,
        end=curve.end,
        best=curve.best,
        best_at=curve.best_step(),
        peak=float(curve.levels.max()),
        stopped=curve.stopped(),
        first_and_last=(curve.begin if curve.thrown else first, last),
    )
