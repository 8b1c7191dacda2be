"""The `gradscope` command as a shell runs it, many times a second: one process loads it, and a fork of it is each run.

What would take long is left out: `view` serves nothing, and `demo` trains nothing.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

HOST = """
import atexit, gc, json, os, sys
from contextlib import nullcontext
import gradscope_integrations.tensorboard.view as tab
from gradscope.cli import commands, main
from gradscope.demo import command as demo
import gradscope.demo.show, gradscope.demo.training
commands()

class Served(nullcontext):
    url = "http://localhost:6006/#gradscope"
    def wait(self):
        return 0

tab.serve = lambda *arguments: Served()
demo._train_all = lambda trials, data, epochs, output, console: []
gradscope.demo.show.show = lambda *arguments: None
demo._write = lambda summaries, output: f"Runs: {output}"
gc.collect()
gc.freeze()
answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    task = json.loads(line)
    child = os.fork()
    if not child:
        break
    answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n")
    answers.flush()
else:
    sys.exit()
os.chdir(task["cwd"])
for number, path in enumerate((os.devnull, task["out"], task["err"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
sys.argv = ["gradscope", *task["arguments"]]
status = main()
atexit._run_exitfuncs()
sys.stdout.flush()
os._exit(status)  # what else a process with torch in it does on its way out takes longer than all before
"""


class Ended(NamedTuple):
    """How a run ended: its exit status, negative for a signal, and what it wrote."""

    status: int
    out: str
    err: str


@functools.cache
def host() -> subprocess.Popen[str]:
    """The process that has loaded the command; one for all tests of this process, and ended with it."""
    found = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOST],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    atexit.register(found.communicate)
    return found


class Shell:
    """Runs the command, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._written = folder, (folder.with_name("stdout"), folder.with_name("stderr"))
        self._host = host()

    def run(self, *arguments: str) -> Ended:
        """With these arguments, which may hold bytes that are no text, as `os.fsdecode` gives them."""
        assert self._host.stdin is not None and self._host.stdout is not None
        out, err = map(str, self._written)
        task = {"arguments": arguments, "cwd": str(self.folder), "out": out, "err": err}
        self._host.stdin.write(json.dumps(task) + "\n")
        self._host.stdin.flush()
        return self._ended(int(self._host.stdout.readline()))

    def python(self, *arguments: str) -> Ended:
        """The same by python."""
        with open(self._written[0], "wb") as out, open(self._written[1], "wb") as err:
            command: Sequence[Any] = [sys.executable, *map(os.fsencode, arguments)]
            status = subprocess.run(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        return self._ended(status.returncode)

    def _ended(self, status: int) -> Ended:
        return Ended(status, *(path.read_bytes().decode(errors="surrogateescape") for path in self._written))
