"""Which steps are recorded: every Nth, those a function wants, and as many as the budget allows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from loop.loops import Loop, observe
from torch.optim import SGD

from gradscope.observe.schedule import ALLOWANCE_S, Costs, Looks, even_interval, is_due, make_schedule, paid_interval


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


def test_the_default_records_every_one_of_the_first_steps_and_keeps_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("CHEAP_S", "ALLOWANCE_S"):  # on a machine that does other things records may take long
        monkeypatch.setattr(f"gradscope.observe.schedule.{limit}", 1e3)
    assert observe(train, every=None).steps == [(k, "SGD", True, False) for k in range(6)]


# --- the budget, by a played clock

Cost = Callable[[int], float]


def always(seconds: float) -> Cost:
    return lambda step: seconds


def wavering(seed: int, seconds: float) -> Cost:
    """A cost that is measured a little differently each time."""
    generator = random.Random(seed)
    return lambda step: seconds * generator.uniform(0.8, 1.4)


@dataclass
class Played:
    """A training whose steps, records and idle steps take the seconds one wants."""

    step_s: Cost
    record_s: Cost
    idle_s: float = 3e-6
    budget: float = 0.015
    first: int = 0
    recorded: list[int] = field(default_factory=list[int])
    spent: float = 0.0
    time: float = 0.0
    excess: float = 0.0  # by how much the cost was ever above what is allowed, beyond one record

    def run(self, steps: int) -> Played:
        schedule, largest = make_schedule(None, self.budget), 0.0
        for step in range(self.first, self.first + steps):
            due = schedule.due(step)
            overhead = self.record_s(step) if due else self.idle_s
            duration = self.step_s(step) + overhead
            self.spent, self.time = self.spent + overhead, self.time + duration
            largest = max(largest, overhead)
            self.excess = max(self.excess, self.spent - self.budget * self.time - ALLOWANCE_S - largest)
            if due:
                self.recorded.append(step)
            schedule.spent(recorded=due, overhead_s=overhead, step_s=duration)
        return self

    @property
    def gaps(self) -> list[int]:
        return [b - a for a, b in zip(self.recorded, self.recorded[1:], strict=False)]


def test_intervals_are_even_over_the_logarithm_of_the_steps() -> None:
    spread = [step for step in range(4096) if step % even_interval(step) == 0]
    assert spread[:32] == [*range(16), *range(16, 32, 2), *range(32, 64, 4)]
    for doubling in range(4, 12):
        assert sum(2**doubling <= step < 2 ** (doubling + 1) for step in spread) == 8


@pytest.mark.parametrize(
    ("record_s", "first"),
    [
        (0.02, [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20]),
        (0.04, [0, 1, 2, 3, 4, 6, 8, 12, 16, 24]),
        (0.1, [0, 1, 2, 4, 8, 16, 32, 64]),
        (0.2, [0, 1, 4, 16, 64, 256]),
        (9.0, [0, 1, 4, 16, 64, 256]),
    ],
)
def test_dear_records_are_spread_over_more_steps(record_s: float, first: list[int]) -> None:
    spread = [step for step in range(2000) if step % even_interval(step, record_s) == 0]
    assert spread[: len(first)] == first
    assert {*spread} <= {step for step in range(2000) if step % even_interval(step) == 0}  # ranks share steps


def test_the_interval_that_is_paid_is_the_smallest_power_of_two() -> None:
    costs = Costs(record_s=0.02, step_s=0.01)
    assert paid_interval(costs, 0.015) == 256  # 133 steps pay for one record
    assert paid_interval(Costs(record_s=0.0001, step_s=0.01), 0.015) == 1
    assert paid_interval(Costs(record_s=0.02, step_s=0.01, idle_s=1e-4), 0.015) == 512
    assert paid_interval(Costs(record_s=0.02, step_s=0.01, idle_s=1e-3), 0.015) > 2**60  # idle steps take it all


def test_it_is_a_function_of_the_step_and_the_costs() -> None:
    poor = Costs(record_s=0.5, step_s=0.01, spent_s=0.9, time_s=1.0)
    assert not is_due(16, poor, 0.015) and is_due(4096, poor, 0.015)  # 4096 steps pay for it
    assert is_due(16, Costs(record_s=0.5, step_s=0.01, spent_s=0.4, time_s=1.0), 0.015)
    assert not is_due(4096, Costs(record_s=0.5, step_s=0.01, spent_s=1.5, time_s=1.0), 0.015)


@pytest.mark.parametrize("record_s", [1e-3, 5e-3, 13e-3, 0.05, 0.3, 2.0])
@pytest.mark.parametrize("step_s", [3e-4, 3e-3, 0.03, 0.3, 2.0])
@pytest.mark.parametrize("budget", [0.005, 0.015, 0.1])
def test_the_cost_is_never_above_the_budget_a_second_and_a_record(
    step_s: float, record_s: float, budget: float
) -> None:
    steps = min(80_000 if budget == 0.015 else 20_000, int(3000 / step_s))  # the default longest
    idle_s = min(3e-6, budget * step_s / 4)
    played = Played(always(step_s), always(record_s), idle_s=idle_s, budget=budget).run(steps)
    assert played.excess <= 1e-9
    assert played.recorded[0] == 0
    paid = paid_interval(Costs(record_s, step_s, idle_s), budget)
    assert len(played.recorded) >= steps // (2 * paid)
    assert all(step < 2 or step % min(even_interval(step, record_s), paid) == 0 for step in played.recorded)


@pytest.mark.parametrize("step_s", [3e-4, 2e-3, 0.05])
@pytest.mark.parametrize("record_s", [1e-3, 6e-3, 12.9e-3])
def test_whatever_the_size_of_the_network_a_run_yields_a_picture(step_s: float, record_s: float) -> None:
    short = Played(always(step_s), always(record_s)).run(100)
    assert len(short.recorded) >= 35
    assert len(Played(always(step_s), always(record_s)).run(3000).recorded) >= 70


@pytest.mark.parametrize("record_s", [0.03, 0.07, 0.15])
def test_a_picture_of_the_whole_training_also_where_records_are_dear(record_s: float) -> None:
    recorded = Played(always(0.05), always(record_s)).run(400).recorded
    assert recorded[-1] >= 256 and len(recorded) >= 6


def test_dear_records_are_taken_as_long_as_there_is_credit_and_then_as_they_are_paid() -> None:
    played = Played(always(0.05), always(0.2)).run(20_000)
    assert played.recorded[:5] == [0, 1, 4, 16, 64]  # a second
    late = [step for step in played.recorded if step > 5000]
    assert {step % 512 for step in late} <= {0, 256} and len(late) > 25


def test_what_costs_next_to_nothing_is_always_recorded() -> None:
    assert Played(always(0.01), always(1e-5)).run(300).recorded == [*range(300)]


@pytest.mark.parametrize("ratio", [1.0, 1.5, 4.0])
def test_processes_that_measure_noisily_record_common_steps(ratio: float) -> None:
    one, other = (
        set(Played(wavering(seed, 0.01), wavering(seed + 9, seconds)).run(50_000).recorded)
        for seed, seconds in ((1, 0.004), (2, 0.004 * ratio))
    )
    assert len(one & other) >= 0.5 * min(len(one), len(other)) > 50


def test_processes_that_measure_different_costs_record_common_steps() -> None:
    """The slower one's steps are among the faster one's."""
    slow = Played(always(0.01), always(0.02)).run(50_000)
    fast = Played(always(0.01), always(0.004)).run(50_000)
    assert set(slow.recorded) <= set(fast.recorded)


@pytest.mark.parametrize("factor", [10, 1000])
def test_records_that_suddenly_cost_more(factor: int) -> None:
    """One may surprise; the next waits until the budget allows it."""
    played = Played(always(0.01), lambda step: 1e-3 * (factor if step >= 5000 else 1)).run(100_000)
    assert played.excess <= 1e-9
    assert len([step for step in played.recorded if step >= 5000]) > 2


def test_steps_that_suddenly_take_no_time() -> None:
    played = Played(lambda step: 0.1 if step < 1000 else 1e-3, always(0.01), idle_s=1e-6).run(100_000)
    assert played.excess <= 1e-9
    early = [gap for gap, step in zip(played.gaps, played.recorded, strict=False) if 200 < step < 900]
    assert max(early) <= 16 and played.gaps[-1] >= 512


def test_a_training_that_suddenly_slows_down_is_recorded_more_often() -> None:
    played = Played(lambda step: 1e-3 if step < 20_000 else 0.1, always(0.01), idle_s=1e-6).run(40_000)
    assert played.excess <= 1e-9 and played.gaps[-1] <= 16


def test_a_pause_of_an_hour_is_time_like_any_other_and_changes_no_interval() -> None:
    """What it earns is there for records that are due, and no burst of them follows."""
    paused = Played(lambda step: 3600.0 if step == 5000 else 0.01, always(0.02), idle_s=1e-6).run(20_000)
    plain = Played(always(0.01), always(0.02), idle_s=1e-6).run(20_000)
    assert paused.excess <= 1e-9
    assert abs(len(paused.recorded) - len(plain.recorded)) <= 16


def test_a_first_record_that_is_very_dear() -> None:
    played = Played(always(0.01), lambda step: 3.0 if step == 0 else 0.002).run(100_000)
    assert played.excess <= 1e-9
    assert played.gaps[-1] == 16


def test_a_resumed_training_begins_with_a_record() -> None:
    played = Played(always(0.01), always(0.02), first=1001).run(4000)
    assert played.recorded[0] == 1001
    assert {step % 64 for step in played.recorded[1:]} == {0} and len(played.recorded) > 16


def test_a_clock_that_does_not_move_is_no_division_by_zero() -> None:
    schedule, looks = make_schedule(None, 0.015), Looks()
    for step in range(40):
        schedule.due(step), looks.due(step)
        schedule.spent(recorded=step == 0, overhead_s=0.0, step_s=0.0)
        looks.spent(recorded=step == 0, look_s=0.0, step_s=0.0)


# --- looking at gradients


@pytest.mark.parametrize(("look_s", "at_least", "at_most"), [(1e-6, 1000, 1000), (1e-4, 100, 300), (1e-2, 1, 2)])
def test_looks_take_half_a_percent_of_the_time(look_s: float, at_least: int, at_most: int) -> None:
    """Of steps of 5 ms, 1,000 after the first."""
    looks, taken = Looks(), 0
    looks.spent(recorded=True, look_s=look_s, step_s=5e-3)
    for step in range(1, 1001):
        due = looks.due(step)
        taken += due
        looks.spent(recorded=False, look_s=look_s if due else 0.0, step_s=5e-3)
    assert at_least <= taken <= at_most and (taken == 1000 or taken * look_s <= 0.005 * 5.0)
