"""Rows of `clips` that limit gradients, and the share of clipped steps."""

from __future__ import annotations

import math
from typing import Any

Frame = Any


def limiting(clips: Frame) -> Frame:
    """Return the rows of `clips` that limit gradients and are measured."""
    return clips[_limits(clips) & measured(clips)]


def measured(clips: Frame) -> Any:
    """Mark rows of measured calls: an unmeasured call has a NaN norm and no non-finite gradient."""
    return clips["norm_before"].notna() | (clips["nonfinite"] > 0)


def looked_at(steps: Frame) -> Any:
    """Mark rows of steps with a look at the gradients."""
    return steps["grad_norm"].notna() | (steps["nonfinite"] > 0)


def share(steps: Frame, clips: Frame) -> float:
    """Compute the share of steps with clipped gradients; NaN if unknown for all steps.

    Steps with an unmeasured call do not count. If only changes by hand clip, or nothing does, only steps with a look
    count.
    """
    each = [name for name in ("rank", "step") if name in steps]
    calls = clips[_limits(clips)]
    by_hand = bool((calls["kind"] == "modified").all())
    by_step: Frame = calls.assign(known=measured(calls)).groupby(each).agg({"clipped": "any", "known": "all"})
    counted = len(steps.loc[looked_at(steps) if by_hand else slice(None), each].drop_duplicates())
    counted -= 0 if by_hand else int((~by_step["known"]).sum())
    return float((by_step["clipped"] & by_step["known"]).sum() / counted) if counted else math.nan


def _limits(clips: Frame) -> Any:
    """Mark rows of calls that limit gradients.

    Scaling by hand is no limit, and a call with an infinite threshold only measures the norm, as Transformers does at
    every step.
    """
    by_hand = (clips["kind"] == "modified") & (clips["how"] != "clamped")
    return ~by_hand & (clips["threshold"] != math.inf)
