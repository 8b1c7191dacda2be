"""Gradscope in Stable-Baselines3: a callback, for recurrent policies such as those of sb3-contrib's RecurrentPPO.

    from gradscope_integrations.sb3 import GradscopeCallback

    with GradscopeCallback(logdir="runs/exp1") as watching:
        RecurrentPPO("MlpLstmPolicy", "CartPole-v1").learn(100_000, callback=watching)
    watching.run.report().save("report.html")

`learn` reports exceptions to no callback; the `with` statement closes the scope after one.
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false
from __future__ import annotations

import os
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from gradscope_integrations.sessions import Sessions

__all__ = ["GradscopeCallback"]


class GradscopeCallback(Sessions, BaseCallback):
    """Attaches to the policy when `learn` begins, and closes when it ends.

    Steps are the optimizer's, not the environment's; another call of `learn` continues their numbers.

    Args:
        logdir: run folder; None keeps everything in memory.
        verbose: as for other callbacks of Stable-Baselines3.
        **arguments: further arguments of `gradscope.attach`.
    """

    def __init__(self, logdir: str | os.PathLike[str] | None = None, *, verbose: int = 0, **arguments: Any) -> None:
        Sessions.__init__(self, logdir, **arguments)
        BaseCallback.__init__(self, verbose)

    def _on_training_start(self) -> None:
        self.open(self.model.policy)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.close()
