"""What a figure is held against."""

from __future__ import annotations

import math

from costs.default import Default
from costs.rounds import Ratio
from costs.steps import IDLE
from costs.workloads import WORKLOADS, Workload

SHARE, ALLOWANCE_S = 0.015, 1.0
CHEAP_RECORD_S = 0.013
OPERATIONS = 6
KEEPING = {"detach", "_local_scalar_dense"}  # the second is reading a number
MEMORY = 2.0
CHEAPER = 1000.0
START_IMPORT, START_ATTACH = 0.05, 0.1

_TARGETS = {
    IDLE: 1.003,
    "core, every=16, composed": 1.05,
    "core, every=16, whole blocks": 1.05,
    "core, every=64, composed": 1.02,
    "full, every=64, composed": 1.06,
}
_EVERY_STEP = {"economy, every=1": (1.25, 1.6), "core, every=1": (1.45, 2.0)}
"""With 256 units, and with fewer."""


def target(name: str, workload: Workload) -> float | None:
    """Largest ratio that is wanted of a variant, if any is."""
    if name in _EVERY_STEP:
        large, small = _EVERY_STEP[name]
        return large if workload.H >= 256 else small
    return _TARGETS.get(name)


def records(found: Default) -> int:
    """How many records a run should have.

    The contract's: 35 of 100 steps and 70 of 3,000, where a record costs under 13 ms, and in between as many to each
    doubling; else as many of them as a second and the share pay.
    """
    wanted = 35 + 35 * math.log(found.steps / 100, 30)
    if found.record_s > CHEAP_RECORD_S:
        wanted = min(wanted, allowed_s(found) / found.record_s)
    return min(found.steps, max(1, int(wanted)))


def allowed_s(found: Default) -> float:
    """Seconds that a run may take longer."""
    return SHARE * found.bare_s + ALLOWANCE_S


def idle_goal(workload: Workload) -> float | None:
    """Largest ratio that is wanted of an idle step; of the small trainings, of the smallest."""
    return _TARGETS[IDLE] if workload.key in WORKLOADS else 1.02 if workload.clip else None


def default_verdicts(found: Default, idle: float | None) -> str:
    """What is not met, all of it.

    Args:
        found: a run.
        idle: largest ratio of an idle step that is wanted, if any is.
    """
    said = [f"records missed by {short}"] if (short := records(found) - found.recorded) > 0 else []
    if (over := found.extra_s - allowed_s(found)) > 0:
        noise = 2 * found.extra_error_s
        said += [f"extra time missed by {over:.1f} s" + (f" (noise ±{noise:.1f})" if over < noise else "")]
    if not math.isnan(found.added) and "missed" in (ratio := verdict(found.idle, idle, 4)):
        said += [f"idle {ratio}"]
    if (extra := set(found.operations) - KEEPING) or found.operations.total() > OPERATIONS:
        said += [f"operations missed by {', '.join(sorted(extra)) or found.operations.total() - OPERATIONS}"]
    return "; ".join(said) or "met"


def verdict(ratio: Ratio, wanted: float | None, digits: int = 3) -> str:
    """`met`, or by how much not; with two standard errors where they reach across the target."""
    if wanted is None:
        return ""
    over = ratio.median - wanted
    said = "met" if over <= 0 else f"missed by {over:.{digits}f}"
    if ratio.rounds < 2:
        return f"{said} (a single round)"
    return said if abs(over) > 2 * ratio.error else f"{said} (noise ±{2 * ratio.error:.{digits}f})"
