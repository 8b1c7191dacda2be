"""Gradients that are NaN or infinite when the optimizer gets them: where they were born, and what was before."""

from __future__ import annotations

import math
from typing import Any

from gradscope.diagnose import remedies
from gradscope.diagnose.frames import BEFORE, Frame, Seen
from gradscope.diagnose.words import number, percent, place, plural
from gradscope.types import Finding, LayerKey, Origin

LASTING = 0.01
"""A larger share of the steps is no single accident."""
LOST = "gradients are not finite at the optimizer: "
"""How the note of a step begins that tells whose gradients they were."""
MEANING = {
    "input": "the layer was given them: look at the data, or at what is below the layer",
    "initial state": "the layer was given an initial state with them",
    "state between calls": "the training loop made them of a finite state, between two calls",
    "state": "everything the step was given was finite, and what it made of that was not: numbers have overflowed",
    "output": "all that the module was given was finite, and what it made of that was not",
    "gradient from above": "states are finite, and the gradient enters the layer like that: they are born in the loss "
    "or in what is between it and the layer, as by the root or logarithm of zero",
    "recurrence": "states are finite and so is what enters, and on the way back through time it is so no longer: "
    "gradients have overflowed",
    "way back": "what went through the module is finite and so is the gradient that enters it, and the one that it "
    "hands down is not: a root or logarithm of zero within it, or an overflow",
}
Born = tuple[int, LayerKey, Origin]


def nonfinite_gradient(seen: Seen) -> list[Finding]:
    """Find steps taken with gradients that are not finite; those that a GradScaler skipped are its business."""
    steps = seen["steps"]
    bad = steps[(steps["nonfinite"] > 0) & ~steps["skipped"].astype(bool)]
    if not len(bad):
        return []
    first, share = int(bad["step"].min()), len(bad) / len(steps)
    forever = len(bad) == int((steps["step"] >= first).sum())
    evidence: dict[str, Any] = {"steps": (first, int(bad["step"].max())), "count": len(bad), "share": share}
    evidence["lasting"] = forever
    born, why = _born(seen, first), [_how_many(bad, len(steps), forever)]
    key = None if born is None else born[1]
    if born is not None:
        why.append(_story(seen, first, *born))
        evidence |= _told(*born)
    elif (lost := _lost(seen, first)) is not None:
        key, reason = lost
        why.append(f"Step {first} was not recorded; at its end {_where(seen, key)} had {reason.removeprefix(LOST)}.")
        evidence["parameters"] = reason.removeprefix(LOST)
    before = _before(seen, first, key)
    if before:
        evidence["before"] = before
        why.append(_course(before))
    where = "" if born is None else f", born in the {born[2].phase} pass"
    return [
        Finding(
            code="nonfinite_gradient",
            severity="critical" if forever or share > LASTING else "warning",
            layer_key=key,
            title=f"NaN or infinite gradients from step {first} on{where}",
            explanation=" ".join(why),
            evidence=evidence,
            remedies=_remedies(first, born),
        )
    ]


def _how_many(bad: Frame, steps: int, forever: bool) -> str:
    first = int(bad["step"].min())
    why = (
        f"From step {first} on, {plural(len(bad), 'step')} of {steps:,} had NaN or infinite gradients in the "
        f"recurrent layers ({percent(len(bad) / steps)})."
    )
    if forever and len(bad) > 1:
        return f"{why} No later step was finite: the weights are lost, for an optimizer that is given NaN keeps it."
    return f"{why} Each such step can make the weights NaN as well."


def _born(seen: Seen, first: int) -> Born | None:
    """The first record of a birth, from the first such step on."""
    notes = seen["notes"]
    for row in notes[notes["step"] >= first].sort_values("step", kind="stable").itertuples(index=False):
        origin = Origin.read(str(row.reason))
        if origin is not None:
            return int(row.step), _key(row), origin
    return None


def _lost(seen: Seen, first: int) -> tuple[LayerKey, str] | None:
    """Whose gradients they were, at a step that was not recorded."""
    notes = seen["notes"]
    rows = notes[(notes["step"] == first) & notes["reason"].str.startswith(LOST)]
    return next(((_key(row), str(row.reason)) for row in rows.itertuples(index=False)), None)


def _key(row: Any) -> LayerKey:
    return LayerKey(str(row.module), int(row.layer), row.direction, int(row.chain))


def _where(seen: Seen, key: LayerKey) -> str:
    alone = len({k[1:3] for k in seen.keys if k.module == key.module}) < 2
    return place(key, alone)


def _story(seen: Seen, first: int, step: int, key: LayerKey, origin: Origin) -> str:
    """One paragraph: where, when, and what that means."""
    gate = f", gate {origin.gate}" if origin.gate else ""
    when = "" if origin.t is None else f" at t = {origin.t}"
    when += "" if origin.sequence is None else f" of sequence {origin.sequence}"
    among = f"{origin.sequences} of {origin.analysed} {'' if origin.entire else 'analysed '}sequences"
    given = origin.what.startswith("argument ")
    meaning = MEANING["input"] if given else MEANING.get(origin.what, "the weights themselves are not finite")
    told = (
        f"At step {step} they begin in the {origin.phase} pass of {_where(seen, key)}: {origin.what}{gate}{when}, in "
        f"{among}; {meaning}."
    )
    if step == first:
        return told
    lost = _lost(seen, first)
    whose = "" if lost is None else f" (there {_where(seen, lost[0])}: {lost[1].removeprefix(LOST)})"
    return f"Step {first} itself was not recorded{whose}. {told}"


def _told(step: int, key: LayerKey, origin: Origin) -> dict[str, Any]:
    """The same as evidence."""
    told: dict[str, Any] = {"born_step": step, "phase": origin.phase, "what": origin.what}
    told |= {"layer": key.layer, "direction": key.direction}
    told |= {"gate": origin.gate} if origin.gate else {}
    told |= {} if origin.sequence is None else {"sequence": origin.sequence}
    return told if origin.t is None else {**told, "timesteps": (origin.t, origin.t)}


def _before(seen: Seen, first: int, key: LayerKey | None) -> tuple[tuple[int, float, float, float], ...]:
    """Step, gradient norm, largest mean state and total gradient over t, of the last recorded steps before."""
    steps, frame = seen["steps"].set_index("step"), seen["timesteps"]
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
    each = [f"step {step}: {number(norm)}, {number(state)}, {number(grad)}" for step, norm, state, grad in before]
    return f"The last records before it (gradient norm, largest state, largest dL/dh): {'; '.join(each)}."


def _remedies(first: int, born: Born | None) -> tuple[Any, ...]:
    again = () if born is not None and born[0] == first else (remedies.record_again(first),)
    return (*again, remedies.find_nonfinite(), remedies.clip(1.0), remedies.lower_rate())
