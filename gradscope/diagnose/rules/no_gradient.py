"""Recurrent modules, layers or directions that no gradient ever enters: what they return does not lead to the loss."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnose import loops
from gradscope.diagnose.frames import Frame, Seen
from gradscope.diagnose.progress import broken, learning, severity
from gradscope.diagnose.rules.detached import cut_within_steps
from gradscope.diagnose.trend import by_step, rests_on, span
from gradscope.diagnose.words import place, plural, typed
from gradscope.types import Finding, LayerKey, Remedy, Severity
from gradscope.types.notes import NO_GRADIENT

NEARLY_ALWAYS = 0.9
"""Share of the recorded steps in which no gradient came."""
LATELY = 0.5
"""Or of the later half of them, where there was some at first."""


def no_gradient(seen: Seen) -> list[Finding]:
    """Find modules that are called and get no gradient back, and those that get exactly zero, in whole or in part."""
    if broken(seen):
        return []
    return [*_unheard(seen), *_zero(seen)]


# --- a call from which no way leads to the loss


def _unheard(seen: Seen) -> Iterator[Finding]:
    notes, records = seen["notes"], seen.recorded
    told = notes[notes["reason"].str.startswith(NO_GRADIENT)]
    for module, rows in told.groupby("module", sort=False):
        steps, heard = rows["step"].nunique(), _heard(seen, str(module))
        if steps >= NEARLY_ALWAYS * max(records, steps + heard):
            yield _of_call(seen, str(module), int(steps), (int(rows["step"].min()), int(rows["step"].max())))


def _heard(seen: Seen, module: str) -> int:
    """In how many of the records that are looked at it did get gradient."""
    return int(seen["layers"].loc[seen["layers"]["module"] == module, "step"].nunique())


def _of_call(seen: Seen, module: str, count: int, steps: tuple[int, int]) -> Finding:
    name = typed(module)
    return Finding(
        code="no_gradient",
        severity="critical" if learning(seen).fails else "warning",
        layer_key=LayerKey(module, 0, "forward", 0),
        title=f"{name}: it is called, and no gradient comes back",
        explanation=(
            f"{name} was called in {plural(count, 'observed step')} (steps {steps[0]} to {steps[1]}), "
            "and no gradient came back to it. Nothing that it returns leads to the loss, so it learns nothing. What "
            "reads it gets nothing from it by learning. Its output or final state may be dropped, overwritten, "
            "detached, or turned into numbers on the way (argmax, rounding, .item(), numpy). "
            f"{learning(seen).sentence}"
        ),
        evidence={"steps": steps, "count": count, **learning(seen).evidence},
        remedies=(_hand_on(module), _where_it_ends(module)),
    )


def _hand_on(module: str) -> Remedy:
    code = f"output, state = {typed(module)}(x)  # and hand output or state on to what the loss is made of"
    return loops.read("hand on what it returns: a decoder begins from the encoder's state, not from zeros", code)


def _where_it_ends(module: str) -> Remedy:
    code = f"print({typed(module)}(x)[0].requires_grad, loss.grad_fn)  # then the same for each tensor in between"
    return loops.read("follow the way from its output to the loss: the first tensor without a grad_fn ends it", code)


# --- gradients that are exactly zero


def _zero(seen: Seen) -> Iterator[Finding]:
    cut = cut_within_steps(seen)
    for module, keys in seen.modules_seen:
        if module in cut:
            continue
        since = {key: _zero_since(seen, key) for key in keys}
        silent = [key for key in keys if since[key] is not None]
        if silent:
            yield _of_zero(seen, silent, since[silent[0]] or 0, whole=len(silent) == len(keys))


def _zero_since(seen: Seen, key: LayerKey) -> int | None:
    """The step since when nothing at all enters a recurrence; None where something does."""
    sizes = _sizes(seen, key)
    if not len(sizes) or not np.isfinite(sizes.to_numpy()).any():
        return None
    nonzero = sizes[(sizes != 0) & sizes.notna()]
    if not len(nonzero):
        return int(sizes.index[0])
    later = sizes[sizes.index > nonzero.index[-1]]
    lately = seen["steps"]["step"].max() - nonzero.index[-1] >= LATELY * (sizes.index[-1] - sizes.index[0])
    return int(later.index[0]) if len(later) >= 3 and lately else None


def _sizes(seen: Seen, key: LayerKey) -> Frame:
    """The largest total gradient of its state by record: also what enters an LSTM by its cell state comes to it."""
    rows = seen.of("timesteps", key)
    return by_step(rows[(rows["quantity"] == "grad_h") & np.isfinite(rows["mean"])], "mean", "max")


def _of_zero(seen: Seen, silent: list[LayerKey], since: int, *, whole: bool) -> Finding:
    key, started = silent[0], since <= seen.records[0]
    named = typed(key.module) if whole else " and ".join(place(one, False) for one in silent[:2])
    when = "" if started else f" from step {since} on"
    level: Severity = severity(seen)
    if whole:
        level = "critical" if not learning(seen).learns else "warning"
    return Finding(
        code="no_gradient",
        severity=level,
        layer_key=key,
        title=f"{named}: the gradient that enters is exactly zero{when}",
        explanation=_explained(seen, named, when, whole) + rests_on(seen, key),
        evidence={"steps": span(seen), "since": since, "whole": whole, **learning(seen).evidence},
        remedies=_remedies(key, whole=whole, started=started),
    )


def _explained(seen: Seen, named: str, when: str, whole: bool) -> str:
    why = f"Not one number of the loss gradient that enters {named} differs from zero{when}, at any timestep. "
    if whole:
        why += (
            "What stands between it and the loss lets nothing pass: a softmax over a single unit is always 1, a ReLU "
            "that is never positive always 0, a clamp or saturated sigmoid flat, a mask or a weight of the loss zero. "
        )
    else:
        why += (
            "What this part computes is not read: the loss is made from other layers or the other direction alone. "
            "`h_n[0]` is the first layer's state, and of two directions `h_n[-1]` that of the reverse one alone. "
        )
    return why + learning(seen).sentence


def _remedies(key: LayerKey, *, whole: bool, started: bool) -> tuple[Remedy, ...]:
    if not whole:
        code = (
            f"output, h_n = {typed(key.module)}(x)  # h_n[-1], or torch.cat([h_n[-2], h_n[-1]], -1) of two directions"
        )
        return (loops.read("read the uppermost layer, and both directions", code),)
    sigmoid = loops.read(
        "for two classes and one unit, use a sigmoid in place of the softmax",
        "loss = torch.nn.functional.binary_cross_entropy_with_logits(score, target)",
    )
    last = loops.read(
        "leave out the ReLU behind the last layer, clamps and masks, one by one", "output = model.out(state)"
    )
    return (sigmoid, last) if started else (last, loops.rate(0.1))
