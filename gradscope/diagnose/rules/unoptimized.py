"""Parameters that the loss depends on and that no optimizer steps."""

from __future__ import annotations

import re

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.progress import learning
from gradscope.types import Finding, Severity
from gradscope.types.notes import UNOPTIMIZED

_SHAPE = re.compile(r"\d+(x\d+)*")


def unoptimized_parameters(seen: Seen) -> list[Finding]:
    """Find what receives gradient in vain: layers in a plain list, or left out of the optimizer."""
    notes = seen["notes"]
    told = notes[notes["reason"].str.startswith(UNOPTIMIZED)]
    if not len(told):
        return []
    names = str(told["reason"].iloc[0]).removeprefix(UNOPTIMIZED).split(", ")
    shapes = [name for name in names if _SHAPE.fullmatch(name)]
    named = [name for name in names if name not in shapes and not name.startswith("and ")]
    found = learning(seen)
    return [
        Finding(
            code="unoptimized_parameters",
            severity=_severity(seen, bool(shapes)),
            layer_key=None,
            title=f"no optimizer steps {_called(names, shapes)}",
            explanation=f"{_explained(_called(names, shapes, len(names)), bool(shapes))} {found.sentence}",
            evidence={"steps": (int(told["step"].min()),) * 2, "parameters": tuple(names), **found.evidence},
            remedies=(loops.register(),) if shapes and not named else (loops.optimize(named), loops.register()),
        )
    ]


def _severity(seen: Seen, unknown: bool) -> Severity:
    """What the model does not know of was hardly left out on purpose; the rest may be, where the training learns."""
    return "warning" if unknown or learning(seen).fails else "info"


def _called(names: list[str], shapes: list[str], limit: int = 3) -> str:
    """Parameters by name, and those that the model does not have by their shapes."""
    named = [name for name in names if name not in shapes]
    parts = [f"{', '.join(named[:limit])}{', ...' if len(named) > limit else ''}"] if named else []
    if shapes:
        sizes = f"{', '.join(shapes[:limit])}{', ...' if len(shapes) > limit else ''}"
        parts.append(f"{len(shapes)} of no module ({sizes})")
    return " and ".join(parts)


def _explained(called: str, unknown: bool) -> str:
    why = f"The loss depends on these parameters: {called}. They receive gradient, and stay where they began. "
    if unknown:
        why += (
            "The model does not have those that are given by their shapes: layers in a plain list or dict, or tensors "
            "with requires_grad that are no nn.Parameter, are not in model.parameters(). "
        )
    return why + "If that is meant, requires_grad_(False) says so."
