"""Gradients that are NaN or infinite when the optimizer gets them: where they were born, and what was before."""

from __future__ import annotations

import math

from gradscope.diagnose import loops, remedies
from gradscope.diagnose.births import Birth, birth, evidence, story
from gradscope.diagnose.frames import BEFORE, Frame, Seen
from gradscope.diagnose.words import number, percent, plural
from gradscope.types import Finding, LayerKey, Remedy

LASTING = 0.01
"""A larger share of the steps is no single accident."""
SKIPPED, STEPS = 0.25, 20
"""A GradScaler that skips so many of so many steps finds no scale at which gradients are finite."""


def nonfinite_gradient(seen: Seen) -> list[Finding]:
    """Find steps taken with gradients that are not finite, and a GradScaler that has to skip too many."""
    steps = seen["steps"]
    bad = steps[(steps["nonfinite"] > 0) & ~steps["skipped"].astype(bool)]
    if not len(bad):
        return _always_skipped(seen)
    first, share = int(bad["step"].min()), len(bad) / len(steps)
    forever = len(bad) == int((steps["step"] >= first).sum())
    born = birth(seen, first)
    before = _before(seen, first, born.key)
    return [
        Finding(
            code="nonfinite_gradient",
            severity="critical" if forever or share > LASTING else "warning",
            layer_key=born.key,
            title=f"NaN or infinite gradients from step {first} on{born.where}",
            explanation=" ".join(
                part for part in (_how_many(bad, len(steps), forever), story(seen, born), _course(before)) if part
            ),
            evidence={
                "steps": (first, int(bad["step"].max())),
                "count": len(bad),
                "share": share,
                "lasting": forever,
                **evidence(born),
                **({"before": before} if before else {}),
            },
            remedies=_remedies(seen, born),
        )
    ]


def _always_skipped(seen: Seen) -> list[Finding]:
    steps = seen["steps"]
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
                f"In {plural(count, 'step')} of {len(steps):,} the gradients were not finite, and the GradScaler left "
                "the step out. A few at the beginning are usual, while it looks for a scale. So many mean that there "
                "is none: the model makes infinity or NaN in 16-bit numbers, or the loss is not finite."
            ),
            evidence={"steps": (int(steps["step"].min()), last), "count": count, "share": share, "skipped": True},
            remedies=(_bfloat16(), loops.find_nonfinite()),
        )
    ]


def _bfloat16() -> Remedy:
    code = 'with torch.autocast("cuda", dtype=torch.bfloat16):\n    loss = loss_of(model, batch)'
    return loops.read("use bfloat16, whose range is that of float32, and no GradScaler", code)


def _how_many(bad: Frame, steps: int, forever: bool) -> str:
    first = int(bad["step"].min())
    why = (
        f"From step {first} on, {plural(len(bad), 'step')} of {steps:,} had NaN or infinite gradients in the "
        f"recurrent layers ({percent(len(bad) / steps)})."
    )
    if forever and len(bad) > 1:
        return f"{why} No later step was finite: the weights are lost, for an optimizer that is given NaN keeps it."
    return f"{why} Each such step can make the weights NaN as well."


def _before(seen: Seen, first: int, key: LayerKey | None) -> tuple[tuple[int, float, float, float], ...]:
    """Step, gradient norm, largest mean state and total gradient over t, of the last recorded steps before."""
    steps, frame = seen["steps"].drop_duplicates("step").set_index("step"), seen["timesteps"]
    if key is not None:
        same = (frame["module"] == key.module) & (frame["layer"] == key.layer) & (frame["direction"] == key.direction)
        frame = frame[same]
    found: list[tuple[int, float, float, float]] = []
    for step in [step for step in seen.records if step < first][-BEFORE:]:
        rows = frame[frame["step"] == step]
        sizes = [float(rows.loc[rows["quantity"] == quantity, "mean"].max()) for quantity in ("state", "grad_h")]
        norm = float(steps["grad_norm"].get(step, math.nan))
        found.append((step, norm, sizes[0], sizes[1]))
    return tuple(found)


def _course(before: tuple[tuple[int, float, float, float], ...]) -> str:
    if not before:
        return ""
    each = [f"step {step}: {number(norm)}, {number(state)}, {number(grad)}" for step, norm, state, grad in before]
    return f"The last records before it (gradient norm, largest state, largest dL/dh): {'; '.join(each)}."


OVERFLOWS = ("state", "recurrence")


def _remedies(seen: Seen, born: Birth) -> tuple[Remedy, ...]:
    """What follows from the birth. Clipping helps where gradients grew; a norm of NaN clips to NaN."""
    again = () if born.step == born.first else (loops.record_again(born.first),)
    what = "" if born.origin is None else born.origin.what
    if born.grew or what in OVERFLOWS:
        key = born.key if born.key is not None and remedies.can_be_initialised(seen, born.key) else None
        start = () if key is None or born.grew else (remedies.orthogonal(seen, key, 2),)
        return (*start, loops.clip(1.0), loops.rate(0.1), *again)
    if born.in_loss and math.isnan(born.loss):
        return (loops.look_at_batch(born.first), loops.leave_out(), loops.find_nonfinite(), *again)
    if born.in_loss:
        return (loops.leave_out(), loops.zero_infinity(), loops.look_at_batch(born.first), *again)
    if what == "input" or what.startswith("argument "):
        return (loops.look_at_batch(born.step or born.first), loops.find_nonfinite())
    return (_safe(), loops.find_nonfinite(), *again)


def _safe() -> Remedy:
    title = "keep roots, logarithms and divisions away from zero: their gradient there is infinite, even times zero"
    return loops.read(title, "y = torch.sqrt(x.clamp(min=1e-8))  # log, norm and division alike")
