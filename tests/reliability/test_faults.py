"""Whatever happens, the training goes its way bit for bit, and the folder is readable: driven by `faults.py`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from reliability.faults import ANY_ROOT, MOUNTED, Fault, can_mount
from reliability.stage import EVERY, Outcome, bare, scoped

from gradscope.errors import AnalysisError
from gradscope.record import sink_thread

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_thread, "PATIENCE_S", 0.02)
    monkeypatch.setattr(sink_thread.SinkThread.__init__, "__kwdefaults__", {"close_s": 0.2})


@pytest.mark.parametrize("fault", ANY_ROOT, ids=lambda fault: fault.name)
def test_fault(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holds(fault, tmp_path / "run", monkeypatch)


@pytest.mark.parametrize("fault", MOUNTED, ids=lambda fault: fault.name)
def test_fault_of_a_file_system(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one of its own, which only root may mount; the others have the same from a patched system call."""
    if not can_mount(tmp_path):
        pytest.skip("this process may not mount file systems")
    try:
        holds(fault, tmp_path / "run", monkeypatch)
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path / "run")], capture_output=True)
        subprocess.run(["umount", "--lazy", str(tmp_path)], capture_output=True)


def holds(fault: Fault, logdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training is as without a scope, and what the fault promises of the record."""
    without = bare(fault.make)
    seen = scoped(fault.make, logdir, monkeypatch, sinks=fault.sinks())
    same(without, seen)
    assert type(without.error) is (fault.ends or type(None)), without.error
    if fault.warns:
        assert any(re.search(fault.warns, warning) for warning in seen.warned), seen.warned
    else:
        assert not seen.warned
    whole(seen, fault)


def same(without: Outcome, seen: Outcome) -> None:
    """Bit for bit, and to the same end."""
    assert (type(seen.error), str(seen.error)) == (type(without.error), str(without.error))
    assert len(without.bits) == len(seen.bits)
    assert [k for k, (a, b) in enumerate(zip(without.bits, seen.bits, strict=True)) if a != b] == []


def whole(seen: Outcome, fault: Fault) -> None:
    """Every step up to some step, in all tables; and no row of anything else."""
    assert seen.run is not None
    steps = seen.run.frame("steps")
    numbers = steps["step"].tolist()
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else fault.kept == 0
    finished = [n for n, name in zip(numbers, steps["optimizer"], strict=True) if name]
    assert len(finished) >= fault.kept
    recorded = set(steps.loc[steps["recorded"], "step"])
    assert set(seen.run.frame("layers")["step"]) == recorded >= set(seen.run.frame("timesteps")["step"])
    if not fault.cause:
        assert recorded >= {n for n in finished if n % EVERY == 0} - fault.empty


@pytest.mark.parametrize("fault", [f for f in ANY_ROOT if f.cause], ids=lambda fault: fault.name)
def test_strict_says_why(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error surfaces with its cause, at the step or at the close; the folder is readable all the same."""
    seen = scoped(fault.make, tmp_path / "run", monkeypatch, sinks=fault.sinks(), strict=True)
    assert isinstance(seen.error, AnalysisError)
    chain = [seen.error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)  # type: ignore[arg-type]
    assert fault.cause is not None and isinstance(chain[-1], fault.cause)
    assert seen.run is not None
