"""Parameters of the loss that no optimizer steps."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gradscope.diagnose import loops
from gradscope.diagnose.drawn import as_drawn
from gradscope.diagnose.frames import Tables
from gradscope.diagnose.progress import in_spite, learning
from gradscope.diagnose.words import typed
from gradscope.types import Finding
from gradscope.types.notes import UNOPTIMIZED

_SHAPE = re.compile(r"\d+(x\d+)*")


def unoptimized_parameters(tables: Tables) -> list[Finding]:
    """Find parameters that receive gradient in vain: of layers in a plain list, or missing in the optimizer."""
    notes = tables.noted(UNOPTIMIZED)
    if not len(notes):
        return []
    names = str(notes["reason"].iloc[0]).removeprefix(UNOPTIMIZED).split(", ")
    shapes = [name for name in names if _SHAPE.fullmatch(name)]
    named = [name for name in names if name not in shapes and not name.startswith("and ")]
    training, recurrent = learning(tables), _recurrent(tables, names)
    drawn = [module for module in recurrent if as_drawn(tables, module)]
    on_purpose = bool(recurrent) and not shapes and not drawn and not training.fails
    why = _explained(_listed(names, shapes, len(names)), bool(shapes), drawn)
    return [
        Finding(
            code="unoptimized_parameters",
            severity="info" if on_purpose else "warning",
            layer_key=None,
            title=f"no optimizer steps {_listed(names, shapes)}",
            explanation=f"{why} {training.sentence}{'' if on_purpose else in_spite(tables)}",
            evidence={"steps": (int(notes["step"].min()),) * 2, "parameters": tuple(names), **training.evidence},
            remedies=(loops.REGISTER,) if shapes and not named else (loops.optimize(named), loops.REGISTER),
        )
    ]


def _recurrent(tables: Tables, names: Sequence[str]) -> list[str]:
    """List the recurrent modules of these parameters.

    Who trains a new read-out alone leaves out the recurrent layers, which another training has made. Nobody trains
    these and leaves out the read-out, nor leaves out recurrent layers that are as torch draws them.
    """
    modules = [module for module, _ in tables.by_module]
    return [module for module in modules if any(name.startswith(f"{module}." if module else "") for name in names)]


def _listed(names: list[str], shapes: list[str], limit: int = 3) -> str:
    """List parameters by name, and parameters without a module by shape."""
    named = [name for name in names if name not in shapes]
    parts = [f"{', '.join(named[:limit])}{', ...' if len(named) > limit else ''}"] if named else []
    if shapes:
        sizes = f"{', '.join(shapes[:limit])}{', ...' if len(shapes) > limit else ''}"
        which = "parameter that belongs" if len(shapes) == 1 else "parameters that belong"
        parts.append(f"{len(shapes)} {which} to no module ({'shape' if len(shapes) == 1 else 'shapes'} {sizes})")
    return " and ".join(parts)


def _explained(listed: str, unknown: bool, drawn: Sequence[str]) -> str:
    why = f"The loss depends on these parameters: {listed}. They receive gradient and never change. "
    if unknown:
        why += (
            "model.parameters() lacks the parameters that belong to no module: parameters of layers in a plain list or "
            "dict, or tensors with requires_grad that are no nn.Parameter. "
        )
    if drawn:
        why += (
            f"By their norms, the recurrent weights of {' and '.join(map(typed, drawn))} are the random numbers of the "
            "initialisation. "
        )
    return why + "To freeze parameters on purpose, use requires_grad_(False)."
