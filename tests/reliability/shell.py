"""The `gradscope` command as a shell runs it, many times a second: one process loads it, and a fork of it is each run.

What would take long is left out: `view` serves nothing, and `demo` trains nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forks import Ended, ended, forked, host

COMMAND = """
from contextlib import nullcontext
from importlib import import_module
import gradscope_integrations.tensorboard.view as tab
from gradscope.cli import commands, main
import gradscope.demo.training
import gradscope.diagnose, pyarrow.parquet, torch._dynamo
commands()

class Served(nullcontext):
    url = "http://localhost:6006/#gradscope"
    def wait(self):
        return 0

tab.serve = lambda *arguments: Served()
gradscope.demo.training.train = lambda *arguments: 0.5
import_module("gradscope.cli.demo")._summary = lambda names, output: f"Runs: {output}"

def process():
    if status := main():
        raise SystemExit(status)

def launched(processes, restarts):
    "What torchrun does, with the command in its processes, which are forks as well."
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    elastic_launch(LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=restarts, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", run_id="it", start_method="fork", monitor_interval=0.1,
    ), process)()
    return 0
"""
RUN = "status = launched(*json.loads(os.environ['LAUNCH'])) if 'LAUNCH' in os.environ else main()"


class Shell:
    """Runs the command, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._written = folder, (folder.with_name("stdout"), folder.with_name("stderr"))

    def run(self, *arguments: str) -> Ended:
        """With these arguments, which may hold bytes that are no text, as `os.fsdecode` gives them."""
        return forked(host(COMMAND, RUN), ["gradscope", *arguments], self.folder, self._written)

    def launch(self, *arguments: str, processes: int = 1, restarts: int = 0) -> Ended:
        """In processes of torch's elastic launcher, which starts all anew where one fails."""
        how = {"LAUNCH": json.dumps([processes, restarts])}
        return forked(host(COMMAND, RUN), ["gradscope", *arguments], self.folder, self._written, how)

    def python(self, *arguments: str) -> Ended:
        """The same by python."""
        with open(self._written[0], "wb") as out, open(self._written[1], "wb") as err:
            command: Sequence[Any] = [sys.executable, *map(os.fsencode, arguments)]
            status = subprocess.run(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        return ended(status.returncode, self._written)
