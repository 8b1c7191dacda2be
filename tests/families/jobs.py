"""What the tests of recorded numbers share."""

from __future__ import annotations

import oracles
import pandas as pd
from cases import Built

import gradscope


def recorded(built: Built, **arguments) -> gradscope.Run:
    """One forward and backward of the case under a scope."""
    options = {"quantities": "full", "every": 1, "max_sequences": None, "strict": True} | arguments
    with gradscope.attach(built.module, **options) as scope:
        built.backward()
    return scope.run


def truth_of(built: Built, **options) -> dict[str, pd.DataFrame]:
    return oracles.frames(oracles.examine(built.call()), **options)
