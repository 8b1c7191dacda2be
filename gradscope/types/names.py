"""What arguments and results are called that are a state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

_WHEN = "prev|previous|last|old|pre|cur|current|new|next|init|initial|in|out"
_NAME = re.compile(
    rf"(?:(?:{_WHEN})_?)?(?:(?P<h>h|hc|hiddens?|states?|carry)|(?P<c>c|cell))(?:_?(?:{_WHEN}|tm1|t|n|x|y|\d)|_(?:states?|s))*",
    re.IGNORECASE,
)


def part_called(name: str) -> Literal["h", "c", ""]:
    """Which part of a state something is by its name: the hidden state (or all of it), the cell state, or none.

    >>> [part_called(name) for name in ("h_0", "prev_state", "hx", "C_prev", "cell_state", "context", "x_t")]
    ['h', 'h', 'h', 'c', 'c', '', '']
    """
    found = _NAME.fullmatch(name)
    return "" if found is None else "h" if found["h"] else "c"


def states_called(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The arguments that are a state by their names; a hidden and a cell state beside each other are one.

    >>> states_called(["x", "h", "c", "mask", "hidden"])
    [('h', 'c'), ('hidden',)]
    """
    found: list[dict[str, str]] = [{}]
    for name in names:
        part = part_called(name)
        if not part or part in found[-1]:
            found.append({})
        if part:
            found[-1][part] = name
    return [tuple(run.values()) for run in found if run]
