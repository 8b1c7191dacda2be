"""One writer at a time, however the last one ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from record.rows import ALONE, holds, write

from gradscope.errors import GradscopeWarning, RecordError
from gradscope.record import ParquetStore, lock
from gradscope.run import load

HOLD = """
from gradscope.record import ParquetStore
from record.rows import batch
store = ParquetStore(sys.argv[1], {}, flush_steps=1)
store.write(batch(0))
print("held", flush=True)
"""
WAIT = "time.sleep(60)"
DIE_BEFORE_CHILD = """
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
os._exit(0)
"""
WRITE_IN_BOTH = """
child = os.fork()
store.write(batch(1 if child else 2))
store.close()
child and os.wait()
"""
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and forks")


def _holder(logdir: Path, then: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ALONE + HOLD + then, str(logdir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_folder_has_one_scope_in_a_process(tmp_path) -> None:
    store = ParquetStore(tmp_path, {})
    with pytest.raises(RecordError, match="an earlier scope of this process is writing to .*: close that scope first"):
        ParquetStore(tmp_path, {})
    other = ParquetStore(tmp_path, {}, rank=1)
    other.close()
    store.close()
    ParquetStore(tmp_path, {}).close()


def test_a_refused_start_lets_the_folder_go(tmp_path) -> None:
    write(tmp_path, range(3))
    with pytest.raises(RecordError, match="pass first_step=3"):
        ParquetStore(tmp_path, {})
    ParquetStore(tmp_path, {}, first_step=3).close()


@posix
def test_a_killed_process_leaves_no_lock(tmp_path) -> None:
    process = _holder(tmp_path, WAIT)
    with pytest.raises(RecordError, match=f"process {process.pid} on .* is writing to"):
        ParquetStore(tmp_path, {}, first_step=9)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    ParquetStore(tmp_path, {}, first_step=9).close()
    holds(load(tmp_path), range(1))


@posix
def test_a_surviving_data_loader_worker_holds_no_lock(tmp_path) -> None:
    process = _holder(tmp_path, DIE_BEFORE_CHILD)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.wait()
    ParquetStore(tmp_path, {}, first_step=1).close()
    os.kill(worker, signal.SIGKILL)
    process.stdout.close()


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch) -> None:
    def refuse(_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock, "_acquire", refuse)
    with pytest.warns(GradscopeWarning, match="file system without locks"):
        store = ParquetStore(tmp_path, {})
    store.close()


@posix
def test_a_forked_copy_writes_nothing(tmp_path) -> None:
    process = _holder(tmp_path, WRITE_IN_BOTH)
    process.communicate()
    assert process.returncode == 0
    holds(load(tmp_path), range(2))
