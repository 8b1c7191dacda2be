"""The sink: costs the training nothing, loses nothing in silence, leaves whole files behind."""

from __future__ import annotations

import importlib
import itertools
import json
import multiprocessing
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from boards import KEY, clip, gates, layer, recorded, steps, timesteps, write
from gradscope_integrations.tensorboard import events, make_sink, sink, tables, writing
from gradscope_integrations.tensorboard.pace import Looks
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.util import tensor_util

from gradscope import Batch, GradscopeError, GradscopeWarning, LayerKey, Rows
from gradscope.types import Finding, Remedy

VALUES = np.array([1.0, 10.0, 100.0])


def files(logdir: Path) -> list[Path]:
    return sorted(logdir.rglob("events.out.tfevents.*"))


def read(path: Path) -> Iterator[Any]:
    """Events, read and checked by TensorBoard's own code."""
    for record in RawEventFileLoader(str(path)).Load():
        yield event_pb2.Event.FromString(record)


def values(logdir: Path) -> dict[str, list[tuple[int, Any]]]:
    """Step and number, or text, of every value by tag."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for event in (event for path in files(logdir) for event in read(path)):
        for value in event.summary.value:
            number = tensor_util.make_ndarray(value.tensor) if value.HasField("tensor") else value.simple_value
            found.setdefault(value.tag, []).append((event.step, number))
    return found


def state(logdir: Path) -> dict[str, Any]:
    """The last that the run said of itself."""
    return json.loads(values(logdir)["run/state"][-1][1].item())["state"]


def texts(logdir: Path, tag: str) -> list[Any]:
    return [json.loads(text.item()) for _, text in values(logdir)[tag]]


class Slow:
    """A thread that does nothing until it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may, self.threads, self.taken = threading.Event(), set[int](), list[int]()
        original = writing.Writing.take

        def take(this: writing.Writing, batch: Batch) -> None:
            self.may.wait(30)
            self.threads.add(threading.get_ident())
            self.taken.append(batch.step)
            original(this, batch)

        monkeypatch.setattr(writing.Writing, "take", take)


def idle(step: int, **columns: Any) -> Batch:
    """A step that is not recorded."""
    return Batch(step, (steps(recorded=False, loss=loss_at(step), **columns), clip(clipped=False)))


def loss_at(step: int) -> float:
    return 2.5 / (1 + step / 500)


def test_write_only_appends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    one = make_sink(tmp_path)
    assert one is not None
    for step in range(100):
        one.write(recorded(step, VALUES))
    assert slow.taken == []
    slow.may.set()
    one.close()
    assert slow.taken == list(range(100))
    assert threading.get_ident() not in slow.threads
    assert [step for step, _ in values(tmp_path)["grad_h/rnn/0/forward"]] == list(range(100))


def test_idle_steps_do_not_wake_the_thread_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    take = sink.TensorBoardSink._drain
    monkeypatch.setattr(sink.TensorBoardSink, "_drain", lambda this: (sizes.append(len(this._waiting)), take(this)))
    one = make_sink(tmp_path)
    assert one is not None
    for step in range(500):
        one.write(idle(step))
        time.sleep(0.0005)
    one.close()
    assert sum(sizes) == 500 and len(sizes) < 20


def test_an_idle_step_takes_a_few_calls_of_the_training(tmp_path: Path) -> None:
    one = make_sink(tmp_path)
    assert one is not None
    one.write(idle(0))
    batches = [idle(step) for step in range(1, 101)]
    calls: list[str] = []
    sys.setprofile(lambda frame, event, of: calls.append(str(of or frame.f_code)) if "call" in event else None)
    try:
        for batch in batches:
            one.write(batch)
    finally:
        sys.setprofile(None)
    one.close()
    assert len(calls) <= 7 * len(batches)  # the process, two lengths, whether the thread knows, the end of a list


def test_of_idle_steps_nothing_is_lost(tmp_path: Path) -> None:
    """All rows are in the tables; of the losses as many as the stock dashboards show, the last among them."""
    write(tmp_path, *(idle(step) for step in range(10_000)))
    found = values(tmp_path)
    columns, _ = tables.decode("steps", [record.tolist() for _, record in found["table/steps"]])
    assert columns["step"].tolist() == list(range(10_000))
    assert columns["loss"].tolist() == [loss_at(step) for step in range(10_000)]
    assert sum(len(record[1]) for _, record in found["table/clips"]) == 10_000 * 12 * 8
    losses = found["gradscope/loss"]
    numbers = [step for step, _ in losses]
    assert numbers[:1000] == list(range(1000)) and numbers[-1] == 9999 and 1000 < len(numbers) < 3000
    assert sorted(set(numbers)) == numbers
    assert [float(loss) for _, loss in losses] == [np.float32(loss_at(step)) for step in numbers]


def test_slow_steps_are_seen_while_training_runs(tmp_path: Path) -> None:
    one = make_sink(tmp_path)
    assert one is not None
    for step in range(3):
        one.write(idle(step))
        time.sleep(0.1)
    end = time.monotonic() + 10
    while [step for step, _ in values(tmp_path).get("gradscope/loss", ())] != [0, 1, 2]:
        assert time.monotonic() < end
        time.sleep(0.1)
    one.close()


def test_a_training_without_a_loss_has_none(tmp_path: Path) -> None:
    write(tmp_path, recorded(0, VALUES, steps(loss=float("nan"))), idle(1))
    lost = [Batch(step, (steps(loss=float("nan")), clip())) for step in range(5)]
    write(tmp_path / "none", *lost, Batch(5, (timesteps(VALUES), layer(), steps(loss=float("nan")))))
    assert "gradscope/loss" not in values(tmp_path / "none") and state(tmp_path / "none")["failures"] == []


def test_steps_that_nobody_measured_do_not_count_as_unclipped(tmp_path: Path) -> None:
    unknown = {"norm_before": np.nan, "norm_after": np.nan, "coefficient": np.nan, "clipped": False, "kind": "value"}
    seen = [recorded(0, VALUES), *(Batch(s, (steps(), clip(**unknown))) for s in range(1, 50)), recorded(50, VALUES)]
    write(tmp_path, *seen, Batch(51, (steps(), clip(**unknown, nonfinite=3))), recorded(52, VALUES))
    assert [float(rate) for _, rate in values(tmp_path)["gradscope.clip_rate"]] == [1, 1, 0.75]


def test_what_cannot_be_kept_up_with_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "WAITING", 10)
    slow = Slow(monkeypatch)
    one = make_sink(tmp_path)
    assert one is not None
    begin = time.perf_counter()
    for step in range(6):
        one.write(recorded(step, VALUES))
    assert time.perf_counter() - begin < 5
    slow.may.set()
    one.close()
    found = state(tmp_path)
    assert (found["steps"], found["recorded"], found["written"], found["lost"]) == (6, 6, 3, 3)
    assert [step for step, _ in values(tmp_path)["grad_h/rnn/0/forward"]] == [0, 1, 2]


def test_a_failure_is_warned_about_once_and_said(tmp_path: Path) -> None:
    one = make_sink(tmp_path)
    assert one is not None
    one.write(recorded(0, VALUES))
    one.write(Batch(1, (Rows("reach", {**KEY, "lag": np.arange(3)}), layer(), steps())))
    with pytest.warns(GradscopeWarning, match="TensorBoard data: KeyError: 'nonfinite'; training goes on") as seen:
        for step in range(2, 200):
            one.write(recorded(step, VALUES))
            time.sleep(0.001)
        one.close()
    assert len(seen) == 1
    found = state(tmp_path)
    assert found["failures"] == ["KeyError: 'nonfinite'"]
    assert (found["steps"], found["recorded"], found["written"], found["lost"]) == (200, 200, 199, 1)


def test_a_full_disk_leaves_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """A file that takes half of what it is given, once."""

        def __init__(self, file: Any) -> None:
            self.file, self.calls = file, 0

        def write(self, data: Any) -> int:
            self.calls += 1
            if self.calls == 3:
                return self.file.write(data[: len(data) // 2])
            if self.calls == 4:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    original = events.EventFile.__init__

    def begin(self: events.EventFile, folder: Path) -> None:
        original(self, folder)
        self._file = Full(self._file)  # type: ignore[assignment]

    monkeypatch.setattr(events.EventFile, "__init__", begin)
    with pytest.warns(GradscopeWarning, match="No space left on device"):
        write(tmp_path, *(recorded(step, VALUES) for step in range(5)))
    assert len(values(tmp_path)["grad_h/rnn/0/forward"]) >= 4
    assert state(tmp_path)["failures"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_leaves_it_alone(tmp_path: Path) -> None:
    one = make_sink(tmp_path)
    assert one is not None
    one.write(recorded(0, VALUES))
    child = os.fork()
    if not child:
        one.write(recorded(1, VALUES))
        one.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    one.write(recorded(2, VALUES))
    one.close()
    assert [step for step, _ in values(tmp_path)["grad_h/rnn/0/forward"]] == [0, 2]
    assert len(files(tmp_path)) == 1


def write_on(logdir: Path, begun: Any) -> None:
    one = make_sink(logdir)
    assert one is not None
    for step in itertools.count():
        one.write(recorded(step, np.arange(200.0)))
        time.sleep(0.0005)
        if step == 200:
            begun.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process that is killed is a fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_killed_it_leaves_whole_records(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=write_on, args=(tmp_path, begun := context.Event()), daemon=True)
    process.start()
    assert begun.wait(60)
    time.sleep(3 * sink.GATHER_S)
    process.kill()
    process.join()
    found = values(tmp_path)
    kept = [step for step, _ in found["grad_h/rnn/0/forward"]]
    assert kept == list(range(len(kept)))
    assert len(kept) > 150
    assert not state(tmp_path)["closed"]


def test_closing(tmp_path: Path) -> None:
    one = make_sink(tmp_path)
    assert one is not None
    one.write(recorded(0, VALUES))
    one.close()
    size = files(tmp_path)[0].stat().st_size
    one.write(recorded(1, VALUES))
    one.close()
    assert files(tmp_path)[0].stat().st_size == size
    assert state(tmp_path)["closed"]
    unused = make_sink(tmp_path / "unused")
    assert unused is not None
    unused.close()


def test_a_continued_run_counts_on(tmp_path: Path) -> None:
    write(tmp_path, *(recorded(step, VALUES) for step in range(3)))
    write(tmp_path, *(Batch(step, (steps(), clip())) for step in range(3, 8)))
    found = state(tmp_path)
    counts = [found[name] for name in ("first_step", "last_step", "steps", "recorded", "written", "clips")]
    assert counts == [0, 7, 8, 3, 3, 8]
    last = json.loads(values(tmp_path)["run/state"][-1][1].item())
    assert last["curves"] == [["grad_h"]]


def test_records_are_numbered_upwards_over_sessions_and_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that came before would hide a record from the fast loader."""
    now = iter(range(10_000, 0, -1))
    monkeypatch.setattr("gradscope_integrations.tensorboard.state.time", SimpleNamespace(time=lambda: float(next(now))))
    for session in range(3):
        write(tmp_path, *(recorded(step + 2 * session, VALUES) for step in range(2)))
    for tag in ("run/state", "table/clips", "table/steps"):
        numbers = [number for number, _ in values(tmp_path)[tag]]
        assert len(numbers) >= 3
        assert all(np.diff(numbers) > 0)


def test_looking_for_findings_takes_no_more_than_its_share() -> None:
    """By a played clock: a look of a second, a record every second, a share of a hundredth."""
    now, looks = 0.0, list[float]()
    pace = Looks(0.01, lambda: now)

    def look() -> None:
        nonlocal now
        looks.append(now)
        now += 1

    for count in range(1, 1000):
        now += 1
        if pace.due(count):
            pace.look(count, look)
    assert looks == [10, 110, 220, 439, 876]  # 0.1 s and 1.1 s are a hundredth of the first two; then records double


def test_findings_are_looked_for_ever_more_seldom_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "LOOKING", 1e9)
    looks: list[tuple[int, bool]] = []
    key = LayerKey("rnn", 0, "forward", 0)
    evidence = {"horizon": np.float64(3.5), "steps": (0, 9), "decay": float("-inf"), "gate": "forget"}
    one = Finding("vanishing_gradient", "critical", key, "t", "<b>e</b>", evidence, (Remedy("r", "x = 1"),))

    def findings() -> list[Finding]:
        looks.append((len(looks), threading.current_thread() is threading.main_thread()))
        return [one] * len(looks)

    write(tmp_path, *(recorded(step, VALUES) for step in range(40)), findings=findings)
    assert looks == [(0, False), (1, False), (2, False), (3, False), (4, False)]  # 4, 8, 16, 32, and at the end
    found = texts(tmp_path, "run/findings")
    assert [len(each["findings"]) for each in found] == [1, 2, 3, 4, 5]
    assert [each["step"] for each in found] == [3, 7, 15, 31, 39]
    first = found[0]["findings"][0]
    assert first["layer"]["key"] == "rnn/0/forward"
    assert first["evidence"] == {"horizon": 3.5, "steps": [0, 9], "decay": "-inf", "gate": "forget"}
    assert first["remedies"] == [{"title": "r", "code": "x = 1"}]
    assert state(tmp_path)["findings"] == 5


def test_findings_that_fail_do_not_matter(tmp_path: Path) -> None:
    def findings() -> list[Finding]:
        raise ValueError("no idea")

    with pytest.warns(GradscopeWarning, match="no idea"):
        write(tmp_path, *(recorded(step, VALUES) for step in range(5)), findings=findings)
    assert state(tmp_path)["written"] == 5


def test_notes_are_counted(tmp_path: Path) -> None:
    def note(reason: str) -> Rows:
        return Rows("notes", {"module": "", "layer": -1, "direction": "", "chain": -1, "reason": reason})

    write(tmp_path, *(Batch(step, (note("no gradient"), note(f"number {step % 3}"), steps())) for step in range(9)))
    last = texts(tmp_path, "run/notes")[-1]
    assert [(each["reason"], each["count"], each["first_step"], each["last_step"]) for each in last["notes"]] == [
        ("no gradient", 9, 0, 8),
        ("number 0", 3, 0, 6),
        ("number 1", 3, 1, 7),
        ("number 2", 3, 2, 8),
    ]


def test_a_long_run_is_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "CURVE_BYTES", 20_000)
    monkeypatch.setattr(writing, "TABLE_BYTES", 20_000)
    monkeypatch.setattr(writing, "BATCH", 100)
    monkeypatch.setattr(writing, "LOSSES", 20)
    write(tmp_path, *(recorded(step, VALUES) for step in range(1000)))
    found = state(tmp_path)
    kept = [step for step, _ in values(tmp_path)["grad_h/rnn/0/forward"]]
    assert (found["recorded"], found["written"]) == (1000, len(kept))
    assert found["stride"] > 4
    assert kept[:5] == [0, 1, 2, 3, 4]
    assert set(np.diff(kept)) <= {1, 2, 4, 8, 16, 32, 64, 128}
    assert files(tmp_path)[0].stat().st_size < 150_000


def test_of_the_users_own_writer_nothing_but_its_file_is_used(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "own") as writer:
        one = make_sink(tmp_path / "logdir", writer)
        assert one is not None
        for step in range(5):
            writer.add_scalar("loss", 1 / (step + 1), step)
            one.write(recorded(step, VALUES))
        one.close()
        writer.add_scalar("loss", 0.1, 5)
    assert len(files(tmp_path)) == 1
    found = values(tmp_path)
    assert len(found["loss"]) == 6
    for tag in ("grad_h/rnn/0/forward", "gradscope/loss"):
        assert [step for step, _ in found[tag]] == list(range(5))
    assert state(tmp_path)["closed"]
    assert "custom_scalars__config__" not in found, "the user may have a layout"


def test_a_writer_closed_too_early(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path)
    one = make_sink(writer=writer)
    assert one is not None
    writer.close()
    with pytest.warns(GradscopeWarning, match="close the scope first"):
        one.write(recorded(0, VALUES))
        one.close()
    assert len(files(tmp_path)) == 1


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GradscopeError, match="choose another logdir"):
        make_sink(tmp_path / "file")
    with pytest.raises(GradscopeError, match="expected an open torch.utils.tensorboard.SummaryWriter"):
        make_sink(writer=object())
    with pytest.raises(GradscopeError, match="needs a logdir"):
        sink.TensorBoardSink()
    assert make_sink() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert make_sink(tmp_path) is None, "where TensorBoard is missing, training is recorded without it"


def test_stock_summaries(tmp_path: Path) -> None:
    high = timesteps(VALUES, "jacobian")
    batches = [recorded(0, VALUES, high, *gates()), Batch(1, (clip(clipped=False), steps()))]
    write(tmp_path, *batches, recorded(2, VALUES * 10, high, *gates()))
    found = {tag: [(step, float(number)) for step, number in of] for tag, of in values(tmp_path).items()
             if tag.startswith("gradscope")}  # fmt: skip
    assert found == {
        "gradscope/loss": [(0, 1), (1, 1), (2, 1)],
        "gradscope.horizon/rnn.l0": [(0, 3), (2, 3)],
        "gradscope.decay/rnn.l0": [(0, -0.5), (2, -0.5)],
        "gradscope.saturation/rnn.l0/forget": [(0, 0.625), (2, 0.625)],
        "gradscope.clip_rate": [(0, 1), (2, pytest.approx(2 / 3))],
        "gradscope.grad_norm": [(0, 0.5), (2, 0.5)],
        "gradscope.grad_h/rnn.l0/p10": [(0, pytest.approx(np.log10(5))), (2, pytest.approx(np.log10(50)))],
        "gradscope.grad_h/rnn.l0/p50": [(0, 1), (2, 2)],
        "gradscope.grad_h/rnn.l0/p90": [(0, pytest.approx(np.log10(20))), (2, pytest.approx(np.log10(200)))],
        "gradscope.jacobian/rnn.l0/p10": [(0, 5), (2, 5)],
        "gradscope.jacobian/rnn.l0/p50": [(0, 10), (2, 10)],
        "gradscope.jacobian/rnn.l0/p90": [(0, 20), (2, 20)],
    }
    layout = layout_pb2.Layout.FromString(values(tmp_path)["custom_scalars__config__"][0][1].item())
    assert layout.category[0].chart[0].multiline.tag == ["gradscope/loss"]
    margins = [chart.margin.series[0] for category in layout.category[1:] for chart in category.chart]
    tags = {tag for series in margins for tag in (series.lower, series.value, series.upper)}
    assert tags == {tag for tag in found if tag.endswith(("p10", "p50", "p90"))}


def test_the_first_value_of_a_tag_says_what_it_is(tmp_path: Path) -> None:
    write(tmp_path, recorded(0, VALUES), recorded(1, VALUES))
    tagged = [v for e in read(files(tmp_path)[0]) for v in e.summary.value if v.tag == "grad_h/rnn/0/forward"]
    contents = [value.metadata.plugin_data.content for value in tagged]
    about = {"version": 1, "axis": "t", "rows": ["p10", "p50", "p90", "mean", "nonfinite"]}
    assert [json.loads(contents[0]), *contents[1:]] == [about, b""]
    assert {value.metadata.plugin_data.plugin_name for value in tagged} == {"gradscope"}


@pytest.mark.parametrize("missing", [False, True])
def test_checksums(monkeypatch: pytest.MonkeyPatch, missing: bool) -> None:
    """With the wheel and without: those of TensorBoard."""
    if missing:
        monkeypatch.setitem(sys.modules, "crc32c", None)
    fresh = importlib.reload(events)
    for size in (0, 1, 1000):
        data = np.random.default_rng(size).bytes(size)
        record = fresh.framed(data)
        assert record[:8] == struct.pack("<Q", size)
        assert record[8:12] == struct.pack("<I", masked_crc32c(record[:8]))
        assert record[12:-4] == data
        assert record[-4:] == struct.pack("<I", masked_crc32c(data))
    monkeypatch.undo()
    importlib.reload(events)
