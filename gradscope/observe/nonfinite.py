"""Gradients that are not finite, found on the host before the optimizer uses them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import nn

from gradscope.observe.alarm import Alarm, lost_gradients
from gradscope.observe.ledger import Ledger
from gradscope.observe.losses import Loss
from gradscope.observe.parameters import Parameters
from gradscope.types import LayerKey, Rows


class Nonfinite:
    """Looks for what is not finite in each step, and says whose gradients it is.

    Args:
        parameters: of the observed layers.
        ledger: knows the norms of clipping calls.
        alarm: tells whether another such step is worth a note.
        modules: the observed modules by name, as of now.

    Attributes:
        suspect: True if the loss of this step, or an element of its gradients, is not finite.
        clips: True if the loop clipped in the last step, and so will in this one.
        lost: whose gradients were not finite in this step, and how.
    """

    def __init__(
        self, parameters: Parameters, ledger: Ledger, alarm: Alarm, modules: Callable[[], Mapping[str, nn.Module]]
    ) -> None:
        """See the class."""
        self._parameters, self._ledger, self._alarm, self._modules = parameters, ledger, alarm, modules
        self.suspect = self.clips = False
        self.lost: list[tuple[LayerKey, str]] = []

    def after_idle_pass(self, loss: Loss) -> None:
        """Look at the loss of a pass, and at an element of the gradients unless a clipping call gives their norm."""
        if type(loss) is float and self._alarm.armed and not self._ledger.scaling.used:
            self.suspect = not math.isfinite(loss) or (not self.clips and self._parameters.spoilt)

    def before_step(self) -> bool:
        """Look at the gradients that the optimizer gets; True if they are not finite."""
        bad = self.suspect or self._ledger.nonfinite
        if bad and self._alarm.armed:
            self.lost = lost_gradients(self._modules())
        return bad

    def notes(self, step: int) -> list[Rows]:
        """Whose gradients were not finite, as rows of `notes`."""
        lost, self.lost = self.lost, []
        return [Rows("notes", {"step": step, **key._asdict(), "reason": reason}) for key, reason in lost]
