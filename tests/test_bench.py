"""The benchmarks run, in sizes and times that measure nothing."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import gradscope

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`costs` is found as it is when `bench.py` is the program, and forgotten again."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("costs", "bench", "profile_step"):
            del sys.modules[name]


def of(name: str) -> ModuleType:
    return importlib.import_module(name)


def tiny(family: str = "lstm", **options: Any) -> Any:
    return of("costs.workloads").Workload("tiny", family, D=3, H=4, T=6, B=5, **options)


def test_help_and_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    bench = of("bench")
    for arguments, status in ((["--help"], 0), (["--quick", "--write"], 2), (["--sections", "speed"], 2)):
        with pytest.raises(SystemExit) as exit:
            bench.arguments(arguments)
        assert exit.value.code == status
    assert "--sections steps memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("family", "options"), [("lstm", {}), ("lstm", {"layers": 2, "bidirectional": True, "dropout": 0.5}), ("gru", {})]
)
def test_fixed_intervals(family: str, options: dict[str, Any]) -> None:
    found = of("costs.steps").measure_steps(tiny(family, **options), seconds=0)
    assert {"last", "every"} == set(found["core, every=1"])
    assert all(ratio.low <= ratio.median <= ratio.high for row in found.values() for ratio in row.values())


def test_recorded_and_other_steps_are_what_they_are_called() -> None:
    steps = of("costs.steps")
    recorded: dict[str, int] = {}
    for name, every in (("1", steps.timed_steps), ("16", 16), ("never", steps.NEVER)):
        training = of("costs.workloads").Training(tiny())
        with gradscope.attach(training.model, every=every, first_step=steps.FIRST - steps.WARM_UP) as scope:
            training.short_steps(steps.WARM_UP)
            training.steps(16)
            frame = scope.run.frame("steps")
        recorded[name] = int(frame.recorded[frame.step >= steps.FIRST].sum())
    assert recorded == {"1": 16, "16": 1, "never": 0}


def test_composition() -> None:
    rounds = of("costs.rounds")
    one, rest = rounds.Ratio.of([3.0, 3.0, 3.0]), rounds.Ratio.of([1.0, 1.0, 1.0])
    assert rounds.composed(one, rest, 16).median == pytest.approx(1.125)


def test_the_scopes_clock_stands_still_in_bare_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on whenever it is read, and so as fast on a busy machine."""
    clock = functools.partial(next, itertools.count(0, 1e-3))
    for module in (of("costs.default"), of("costs.rounds")):
        monkeypatch.setattr(module, "clock", clock)
    found = of("costs.default").measure_default(tiny(), seconds=0.2, slice_s=0.05)
    assert found.clock == pytest.approx(1, abs=0.05)
    assert 1 <= found.recorded <= found.steps


@pytest.mark.parametrize("family", ["lstm", "own"])
def test_default(family: str) -> None:
    targets = of("costs.targets")
    found = of("costs.default").measure_default(tiny(family, clip=1.0, steps=100), seconds=0.1, slice_s=0.1)
    assert found.steps == 100 and found.recorded + found.looked >= 1
    assert set(found.operations) <= targets.KEEPING, "an idle step adds other operations than it may"
    assert "operations" not in targets.default_verdicts(found, 1.003)
    cheap = dataclasses.replace(found, record_s=0.01)
    assert targets.records(cheap) == 35 and targets.records(dataclasses.replace(cheap, steps=3000)) == 70
    assert targets.records(dataclasses.replace(found, record_s=0.1, bare_s=0)) == 10


def test_bare_slices_are_not_heard() -> None:
    default, backward = of("costs.default"), torch.autograd._engine_run_backward
    training = of("costs.workloads").Training(tiny())
    with gradscope.attach(training.model):
        assert torch.autograd._engine_run_backward is not backward
        with default.unheard():
            assert torch.autograd._engine_run_backward is backward
        assert torch.autograd._engine_run_backward is not backward


def test_peers() -> None:
    peers = of("costs.peers")
    with peers.available(tiny()) as (variants, skipped):
        assert {v.name for v in variants} | set(skipped) == set(peers.PEERS)
        for variant in variants[:2]:
            variant.block(1)
    assert {peers.CELLS, peers.HOOK}.isdisjoint(skipped)


def test_unrolled_cells_compute_the_same() -> None:
    workloads, peers = of("costs.workloads"), of("costs.peers")
    fused, cells = workloads.Training(tiny()), workloads.Training(tiny(), make_net=peers.UnrolledNet)
    assert fused.model(fused.x).allclose(cells.model(cells.x), atol=1e-6)


def test_jacobians_agree() -> None:
    found = of("costs.jacobians").measure_jacobians(tiny(), seconds=0)
    assert found.difference < 1e-4
    assert found.many.keys() == found.factors.keys()


def test_growth_is_told_from_the_costs() -> None:
    growth = of("costs.growth")
    line, square = growth.fit((1, 2, 3, 4), (2.0, 4.0, 6.0, 8.0)), growth.fit((1, 2, 3, 4), (1.0, 4.0, 9.0, 16.0))
    assert (line.power, line.straight) == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    assert square.power == pytest.approx(2) and square.straight > 0.2


@pytest.mark.parametrize("what", ["timesteps", "analysed sequences", "layers"])
def test_growth_is_measured(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    growth = of("costs.growth")
    monkeypatch.setitem(growth.SIZES, what, (2, 4))
    assert len(growth.measure_growth(what, 0, tiny()).costs) == 2


def test_two_ways_to_scan_agree() -> None:
    scans = of("costs.scans")
    scan = scans.Scan.of(7, 32, 5)
    assert scan.by_loop().allclose(scan.by_kernel(), atol=1e-5)
    assert set(scans.measure_scans(((3, 16, 4),))) == {(3, 16, 4)}


def test_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is started once, and finds compiled what is: to compile all of torch anew would take a minute."""
    start = of("costs.start")
    once = start.importing("")
    monkeypatch.setattr(start, "importing", lambda cache: once)
    found = start.measure_start(1)
    assert (found.torch, found.ours) == once and min(*once, found.attach, found.close) > 0


def test_what_bounds_a_part() -> None:
    bounds = of("costs.bounds")
    peaks = bounds.measure_peaks(8, 64, 1)
    assert peaks.operations > 0 and peaks.bytes > 0
    known = bounds.Peaks(100.0, 10.0)
    assert known.bound(bounds.Work(50.0, 1.0)) == (0.5, "operations")
    assert known.bound(bounds.Work(50.0, 20.0)) == (2.0, "bytes")
    last, every = (bounds.least_work(tiny(), loss)["reverse scan"] for loss in ("last", "every"))
    assert every.operations == 4 * last.operations


def test_memory_of_one_process() -> None:
    seen = of("costs.memory").child(tiny(), "core")
    assert seen["before"] > 0 and seen["within"] > 0


def test_profile_knows_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = of("profile_step")
    monkeypatch.setitem(profile.PEAK_SIZES, "cpu", (64, 1 << 12))
    table = profile.profile(tiny(), "last", "core", 1)
    parts = {row[0] for row in table.rows}
    assert {"capture copies", "replay GEMM", "cell scan", "factors", "sizes", "reverse scan", "norms"} <= parts
    assert {"saturation", "weights spectra", "summary and rows", "storing"} <= parts
    assert table.columns[-1] == "times that" and all(len(row) == len(table.columns) for row in table.rows)
    assert not table.notes, "a function of the library has another name now: see PARTS"


def test_tables() -> None:
    tables, targets, rounds = of("costs.tables"), of("costs.targets"), of("costs.rounds")
    verdict = targets.verdict(rounds.Ratio(1.1, 1.0, 1.2, 0.01, 5), 1.05)
    table = tables.Table("Title", ("variant", "verdict"), [("a|b", verdict)], ["A note."])
    assert "a\\|b | missed by 0.050" in tables.markdown({"torch": "2"}, [table], "# Page")
    assert "missed by 0.050" in tables.text({"torch": "2"}, [table])
    assert "noise" in targets.verdict(rounds.Ratio(1.04, 1.0, 1.2, 0.01, 5), 1.05)


def test_only_what_was_measured_is_renewed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench, tables = of("bench"), of("costs.tables")
    monkeypatch.setattr(bench, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("<!-- on a GPU -->\n\n## On a GPU\n")

    def table(title: str, cell: str) -> Any:
        return tables.Table(title, ("what", "verdict"), [("x", cell)])

    def missed(*rows: tuple[str, ...]) -> Any:
        return tables.Table("Targets missed", ("where", "what", "verdict"), list(rows))

    a, b = table("A", "missed by 1"), table("B", "missed by 2")
    bench.write(
        {"took": "1 s"}, [a, b, missed(("A", "x", "missed by 1"), ("B", "x", "missed by 2"))], "cpu", whole=True
    )
    bench.write({"took": "9 s"}, [table("New", "met"), table("B", "met"), missed(("none", "", ""))], "cpu", whole=False)
    page = (tmp_path / "page.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        *("## New", "## A", "## B", "## Targets missed", "## On a GPU")
    ]
    assert tables.rows_of(page, "B") == [("x", "met")]
    assert tables.rows_of(page, "Targets missed") == [("A", "x", "missed by 1")]
    assert page.count("| took | 1 s |") == 1 and page.count("Measured by itself: took 9 s.") == 2


def test_the_summary_of_the_page_is_that_of_its_tables() -> None:
    short, page = of("costs.short"), (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert short.summarised(page) == page
    assert 8 <= len(list(short.in_short(page))) <= 12
    table = of("costs.tables").Table(f"{short.FIXED}one, H 256, T 2", ("variant", "last", "every"))
    table.rows = [("economy, every=1", "-", "1.300 (1 to 2)"), ("core, every=1", "-", "1.600 (1 to 2)")]
    (line,) = short.in_short(table.markdown())
    assert line == "Every step recorded, 256 units: `economy` 1.30 times, `core` 1.60 times as long as a bare step."
