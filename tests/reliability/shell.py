"""The `gradscope` command as a shell runs it, many times a second: one process loads it, and a fork of it is each run.

What would take long is left out: `view` serves nothing, and `demo` trains nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forks import Ended, ended, forked, host

COMMAND = """
from contextlib import nullcontext
import gradscope_integrations.tensorboard.view as tab
from gradscope.cli import commands, main
from gradscope.demo import command as demo
import gradscope.demo.show, gradscope.demo.training
import gradscope.diagnose, pyarrow.parquet, torch._dynamo
commands()

class Served(nullcontext):
    url = "http://localhost:6006/#gradscope"
    def wait(self):
        return 0

tab.serve = lambda *arguments: Served()
demo._train_all = lambda trials, data, epochs, output, console: []
gradscope.demo.show.show = lambda *arguments: None
demo._write = lambda summaries, output: f"Runs: {output}"
"""


class Shell:
    """Runs the command, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._written = folder, (folder.with_name("stdout"), folder.with_name("stderr"))

    def run(self, *arguments: str) -> Ended:
        """With these arguments, which may hold bytes that are no text, as `os.fsdecode` gives them."""
        return forked(host(COMMAND, "status = main()"), ["gradscope", *arguments], self.folder, self._written)

    def python(self, *arguments: str) -> Ended:
        """The same by python."""
        with open(self._written[0], "wb") as out, open(self._written[1], "wb") as err:
            command: Sequence[Any] = [sys.executable, *map(os.fsencode, arguments)]
            status = subprocess.run(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        return ended(status.returncode, self._written)
