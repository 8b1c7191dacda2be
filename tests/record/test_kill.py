"""Killed at any moment, a training leaves a folder that loads without loss, without duplicates, without complaint.

`GRADSCOPE_KILLS=50` makes the test with real signals longer.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from record.rows import ALONE, EVERY, SLIM, batch, expected, holds, same, slim, write

from gradscope.record import ParquetStore
from gradscope.run import Run, load


class Killed(BaseException):
    """Stands for the end of the process: nothing may handle it."""


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> Iterator[None]:
    """Let that many file operations through, and none after; what is written before a rename is cut short."""
    left = itertools.count(moment, -1)

    def until_killed(operation: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(left) <= 0:
                raise Killed
            return operation(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        paths = getattr(pathlib, "_normal_accessor", None)  # Python 3.10: what paths call, and looked up once
        for owner, name in itertools.product(filter(None, (os, paths)), ("replace", "unlink", "mkdir")):
            patched.setattr(owner, name, until_killed(getattr(owner, name)))
        yield


def survives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session: Any, prepare: Any, check: Any) -> int:
    """Run a session again and again, killed one operation later each time, until it ends by itself."""
    for moment in itertools.count():
        logdir = tmp_path / str(moment)
        prepare(logdir)
        store: list[ParquetStore] = []
        try:
            with killed_at(monkeypatch, moment):
                session(logdir, store)
        except Killed:
            _end(store)
            check(logdir)
        else:
            _end(store)
            return moment
    raise AssertionError


def _end(store: list[ParquetStore]) -> None:
    """What the end of a process does to a store that was not closed."""
    for one in store:
        one._lock.release()


def begin(logdir: Path) -> None:
    store = ParquetStore(logdir, {}, flush_steps=2)
    for step in range(4):
        store.write(slim(step))
    store._lock.release()


def test_flushes_and_merges_survive_a_kill_at_every_file_operation(tmp_path, monkeypatch) -> None:
    def session(logdir: Path, store: list[ParquetStore]) -> None:
        store.append(ParquetStore(logdir, {}, first_step=4, flush_steps=3))
        for step in range(4, 8):
            store[0].write(slim(step))
        store[0].close()

    def check(logdir: Path) -> None:
        last = len(load(logdir).frame("steps"))
        assert last in (4, 7, 8)
        holds(load(logdir), range(last), SLIM)
        write(logdir, range(last, 10), slim)
        holds(load(logdir), range(10), SLIM)
        assert len(list(logdir.glob("gradscope/*/rank=0/*"))) == 3

    assert survives(monkeypatch, tmp_path, session, begin, check) > 20


def test_thinning_survives_a_kill_at_every_file_operation(tmp_path, monkeypatch) -> None:
    def prepare(logdir: Path) -> None:
        write(logdir, range(0, 30), flush_steps=15)

    def session(logdir: Path, store: list[ParquetStore]) -> None:
        store.append(ParquetStore(logdir, {}, first_step=30, disk_limit=28_000))
        for step in range(30, 36):
            store[0].write(batch(step))
        store[0].flush()

    def check(logdir: Path) -> None:
        run = load(logdir)
        steps = run.frame("steps").step.tolist()
        assert steps in (list(range(30)), list(range(36)))
        same(run.frame("steps"), expected("steps", steps))
        for table in ("timesteps", "layers"):
            kept = run.frame(table).step.unique()
            same(run.frame(table), expected(table, kept))
            newer = [step for step in steps if step % EVERY == 0][-5:]
            assert set(newer) <= set(kept) <= set(steps)
        write(logdir, range(40, 42))
        assert load(logdir).frame("steps").step.tolist() == [*steps, 40, 41]

    assert survives(monkeypatch, tmp_path, session, prepare, check) > 10


def test_an_interrupted_flush_is_made_good_by_close(tmp_path, monkeypatch) -> None:
    for moment in range(6):
        store = ParquetStore(tmp_path / str(moment), {}, flush_steps=99)
        for step in range(4):
            store.write(batch(step))
        with pytest.raises(Killed), killed_at(monkeypatch, moment):
            store.flush()
        holds(Run(store), range(4))
        store.write(batch(4))
        store.close()
        holds(load(tmp_path / str(moment)), range(5))


WRITER = """
import random, signal
from pathlib import Path
from gradscope.record import ParquetStore, parquet
from record.rows import slim
parquet._MERGE_EVERY = 3

def train(logdir):
    first = 0
    while True:
        store = ParquetStore(logdir, {}, first_step=first, flush_steps=2)
        for step in range(first, first + 9):
            store.write(slim(step))
        store.close()
        first += 9

def session():
    began = time.monotonic()
    store = ParquetStore(sys.argv[1] + "/warm", {}, first_step=session.first, flush_steps=2)
    for step in range(session.first, session.first + 9):
        store.write(slim(step))
    store.close()
    session.first += 9
    return time.monotonic() - began

session.first = 0
session()
for kill in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        train(Path(sys.argv[1]) / str(kill))
        os._exit(1)
    time.sleep(random.Random(kill).uniform(0, 6) * session())  # up to six sessions, as fast as the machine is now
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals and forks")
def test_a_real_kill_leaves_a_run(tmp_path) -> None:
    kills = int(os.environ.get("GRADSCOPE_KILLS", "7"))
    command = [sys.executable, "-c", ALONE + WRITER, str(tmp_path), str(kills)]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert found.stdout.split() == ["-9"] * kills
    lengths: list[int] = []
    for kill in range(kills):
        logdir = tmp_path / str(kill)
        if (logdir / "gradscope/run.json").exists():
            lengths.append(load(logdir).source.count("steps"))
            holds(load(logdir), range(lengths[-1]), SLIM)
            write(logdir, range(lengths[-1], lengths[-1] + 3), slim)
            holds(load(logdir), range(lengths[-1] + 3), SLIM)
    assert len(set(lengths)) > 3 and max(lengths) > 9
