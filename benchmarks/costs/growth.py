"""How the cost of a recorded step grows with the timesteps, the analysed sequences and the layers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from costs.rounds import WARM_UP, Variant, interleave
from costs.steps import FIRST, attached, timed_steps
from costs.workloads import Training, Workload

SIZES: dict[str, tuple[int, ...]] = {
    "timesteps": (64, 128, 256, 512),
    "analysed sequences": (8, 16, 32, 64),
    "layers": (1, 2, 3, 4),
}
FIELDS = {"timesteps": "T", "analysed sequences": "B", "layers": "layers"}
BASE = Workload("growth", "lstm", D=64, H=128, T=128, B=16)


@dataclass(frozen=True, slots=True)
class Growth:
    """What recording one step costs over a size, relative to the smallest.

    Attributes:
        sizes: the sizes.
        costs: of each, the smallest size's being 1; medians over the rounds.
        power: p of the best fit, cost = a size^p.
        straight: largest relative distance from the best straight line, cost = a + b size.
    """

    sizes: tuple[int, ...]
    costs: tuple[float, ...]
    power: float
    straight: float


def slope_and_intercept(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Of the straight line that least squares put through the points."""
    mx, my = statistics.fmean(x), statistics.fmean(y)
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)
    return slope, my - slope * mx


def fit(sizes: tuple[int, ...], seconds: Sequence[float]) -> Growth:
    """Both fits."""
    power, _ = slope_and_intercept([math.log(s) for s in sizes], [math.log(c) for c in seconds])
    slope, start = slope_and_intercept([float(s) for s in sizes], seconds)
    straight = max(abs((start + slope * s) / c - 1) for s, c in zip(sizes, seconds, strict=True))
    return Growth(sizes, tuple(c / seconds[0] for c in seconds), power, straight)


def measure_growth(what: str, seconds: float, base: Workload = BASE) -> Growth:
    """Time recorded less bare steps over the sizes, all in turn, the loss on every step.

    Args:
        what: which size, see `SIZES`.
        seconds: for all of it, roughly.
        base: everything else.
    """
    sizes = SIZES[what]
    variants: list[Variant] = []
    for size in sizes:
        workload = replace(base, **{FIELDS[what]: size})
        training = Training(workload, "every")
        around = partial(attached, training, every=timed_steps, first_step=FIRST - WARM_UP, max_sequences=None)
        variants += [
            Variant("bare", Training(workload, "every")),
            Variant("recorded", training, around),
        ]
    times = interleave(variants, seconds, steps=2)
    pairs = zip(times[::2], times[1::2], strict=True)
    return fit(sizes, [statistics.median(m - b for b, m in zip(bare, mine, strict=True)) for bare, mine in pairs])
