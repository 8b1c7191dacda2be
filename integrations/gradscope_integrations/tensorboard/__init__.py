"""The Gradscope tab of TensorBoard: a sink that writes event files, and the plugin that shows them.

>>> import torch, gradscope
>>> from gradscope_integrations.tensorboard import make_sink
>>> model = torch.nn.LSTM(2, 8)
>>> with gradscope.attach(model, sinks=[make_sink("runs/exp1")]):  # doctest: +SKIP
...     ...

Nothing is imported here: TensorBoard looks at this package whenever it starts, with or without torch.
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
    """A sink for `attach(sinks=...)`, or None where TensorBoard is not installed and nobody asked for it.

    Args:
        logdir: run folder; the events go to `<logdir>/gradscope`, a run of their own.
        writer: the user's own `SummaryWriter`, which is then given everything instead.
        findings: says what the run shows so far; called in the sink's thread, seldom.

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
