"""Gradients that are no longer finite, or about to be so: what is recorded then beyond the schedule, and what is said.

At the step itself it is too late to record: its forward pass is over, and nothing of a step that is not recorded is
kept. What can still be seen before the optimizer uses the gradients is said in a note: whose they are, and whether the
weights were finite. The next two steps are recorded whatever the schedule; with a budget also the step after a jump of
the gradient norm, so that there is a record from before the end. All ranks of a distributed run see the same norms, and
record the same steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from gradscope.types import LayerKey

AFTER = 2
"""Steps that are recorded after gradients were not finite."""
CALM = 32
"""Steps with finite gradients before the next time."""
JUMP = 100.0
"""A gradient norm so many times the usual one is a jump."""
KNOWN = 8
"""Steps after which it is known what is usual."""
LOST = "gradients are not finite at the optimizer: "
GATES = {4: ("input", "forget", "candidate", "output"), 3: ("reset", "update", "candidate"), 1: ("hidden",)}
_SUFFIX = re.compile(r"(?P<kind>.+)_l(?P<layer>\d+)(?P<reverse>_reverse)?")


class Alarm:
    """Hears the numbers of every step, and says which steps to record beyond the schedule.

    Attributes:
        armed: numbers that are not finite would be news.
        wanted: how many of the next steps to record.

    Args:
        jumps: record the step after a jump as well.
    """

    def __init__(self, *, jumps: bool) -> None:
        """See the class."""
        self._jumps = jumps
        self.wanted = 0
        self._calm, self.armed = CALM, True
        self._heard, self._usual = 0, 0.0  # the logarithm of a moving geometric mean

    def hear(self, norm: float, nonfinite: int) -> None:
        """A step has ended that no GradScaler has skipped.

        Args:
            norm: of its gradients; NaN where that is not known.
            nonfinite: how many parameters' are not finite, or 1 where it is another number that is not.
        """
        if nonfinite:
            self.wanted = AFTER if self.armed else self.wanted
            self._calm, self.armed = 0, False
            return
        self._calm += 1
        self.armed = self._calm >= CALM
        if norm > 0:
            self._heard += 1
            size = math.log(norm)
            if self._jumps and self.armed and self._heard > KNOWN and size > self._usual + math.log(JUMP):
                self.wanted, self._calm, self.armed = max(self.wanted, 1), 0, False
            self._usual += (size - self._usual) / min(self._heard, KNOWN)

    def due(self) -> bool:
        """Whether to record the step that begins; asked once for each."""
        due = self.wanted > 0
        self.wanted -= due
        return due


def lost(layers: Mapping[str, nn.Module]) -> list[tuple[LayerKey, str]]:
    """Whose gradients are not finite, layer by layer, and whether the weights still are."""
    found: list[tuple[LayerKey, str]] = []
    for name, module in layers.items():
        places: dict[LayerKey, list[tuple[str, nn.Parameter]]] = {}
        for parameter_name, parameter in module.named_parameters():
            places.setdefault(_place(name, parameter_name), []).append((parameter_name, parameter))
        for key, parameters in places.items():
            bad = [_told(module, n, p.grad) for n, p in parameters if p.grad is not None and not _finite([p.grad])]
            if bad:
                state = "its weights were still finite" if _finite(p for _, p in parameters) else "so were its weights"
                found.append((key, f"{LOST}{', '.join(bad)}; {state}"))
    return found


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _place(module: str, parameter: str) -> LayerKey:
    match = _SUFFIX.fullmatch(parameter)
    if match is None:
        return LayerKey(module, 0, "forward", -1)
    return LayerKey(module, int(match["layer"]), "reverse" if match["reverse"] else "forward", -1)


def _told(module: nn.Module, name: str, gradient: Tensor) -> str:
    """A parameter, and the gates whose blocks are not finite where these are not all."""
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase) or "weight_hr" in name:
        return name
    hidden = int(module.hidden_size)
    gates = GATES.get(len(gradient) // hidden, ())
    blocks = gradient.detach().unflatten(0, (-1, hidden)).flatten(1).isfinite().all(1).tolist()
    bad = [gate for gate, fine in zip(gates, blocks, strict=False) if not fine]
    return name if len(bad) == len(gates) else f"{name} ({', '.join(bad)})"
