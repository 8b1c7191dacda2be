"""Names of arguments and results that are a state."""

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
    """Classify a name: the hidden state (or the whole state), the cell state, or neither.

    >>> [part_called(name) for name in ("h_0", "prev_state", "hx", "C_prev", "cell_state", "context", "x_t")]
    ['h', 'h', 'h', 'c', 'c', '', '']
    """
    match = _NAME.fullmatch(name)
    return "" if match is None else "h" if match["h"] else "c"


def states_called(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Select arguments with names of a state; a hidden and a cell state side by side are one state.

    >>> states_called(["x", "h", "c", "mask", "hidden"])
    [('h', 'c'), ('hidden',)]
    """
    states: list[dict[str, str]] = [{}]
    for name in names:
        part = part_called(name)
        if not part or part in states[-1]:
            states.append({})
        if part:
            states[-1][part] = name
    return [tuple(state.values()) for state in states if state]
