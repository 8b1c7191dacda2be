"""Adds records beyond the schedule when gradients stop being finite or their norm jumps, and says whose they are.

The step itself cannot be recorded any more: its forward pass is over, and an idle step keeps nothing of it. Before the
optimizer uses the gradients, a note still says whose they are, and whether the weights are finite. The next two steps
are recorded under any schedule. With a budget, so is the step after a jump of the gradient norm, so that a record from
before the end exists. All ranks of a distributed run see the same norms, and record the same steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from gradscope.types import LayerKey
from gradscope.types.notes import LOST

AFTER = 2
"""Steps to record after gradients that are not finite."""
CALM = 32
"""Steps with finite gradients before the alarm is armed again."""
JUMP = 100.0
"""Ratio of a gradient norm to the usual one that counts as a jump."""
KNOWN = 8
"""Steps before the usual norm is known."""
GATES = {4: ("input", "forget", "candidate", "output"), 3: ("reset", "update", "candidate"), 1: ("hidden",)}
_SUFFIX = re.compile(r"(?P<kind>.+)_l(?P<layer>\d+)(?P<reverse>_reverse)?")


class Alarm:
    """Receives the numbers of every step, and decides which steps to record beyond the schedule.

    Attributes:
        armed: True if values that are not finite would be a new event.
        wanted: how many of the next steps to record.

    Args:
        jumps: record the step after a jump as well.
    """

    def __init__(self, *, jumps: bool) -> None:
        """See the class."""
        self._jumps = jumps
        self.wanted = 0
        self._calm, self.armed = CALM, True
        self._norms, self._usual = 0, 0.0  # the logarithm of a moving geometric mean

    def step_over(self, norm: float, nonfinite: int) -> None:
        """A step has ended, and no GradScaler has skipped it.

        Args:
            norm: of its gradients; NaN if unknown.
            nonfinite: number of gradients that are not finite, or 1 for another value that is not finite.
        """
        if nonfinite:
            self.wanted = AFTER if self.armed else self.wanted
            self._calm, self.armed = 0, False
            return
        self._calm += 1
        self.armed = self._calm >= CALM
        if norm > 0:
            self._norms += 1
            size = math.log(norm)
            if self._jumps and self.armed and self._norms > KNOWN and size > self._usual + math.log(JUMP):
                self.wanted, self._calm, self.armed = max(self.wanted, 1), 0, False
            self._usual += (size - self._usual) / min(self._norms, KNOWN)

    def due(self) -> bool:
        """True if the next step is to be recorded; called once for each step."""
        due = self.wanted > 0
        self.wanted -= due
        return due


def lost_gradients(layers: Mapping[str, nn.Module]) -> list[tuple[LayerKey, str]]:
    """Name the gradients that are not finite, layer by layer, and say whether the weights still are."""
    reasons: list[tuple[LayerKey, str]] = []
    for name, module in layers.items():
        places: dict[LayerKey, list[tuple[str, nn.Parameter]]] = {}
        for parameter_name, parameter in module.named_parameters():
            places.setdefault(_place(name, parameter_name), []).append((parameter_name, parameter))
        for key, parameters in places.items():
            bad = [
                _with_gates(module, n, p.grad) for n, p in parameters if p.grad is not None and not _finite([p.grad])
            ]
            if bad:
                state = "its weights were still finite" if _finite(p for _, p in parameters) else "so were its weights"
                reasons.append((key, f"{LOST}{', '.join(bad)}; {state}"))
    return reasons


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _place(module: str, parameter: str) -> LayerKey:
    match = _SUFFIX.fullmatch(parameter)
    if match is None:
        return LayerKey(module, 0, "forward", -1)
    return LayerKey(module, int(match["layer"]), "reverse" if match["reverse"] else "forward", -1)


def _with_gates(module: nn.Module, name: str, gradient: Tensor) -> str:
    """The name of a parameter, and the gates whose blocks are not finite, unless all are."""
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase) or "weight_hr" in name:
        return name
    hidden = int(module.hidden_size)
    gates = GATES.get(len(gradient) // hidden, ())
    blocks = gradient.detach().unflatten(0, (-1, hidden)).flatten(1).isfinite().all(1).tolist()
    bad = [gate for gate, fine in zip(gates, blocks, strict=False) if not fine]
    return name if len(bad) == len(gates) else f"{name} ({', '.join(bad)})"
