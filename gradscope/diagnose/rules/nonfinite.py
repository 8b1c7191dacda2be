"""Gradients that are NaN or infinite when the optimizer gets them."""

from __future__ import annotations

from gradscope.diagnose import remedies
from gradscope.diagnose.frames import Seen
from gradscope.diagnose.words import percent, plural
from gradscope.types import Finding

LASTING = 0.01
"""A larger share of the steps is no single accident."""


def nonfinite_gradient(seen: Seen) -> list[Finding]:
    """Find steps taken with gradients that are not finite; those that a GradScaler skipped are its business."""
    steps = seen["steps"]
    bad = steps[(steps["nonfinite"] > 0) & ~steps["skipped"].astype(bool)]
    if not len(bad):
        return []
    first, share = int(bad["step"].min()), len(bad) / len(steps)
    after = steps[steps["step"] >= first]
    forever = len(bad) == len(after)
    why = (
        f"From step {first} on, {plural(len(bad), 'step')} of {len(steps):,} had NaN or infinite gradients in the "
        f"recurrent layers ({percent(share)})."
    )
    if forever and len(after) > 1:
        why += " No later step was finite: the weights are lost, for an optimizer that is given NaN keeps it."
    else:
        why += " Each such step can make the weights NaN as well."
    return [
        Finding(
            code="nonfinite_gradient",
            severity="critical" if forever or share > LASTING else "warning",
            layer_key=None,
            title=f"NaN or infinite gradients from step {first} on",
            explanation=why,
            evidence={"steps": (first, int(bad["step"].max())), "count": len(bad), "share": share, "lasting": forever},
            remedies=(remedies.find_nonfinite(), remedies.clip(1.0), remedies.lower_rate()),
        )
    ]
