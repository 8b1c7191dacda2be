"""Parameters that the loss depends on and that no optimizer steps."""

from __future__ import annotations

import re

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.progress import learning
from gradscope.diagnose.words import plural
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
            title=f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}: no optimizer steps them",
            explanation=f"{_explained(names, shapes)} {found.sentence}",
            evidence={"steps": (int(told["step"].min()),) * 2, "parameters": tuple(names), **found.evidence},
            remedies=(loops.register(),) if shapes and not named else (loops.optimize(named), loops.register()),
        )
    ]


def _severity(seen: Seen, unknown: bool) -> Severity:
    """What the model does not know of was hardly left out on purpose; the rest may be, where the training learns."""
    return "warning" if unknown or learning(seen).fails else "info"


def _explained(names: list[str], shapes: list[str]) -> str:
    why = f"The loss depends on {', '.join(names)}. They receive gradient, and no optimizer steps them: they stay put. "
    if shapes:
        count = plural(len(shapes), "of them is given by its shape", "of them are given by their shapes")
        why += (
            f"{count}, for the model has no such parameter: layers in a plain list or dict, tensors with requires_grad "
            "that are no nn.Parameter. model.parameters() does not have these. "
        )
    return why + "If that is meant, requires_grad_(False) says so."
