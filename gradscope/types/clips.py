"""Which rows of `clips` are of calls that can clip, and what share of the steps was clipped."""

from __future__ import annotations

import math
from typing import Any

Frame = Any


def limiting(clips: Frame) -> Frame:
    """Those rows of a frame of `clips` that are of calls which limit gradients, and which were measured."""
    return clips[_limits(clips) & measured(clips)]


def measured(clips: Frame) -> Any:
    """Which rows know what the call did: the norm is NaN without anything that is not finite where nobody looked."""
    return clips["norm_before"].notna() | (clips["nonfinite"] > 0)


def looked_at(steps: Frame) -> Any:
    """Which rows of `steps` are of steps whose gradients were looked at."""
    return steps["grad_norm"].notna() | (steps["nonfinite"] > 0)


def share(steps: Frame, clips: Frame) -> float:
    """The share of the steps at which gradients were clipped; NaN where that is not known of any step.

    A step with a call that nobody measured is left out. Where only changes by hand clip, or nothing does, the steps
    that were looked at count.
    """
    each = [name for name in ("rank", "step") if name in steps]
    calls = clips[_limits(clips)]
    by_hand = bool((calls["kind"] == "modified").all())
    by_step: Frame = calls.assign(known=measured(calls)).groupby(each).agg({"clipped": "any", "known": "all"})
    counted = len(steps.loc[looked_at(steps) if by_hand else slice(None), each].drop_duplicates())
    counted -= 0 if by_hand else int((~by_step["known"]).sum())
    return float((by_step["clipped"] & by_step["known"]).sum() / counted) if counted else math.nan


def _limits(clips: Frame) -> Any:
    """Which rows are of calls that limit gradients.

    Gradients scaled by hand were not limited; a call whose threshold is infinite only measures their norm, as
    Transformers does at every step.
    """
    by_hand = (clips["kind"] == "modified") & (clips["how"] != "clamped")
    return ~by_hand & (clips["threshold"] != math.inf)
