"""`gradscope view`: TensorBoard on a folder, with the address of the tab."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gradscope import GradscopeError

if TYPE_CHECKING:
    from typing_extensions import Self

STARTING_S = 120.0


@dataclass(slots=True)
class View:
    """A TensorBoard in a separate process, until `stop` or the end of the `with` block.

    Attributes:
        url: address of the Gradscope tab.
    """

    url: str
    _process: subprocess.Popen[str] = field(repr=False)
    _listener: threading.Thread = field(repr=False)

    def wait(self) -> int:
        """Wait until TensorBoard ends, and return its exit status. It ends by itself only if it fails."""
        return self._process.wait()

    def stop(self) -> None:
        """End TensorBoard. Idempotent."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(10)

    def __enter__(self) -> Self:
        """The view itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop."""
        self.stop()


def serve(logdir: str | os.PathLike[str], host: str = "localhost", port: int | None = None) -> View:
    """Start TensorBoard on a folder and wait until it answers.

    Args:
        logdir: a run folder, or a folder of run folders.
        host: the address to listen on; only this machine can reach `localhost`.
        port: None for 6006 or the next free port, 0 for any.

    Raises:
        GradscopeError: there is no such folder, TensorBoard is not installed, or it does not start.
    """
    folder = Path(logdir)
    if not folder.is_dir():
        raise GradscopeError(f"{folder} is not a folder; pass the logdir of attach(), or the folder above it")
    if not importlib.util.find_spec("tensorboard"):
        raise GradscopeError("TensorBoard is not installed; get it with: pip install 'gradscope-rnn[tensorboard]'")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder.resolve()), "--host", host]
    command += ["--reload_interval", "5", *(["--port", str(port)] if port is not None else [])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines: deque[str] = deque(maxlen=20)
    address: list[str] = []
    ready = threading.Event()
    listener = threading.Thread(target=_listen, args=(process, lines, address, ready), daemon=True)
    listener.start()
    view = View("", process, listener)
    if not ready.wait(STARTING_S) or not address:
        view.stop()
        raise GradscopeError(f"TensorBoard did not start: {' '.join(' '.join(lines).split()) or 'no output'}")
    view.url = f"{address[0]}#gradscope"
    return view


def _listen(process: subprocess.Popen[str], last: deque[str], address: list[str], ready: threading.Event) -> None:
    """Read TensorBoard's output as long as it runs; its address comes first."""
    assert process.stderr is not None
    with process.stderr as lines:
        for line in lines:
            last.append(line)
            if not address and (match := re.search(r"TensorBoard \S+ at (https?://\S+)", line)):
                address.append(match[1] if match[1].endswith("/") else f"{match[1]}/")
                ready.set()
    ready.set()
