"""The guard between gradscope and the training: time and failures."""

from __future__ import annotations

import time

import pytest
import torch

from gradscope.errors import AnalysisError, GradscopeWarning
from gradscope.observe.guard import Guard, Overhead, guarded


class Device:
    """A device whose clock is set by hand, in milliseconds, and that hands out events."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waited = 0

    def event(self, *, enable_timing: bool) -> Event:
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.at = device, -1.0

    def record(self) -> None:
        self.at = self.device.now

    def synchronize(self) -> None:
        self.device.waited += 1

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    return device


def test_on_cuda_events_around_our_callbacks_are_what_counts(device: Device) -> None:
    guard = Guard(strict=True, cuda=True)
    guard.by_device(True)

    def work(milliseconds: float) -> None:
        device.now += milliseconds

    guard.call(work, 20)
    device.now += 1000  # the training
    guard.call(lambda: guard.call(work, 30))  # nested: once
    overhead = guard.take_overhead(time.perf_counter())
    assert device.waited == 0  # nobody waits in the step
    assert overhead.seconds() == pytest.approx(0.050)
    assert device.waited == 1


def test_a_running_callback_is_split_between_two_steps(device: Device) -> None:
    guard, taken = Guard(strict=True, cuda=True), []
    guard.by_device(True)

    def step() -> None:
        device.now += 40
        taken.append(guard.take_overhead(time.perf_counter()))
        device.now += 5

    guard.call(step)
    guard.call(step)
    assert [overhead.seconds() for overhead in taken] == pytest.approx([0.040, 0.045])


class Stepping:
    """Takes steps whose events are switched within a callback."""

    def __init__(self, device: Device) -> None:
        self.device, self.guard = device, Guard(strict=True, cuda=True)
        self.taken: list[Overhead] = []

    def step(self, wanted: bool) -> None:
        self.device.now += 40
        self.taken.append(self.guard.take_overhead(time.perf_counter()))
        self.device.now += 5
        self.guard.by_device(wanted)
        self.device.now += 2

    guarded_step = guarded(step)


@pytest.mark.parametrize("decorated", [False, True])
def test_the_devices_clock_is_asked_only_while_it_is_wanted(device: Device, decorated: bool) -> None:
    stepping = Stepping(device)
    for wanted in (False, True, True, False, False):
        if decorated:
            stepping.guarded_step(wanted)
        else:
            stepping.guard.call(stepping.step, wanted)
    assert [bool(overhead.events) for overhead in stepping.taken] == [False, False, True, True, False]
    assert [overhead.seconds() for overhead in stepping.taken[2:4]] == pytest.approx([0.042, 0.047])


def test_on_the_cpu_there_are_no_events() -> None:
    guard = Guard(strict=True)
    guard.call(lambda: None)
    overhead = guard.take_overhead(time.perf_counter())
    assert overhead.events == () and overhead.seconds() == overhead.host_s > 0


def test_a_failure_is_noted_and_warned_about_once() -> None:
    guard = Guard(strict=False)
    with pytest.warns(GradscopeWarning, match="ZeroDivisionError") as warned:
        assert guard.call(lambda: 1 / 0) is None
        assert guard.call(lambda: 1 / 0) is None
    assert len(warned) == 1
    assert len(guard.take_reasons()) == 1


def test_a_strict_failure_has_its_cause() -> None:
    with pytest.raises(AnalysisError) as raised:
        Guard(strict=True).call(lambda: 1 / 0)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
