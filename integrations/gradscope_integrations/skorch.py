"""Gradscope in skorch: a callback.

    from gradscope_integrations.skorch import GradscopeCallback

    watching = GradscopeCallback(every=50)
    NeuralNetClassifier(Model, callbacks=[watching]).fit(X, y)
    watching.run.report().save("report.html")

skorch reports no exception but KeyboardInterrupt to callbacks; after others, `watching.close()` closes the scope.
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skorch import NeuralNet
from skorch.callbacks import Callback

from gradscope_integrations.sessions import Sessions

if TYPE_CHECKING:
    import os

    from typing_extensions import Self

    import gradscope

__all__ = ["GradscopeCallback"]


class GradscopeCallback(Callback):
    """Attaches to the module when training begins, and closes when it ends.

    `fit` begins a run; `partial_fit` continues it, in the same folder. All arguments are parameters in the sense of
    scikit-learn: copies of the net, as in a grid search, have them and can set them; give such copies no logdir.

    Args:
        logdir: run folder; None keeps everything in memory.
        **arguments: further arguments of `gradscope.attach`.
    """

    def __init__(self, logdir: str | os.PathLike[str] | None = None, **arguments: Any) -> None:
        self.logdir = logdir
        for name, value in arguments.items():
            setattr(self, name, value)

    def initialize(self) -> Self:
        """Begin another run, for a new net."""
        self.close()
        self.sessions_ = Sessions(**self.get_params(deep=False))
        return self

    @property
    def run(self) -> gradscope.Run:
        """The growing record of the latest training."""
        return self.sessions_.run

    def close(self) -> None:
        """Close, also after an exception. Idempotent."""
        if hasattr(self, "sessions_"):
            self.sessions_.close()

    def on_train_begin(self, net: NeuralNet, X: Any = None, y: Any = None, **others: Any) -> None:
        """Attach."""
        self.sessions_.open(net.module_)

    def on_train_end(self, net: NeuralNet, X: Any = None, y: Any = None, **others: Any) -> None:
        """Close."""
        self.close()
