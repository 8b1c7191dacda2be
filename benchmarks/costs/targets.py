"""What a figure is held against."""

from __future__ import annotations

from costs.rounds import Ratio
from costs.steps import IDLE, IDLE_COST
from costs.workloads import Workload

DEFAULT = "default: attach(model, logdir), budget 1.5 %"
MEMORY = 2.0
CHEAPER = 1000.0
START_IMPORT, START_ATTACH = 0.05, 0.1

_TARGETS = {
    DEFAULT: 1.02,
    IDLE: 1.003,
    IDLE_COST: 1.003,
    "core, every=16, composed": 1.05,
    "core, every=16, whole blocks": 1.05,
    "core, every=64, composed": 1.02,
    "full, every=64, composed": 1.06,
}


def target(name: str, workload: Workload) -> float | None:
    """Largest ratio that is wanted of a variant, if any is."""
    if name == "core, every=1":
        return 1.35 if workload.H >= 256 else 1.8
    return _TARGETS.get(name)


def verdict(ratio: Ratio, wanted: float | None, digits: int = 3) -> str:
    """`met`, or by how much not; with two standard errors where they reach across the target."""
    if wanted is None:
        return ""
    over = ratio.median - wanted
    said = "met" if over <= 0 else f"missed by {over:.{digits}f}"
    if ratio.rounds < 2:
        return f"{said} (a single round)"
    return said if abs(over) > 2 * ratio.error else f"{said} (noise ±{2 * ratio.error:.{digits}f})"
