"""Curves as small as a word, as SVG, for the table of several runs in a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradscope.report.bars import logarithmic

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT, EDGE = 96, 24, 2


def spark(curve: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw the losses of one run on the common scale of the table, with gaps at non-finite losses."""
    from markupsafe import Markup

    finite = [value for row in rows for value in row["curve"] if math.isfinite(value)]
    level = math.log if logarithmic(finite) else float
    if len(curve) < 2 or not finite:
        return Markup()
    low, high = level(min(finite)), level(max(finite))
    parts, joined = list[str](), False
    for place, value in enumerate(curve):
        if known := math.isfinite(value):
            x = EDGE + place / (len(curve) - 1) * (WIDTH - 2 * EDGE)
            y = HEIGHT - EDGE - (level(value) - low) / ((high - low) or 1) * (HEIGHT - 2 * EDGE)
            parts.append(f"{'L' if joined else 'M'}{x:.1f} {y:.1f}")
        joined = known
    path = Markup('<path d="{}"/>').format("".join(parts))
    return Markup('<svg class="spark" role="img" aria-label="loss over training" viewBox="0 0 {} {}">{}</svg>').format(
        WIDTH, HEIGHT, path
    )
