"""Does a training learn? Read from its losses: where they began, how far they fell, and whether they still do.

A loss that falls at once to the mean of the targets, or to the frequencies of the classes, and then stands has learnt
nothing of the sequences. What counts is therefore what it falls by after the first tenth of the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from gradscope.diagnose.words import percent
from gradscope.types.loss import ends
from gradscope.types.loss import number as loss_number

Array = np.ndarray[Any, np.dtype[np.float64]]
Verdict = Literal["learns", "stalls", "lost", "unknown"]
Source = Literal["loss", "loss gradient"]

LEAST = 20
"""With fewer losses there is no telling."""
BLOCKS = 20
"""Of a twentieth of the steps each; what is compared are their medians."""
PROGRESS = 0.06
"""Share of the loss by which a training falls that learns, after the first fall."""
SHARE, FALL = 0.25, 0.1
"""Or so much of its whole fall comes later, where that is so much of the loss."""
FLOOR = 0.03
"""A loss of which so little is left has been learnt, whenever that was."""
DEEP = 0.5
"""Where so little is left, the fall after the first tenth may be lost in the noise."""
REGAINED = 0.5
"""Share of its fall by which a loss rises again that has lost what it learnt."""
RECOVERS = 0.3
"""Share of such a rise by which it falls again that goes on learning, as after a harder task has begun."""
SPIKE = 2.0
"""Losses so many times the very first are no beginning."""
MULTIPLE = 3.0
"""A loss so many times its best has lost much, though it had begun far higher."""
AT_ONCE = 0.15
"""A loss that stands from so early a share of the steps on has learnt no more than its first fall."""
GROWN = 10.0
"""A loss so many times its beginning has diverged; targets that the network makes itself may let it grow by less."""
THROWN, JUMP = 3.0, 2.0
"""Or so many times, after it has grown by so much within a twentieth of the steps, which targets do not."""
GOES_ON = 0.1
"""Losses that begin so many of their number after step 0 go on from a training that may have learnt before."""
SURE = 3.0
"""Standard errors that a difference has to have."""


@dataclass(frozen=True, slots=True)
class Learning:
    """What the losses of a training say.

    Attributes:
        verdict: whether it learns, stalls, has learnt and lost it, or nobody knows.
        begin: loss at the beginning.
        end: over the last tenth of the steps.
        best: the lowest level that it kept for a tenth of the steps.
        best_at: step about which that was.
        stopped: step since which it has not fallen; None while it falls.
        source: from what that is known.
        resumed: the losses go on from a training of which the beginning is not there.
        told: first and last loss as they stand everywhere else, for sentences.
    """

    verdict: Verdict
    begin: float = math.nan
    end: float = math.nan
    best: float = math.nan
    best_at: int = 0
    stopped: int | None = None
    source: Source = "loss"
    resumed: bool = False
    told: tuple[float, float] = (math.nan, math.nan)

    @property
    def learns(self) -> bool:
        """Whether the loss falls."""
        return self.verdict == "learns"

    @property
    def fails(self) -> bool:
        """Whether it stalls, or what was learnt is lost."""
        return self.verdict in ("stalls", "lost")

    @property
    def fell(self) -> float:
        """Share of the beginning's loss that is gone."""
        return 1 - self.end / self.begin if self.begin > 0 else math.nan

    @property
    def evidence(self) -> dict[str, Any]:
        """The same by name."""
        if self.source == "loss gradient":
            return {"learning": self.verdict, "loss_gradient_left": self.end}
        return {"learning": self.verdict, "loss": self.told}

    @property
    def sentence(self) -> str:
        """The verdict and the numbers that it rests on."""
        if self.source == "loss gradient":
            seems = {"learns": "seems to learn", "stalls": "may stall"}.get(self.verdict, "may learn or not")
            return f"By the loss gradient, of which {percent(self.end)} is left, the training {seems}."
        return self._of_loss()

    def _of_loss(self) -> str:
        begin, best, end = map(loss_number, (self.told[0], self.best, self.told[1]))
        since = f" since step {self.stopped}" if self.stopped else ""
        share = 1 - self.told[1] / self.told[0] if self.told[0] > 0 else 0.0
        if self.verdict == "learns":
            gone = f" by {percent(share)}" if share > 0 else ""
            return f"The loss has fallen{gone}, from {begin} to {end}{f', where it stands{since}' if since else ''}."
        if self.verdict == "lost":
            had = (
                f"had fallen from {begin} to {best} (step {self.best_at})" if self.best < self.begin else f"was {begin}"
            )
            return f"The loss {had} and is {end} now."
        if self.verdict == "stalls":
            fallen = share > 0.01 and self.stopped
            how = (
                f"it fell from {begin} to {end} at first and stands{since}"
                if fallen
                else f"it was {begin}, and is {end}"
            )
            return f"The loss stalls: {how}."
        if self.resumed:
            return f"The loss was {begin} where the record begins, and is {end}; what was learnt before is not known."
        return "Whether the training learns is not known."


UNKNOWN = Learning("unknown")


def read(steps: Array, losses: Array) -> Learning:
    """What the losses of a training say.

    Args:
        steps: numbers of the steps, rising, [steps].
        losses: the loss of each; NaN where it is not known, [steps].
    """
    known = np.isfinite(losses)
    if int(known.sum()) < LEAST:
        return UNKNOWN
    found = _Curve(steps[known], losses[known]).learning()
    late = float(steps[0]) > GOES_ON * len(steps)
    return replace(found, verdict="unknown", resumed=True) if late and found.verdict == "stalls" else found


class _Curve:
    """Finite losses, and the levels at which they stood: medians over parts of the steps.

    Differences are held against their noise in logarithms, where no loss is below zero: noise goes with the size.
    """

    def __init__(self, steps: Array, losses: Array) -> None:
        self._steps, self._losses = steps, losses
        self._positive = float(losses.min()) >= 0 < float(losses.max())
        self._least = float(losses[losses > 0].min()) if self._positive else 0.0
        self._scaled = np.log(np.maximum(losses, self._least)) if self._positive else losses
        count = min(BLOCKS, len(losses) // 4)
        self._parts = np.array_split(np.arange(len(losses)), count)
        self.levels = np.array([np.median(losses[part]) for part in self._parts])
        first = float(np.median(losses[: max(1, min(5, len(losses) // 20))]))
        self._thrown = first > SPIKE * losses[0] > 0
        self.begin = float(losses[0]) if self._thrown else first
        self._tenth = tenth = max(1, round(count / 10))
        self.first, self.end = self._level(tenth, 2 * tenth), self._level(count - tenth, count)
        self.late = min(self.end, self._level(count - max(1, count // 4), count))
        self._kept = [self._level(i, i + tenth) for i in range(count - tenth + 1)]
        self._best_block = int(np.argmin(self._kept))
        self.best = self._kept[self._best_block]
        self._noise = self._single()

    def _level(self, block: int, until: int) -> float:
        return float(np.median(self._losses[self._places(block, until)]))

    def _places(self, block: int, until: int) -> Any:
        return np.concatenate(self._parts[block:until])

    def _single(self) -> float:
        """Standard error of a tenth's median, by how much losses that follow each other differ, and levels that do."""
        later = self._scaled[len(self._scaled) // 4 :]
        single = spread(np.diff(later)) / math.sqrt(len(self._losses) / 10)
        levels = np.log(np.maximum(self.levels, self._least)) if self._positive else self.levels
        rough = spread(np.diff(levels, 2)[len(levels) // 4 :]) / math.sqrt(3)
        return max(1.25 * single, rough / math.sqrt(max(1, self._tenth)))

    def _sure(self, above: float, below: float) -> bool:
        """Whether one level lies above another by more than noise."""
        if above <= below:
            return False
        difference = math.log(above / max(below, self._least)) if self._positive else above - below
        return difference > SURE * math.sqrt(2) * self._noise

    def learning(self) -> Learning:
        verdict = self._verdict()
        at = int(self._steps[self._places(self._best_block, self._best_block + self._tenth)].mean())
        first, last, *_ = ends(self._steps, self._losses)
        told = (self.begin if self._thrown else first, last)
        return Learning(verdict, self.begin, self.end, self.best, at, self._stopped(), told=told)

    def _verdict(self) -> Verdict:
        if self._grown():
            return "lost"
        if self._lost():
            return "unknown" if self._rises_often() else "lost"
        if self._progress():
            return "learns"
        return "unknown" if float(self._losses.min()) < 0 < float(self._losses.max()) else "stalls"

    def _progress(self) -> bool:
        """Whether it falls after the first tenth of the steps, by more than noise and more than next to nothing."""
        later, whole = self.first - self.late, max(self.begin, self.first) - self.late
        sure = self._sure(self.first, self.late)
        if not self._positive:
            return sure and later >= SHARE / 2 * whole
        if self._sure(self.begin, self.end) and self._late_mean() <= FLOOR * self.begin:
            return True
        since = self._standing()
        if self._sure(self.end, self.begin) or (since is not None and since <= AT_ONCE * len(self.levels)):
            return False
        goes_on = later >= PROGRESS * self.first and self.end <= DEEP * self.begin
        if goes_on and self._sure(self.begin, self.end) and self._mean_falls():
            return True
        far = later >= PROGRESS * self.first or (later >= SHARE * whole and whole >= FALL * self.begin)
        if sure and far and self._mean_falls():
            return True
        return self._falls_from_peak()

    def _falls_from_peak(self) -> bool:
        """Whether it has come down from a harder task, or from a spike that it has got over."""
        at = self._tenth + int(self.levels[self._tenth :].argmax())
        peak = float(self.levels[at])
        fallen = peak - self.late >= SHARE * peak and self.begin - self.late >= SHARE * self.begin
        mean = float(self._losses[self._places(at, at + self._tenth)].mean())
        surely = self._sure(peak, self.late * (1 + PROGRESS)) and self._sure(peak, self.first)
        return fallen and surely and mean - self._late_mean() >= SHARE / 2 * mean

    def _mean_falls(self) -> bool:
        """Whether the mean falls as well: medians jump where a loss has two usual sizes, as with a rare class."""
        first = float(self._losses[self._places(self._tenth, 2 * self._tenth)].mean())
        return first - self._late_mean() >= PROGRESS / 2 * first

    def _late_mean(self) -> float:
        count = len(self._parts)
        return float(self._losses[self._places(count - max(1, count // 4), count)].mean())

    def _grown(self) -> bool:
        if not (self.begin > 0 and self._sure(self.end, self.begin)):
            return False
        before, after = self.levels[:-1], self.levels[1:]
        thrown = bool((after >= JUMP * np.maximum(before, self.begin)).any())
        return self.end >= GROWN * self.begin or (thrown and self.end >= THROWN * self.begin)

    def _lost(self) -> bool:
        """Whether it had fallen, has risen again, and does not fall anew."""
        rise, fall = self.end - self.best, self.begin - self.best
        if not (self._sure(self.end, self.best) and self._sure(self.begin, self.best) and self._risen()):
            return False
        if self._falls_again():
            return False
        if not self._positive:
            return rise >= REGAINED * fall
        multiple = min(self.end, self.first) >= MULTIPLE * self.best
        back = multiple and self.end >= max(0.7 * self.first, FLOOR * self.begin)
        return fall >= FALL * self.begin and (rise >= REGAINED * fall or back)

    def _rises_often(self) -> bool:
        """Whether it had risen by much of that before, and come down: losses of what an agent has just collected do."""
        if self._best_block <= 2 * self._tenth:
            return False
        kept = self._kept[: self._best_block + 1]
        before = max(later - min(kept[: i + 1]) for i, later in enumerate(kept[self._tenth :]))
        return before >= REGAINED * (self.end - self.best)

    def _risen(self) -> bool:
        """Whether the mean of the end is above that of the best, surely, as well."""
        places = len(self._parts) - self._tenth, self._best_block
        end, best = (self._losses[self._places(place, place + self._tenth)] for place in places)
        error = math.sqrt(float(end.var()) / len(end) + float(best.var()) / len(best))
        return float(end.mean() - best.mean()) > SURE * error

    def _falls_again(self) -> bool:
        peak = float(self.levels[self._best_block :].max())
        return peak - self.end >= RECOVERS * (peak - self.best) and self._sure(peak, self.end)

    def _standing(self) -> int | None:
        """The block from which on every level is that of the end, or below; None where that is not long."""
        little = min(0.02 * abs(self.end), 0.1 * abs(self.begin - self.end))
        near = self.end + max(little, 3 * (self.end * self._noise if self._positive else self._noise))
        above = np.flatnonzero(self.levels > near)
        since = int(above[-1]) + 1 if len(above) else 0
        return None if since > 0.7 * len(self.levels) else since

    def _stopped(self) -> int | None:
        since = self._standing()
        return None if since is None else int(self._steps[self._parts[since][0]])


def spread(values: Array) -> float:
    """Standard deviation of single values from that of differences, by the median of their sizes."""
    return float(np.median(np.abs(values))) / 0.6745 / math.sqrt(2) if len(values) else 0.0
