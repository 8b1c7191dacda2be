"""Sinks that installed packages add to every run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import gradscope
from gradscope.record import plugins
from gradscope.types import Batch, Finding


class Saved:
    """A sink that keeps what it is given, and in which thread."""

    def __init__(self, logdir: Any, writer: Any, findings: Callable[[], list[Finding]]) -> None:
        self.logdir, self.writer, self.findings = logdir, writer, findings
        self.steps: list[int] = []
        self.threads: set[threading.Thread] = set()
        MADE.append(self)

    def write(self, batch: Batch) -> None:
        self.steps.append(batch.step)
        self.threads.add(threading.current_thread())

    def close(self) -> None:
        self.found = self.findings()


class Quick(Saved):
    quick = True


def refuses(*given: Any) -> None:
    raise gradscope.GradscopeError("not so")


MADE: list[Saved] = []


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs a package with sinks: name -> function, or None for a module that is not there."""

    def install(**sinks: Callable[..., Any] | None) -> None:
        module = ModuleType("made_by_others")
        vars(module).update(sinks)
        monkeypatch.setitem(sys.modules, "made_by_others", module)
        entries = [f"{name} = {'made_by_others' if make else 'not_there'}:{name}" for name, make in sinks.items()]
        info = tmp_path / "site" / "made_by_others-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-by-others\nVersion: 1\n")
        (info / "entry_points.txt").write_text("\n".join([f"[{plugins.SINKS}]", *entries]))
        monkeypatch.syspath_prepend(info.parent)

    MADE.clear()
    yield install
    MADE.clear()


def train(logdir: Path) -> gradscope.Run:
    model = nn.GRU(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.attach(model, logdir, every=1) as scope:
        for _ in range(3):
            model(torch.randn(4, 2, 2))[0].sum().backward()
            optimizer.step()
    return scope.run


def test_every_run_has_the_sinks_of_installed_packages(package: Callable[..., None], tmp_path: Path) -> None:
    package(kept=Saved, quick=Quick, none=lambda *given: None)
    run = train(tmp_path / "run")
    kept, quick = MADE
    assert kept.steps == quick.steps == [0, 1, 2]
    assert kept.logdir == tmp_path / "run" and kept.writer is None
    assert [f.code for f in kept.found] == [f.code for f in run.findings()]
    assert threading.main_thread() not in kept.threads and quick.threads == {threading.main_thread()}


def test_a_run_in_memory_has_none(package: Callable[..., None]) -> None:
    package(kept=Saved)
    with gradscope.attach(nn.GRU(2, 3)):
        pass
    assert not MADE


@pytest.mark.parametrize("broken", [None, lambda: 1, lambda *given: 1 / 0], ids=["missing", "arguments", "fails"])
def test_a_package_that_fails_costs_a_warning(
    package: Callable[..., None], tmp_path: Path, broken: Callable[..., Any] | None
) -> None:
    package(broken=broken, kept=Saved)
    with pytest.warns(gradscope.GradscopeWarning, match="the sink broken .* is left out"):
        train(tmp_path / "run")
    assert MADE[0].steps == [0, 1, 2]


def test_a_package_may_refuse(package: Callable[..., None], tmp_path: Path) -> None:
    package(refuses=refuses)
    with pytest.raises(gradscope.GradscopeError, match="not so"):
        train(tmp_path / "run")
