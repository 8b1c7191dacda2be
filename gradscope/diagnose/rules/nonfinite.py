"""Gradients that are NaN or infinite at the optimizer: their onset, and the records before it."""

from __future__ import annotations

import math

from gradscope.diagnose import loops, remedies
from gradscope.diagnose.frames import BEFORE, Frame, Tables
from gradscope.diagnose.onset import Onset, evidence, explain, find_onset
from gradscope.diagnose.words import number, percent, plural
from gradscope.types import Finding, LayerKey, Remedy

LASTING = 0.01
"""A larger share of the steps is no accident."""
SKIPPED, STEPS = 0.25, 20
"""A GradScaler that skips this share of so many steps finds no scale with finite gradients."""

RARE = 10
"""Not every batch makes the loss NaN if so many steps were finite before."""
OVERFLOWS = ("state", "recurrence")
BFLOAT16 = Remedy(
    "use bfloat16, with the range of float32, and no GradScaler",
    'with torch.autocast("cuda", dtype=torch.bfloat16):\n    loss = loss_of(model, batch)',
)
SAFE = Remedy(
    "keep roots, logarithms and divisions away from zero: there their gradient is infinite, and times zero NaN",
    "y = torch.sqrt(x.clamp(min=1e-8))  # log, norm and division alike",
)


def nonfinite_gradient(tables: Tables) -> list[Finding]:
    """Find optimizer steps with non-finite gradients, and a GradScaler that skips too many steps."""
    steps = tables["steps"]
    bad = steps[(steps["nonfinite"] > 0) & ~steps["skipped"].astype(bool)]
    if not len(bad):
        return _always_skipped(tables)
    first, share = int(bad["step"].min()), len(bad) / len(steps)
    forever = len(bad) == int((steps["step"] >= first).sum())
    onset = find_onset(tables, first)
    before = _before(tables, first, onset.key)
    return [
        Finding(
            code="nonfinite_gradient",
            severity="critical" if forever or share > LASTING else "warning",
            layer_key=onset.key,
            title=f"NaN or infinite gradients from step {first} on{onset.where}",
            explanation=" ".join(
                part for part in (_how_many(bad, len(steps), forever), explain(tables, onset), _course(before)) if part
            ),
            evidence={
                "steps": (first, int(bad["step"].max())),
                "count": len(bad),
                "share": share,
                "lasting": forever,
                **evidence(onset),
                **({"before": before} if before else {}),
            },
            remedies=_remedies(tables, onset),
        )
    ]


def _always_skipped(tables: Tables) -> list[Finding]:
    steps = tables["steps"]
    count, share = int(steps["skipped"].astype(bool).sum()), float(steps["skipped"].astype(bool).mean())
    if share < SKIPPED or len(steps) < STEPS:
        return []
    last = int(steps.loc[steps["skipped"].astype(bool), "step"].max())
    return [
        Finding(
            code="nonfinite_gradient",
            severity="critical" if share > 2 * SKIPPED else "warning",
            layer_key=None,
            title=f"the GradScaler skips {percent(share)} of the steps",
            explanation=(
                f"In {plural(count, 'step')} of {len(steps):,} the gradients were not finite, and the GradScaler "
                "skipped the step. A few such steps at the beginning are usual, while the GradScaler searches for a "
                "scale. So many mean that there is no such scale: the model computes infinity or NaN in 16-bit "
                "numbers, or the loss is not finite."
            ),
            evidence={"steps": (int(steps["step"].min()), last), "count": count, "share": share, "skipped": True},
            remedies=(BFLOAT16, loops.FIND_NONFINITE),
        )
    ]


def _how_many(bad: Frame, steps: int, forever: bool) -> str:
    first = int(bad["step"].min())
    why = (
        f"From step {first} on, {plural(len(bad), 'step')} of {steps:,} had NaN or infinite gradients in the "
        f"recurrent layers ({percent(len(bad) / steps)})."
    )
    if forever and len(bad) > 1:
        return f"{why} No later step was finite: the weights are lost, as an optimizer never recovers from NaN."
    return f"{why} Each such step can make the weights NaN as well."


def _before(tables: Tables, first: int, key: LayerKey | None) -> tuple[tuple[int, float, float, float], ...]:
    """Return step, gradient norm, and largest mean state and total gradient over t, of the last records before."""
    steps, frame = tables["steps"].drop_duplicates("step").set_index("step"), tables["timesteps"]
    if key is not None:
        same = (frame["module"] == key.module) & (frame["layer"] == key.layer) & (frame["direction"] == key.direction)
        frame = frame[same]
    course: list[tuple[int, float, float, float]] = []
    for step in [step for step in tables.records if step < first][-BEFORE:]:
        rows = frame[frame["step"] == step]
        sizes = [float(rows.loc[rows["quantity"] == quantity, "mean"].max()) for quantity in ("state", "grad_h")]
        norm = float(steps["grad_norm"].get(step, math.nan))
        course.append((step, norm, sizes[0], sizes[1]))
    return tuple(course)


def _course(before: tuple[tuple[int, float, float, float], ...]) -> str:
    if not before:
        return ""
    each = [f"step {step}: {number(norm)}, {number(state)}, {number(grad)}" for step, norm, state, grad in before]
    return f"The last records before it (gradient norm, largest state, largest dL/dh): {'; '.join(each)}."


def _remedies(tables: Tables, onset: Onset) -> tuple[Remedy, ...]:
    """Choose remedies by the onset. Clipping helps if gradients grew; a norm of NaN clips to NaN."""
    again = () if onset.step == onset.first else (loops.record_again(onset.first),)
    what = "" if onset.origin is None else onset.origin.what
    if onset.grew or what in OVERFLOWS:
        key = onset.key if onset.key is not None and remedies.can_be_initialised(tables, onset.key) else None
        start = () if key is None or onset.grew else (remedies.orthogonal(tables, key, 2),)
        return (*start, loops.clip(1.0), loops.rate(0.1), *again)
    if onset.in_loss and math.isnan(onset.loss):
        looks = (loops.look_at_batch(onset.first), loops.LEAVE_OUT, loops.FIND_NONFINITE, *again)
        rare = onset.first - int(tables["steps"]["step"].min()) >= RARE
        return (loops.SKIP, *looks) if rare else looks
    if onset.in_loss:
        return (loops.LEAVE_OUT, loops.ZERO_INFINITY, loops.look_at_batch(onset.first), *again)
    if what == "input" or what.startswith("argument "):
        return (loops.look_at_batch(onset.step or onset.first), loops.FIND_NONFINITE)
    return (SAFE, loops.FIND_NONFINITE, *again)
