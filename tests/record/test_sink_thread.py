"""Sinks in threads of their own: quick ones as if called at once, slow and broken ones at nobody's cost."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from gradscope.errors import RecordError
from gradscope.record import sink_thread
from gradscope.record.recorder import Recorder
from gradscope.record.sink_thread import SinkThread
from gradscope.types import Batch


class Saved:
    """Keeps what it is given, and does what a test wants meanwhile."""

    def __init__(self, during: Any = lambda batch: None, closing: Any = lambda: None) -> None:
        self.steps: list[int] = []
        self.threads: set[int] = set()
        self.during, self.closing, self.closed = during, closing, 0

    def write(self, batch: Batch) -> None:
        self.threads.add(threading.get_ident())
        self.during(batch)
        self.steps.append(batch.step)

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closing()
        self.closed += 1


def raises(*_: Any) -> None:
    raise OSError("no route to host")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a sink hangs at, until the test is over."""
    monkeypatch.setattr(sink_thread, "PATIENCE_S", 0.02)
    event = threading.Event()
    yield event
    event.set()


def add(recorder: Recorder, *steps: int) -> None:
    for step in steps:
        recorder.add(step, [], at=0.0)
        recorder.drain()


def test_a_quick_sink_has_it_at_once_and_in_order() -> None:
    sink = Saved()
    recorder = Recorder((), [SinkThread(sink)])
    for step in range(50):
        add(recorder, step)
        assert sink.steps == list(range(step + 1))
    recorder.close()
    recorder.close()
    assert sink.closed == 1 and len(sink.threads) == 1 and threading.get_ident() not in sink.threads


def test_a_hanging_sink_costs_one_wait(gate: threading.Event) -> None:
    sink, other = Saved(lambda batch: gate.wait()), Saved()
    hanging = SinkThread(sink, close_s=0.05)
    waits: list[float] = []
    wait_for = hanging._progress.wait_for
    hanging._progress.wait_for = lambda met, timeout: waits.append(timeout) or wait_for(met, timeout)
    recorder = Recorder((other,), [hanging])
    add(recorder, *range(20))
    assert other.steps == list(range(20)) and sink.steps == [] and waits == [0.02]
    with pytest.raises(RecordError, match="the sink Saved has not finished within 0.05 s; 20 steps wait for it"):
        recorder.close()


def test_a_sink_that_wakes_up_has_everything(gate: threading.Event) -> None:
    sink = Saved(lambda batch: gate.wait())
    recorder = Recorder((), [SinkThread(sink)])
    add(recorder, *range(20))
    gate.set()
    recorder.close()
    assert sink.steps == list(range(20)) and sink.closed == 1


def test_what_waits_is_bounded(gate: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_thread, "WAITING", 5)
    sink = Saved(lambda batch: gate.wait())
    recorder = Recorder((), [SinkThread(sink)])
    add(recorder, *range(5))
    with pytest.raises(RecordError, match="the sink Saved does not keep up: it missed 1 steps"):
        add(recorder, 5)
    gate.set()
    recorder.close()
    assert sink.steps == list(range(5))


def test_a_sink_that_raises_is_given_the_next_batch_and_costs_the_others_nothing() -> None:
    sink, before, after = Saved(raises), Saved(), Saved()
    recorder = Recorder((before,), [SinkThread(sink), SinkThread(after)])
    for step in range(3):
        with pytest.raises(RecordError, match="the sink Saved failed: OSError: no route to host") as raised:
            add(recorder, step)
        assert isinstance(raised.value.__cause__, OSError)
    sink.during = lambda batch: None
    add(recorder, 3)
    recorder.close()
    assert before.steps == after.steps == [0, 1, 2, 3] and sink.steps == [3]


def test_one_of_ours_that_raises_costs_the_waiting_steps_nothing() -> None:
    """A drain of many steps goes on behind the one that failed."""
    first, second = Saved(lambda batch: raises() if batch.step == 1 else None), Saved()
    recorder = Recorder((first, second))
    for step in range(4):
        recorder.add(step, [], at=0.0)
    with pytest.raises(OSError, match="no route"):
        recorder.drain()
    assert first.steps == [0, 2, 3] and second.steps == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_sink_that_would_end_the_process_does_not(error: type[BaseException]) -> None:
    def interrupts(batch: Batch) -> None:
        raise error

    recorder = Recorder((), [SinkThread(Saved(interrupts))])
    with pytest.raises(RecordError, match=f"the sink Saved failed: {error.__name__}"):
        add(recorder, 0)
    recorder.close()


def test_a_close_that_fails_is_told_when_all_are_closed() -> None:
    bad, good = Saved(closing=raises), Saved()
    recorder = Recorder((), [SinkThread(bad), SinkThread(good)])
    with pytest.raises(RecordError, match="the sink Saved failed: OSError"):
        recorder.close()
    assert good.closed == 1


def test_a_sink_that_was_never_given_anything_is_closed() -> None:
    sink = Saved()
    Recorder((), [SinkThread(sink)]).close()
    assert sink.closed == 1
