"""Chooses the optimizer steps to record, and further steps for a look at the gradients."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from gradscope.errors import AttachError

ALLOWANCE_S = 1.0
"""Seconds that gradscope may cost beyond its share of any training."""
RECORDS_A_DOUBLING, CHEAP_S = 8, 0.013
"""Records in each doubling of the step number, and the cost of one at which the second lasts for 3,000 steps."""
DOUBLINGS = 2
"""The most doublings from one record to the next, for expensive records."""
LOOKING = 0.005
"""Share of the training time for looks at steps that are not recorded."""
NEVER = 2**62
REVIEWED_EVERY = 64
"""Steps after which the paid interval is computed anew: the time of a step may have changed."""


class Schedule(Protocol):
    """Decides before a step whether to record it, and receives the costs of steps afterwards."""

    def due(self, step: int) -> bool:
        """True if this step is to be recorded."""
        ...

    def following(self, step: int) -> int:
        """The next step after this one that may be due; no earlier one needs a call of `due`."""
        ...

    def spent(self, *, recorded: bool, overhead_s: float, step_s: float, steps: int = 1) -> None:
        """Steps have ended; `step_s` is their time in all, and `overhead_s` gradscope's part of it."""
        ...


def make_schedule(every: int | Callable[[int], bool] | None, budget: float) -> Schedule:
    """The schedule for `attach(every=..., budget=...)`.

    Raises:
        AttachError: `every` is neither a positive number nor callable, or `budget` is not a positive share.
    """
    if every is None:
        if not isinstance(budget, (int, float)) or isinstance(budget, bool) or not 0 < budget <= 1:
            raise AttachError(
                f"budget={budget!r}: expected the share of training time that recording may cost, above 0 and "
                "at most 1 (0.015 is 1.5 %). To record given steps instead, pass every=N."
            )
        return Budget(float(budget))
    if callable(every):
        return Chosen(every)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise AttachError(
            f"every={every!r}: expected a whole number of steps, 1 or more, a function of the step, or None to let "
            "the budget decide."
        )
    return Chosen(lambda step: step % every == 0, every)


class Chosen:
    """Steps that a function chooses from the multiples of a number."""

    def __init__(self, wanted: Callable[[int], bool], multiples: int = 1) -> None:
        """See the class."""
        self._wanted, self._multiples = wanted, multiples

    def due(self, step: int) -> bool:
        """See `Schedule`."""
        return bool(self._wanted(step))

    def following(self, step: int) -> int:
        """See `Schedule`."""
        return next_multiple(step, self._multiples)

    def spent(self, *, recorded: bool, overhead_s: float, step_s: float, steps: int = 1) -> None:
        """See `Schedule`."""


def next_multiple(step: int, interval: int) -> int:
    """The first multiple after a step."""
    return (step // interval + 1) * interval


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of a training so far, in seconds.

    Attributes:
        record_s: one record.
        step_s: one step without gradscope.
        idle_s: gradscope's part of a step that is not recorded.
        spent_s: gradscope in all.
        time_s: the training in all, gradscope included.
    """

    record_s: float = 0.0
    step_s: float = 0.0
    idle_s: float = 0.0
    spent_s: float = 0.0
    time_s: float = 0.0


def is_due(step: int, costs: Costs, share: float) -> bool:
    """True if a step is to be recorded; all costs stay below `share` of the time, plus a second and one record.

    Both intervals are powers of two, so that the processes of a distributed run, which measure different times, record
    common steps. The paid interval, which the share can pay permanently, always holds. The even interval, which spreads
    records evenly over the logarithm of the steps, holds as long as there is credit.
    """
    credit = share * costs.time_s + ALLOWANCE_S - costs.spent_s
    if step % paid_interval(costs, share) == 0:
        return credit >= 0
    return step % even_interval(step, costs.record_s) == 0 and credit >= costs.record_s


def even_interval(step: int, record_s: float = 0.0) -> int:
    """1 up to step 15, 2 up to 31, 4 up to 63, ...: eight records to each doubling of the step number.

    If a record takes much longer than 13 ms, the number falls to four, two or one, or one in two doublings, so that the
    second of credit lasts as long: ten records over 256 steps show more of a training than ten at its beginning.
    """
    times = 1 << round(math.log2(record_s / CHEAP_S)) if record_s > CHEAP_S else 1
    times = min(times, RECORDS_A_DOUBLING * DOUBLINGS)
    if times <= RECORDS_A_DOUBLING:
        return max(1, (1 << step.bit_length()) * times // (2 * RECORDS_A_DOUBLING))
    doublings = times // RECORDS_A_DOUBLING
    return 1 << doublings * -(-(step.bit_length() - 1) // doublings) if step else 1


def paid_interval(costs: Costs, share: float) -> int:
    """The smallest power of two at which records and idle steps together stay within the share permanently."""
    left = share * costs.step_s - costs.idle_s
    if costs.record_s <= 0:
        return 1
    if left <= 0:
        return NEVER
    return min(NEVER, 2 ** max(0, math.ceil(math.log2(costs.record_s / left))))


@dataclass(slots=True)
class Typical:
    """The usual value of a repeated measurement: the median of the last few."""

    recent: deque[float] = field(default_factory=lambda: deque[float](maxlen=9))

    @property
    def value(self) -> float:
        """The median; 0 before the first measurement."""
        return median(self.recent) if self.recent else 0.0


class Budget:
    """As many records as a share of the training time pays, plus a second; see `is_due`.

    The cost of a record or an idle step is the median of the last few, so that a single disturbance changes nothing.
    The first record also loads code for later ones: its additional cost is the one record beyond the bound.
    """

    def __init__(self, share: float) -> None:
        """See the class."""
        self._share = share
        self._spent = self._time = 0.0
        self._first: float | None = None
        self._record, self._plain, self._idle = Typical(), Typical(), Typical()

    @property
    def _costs(self) -> Costs:
        first, second = self._first or 0.0, bool(self._record.recent)
        record = self._record.value if second else first
        beyond = max(0.0, first - record) if second else 0.0
        return Costs(record, self._plain.value, self._idle.value, self._spent - beyond, self._time)

    def due(self, step: int) -> bool:
        """See `Schedule`."""
        if self._first is None:
            return True
        costs = self._costs
        if not self._record.recent:  # the cost of a second record is unknown: it may exceed the bound by one record
            aligned = min(even_interval(step, costs.record_s), paid_interval(costs, self._share))
            return step % aligned == 0 and costs.spent_s <= self._share * costs.time_s + ALLOWANCE_S
        return is_due(step, costs, self._share)

    def following(self, step: int) -> int:
        """See `Schedule`. The paid interval is computed anew at times, since the time of a step may change."""
        paid = next_multiple(step, paid_interval(self._costs, self._share))
        even = next_multiple(step, even_interval(step, self._costs.record_s))
        return min(paid, even, step + REVIEWED_EVERY)

    def spent(self, *, recorded: bool, overhead_s: float, step_s: float, steps: int = 1) -> None:
        """See `Schedule`."""
        self._time += step_s
        self._spent += overhead_s
        self._plain.recent.append((step_s - overhead_s) / steps)
        if not recorded:
            self._idle.recent.append(overhead_s / steps)
        elif self._first is None:
            self._first = overhead_s
        else:
            self._record.recent.append(overhead_s)


class Looks:
    """Chooses the steps for a look at the gradients: multiples of a power of two; all steps if looks are cheap."""

    def __init__(self) -> None:
        """Begin with unknown costs."""
        self._look, self._plain = 0.0, Typical()
        self._spent = self._time = 0.0

    @property
    def _interval(self) -> int:
        return paid_interval(Costs(record_s=self._look, step_s=self._plain.value), LOOKING)

    def due(self, step: int) -> bool:
        """True if a step that is not recorded is to be looked at."""
        return self._spent + self._look <= LOOKING * self._time and step % self._interval == 0

    def following(self, step: int) -> int:
        """The next step after this one that may be due."""
        return next_multiple(step, self._interval)

    def spent(self, *, recorded: bool, look_s: float, step_s: float, steps: int = 1) -> None:
        """Steps have ended; `look_s` is 0 without a look."""
        self._time += step_s
        self._plain.recent.append(step_s / steps)
        if look_s:
            self._look = (self._look + look_s) / 2 if self._look else look_s
            self._spent += 0.0 if recorded else look_s
