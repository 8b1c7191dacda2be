"""Programs in forks of a process that has loaded what they all load: many a second, where each would take seconds.

A fork has its own arguments, working directory, environment and output, runs what is to be run at exit, and ends with
the status, or by the signal, that a process of its own would end with. Start-up itself is for other tests.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

LOOP = """
import atexit, gc, json, os, runpy, sys, tempfile, threading
{load}
gc.collect()
gc.freeze()
answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    task = json.loads(line)
    child = os.fork()
    if not child:
        break
    answers.write(f"{{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}}\\n")
    answers.flush()
else:
    sys.exit()
os.chdir(task["cwd"])
os.environ.update(task["environment"])
tempfile.tempdir = None
for number, path in enumerate((os.devnull, task["out"], task["err"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
sys.argv = task["arguments"]
{run}
threading._shutdown()
atexit._run_exitfuncs()
sys.stdout.flush()
os._exit(status)  # what else a process with torch in it does on its way out takes longer than all before
"""
LIBRARIES = """
import matplotlib.figure, pandas, pyarrow.parquet, seaborn, torch._dynamo
import gradscope
"""
SCRIPT = """
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
status = 0
"""
CODE = """
import warnings
warnings.simplefilter("default")
exec(sys.argv.pop(), {"__name__": "__main__"})
status = 0
"""


class Ended(NamedTuple):
    """How a run ended: its exit status, negative for a signal, and what it wrote."""

    status: int
    out: str
    err: str


@functools.cache
def host(load: str, run: str) -> subprocess.Popen[str]:
    """The process that has loaded it; one for all tests of this process, and ended with it."""
    found = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", LOOP.format(load=load, run=run)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    atexit.register(found.communicate)
    return found


def forked(
    program: subprocess.Popen[str],
    arguments: Sequence[str],
    cwd: Path,
    written: tuple[Path, Path],
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a host's program with these `sys.argv`; what it writes goes into two files."""
    assert program.stdin is not None and program.stdout is not None
    out, err = map(str, written)
    task = {"arguments": arguments, "cwd": str(cwd), "out": out, "err": err, "environment": {**(environment or {})}}
    program.stdin.write(json.dumps(task) + "\n")
    program.stdin.flush()
    return ended(int(program.stdout.readline()), written)


def script(path: Path, cwd: Path, environment: Mapping[str, str]) -> Ended:
    """Run a script as `python path` would."""
    written = cwd / "stdout", cwd / "stderr"
    return forked(host(LIBRARIES, SCRIPT), [str(path)], cwd, written, environment)


def code(text: str, cwd: Path, *arguments: str) -> Ended:
    """Run code as `python -c` would in a process that has loaded torch, and nothing of ours."""
    return forked(host("import torch", CODE), ["-c", *arguments, text], cwd, (cwd / "stdout", cwd / "stderr"))


def ended(status: int, written: tuple[Path, Path]) -> Ended:
    """With what was written."""
    return Ended(status, *(path.read_bytes().decode(errors="surrogateescape") for path in written))
