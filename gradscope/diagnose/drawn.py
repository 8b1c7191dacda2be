"""Recurrent weights that are still the random numbers of their initialisation, by their norms."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from gradscope.diagnose.frames import Tables
from gradscope.diagnose.progress import learning

UNIFORM = (2 / math.sqrt(3), 1 / math.sqrt(3))
"""Spectral norm and radius of a large square block of numbers uniform within 1/sqrt(H), as torch draws them: numbers of
variance 1 / (3 H) follow the circular law."""
NEAR = (0.1, 0.2)
"""Blocks of the usual sizes come as near to both; learning takes one of them farther away."""
NORMAL = 0.01
"""Norm and radius of an orthogonal block, as of any normal one, are equal."""


def as_drawn(tables: Tables, module: str, record: Literal["first", "last"] = "last") -> bool:
    """True if all recurrent blocks of a module look, in one record, as an initialiser of torch leaves them."""
    weights = tables["weights"][tables["weights"]["module"] == module]
    step = weights["step"].min() if record == "first" else weights["step"].max()
    sizes = weights.loc[weights["step"] == step, ["spectral_norm", "spectral_radius"]].to_numpy(dtype=np.float64)
    uniform = (np.abs(sizes / UNIFORM - 1) <= NEAR).all()
    normal = (np.abs(sizes[:, 0] / sizes[:, 1] - 1) <= NORMAL).all()
    return bool(len(sizes)) and bool(uniform or normal)


def untrained(tables: Tables) -> bool:
    """True if no module has learnt anything: whatever the training has learnt, other layers have."""
    return bool(tables.by_module) and all(as_drawn(tables, module) for module, _ in tables.by_module)


def elsewhere(tables: Tables) -> str:
    """Return the sentence about weights that have learnt nothing while the loss falls; empty otherwise."""
    if not (learning(tables).learns and untrained(tables)):
        return ""
    return " By their norms, the recurrent weights are still those of the initialisation: other layers learn alone."
