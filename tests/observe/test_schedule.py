"""Which steps are recorded: every Nth, those a function wants, and as many as the budget allows."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from loop.loops import Loop, observe
from torch.optim import SGD

from gradscope.observe.schedule import Budget, make_schedule


def train(loop: Loop) -> None:
    optimizer = SGD(loop.model.parameters(), 0.1)
    for _ in range(6):
        loop.backward()
        loop.step(optimizer)


@pytest.mark.parametrize(
    ("every", "wanted"),
    [(1, {0, 1, 2, 3, 4, 5}), (2, {0, 2, 4}), (4, {0, 4}), (10**9, {0}), (lambda step: step in (1, 2, 5), {1, 2, 5})],
)
def test_the_steps_asked_for(every: int | Callable[[int], bool], wanted: set[int]) -> None:
    assert observe(train, every=every).steps == [(k, "SGD", k in wanted, False) for k in range(6)]


def test_a_function_is_asked_once_for_every_step() -> None:
    asked: list[int] = []
    observe(train, every=lambda step: bool(asked.append(step)))
    assert asked == [*range(7)]  # the seventh had begun


def test_the_default_records_the_first_step_and_keeps_the_bits() -> None:
    outcome = observe(train, every=None)
    assert outcome.steps[0] == (0, "SGD", True, False) and len(outcome.steps) == 6


# --- the budget, by a simulated clock

Cost = Callable[[int], float]


class Simulated:
    """A training whose steps and recordings take the seconds one wants."""

    def __init__(
        self, step_s: Cost, recording_s: Cost, watching_s: float = 0.0, budget: float = 0.015, first: int = 0
    ) -> None:
        self.schedule = make_schedule(None, budget)
        self.step_s, self.recording_s, self.watching_s, self.first = step_s, recording_s, watching_s, first
        self.recorded: list[int] = []
        self.before: list[float] = []  # share so far, as a recording begins
        self.after: list[float] = []  # and as it ends
        self.overhead = self.total = 0.0

    def run(self, steps: int) -> Simulated:
        for step in range(self.first, self.first + steps):
            due = self.schedule.due(step)
            share = self.overhead / self.total if self.total else 0.0
            overhead = self.watching_s + (self.recording_s(step) if due else 0.0)
            duration = self.step_s(step) + overhead
            self.overhead, self.total = self.overhead + overhead, self.total + duration
            if due:
                self.recorded.append(step)
                self.before.append(share)
                self.after.append(self.overhead / self.total)
            self.schedule.spent(recorded=due, overhead_s=overhead, step_s=duration)
        return self

    @property
    def gaps(self) -> list[int]:
        return [b - a for a, b in zip(self.recorded, self.recorded[1:], strict=False)]


def always(seconds: float) -> Cost:
    return lambda step: seconds


def power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


@pytest.mark.parametrize("recording_s", [1e-5, 1e-3, 2e-2, 0.3])
@pytest.mark.parametrize("budget", [0.001, 0.015, 0.2])
def test_the_share_stays_below_the_budget(recording_s: float, budget: float) -> None:
    training = Simulated(always(0.01), always(recording_s), budget=budget).run(200_000)
    assert training.recorded[0] == 0
    assert max(training.after[1:]) <= budget
    assert training.gaps[-1] == 1 or training.overhead / training.total > budget / 3  # and is used


def test_a_steady_training_is_recorded_at_a_steady_interval() -> None:
    """The smallest power of two that the budget allows: 0.02 s of 0.015 x 0.01 s per step are 133 steps.

    The second recording also has to wait until the first has been earned.
    """
    training = Simulated(always(0.01), always(0.02)).run(5000)
    assert training.recorded == [0, *range(512, 5000, 256)]


def test_what_costs_next_to_nothing_is_always_recorded() -> None:
    assert Simulated(always(0.01), always(1e-5)).run(100).recorded == [*range(100)]


def test_a_moment_that_is_too_dear_costs_no_more_than_a_moment() -> None:
    """Near the budget a recording is now and then put off, also at steps that are multiples of high powers of two."""
    training = Simulated(always(0.01), always(0.0023), watching_s=3e-5).run(300_000)
    late = [gap for gap, step in zip(training.gaps, training.recorded, strict=False) if step > 1000]
    assert max(late) <= 64 and max(training.after[1:]) <= 0.015
    assert training.overhead / training.total > 0.01


def wavering(seed: int, seconds: float) -> Cost:
    """A cost that is measured a little differently each time."""
    generator = random.Random(seed)
    return lambda step: seconds * generator.uniform(0.8, 1.4)


@pytest.mark.parametrize("ratio", [1.0, 1.5, 4.0])
def test_processes_that_measure_noisily_record_common_steps(ratio: float) -> None:
    one, other = (
        set(Simulated(wavering(seed, 0.01), wavering(seed + 9, seconds), 2e-5).run(50_000).recorded)
        for seed, seconds in ((1, 0.004), (2, 0.004 * ratio))
    )
    assert len(one & other) >= 0.5 * min(len(one), len(other)) > 50


def test_processes_that_measure_different_costs_record_common_steps() -> None:
    """The slower one's steps are among the faster one's."""
    slow = Simulated(always(0.01), always(0.02)).run(50_000)
    fast = Simulated(always(0.01), always(0.004)).run(50_000)
    assert set(slow.recorded) < set(fast.recorded)
    assert set(map(power_of_two, slow.gaps + fast.gaps)) == {True}


@pytest.mark.parametrize("factor", [10, 1000])
def test_recordings_that_suddenly_cost_more(factor: int) -> None:
    """One recording may surprise; the next waits until the share allows it."""
    training = Simulated(always(0.01), lambda step: 1e-3 * (factor if step >= 5000 else 1)).run(400_000)
    assert max(training.before[1:]) <= 0.015
    late = [share for step, share in zip(training.recorded, training.after, strict=True) if step >= 5000]
    assert len(late) > 2 and max(late[1:]) <= 0.015


def test_steps_that_suddenly_take_no_time() -> None:
    """The interval grows with the training's speed."""
    training = Simulated(lambda step: 0.1 if step < 1000 else 1e-4, always(0.01)).run(400_000)
    assert max(training.after[1:]) <= 0.015
    early = [gap for gap, step in zip(training.gaps, training.recorded, strict=False) if step < 900]
    assert max(early) <= 16 and training.gaps[-1] >= 4096


def test_a_training_that_suddenly_slows_down_is_recorded_more_often() -> None:
    training = Simulated(lambda step: 1e-3 if step < 20_000 else 0.1, always(0.01)).run(40_000)
    assert max(training.after[1:]) <= 0.015
    early = [gap for gap, step in zip(training.gaps, training.recorded, strict=False) if 2000 < step < 15_000]
    assert min(early) >= 512 and training.gaps[-1] <= 16


def test_a_first_recording_that_is_very_expensive() -> None:
    """Of what it cost nothing comes back before the training has earned it; then it is forgotten."""
    training = Simulated(always(0.01), lambda step: 3.0 if step == 0 else 0.002).run(100_000)
    assert training.recorded[0] == 0
    assert max(training.before[1:]) <= 0.015 and max(training.after[1:]) <= 0.015
    assert training.recorded[1] <= 65_536
    assert training.gaps[-1] == 16


def test_watching_alone_counts() -> None:
    """What steps cost that are not recorded is part of the share."""
    training = Simulated(always(0.01), always(0.001), watching_s=1e-4).run(100_000)
    assert max(training.after[1:]) <= 0.015
    assert len(training.recorded) > 100
    dear = Simulated(always(0.01), always(0.001), watching_s=1e-3).run(100_000)
    assert dear.recorded == [0]


def test_a_resumed_training_begins_with_a_recording() -> None:
    training = Simulated(always(0.01), always(0.02), first=1001).run(2000)
    assert training.recorded == [1001, *range(1536, 3001, 256)]


def test_a_clock_that_does_not_move_is_no_division_by_zero() -> None:
    schedule = Budget(0.015)
    assert schedule.due(0)
    schedule.spent(recorded=True, overhead_s=0.0, step_s=0.0)
    assert schedule.due(1)
