"""The Gradscope tab of TensorBoard: a sink that writes event files, and the plugin that shows them.

>>> import torch, gradscope
>>> from gradscope_integrations.tensorboard import make_sink
>>> model = torch.nn.LSTM(2, 8)
>>> with gradscope.attach(model, sinks=[make_sink("runs/exp1")]):  # doctest: +SKIP
...     ...

This module imports nothing heavy: TensorBoard imports it at every start, with or without torch.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from gradscope_integrations.tensorboard.sink import Findings, TensorBoardSink
    from gradscope_integrations.tensorboard.view import View

__all__ = ["make_sink", "serve"]


def make_sink(
    logdir: str | os.PathLike[str] | None = None, writer: Any = None, findings: Findings | None = None
) -> TensorBoardSink | None:
    """Make a sink for `attach(sinks=...)`; None without TensorBoard, unless there is a writer.

    Args:
        logdir: run folder; the events go to `<logdir>/gradscope`, a run of their own.
        writer: the user's own `SummaryWriter`, which receives everything instead.
        findings: returns the findings of the run so far; the sink's thread calls it, seldom.

    Raises:
        RecordError: the folder cannot be written.
        GradscopeError: the writer is no `torch.utils.tensorboard.SummaryWriter`.
    """
    if (logdir is None and writer is None) or (writer is None and not importlib.util.find_spec("tensorboard")):
        return None
    from gradscope_integrations.tensorboard.sink import TensorBoardSink

    return TensorBoardSink(logdir, writer=writer, findings=findings)


def serve(logdir: str | os.PathLike[str], host: str = "localhost", port: int | None = None) -> View:
    """Start TensorBoard on a folder; see `view.serve`."""
    from gradscope_integrations.tensorboard import view

    return view.serve(logdir, host, port)
