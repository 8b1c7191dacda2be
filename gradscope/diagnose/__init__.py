"""What a run says about its training: findings, the most probable root cause first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gradscope.diagnose.frames import Recorded, Seen, look_at
from gradscope.diagnose.order import root_causes_first
from gradscope.diagnose.ranks import merge_ranks
from gradscope.diagnose.rules.clipping import excessive_clipping, missing_clipping
from gradscope.diagnose.rules.dead import dead_units
from gradscope.diagnose.rules.detached import detached_state
from gradscope.diagnose.rules.exploding import exploding_gradient
from gradscope.diagnose.rules.nonfinite import nonfinite_gradient
from gradscope.diagnose.rules.saturated import saturated_gate
from gradscope.diagnose.rules.vanishing import vanishing_gradient
from gradscope.diagnose.trend import too_few
from gradscope.diagnose.words import plural
from gradscope.types import Finding

__all__ = ["RULES", "Recorded", "Seen", "diagnose", "look_at", "merge_ranks", "root_causes_first"]

RULES: Sequence[Callable[[Seen], list[Finding]]] = (
    detached_state,
    dead_units,
    saturated_gate,
    exploding_gradient,
    nonfinite_gradient,
    missing_clipping,
    excessive_clipping,
    vanishing_gradient,
)
"""One rule for each code, in the order in which they cause each other."""


def diagnose(run: Recorded) -> list[Finding]:
    """What is wrong with a training, or that nothing is.

    Args:
        run: a `Run`, finished or live.

    Returns:
        Findings, the most probable root cause first; `healthy` alone where no rule has any.
    """
    seen = look_at(run)
    found = [finding for rule in RULES for finding in rule(seen)]
    return root_causes_first(found) if found else [healthy(seen)]


def healthy(seen: Seen) -> Finding:
    """That no rule has found anything, and in how much."""
    records, steps = len(seen.records), len(seen["steps"])
    told = f"{records} recorded of {steps:,} steps" if records else "no recorded step"
    return Finding(
        code="healthy",
        severity="info",
        layer_key=None,
        title="nothing was found" if records else "nothing was recorded",
        explanation=f"No rule has found a fault in {told}, in {plural(len(seen.first_chains), 'recurrence')}."
        + too_few(seen),
        evidence={"records": records, "steps": (seen.records[0], seen.records[-1]) if records else ()},
    )
