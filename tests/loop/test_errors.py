"""What cannot work is said when it is asked for, in words that help."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import AttachError, LoadError, RecordError


def attach(**arguments: Any) -> gradscope.Scope:
    return gradscope.attach(nn.GRU(2, 3), **arguments)


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2", math.nan])
def test_every(every: Any) -> None:
    with pytest.raises(AttachError, match=r"every=.*whole number of steps, 1 or more.*function.*budget") as raised:
        attach(every=every)
    assert repr(every) in str(raised.value)


@pytest.mark.parametrize("budget", [0, 0.0, -0.01, 1.5, math.nan, True, "1%", None])
def test_budget(budget: Any) -> None:
    with pytest.raises(AttachError, match=r"budget=.*share of training time.*0.015 is 1.5 %.*every=N") as raised:
        attach(budget=budget)
    assert repr(budget) in str(raised.value)


@pytest.mark.parametrize("first_step", [-1, 1.0, "3"])
def test_first_step(first_step: Any) -> None:
    with pytest.raises(AttachError, match="first_step=.*0 or more"):
        attach(first_step=first_step)


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("a thesis")
    return folder / "file"


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "run"


@pytest.mark.parametrize("logdir", [a_file, below_a_file])
def test_a_file_in_the_way(tmp_path: Path, logdir: Callable[[Path], Path]) -> None:
    with pytest.raises(RecordError, match=r"cannot write the run folder .*: .*file is a file; .*another logdir"):
        attach(logdir=logdir(tmp_path), every=1)
    assert (tmp_path / "file").read_text() == "a thesis"


def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(RecordError, match=r"cannot write the run folder .*: .*another logdir"):
        attach(logdir=tmp_path / "run", every=1)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write")
def test_a_folder_that_nobody_can_write() -> None:
    with pytest.raises(RecordError, match=r"cannot write the run folder /proc/run/gradscope: .*another logdir"):
        attach(logdir="/proc/run", every=1)


def a_run(folder: Path) -> Path:
    """A finished run of one step."""
    model = nn.GRU(2, 3)
    with gradscope.attach(model, folder, every=1, strict=True):
        model(torch.ones(4, 2, 2))[0].sum().backward()
    return folder


def test_a_schema_from_the_future(tmp_path: Path) -> None:
    """At load, and at attach to continue it."""
    path = a_run(tmp_path) / "gradscope/run.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "schema_version": 99}))
    for attempt in (lambda: gradscope.load(tmp_path), lambda: attach(logdir=tmp_path, first_step=1)):
        with pytest.raises(LoadError, match=r"newer gradscope \(schema 99.*pip install -U"):
            attempt()


def test_two_scopes_on_one_folder(tmp_path: Path) -> None:
    model = nn.GRU(2, 3)
    with gradscope.attach(model, tmp_path, every=1):
        with pytest.raises(RecordError, match="an earlier scope of this process is writing .*: close that scope first"):
            attach(logdir=tmp_path, every=1, existing="error")
    attach(logdir=tmp_path, every=1).close()


def test_two_processes_on_one_folder(tmp_path: Path) -> None:
    program = f"import gradscope, torch; gradscope.attach(torch.nn.GRU(2, 3), {str(tmp_path)!r}, existing='error')"
    model = nn.GRU(2, 3)
    with gradscope.attach(model, tmp_path, every=1):
        second = forks.code(program, tmp_path)
    assert second.status == 1
    assert f"FolderTakenError: process {os.getpid()} on " in second.err
    assert f" is writing to {tmp_path}/gradscope" in second.err


def test_a_folder_that_has_the_step(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"already has steps up to 0.*pass first_step=1 to continue.*another logdir"):
        attach(logdir=a_run(tmp_path), every=1, existing="error")
    attach(logdir=tmp_path, every=1, first_step=1).close()


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "gradscope").mkdir()
    (tmp_path / "gradscope/thesis.tex").write_text("a thesis")
    with pytest.raises(RecordError, match=r"holds something else \(thesis.tex\).*leaves it alone"):
        attach(logdir=tmp_path, every=1)


def test_an_attach_that_fails_leaves_the_folder_free(tmp_path: Path) -> None:
    """Here because `every` raises, the first time that it is asked."""
    with pytest.raises(gradscope.GradscopeError, match="ZeroDivisionError") as raised:
        attach(logdir=tmp_path, every=lambda step: 1 // step > 0, strict=True)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    attach(logdir=tmp_path, every=1).close()


def test_a_function_that_raises_costs_the_record_and_not_the_training() -> None:
    """Without `strict`: a warning, once, and a note."""
    model = nn.GRU(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(gradscope.GradscopeWarning, match="ZeroDivisionError") as warned:
        with gradscope.attach(model, every=lambda step: 1 // (step - 1) > -9) as scope:
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.ones(4, 2, 2))[0].sum().backward()
                optimizer.step()
    assert len(warned) == 1
    assert scope.run.frame("steps")["recorded"].tolist() == [True, False, True]
    assert "ZeroDivisionError" in scope.run.frame("notes")["reason"].item()


@pytest.mark.parametrize("what", ["nowhere", "a file", "an empty folder"])
def test_nothing_to_load(tmp_path: Path, what: str) -> None:
    folder = {"nowhere": tmp_path / "none", "a file": a_file(tmp_path), "an empty folder": tmp_path}[what]
    with pytest.raises(LoadError, match="pass the logdir of attach"):
        gradscope.load(folder)


def test_a_closed_scope_takes_no_steps() -> None:
    scope = attach(every=1)
    scope.close()
    scope.close()
    with pytest.raises(gradscope.GradscopeError, match=r"step\(\).*closed; attach to the model again"):
        scope.step()


def test_every_error_has_one_root() -> None:
    assert all(issubclass(each, gradscope.GradscopeError) for each in (AttachError, LoadError, RecordError))
